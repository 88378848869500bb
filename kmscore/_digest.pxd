# The digests of store §5 over the live records: keyed BLAKE3, 16 bytes each, brought up to date on demand and in slices.
#
#     record  02 ‖ app id (32) ‖ key size (4) ‖ key ‖ updated_at_ms (8) ‖ ttl_ms (8) ‖ entries (4)
#                ‖ for each writer, by name: name size (1) ‖ name ‖ counter (8)
#                ‖ the value: 01 ‖ bytes up to 512 of them, else 02 ‖ digest of 05 ‖ bytes
#     leaf    03 ‖ the digests of its records (or namespaces), in ascending order
#     branch  04 ‖ the digests of its sixteen ranges, in order
#
# Numbers are big-endian. A range without records is sixteen zero bytes; a namespace is the digest of all its records.
# Keyed BLAKE3 of 01 ‖ app id (32) gives 16 bytes, the SipHash key for the positions of that namespace's keys, and 8, its
# own position (little-endian, as SipHash is).

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from kmscore._blake3 cimport KEYED_HASH, State, absorb, squeeze, start_with_key
from kmscore._cell cimport (
    CLOCK_OUTSIDE,
    DIGEST_BYTES,
    LARGE_VALUE,
    LIVE,
    VALUE_HASHED,
    Branch,
    Cell,
    Item,
    PyBytes_AS_STRING,
    Space,
    Trie,
    cell_clock,
    cell_key,
    cell_of,
    log_after,
    tower,
    value_size,
)
from kmscore._index cimport NOTICES_UNDER_PRESSURE, Core, notice_expired, uncount_cell
from kmscore._trie cimport (
    DEPTH,
    FANOUT,
    INSERTION_DONE,
    INSERTION_NO_MEMORY,
    LEAF_ITEMS,
    Insertion,
    nibble,
    position_of,
    trie_drain,
    trie_insert,
    trie_remove,
    trie_touch,
)
from kmscore._vclock cimport ClockEntry, writer_name


cdef enum:
    SPACE_TAG = 1
    RECORD_TAG = 2
    LEAF_TAG = 3
    BRANCH_TAG = 4
    VALUE_TAG = 5
    SHORT_VALUE = 1  # the value itself follows
    LONG_VALUE = 2   # its digest


cdef enum Progress:
    PROGRESS_DONE
    PROGRESS_MORE
    PROGRESS_NO_MEMORY


# A range of a trie: the positions that begin with these nibbles.
cdef struct Range:
    Trie *trie
    uint64_t start
    size_t nibbles


# Where a range lies: either it is a branch, or its items are among those of one chain.
cdef struct Found:
    Branch *branch
    Item *chain


# --- hashing ---

cdef inline void begin(const Core *core, State *state, uint8_t tag) noexcept nogil:
    start_with_key(state, core.digests.key, KEYED_HASH)
    absorb(state, &tag, 1)


cdef inline void absorb_number(State *state, uint64_t number, size_t size) noexcept nogil:
    cdef uint8_t encoded[8]
    cdef size_t i
    for i in range(size):
        encoded[i] = <uint8_t>(number >> (8 * (size - 1 - i)) & 0xFF)
    absorb(state, encoded, size)


# The digest of a large value, made once for each change; there is room for it behind the clock.
cdef inline const uint8_t *large_value_digest(const Core *core, Cell *cell) noexcept nogil:
    cdef State state
    cdef uint8_t *digest = <uint8_t *>&cell_clock(cell)[cell.entries]
    if not cell.clock_flags & VALUE_HASHED:
        begin(core, &state, VALUE_TAG)
        absorb(&state, <const uint8_t *>PyBytes_AS_STRING(cell.value), value_size(cell))
        squeeze(&state, digest, DIGEST_BYTES)
        cell.clock_flags |= VALUE_HASHED
    return digest


cdef inline void hash_record(const Core *core, Cell *cell, uint8_t *digest) noexcept nogil:
    cdef State state
    cdef size_t i
    cdef ClockEntry *clock = cell_clock(cell)
    cdef ClockEntry *entry
    begin(core, &state, RECORD_TAG)
    absorb(&state, cell.space.app, sizeof(cell.space.app))
    absorb_number(&state, cell.node.size, 4)
    absorb(&state, <const uint8_t *>cell_key(cell), cell.node.size)
    absorb_number(&state, <uint64_t>cell.updated_at_ms, 8)
    absorb_number(&state, <uint64_t>cell.ttl_ms, 8)
    absorb_number(&state, cell.entries, 4)
    for i in range(cell.entries):
        entry = &clock[i]
        absorb_number(&state, entry.writer.node.size, 1)
        absorb(&state, <const uint8_t *>writer_name(entry.writer), entry.writer.node.size)
        absorb_number(&state, <uint64_t>entry.counter, 8)
    if value_size(cell) > LARGE_VALUE:
        absorb_number(&state, LONG_VALUE, 1)
        absorb(&state, large_value_digest(core, cell), DIGEST_BYTES)
    else:
        absorb_number(&state, SHORT_VALUE, 1)
        absorb(&state, <const uint8_t *>PyBytes_AS_STRING(cell.value), value_size(cell))
    squeeze(&state, digest, DIGEST_BYTES)


cdef inline void hash_item(const Core *core, const Trie *trie, Item *item, uint8_t *digest) noexcept nogil:
    if trie.of_spaces:
        memcpy(digest, (<Space *>item).trie.digest, DIGEST_BYTES)
    else:
        hash_record(core, cell_of(item), digest)


cdef inline void hash_digests(
    const Core *core, uint8_t tag, const uint8_t *digests, size_t count, uint8_t *digest
) noexcept nogil:
    cdef State state
    if count == 0:
        memset(digest, 0, DIGEST_BYTES)
        return
    begin(core, &state, tag)
    absorb(&state, digests, count * DIGEST_BYTES)
    squeeze(&state, digest, DIGEST_BYTES)


# Into ascending order, by insertion: there are at most LEAF_ITEMS.
cdef inline void sort_digests(uint8_t *digests, size_t count) noexcept nogil:
    cdef uint8_t moving[DIGEST_BYTES]
    cdef size_t i
    cdef size_t at
    for i in range(1, count):
        memcpy(moving, &digests[i * DIGEST_BYTES], DIGEST_BYTES)
        at = i
        while at > 0 and memcmp(&digests[(at - 1) * DIGEST_BYTES], moving, DIGEST_BYTES) > 0:
            memcpy(&digests[at * DIGEST_BYTES], &digests[(at - 1) * DIGEST_BYTES], DIGEST_BYTES)
            at -= 1
        memcpy(&digests[at * DIGEST_BYTES], moving, DIGEST_BYTES)


# The digest of the items of a chain that lie in one range of `nibbles` nibbles, or of all with 0 nibbles.
cdef inline void hash_leaf(
    const Core *core, const Trie *trie, Item *item, uint64_t start, size_t nibbles, uint8_t *digest
) noexcept nogil:
    cdef uint8_t digests[LEAF_ITEMS * DIGEST_BYTES]
    cdef size_t count = 0
    while item != NULL:
        if lies_in(trie, item, start, nibbles):
            hash_item(core, trie, item, &digests[count * DIGEST_BYTES])
            count += 1
        item = item.next
    sort_digests(digests, count)
    hash_digests(core, LEAF_TAG, digests, count, digest)


cdef inline bint lies_in(const Trie *trie, const Item *item, uint64_t start, size_t nibbles) noexcept nogil:
    if nibbles == 0:
        return True
    return (position_of(trie, item) ^ start) >> (64 - 4 * nibbles) == 0


# --- what is counted ---

# The keys of a namespace's positions, before its first record is counted.
cdef inline void prepare_space(const Core *core, Space *space) noexcept nogil:
    cdef State state
    cdef uint8_t derived[24]
    begin(core, &state, SPACE_TAG)
    absorb(&state, space.app, sizeof(space.app))
    squeeze(&state, derived, sizeof(derived))
    memcpy(&space.trie.key, derived, 16)
    memcpy(&space.position, &derived[16], 8)


cdef inline Progress count_cell(Core *core, Cell *cell) noexcept nogil:
    cdef Space *space = cell.space
    cdef bint first = space.trie.count == 0
    cdef Insertion insertion
    if first:
        prepare_space(core, space)
    insertion = trie_insert(&space.trie, &core.memory, &cell.item)
    if insertion == INSERTION_DONE and first:
        insertion = trie_insert(&core.digests.spaces, &core.memory, &space.item)
        if insertion != INSERTION_DONE:
            trie_remove(&space.trie, &core.memory, &cell.item)
    if insertion == INSERTION_DONE:
        cell.counted = True
        cell.clock_flags &= CLOCK_OUTSIDE  # the key of the value's digest may be another one
        trie_touch(&core.digests.spaces, &space.item)
    return PROGRESS_NO_MEMORY if insertion == INSERTION_NO_MEMORY else PROGRESS_DONE


# Takes the changes since the last time into account: the change log is the list of what is out of date.
cdef inline Progress count_changes(Core *core, int64_t *budget) noexcept nogil:
    cdef Cell *cell = log_after(&core.log, core.digests.seq)
    while cell != core.log.head:
        if budget[0] <= 0:
            return PROGRESS_MORE
        budget[0] -= 4
        if cell.state != LIVE:
            uncount_cell(core, cell)
        elif cell.counted:
            trie_touch(&cell.space.trie, &cell.item)
            trie_touch(&core.digests.spaces, &cell.space.item)
        elif count_cell(core, cell) == PROGRESS_NO_MEMORY:
            return PROGRESS_NO_MEMORY
        if cell.counted and value_size(cell) > LARGE_VALUE:
            budget[0] -= <int64_t>(value_size(cell) >> 6)
            large_value_digest(core, cell)
        core.digests.seq = cell.seq
        cell = tower(cell, 0).next
    core.digests.seq = core.log.last_seq
    return PROGRESS_DONE


# --- digests of ranges ---

cdef inline bint settle_leaf(Core *core, Trie *trie, Item *chain, uint8_t *digest, int64_t *budget) noexcept nogil:
    cdef Item *item = chain
    if budget[0] <= 0:
        return False
    while item != NULL:
        if trie.of_spaces:
            if not settle_trie(core, &(<Space *>item).trie, budget):
                return False
        else:
            budget[0] -= 4 + <int64_t>(min(value_size(cell_of(item)), <size_t>LARGE_VALUE) >> 6)
        item = item.next
    budget[0] -= 4
    hash_leaf(core, trie, chain, 0, 0, digest)
    return True


# False: the budget is used up, and the next call goes on where this one stopped.
cdef inline bint settle_branch(Core *core, Trie *trie, Branch *branch, int64_t *budget) noexcept nogil:
    cdef size_t slot
    cdef uint8_t *digest
    cdef Branch *below
    for slot in range(<size_t>FANOUT):
        if not branch.stale & (1 << slot):
            continue
        digest = &branch.digests[slot * DIGEST_BYTES]
        if branch.branches & (1 << slot):
            below = <Branch *>branch.slots[slot]
            if not settle_branch(core, trie, below, budget):
                return False
            budget[0] -= 5
            hash_digests(core, BRANCH_TAG, below.digests, FANOUT, digest)
        elif not settle_leaf(core, trie, <Item *>branch.slots[slot], digest, budget):
            return False
        branch.stale &= <uint16_t>~(1 << slot)
    return True


cdef inline bint settle_trie(Core *core, Trie *trie, int64_t *budget) noexcept nogil:
    if not trie.stale:
        return True
    if trie.top != NULL:
        if not settle_branch(core, trie, trie.top, budget):
            return False
        hash_digests(core, BRANCH_TAG, trie.top.digests, FANOUT, trie.digest)
    elif not settle_leaf(core, trie, trie.chain, trie.digest, budget):
        return False
    trie.stale = False
    return True


# Brings everything up to date, or as much as the budget allows, in blocks of BLAKE3 more or less.
cdef inline Progress refresh(Core *core, int64_t now_ms, int64_t budget) noexcept nogil:
    cdef Progress progress
    notice_expired(core, now_ms, NOTICES_UNDER_PRESSURE)
    if core.expiring.count > 0 and core.expiring.items[0].rank < now_ms:
        return PROGRESS_MORE
    progress = count_changes(core, &budget)
    if progress != PROGRESS_DONE:
        return progress
    return PROGRESS_DONE if settle_trie(core, &core.digests.spaces, &budget) else PROGRESS_MORE


# From now on digests are made with another key: nothing that was counted is.
cdef inline void begin_digests(Core *core, const uint8_t *key32) noexcept nogil:
    cdef Item *spaces = trie_drain(&core.digests.spaces, &core.memory)
    cdef Item *item
    while spaces != NULL:
        item = trie_drain(&(<Space *>spaces).trie, &core.memory)
        while item != NULL:
            cell_of(item).counted = False
            item = item.next
        spaces = spaces.next
    memcpy(core.digests.key, key32, 32)
    core.digests.keyed = True
    core.digests.seq = 0


cdef inline Found find_range(const Range *wanted) noexcept nogil:
    cdef Found found
    cdef size_t depth = 0
    cdef size_t slot
    found.branch = wanted.trie.top
    found.chain = wanted.trie.chain
    while found.branch != NULL and depth < wanted.nibbles:
        slot = nibble(wanted.start, depth)
        found.chain = NULL
        if found.branch.branches & (1 << slot):
            found.branch = <Branch *>found.branch.slots[slot]
        else:
            found.chain = <Item *>found.branch.slots[slot]
            found.branch = NULL
        depth += 1
    return found


# The digests of the sixteen parts of a range of fewer than 16 nibbles.
cdef inline void range_digests(const Core *core, const Range *wanted, uint8_t *digests) noexcept nogil:
    cdef Found found = find_range(wanted)
    cdef uint64_t part
    if found.branch != NULL:
        memcpy(digests, found.branch.digests, FANOUT * DIGEST_BYTES)
        return
    for part in range(<uint64_t>FANOUT):
        hash_leaf(
            core,
            wanted.trie,
            found.chain,
            wanted.start | part << (60 - 4 * wanted.nibbles),
            wanted.nibbles + 1,
            &digests[part * DIGEST_BYTES],
        )
