# A hash table that grows and shrinks one bucket at a time (linear hashing: Litwin, 1980), so that no insert ever pays
# for a rehash of everything. A bucket is two cache lines. The first has addresses of nodes, each with a part of the hash
# beside it: a search loads the node that it is for, and hardly ever another one. The second has addresses of what the nodes
# point to, so that this is fetched together with the node and not after it. Buckets live in pages of 4 KiB, found through
# a directory.

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from kmscore._memory cimport CACHE_LINE, Memory, claim, prefetch, release, resize
from kmscore._pages cimport PAGE_BYTES, page_claim, page_release


cdef enum:
    SLOTS = 7
    LOAD = 5           # nodes for each bucket, on average
    ADDRESS_BITS = 48  # of an address in user space; the hash's upper half fits above it
    PAGE_BITS = 5
    PAGE_BUCKETS = 32


# The first member of everything that lives in a table.
cdef struct Node:
    uint32_t hash
    uint32_t size  # bytes of the owner's name or key


# What finds no place in a bucket goes to another one behind it. Slots are taken from the first one on, and all of them
# before the next bucket.
cdef struct Bucket:
    uint64_t slots[SLOTS]  # 0: free
    Bucket *more
    const void *values[SLOTS]  # what each node points to, or NULL
    void *unused           # fills the cache line


cdef struct Table:
    Bucket **pages
    size_t directory  # how many page pointers fit in `pages`
    size_t buckets    # in use: round_size <= buckets < 2 * round_size
    size_t round_size # a power of two; buckets below buckets - round_size are already split in this round
    size_t count
    Bucket *spare     # to go behind full ones


# A search in one bucket and those behind it, valid until a node comes or goes. What is to be done anyway is best done
# between `search` and the first `next_found`: meanwhile the bucket is fetched.
cdef struct Search:
    const Bucket *bucket
    size_t slot
    uint32_t hash


cdef inline Bucket *bucket_at(const Table *table, size_t index) noexcept nogil:
    return &table.pages[index >> PAGE_BITS][index & (PAGE_BUCKETS - 1)]


cdef inline Bucket *bucket_of(const Table *table, uint32_t hash) noexcept nogil:
    cdef size_t index = hash & (2 * table.round_size - 1)
    if index >= table.buckets:
        index = hash & (table.round_size - 1)
    return bucket_at(table, index)


cdef inline uint64_t tagged(const Node *node) noexcept nogil:
    return <uint64_t>(node.hash >> 16) << ADDRESS_BITS | <uint64_t>node


cdef inline Node *untagged(uint64_t slot) noexcept nogil:
    return <Node *>(slot & ((<uint64_t>1 << ADDRESS_BITS) - 1))


cdef inline Search search(const Table *table, uint32_t hash) noexcept nogil:
    cdef Search found
    found.bucket = bucket_of(table, hash)
    prefetch(found.bucket)
    prefetch(<const char *>found.bucket + CACHE_LINE)
    found.slot = 0
    found.hash = hash
    return found


# The next node that may be the one looked for: what its hash, its size and more say is for the caller to compare. NULL
# after the last one.
cdef inline Node *next_found(Search *found) noexcept nogil:
    cdef uint64_t slot
    while True:
        if found.slot == SLOTS:
            found.bucket = found.bucket.more
            found.slot = 0
            if found.bucket == NULL:
                return NULL
        slot = found.bucket.slots[found.slot]
        if slot == 0:
            return NULL
        found.slot += 1
        if slot >> ADDRESS_BITS == found.hash >> 16:
            return untagged(slot)


# What the node points to that next_found returned last.
cdef inline const void *value_found(const Search *found) noexcept nogil:
    return found.bucket.values[found.slot - 1]


cdef inline void put_aside(Table *table, Bucket *bucket) noexcept nogil:
    bucket.more = table.spare
    table.spare = bucket


cdef inline bint add_spare(Table *table, Memory *memory) noexcept nogil:
    cdef Bucket *bucket = <Bucket *>claim(memory, sizeof(Bucket))
    if bucket == NULL:
        return False
    put_aside(table, bucket)
    return True


# Makes sure that an insert which follows cannot fail, removals in between or not.
cdef inline bint table_reserve(Table *table, Memory *memory) noexcept nogil:
    return table.spare != NULL or add_spare(table, memory)


cdef inline void drop_spares(Table *table, Memory *memory, size_t kept) noexcept nogil:
    cdef Bucket **link = &table.spare
    cdef Bucket *bucket
    while kept > 0 and link[0] != NULL:
        link = &link[0].more
        kept -= 1
    while link[0] != NULL:
        bucket = link[0]
        link[0] = bucket.more
        release(memory, bucket)


cdef inline void bucket_add(Table *table, Bucket *bucket, uint64_t entry, const void *value) noexcept nogil:
    cdef size_t slot = 0
    while bucket.slots[slot] != 0:
        slot += 1
        if slot == SLOTS:
            if bucket.more == NULL:
                bucket.more = table.spare
                table.spare = table.spare.more
                memset(bucket.more, 0, sizeof(Bucket))
            bucket = bucket.more
            slot = 0
    bucket.slots[slot] = entry
    bucket.values[slot] = value


# Adds to `low`, or to `high` where the hash has that bit, what is in a bucket and those behind it. Each of these is
# read before it is taken for what is added, so that one spare bucket is enough, and none when `low` and `high` are empty.
cdef inline void bucket_spread(
    Table *table, const Bucket *former, Bucket *low, Bucket *high, size_t bit
) noexcept nogil:
    cdef Bucket taken = former[0]
    cdef Bucket *behind
    cdef Node *node
    cdef size_t slot
    while True:
        for slot in range(<size_t>SLOTS):
            prefetch(untagged(taken.slots[slot]))
        for slot in range(<size_t>SLOTS):
            node = untagged(taken.slots[slot])
            if node != NULL:
                bucket_add(table, high if node.hash & bit else low, taken.slots[slot], taken.values[slot])
        behind = taken.more
        if behind == NULL:
            return
        taken = behind[0]
        put_aside(table, behind)


# The last node fills the gap.
cdef inline void bucket_remove(Table *table, Bucket *bucket, const Node *node) noexcept nogil:
    cdef uint64_t wanted = tagged(node)
    cdef Bucket *before = NULL
    cdef Bucket *end
    cdef size_t gap = 0
    cdef size_t last = SLOTS - 1
    while bucket.slots[gap] != wanted:
        gap += 1
        if gap == SLOTS:
            before = bucket
            bucket = bucket.more
            gap = 0
    end = bucket
    while end.more != NULL:
        before = end
        end = end.more
    while end.slots[last] == 0:
        last -= 1
    bucket.slots[gap] = end.slots[last]
    bucket.values[gap] = end.values[last]
    end.slots[last] = 0
    if last == 0 and before != NULL:
        before.more = NULL
        put_aside(table, end)


cdef inline bint add_page(Table *table, Memory *memory, size_t page) noexcept nogil:
    cdef void *moved
    cdef void *buckets
    if page >= table.directory:
        moved = resize(memory, table.pages, 2 * (page + 1) * sizeof(Bucket *))
        if moved == NULL:
            return False
        table.pages = <Bucket **>moved
        table.directory = 2 * (page + 1)
    buckets = page_claim(memory)
    if buckets == NULL:
        return False
    memset(buckets, 0, PAGE_BYTES)
    table.pages[page] = <Bucket *>buckets
    return True


cdef inline bint table_open(Table *table, Memory *memory) noexcept nogil:
    memset(table, 0, sizeof(Table))
    if not add_page(table, memory, 0):
        return False
    table.buckets = table.round_size = PAGE_BUCKETS
    return True


# Only for an empty table.
cdef inline void table_close(Table *table, Memory *memory) noexcept nogil:
    cdef size_t page
    for page in range((table.buckets + PAGE_BUCKETS - 1) >> PAGE_BITS):
        page_release(memory, table.pages[page])
    drop_spares(table, memory, 0)
    release(memory, table.pages)
    memset(table, 0, sizeof(Table))


# Without memory for another page the buckets grow a little fuller instead.
cdef inline void split_bucket(Table *table, Memory *memory) noexcept nogil:
    cdef size_t upper = table.buckets
    cdef Bucket *low
    cdef Bucket former
    if upper & (PAGE_BUCKETS - 1) == 0 and not add_page(table, memory, upper >> PAGE_BITS):
        return
    low = bucket_at(table, upper - table.round_size)
    former = low[0]
    memset(low, 0, sizeof(Bucket))
    bucket_spread(table, &former, low, bucket_at(table, upper), table.round_size)
    table.buckets += 1
    if table.buckets == 2 * table.round_size:
        table.round_size = table.buckets


# Uses up to one spare bucket. Without memory for it, and for the one that an insert may wait for, the table stays as
# large as it is.
cdef inline bint join_bucket(Table *table, Memory *memory) noexcept nogil:
    cdef size_t upper = table.buckets - 1
    cdef Bucket *high = bucket_at(table, upper)
    cdef Bucket *low
    if not table_reserve(table, memory) or (table.spare.more == NULL and not add_spare(table, memory)):
        return False
    if table.buckets == table.round_size:
        table.round_size >>= 1
    low = bucket_at(table, upper - table.round_size)
    bucket_spread(table, high, low, low, 0)
    memset(high, 0, sizeof(Bucket))
    table.buckets = upper
    if upper & (PAGE_BUCKETS - 1) == 0:
        page_release(memory, table.pages[upper >> PAGE_BITS])
    return True


# After a table_reserve.
cdef inline void table_insert(Table *table, Memory *memory, Node *node, const void *value) noexcept nogil:
    bucket_add(table, bucket_of(table, node.hash), tagged(node), value)
    table.count += 1
    if table.count > table.buckets * LOAD:
        split_bucket(table, memory)
        drop_spares(table, memory, 1)


# For a node that is in the table and now points to something else.
cdef inline void table_update(Table *table, const Node *node, const void *value) noexcept nogil:
    cdef uint64_t wanted = tagged(node)
    cdef Bucket *bucket = bucket_of(table, node.hash)
    cdef size_t slot = 0
    while bucket.slots[slot] != wanted:
        slot += 1
        if slot == SLOTS:
            bucket = bucket.more
            slot = 0
    bucket.values[slot] = value


# Two joins for a removal: a table that is being emptied ends up as small as one that never was full.
cdef inline void table_remove(Table *table, Memory *memory, const Node *node) noexcept nogil:
    cdef size_t least
    bucket_remove(table, bucket_of(table, node.hash), node)
    table.count -= 1
    least = max(table.buckets - 2, <size_t>PAGE_BUCKETS)
    while table.buckets > least and table.count < table.buckets * (LOAD // 2) and join_bucket(table, memory):
        pass
    drop_spares(table, memory, 1)
