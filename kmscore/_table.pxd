# An intrusive hash table that grows and shrinks one bucket at a time (linear hashing: Litwin, 1980), so that no insert
# ever pays for a rehash of everything. Buckets live in pages of 4 KiB, found through a directory.

from libc.stdint cimport uint32_t
from libc.string cimport memset

from kmscore._memory cimport Memory, claim, release, resize


cdef enum:
    PAGE_BITS = 9
    PAGE_BUCKETS = 512


# The first member of everything that lives in a table.
cdef struct Node:
    Node *chain
    uint32_t hash
    uint32_t size  # bytes of the owner's name or key: next to the hash, so that most mismatches cost one load


cdef struct Table:
    Node ***pages
    size_t directory  # how many page pointers fit in `pages`
    size_t buckets    # in use: round_size <= buckets < 2 * round_size
    size_t round_size # a power of two; buckets below buckets - round_size are already split in this round
    size_t count


cdef inline Node **bucket_at(const Table *table, size_t index) noexcept nogil:
    return &table.pages[index >> PAGE_BITS][index & (PAGE_BUCKETS - 1)]


cdef inline Node **bucket_of(const Table *table, uint32_t hash) noexcept nogil:
    cdef size_t index = hash & (2 * table.round_size - 1)
    if index >= table.buckets:
        index = hash & (table.round_size - 1)
    return bucket_at(table, index)


cdef inline bint add_page(Table *table, Memory *memory, size_t page) noexcept nogil:
    cdef void *moved
    cdef void *buckets
    if page >= table.directory:
        moved = resize(memory, table.pages, 2 * (page + 1) * sizeof(Node **))
        if moved == NULL:
            return False
        table.pages = <Node ***>moved
        table.directory = 2 * (page + 1)
    buckets = claim(memory, PAGE_BUCKETS * sizeof(Node *))
    if buckets == NULL:
        return False
    memset(buckets, 0, PAGE_BUCKETS * sizeof(Node *))
    table.pages[page] = <Node **>buckets
    return True


cdef inline bint table_open(Table *table, Memory *memory) noexcept nogil:
    memset(table, 0, sizeof(Table))
    if not add_page(table, memory, 0):
        return False
    table.buckets = table.round_size = PAGE_BUCKETS
    return True


# The nodes themselves belong to the caller.
cdef inline void table_close(Table *table, Memory *memory) noexcept nogil:
    cdef size_t page
    for page in range((table.buckets + PAGE_BUCKETS - 1) >> PAGE_BITS):
        release(memory, table.pages[page])
    release(memory, table.pages)
    memset(table, 0, sizeof(Table))


# Without memory for another page the chains grow a little longer instead: an insert never fails.
cdef inline void split_bucket(Table *table, Memory *memory) noexcept nogil:
    cdef size_t upper = table.buckets
    cdef Node *node
    cdef Node *next_node
    cdef Node **low
    cdef Node **high
    if upper & (PAGE_BUCKETS - 1) == 0 and not add_page(table, memory, upper >> PAGE_BITS):
        return
    low = bucket_at(table, upper - table.round_size)
    high = bucket_at(table, upper)
    node = low[0]
    low[0] = NULL
    while node != NULL:
        next_node = node.chain
        if node.hash & table.round_size:
            node.chain = high[0]
            high[0] = node
        else:
            node.chain = low[0]
            low[0] = node
        node = next_node
    table.buckets += 1
    if table.buckets == 2 * table.round_size:
        table.round_size = table.buckets


cdef inline void join_bucket(Table *table, Memory *memory) noexcept nogil:
    cdef size_t upper = table.buckets - 1
    cdef Node **low
    cdef Node **high
    if table.buckets == table.round_size:
        table.round_size >>= 1
    low = bucket_at(table, upper - table.round_size)
    high = bucket_at(table, upper)
    while low[0] != NULL:
        low = &low[0].chain
    low[0] = high[0]
    high[0] = NULL
    table.buckets = upper
    if upper & (PAGE_BUCKETS - 1) == 0:
        release(memory, table.pages[upper >> PAGE_BITS])


cdef inline void table_insert(Table *table, Memory *memory, Node *node) noexcept nogil:
    cdef Node **bucket = bucket_of(table, node.hash)
    node.chain = bucket[0]
    bucket[0] = node
    table.count += 1
    if table.count > table.buckets:
        split_bucket(table, memory)


# Two joins for a removal: a table that is being emptied ends up as small as one that never was full.
cdef inline void table_remove(Table *table, Memory *memory, Node *node) noexcept nogil:
    cdef Node **link = bucket_of(table, node.hash)
    cdef size_t least
    while link[0] != node:
        link = &link[0].chain
    link[0] = node.chain
    table.count -= 1
    least = max(table.buckets - 2, <size_t>PAGE_BUCKETS)
    while table.buckets > least and table.count < table.buckets >> 1:
        join_bucket(table, memory)
