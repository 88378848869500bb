# Which items belong to which range of digests: a trie with fanout 16 over positions, which are keyed hashes. A range is
# a chain while it has at most LEAF_ITEMS items and a branch otherwise, whatever came in which order: two nodes with
# the same items have the same trie. Keeps no positions, which are cheap to compute and would cost 8 bytes a record.

from libc.stdint cimport uint16_t, uint64_t
from libc.string cimport memset

from kmscore._cell cimport Branch, Cell, Item, Space, Trie, cell_key, cell_of
from kmscore._memory cimport Memory, claim, release
from kmscore._siphash cimport siphash24


cdef enum:
    FANOUT = 16
    DEPTH = 16       # nibbles of a position
    LEAF_ITEMS = 32  # a branch costs 400 bytes: at most 12 a record, mostly far less


cdef enum Insertion:
    INSERTION_DONE
    INSERTION_NO_MEMORY
    INSERTION_NO_ROOM  # 32 items share all 64 bits of the position, which takes somebody who knows the key


# The branches from the top down to where a position lies.
cdef struct Path:
    Branch *branches[DEPTH]
    size_t depth


cdef inline uint64_t position_of(const Trie *trie, const Item *item) noexcept nogil:
    cdef Cell *cell
    if trie.of_spaces:
        return (<Space *>item).position
    cell = cell_of(item)
    return siphash24(trie.key, cell_key(cell), cell.node.size)


cdef inline size_t nibble(uint64_t position, size_t depth) noexcept nogil:
    return <size_t>(position >> (60 - 4 * depth)) & 15


cdef inline uint16_t slot_bit(uint64_t position, size_t depth) noexcept nogil:
    return <uint16_t>(1 << nibble(position, depth))


cdef inline Path descend(const Trie *trie, uint64_t position) noexcept nogil:
    cdef Path path
    cdef Branch *branch = trie.top
    path.depth = 0
    while branch != NULL:
        path.branches[path.depth] = branch
        if branch.branches & slot_bit(position, path.depth):
            branch = <Branch *>branch.slots[nibble(position, path.depth)]
        else:
            branch = NULL
        path.depth += 1
    return path


cdef inline Item **chain_at(Trie *trie, const Path *path, uint64_t position) noexcept nogil:
    if path.depth == 0:
        return &trie.chain
    return <Item **>&path.branches[path.depth - 1].slots[nibble(position, path.depth - 1)]


# What is known of every range that holds the position is out of date.
cdef inline void mark_stale(Trie *trie, const Path *path, uint64_t position) noexcept nogil:
    cdef size_t depth
    for depth in range(path.depth):
        path.branches[depth].stale |= slot_bit(position, depth)
    trie.stale = True


cdef inline void trie_touch(Trie *trie, const Item *item) noexcept nogil:
    cdef uint64_t position = position_of(trie, item)
    cdef Path path = descend(trie, position)
    mark_stale(trie, &path, position)


# Turns a branch with all below it into one chain in front of `chain`.
cdef inline Item *gather(Branch *branch, Memory *memory, Item *chain) noexcept nogil:
    cdef size_t slot
    cdef Item *item
    cdef Item *following
    for slot in range(<size_t>FANOUT):
        if branch.branches & (1 << slot):
            chain = gather(<Branch *>branch.slots[slot], memory, chain)
            continue
        item = <Item *>branch.slots[slot]
        while item != NULL:
            following = item.next
            item.next = chain
            chain = item
            item = following
    release(memory, branch)
    return chain


# Makes chains of branches on the path that have too few items.
cdef inline void join_leaves(Trie *trie, Memory *memory, const Path *path, uint64_t position) noexcept nogil:
    cdef size_t depth
    cdef Branch *above
    for depth in range(path.depth):
        if path.branches[depth].count > LEAF_ITEMS:
            continue
        if depth == 0:
            trie.top = NULL
            trie.chain = gather(path.branches[0], memory, NULL)
        else:
            above = path.branches[depth - 1]
            above.branches &= <uint16_t>~slot_bit(position, depth - 1)
            above.slots[nibble(position, depth - 1)] = gather(path.branches[depth], memory, NULL)
        return


# Makes a branch of the chain at the end of the path, which grows by it. False: out of memory, nothing has changed.
cdef inline bint split_leaf(Trie *trie, Memory *memory, Path *path, uint64_t position) noexcept nogil:
    cdef Branch *branch = <Branch *>claim(memory, sizeof(Branch))
    cdef Item **link = chain_at(trie, path, position)
    cdef Item *item = link[0]
    cdef Item *following
    cdef size_t slot
    if branch == NULL:
        return False
    memset(branch, 0, sizeof(Branch))
    branch.stale = 0xFFFF
    while item != NULL:
        following = item.next
        slot = nibble(position_of(trie, item), path.depth)
        item.next = <Item *>branch.slots[slot]
        branch.slots[slot] = item
        branch.count += 1
        item = following
    if path.depth == 0:
        trie.chain = NULL
        trie.top = branch
    else:
        link[0] = <Item *>branch
        path.branches[path.depth - 1].branches |= slot_bit(position, path.depth - 1)
    path.branches[path.depth] = branch
    path.depth += 1
    return True


cdef inline size_t chain_length(const Item *item) noexcept nogil:
    cdef size_t length = 0
    while item != NULL:
        length += 1
        item = item.next
    return length


# Puts in an item that is not there yet, or changes nothing.
cdef inline Insertion trie_insert(Trie *trie, Memory *memory, Item *item) noexcept nogil:
    cdef uint64_t position = position_of(trie, item)
    cdef Path path = descend(trie, position)
    cdef Item **link
    cdef size_t depth
    while chain_length(chain_at(trie, &path, position)[0]) == LEAF_ITEMS:
        if path.depth == DEPTH or not split_leaf(trie, memory, &path, position):
            join_leaves(trie, memory, &path, position)
            return INSERTION_NO_ROOM if path.depth == DEPTH else INSERTION_NO_MEMORY
    link = chain_at(trie, &path, position)
    item.next = link[0]
    link[0] = item
    trie.count += 1
    for depth in range(path.depth):
        path.branches[depth].count += 1
    mark_stale(trie, &path, position)
    return INSERTION_DONE


cdef inline void trie_remove(Trie *trie, Memory *memory, Item *item) noexcept nogil:
    cdef uint64_t position = position_of(trie, item)
    cdef Path path = descend(trie, position)
    cdef Item **link = chain_at(trie, &path, position)
    cdef size_t depth
    while link[0] != item:
        link = &link[0].next
    link[0] = item.next
    item.next = NULL
    trie.count -= 1
    for depth in range(path.depth):
        path.branches[depth].count -= 1
    mark_stale(trie, &path, position)
    join_leaves(trie, memory, &path, position)


# Empties the trie and hands out its items, in time proportional to them.
cdef inline Item *trie_drain(Trie *trie, Memory *memory) noexcept nogil:
    cdef Item *chain = trie.chain
    if trie.top != NULL:
        chain = gather(trie.top, memory, NULL)
    trie.top = NULL
    trie.chain = NULL
    trie.count = 0
    trie.stale = True
    return chain
