# What the store keeps for one record, and the two structures that only link records: queues and the change log.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from kmscore._memory cimport CACHE_LINE, Memory, prefetch
from kmscore._pool cimport GRAIN, Pool, pool_claim, pool_release
from kmscore._siphash cimport HashKey
from kmscore._table cimport Node
from kmscore._vclock cimport ClockEntry, Writer, max_number


# Not from cpython.bytes, which asks for the GIL: reading a bytes object that we hold does not need it.
cdef extern from "Python.h" nogil:
    Py_ssize_t PyBytes_GET_SIZE(PyObject *value)
    char *PyBytes_AS_STRING(PyObject *value)


cdef enum:
    RECORD_COST = 128  # what a record counts beyond key and ciphertext (store §1)
    MAX_LEVEL = 16     # of the change log: enough for 4^16 records
    NO_HEAP = 0xFFFFFFFF
    DIGEST_BYTES = 16  # of a record, a range, a namespace: keyed, so nobody outside the cluster can look for collisions
    OBJECT_POOL = 16384  # Python's pools of small objects begin at multiples of it, with what says which are free
    LARGE_VALUE = 512  # bytes: the digest of a larger value is kept, so that a leaf never costs more than its records
    MAX_ROOM = 4       # clock entries that a cell is made with room for
    CLOCK_OUTSIDE = 1  # a clock that there is no room for: its address is in the cell instead
    VALUE_HASHED = 2   # the digest of a large value stands behind the clock


cdef enum CellState:
    LIVE
    RETAINED   # expired, invisible, kept so that no older version from a lagging peer can come back
    TOMBSTONE


# Which heap a slot means depends on the state: a live cell is ranked by expiry and by eviction order, a retained one by
# expiry and by change; a tombstone is in no heap.
cdef enum:
    BY_EXPIRY = 0
    BY_TURN = 1


# Until when a tombstone is kept counts from its receipt; every other record may be in heaps instead.
cdef union Place:
    uint32_t heap_at[2]   # index in the heap of each slot, or NO_HEAP
    int64_t received_at_ms


# What lies in a trie: a cell, or a namespace.
cdef struct Item:
    Item *next


# An inner node of a trie: sixteen ranges of positions, each a chain of items or, where `branches` has a bit, another
# branch. `digests` holds what is known of each range; it is out of date where `stale` has a bit.
cdef struct Branch:
    void *slots[16]
    uint8_t digests[16 * 16]
    size_t count
    uint16_t branches
    uint16_t stale


cdef struct Trie:
    Branch *top           # NULL: everything is in `chain`
    Item *chain
    size_t count
    HashKey key           # of the positions of cells
    bint of_spaces
    bint stale
    uint8_t digest[16]


cdef struct Tower:
    Cell *prev
    Cell *next


# One allocation: `level` towers, the first one last, the struct, the key, room for the clock that the record began
# with. What finding and reading a record needs stands together, at most three cache lines with a key of up to 24 bytes
# and three clock entries; what changing it needs is on the line before.
cdef struct Cell:
    int64_t seq
    Writer *source        # the peer that sent exactly this version and payload, or NULL
    Cell *prev            # in the queue of its state
    Cell *next
    Item item             # in the trie of its namespace, when `counted`
    Place place
    Node node             # size: of the key
    Space *space
    PyObject *value       # a bytes object, shared with whoever wrote or reads it, never copied; NULL: tombstone
    int64_t updated_at_ms
    int64_t ttl_ms
    uint16_t entries      # of the clock; interned writers, one reference each
    uint8_t level
    uint8_t state
    uint8_t by_snapshot
    uint8_t counted
    uint8_t clock_flags
    uint8_t room          # how many clock entries fit behind the key


cdef struct Queue:
    Cell *first
    Cell *last


cdef struct HeapItem:
    int64_t rank
    Cell *cell


cdef struct Heap:
    HeapItem *items
    size_t count
    size_t capacity
    int slot


# A namespace, with the trie of its live records; it is itself in the trie of namespaces while that holds any. `floor` is the largest record ever evicted, stripped to key and time.
cdef struct Space:
    Item item             # first: an item of the trie of namespaces is a namespace
    PyObject *app_id      # borrowed from the Namespace object that holds this struct
    uint64_t number       # tells namespaces apart in the hash of a key
    Space *next_emptied
    bint emptied
    size_t cells
    size_t live
    size_t tombstones
    int64_t live_bytes
    int64_t retained_bytes
    int64_t newest_ms     # largest updated_at_ms of a live record ever
    Queue live_cells
    Queue retained_cells  # in the order in which they expired
    Heap evictable
    Cell *floor
    Trie trie
    uint64_t position     # in the trie of namespaces; it and the key of `trie` are set before the first record is counted
    uint8_t app[32]       # the app id, big-endian


# Every cell in the order of its newest change: a skip list, doubly linked on all levels, so that unlinking needs no
# search.
cdef struct ChangeLog:
    Cell *head            # closes the ring on every level
    int64_t last_seq


cdef inline Tower *tower(const Cell *cell, size_t level) noexcept nogil:
    return <Tower *>cell - 1 - level


cdef inline char *cell_key(const Cell *cell) noexcept nogil:
    return <char *>(cell + 1)


cdef inline size_t aligned(size_t size) noexcept nogil:
    return (size + GRAIN - 1) & ~<size_t>(GRAIN - 1)


# Where a cell that has room for a clock has it, or its address.
cdef inline ClockEntry *cell_room(const Cell *cell) noexcept nogil:
    return <ClockEntry *>(cell_key(cell) + aligned(cell.node.size))


cdef inline ClockEntry *cell_clock(const Cell *cell) noexcept nogil:
    cdef ClockEntry *room = cell_room(cell)
    return (<ClockEntry **>room)[0] if cell.clock_flags & CLOCK_OUTSIDE else room


# An item of a namespace's trie is a member of its cell.
cdef inline Cell *cell_of(const Item *item) noexcept nogil:
    return <Cell *>(<char *>item - <size_t>&(<Cell *>NULL).item)


cdef inline Cell *cell_of_node(const Node *node) noexcept nogil:
    return <Cell *>(<char *>node - <size_t>&(<Cell *>NULL).node)


# In a large store every pointer is a cache miss of 100 ns and more. One after the other they are most of what an
# operation takes; asked for together they cost about one.

# What reading a record needs: a cell with a short key and a short clock.
cdef inline void prefetch_cell(const Cell *cell) noexcept nogil:
    prefetch(&cell.node)
    prefetch(<const char *>&cell.node + CACHE_LINE)
    prefetch(<const char *>&cell.node + 2 * CACHE_LINE)


# A value and, with `to_change`, where a small one goes back to.
cdef inline void prefetch_value(const void *value, bint to_change) noexcept nogil:
    prefetch(value)
    if to_change:
        prefetch(<const void *>(<size_t>value & ~<size_t>(OBJECT_POOL - 1)))


# What a change needs: the neighbours in the log that the cell is taken out from between.
cdef inline void prefetch_neighbours(const Cell *cell) noexcept nogil:
    prefetch(tower(tower(cell, 0).prev, 0))
    prefetch(tower(tower(cell, 0).next, 0))


# What it needs when the cell leaves its queue, too.
cdef inline void prefetch_queue(const Cell *cell) noexcept nogil:
    prefetch(&cell.prev.next)
    prefetch(&cell.next.prev)


cdef inline size_t value_size(const Cell *cell) noexcept nogil:
    return <size_t>PyBytes_GET_SIZE(cell.value) if cell.value != NULL else 0


# How much a clock takes, with room for the digest of a large value behind it.
cdef inline size_t clock_bytes(size_t entries, PyObject *value) noexcept nogil:
    cdef size_t size = entries * sizeof(ClockEntry)
    if value != NULL and PyBytes_GET_SIZE(value) > LARGE_VALUE:
        size += DIGEST_BYTES
    return size


cdef inline int64_t cell_size(const Cell *cell) noexcept nogil:
    return <int64_t>(cell.node.size + value_size(cell)) + RECORD_COST


# The last moment at which the record is visible. Both terms are at most 2^62.
cdef inline int64_t expires_at(const Cell *cell) noexcept nogil:
    if cell.ttl_ms >= max_number() and cell.updated_at_ms >= max_number():
        return max_number() + (max_number() - 1)
    return cell.updated_at_ms + cell.ttl_ms


cdef inline bint is_visible(const Cell *cell, int64_t now_ms) noexcept nogil:
    return cell.state == LIVE and (cell.ttl_ms == 0 or now_ms <= expires_at(cell))


# How much a cell takes behind its towers.
cdef inline size_t struct_bytes(size_t key_size, size_t room) noexcept nogil:
    return sizeof(Cell) + (aligned(key_size) + room * sizeof(ClockEntry) if room > 0 else key_size)


cdef inline Cell *new_cell(Pool *pool, Memory *memory, size_t level, size_t key_size, size_t room) noexcept nogil:
    cdef size_t before = level * sizeof(Tower)
    cdef char *block = <char *>pool_claim(pool, memory, before + struct_bytes(key_size, room))
    cdef Cell *cell
    if block == NULL:
        return NULL
    cell = <Cell *>(block + before)
    memset(cell, 0, sizeof(Cell))
    cell.node.size = <uint32_t>key_size
    cell.level = <uint8_t>level
    cell.room = <uint8_t>room
    cell.place.heap_at[BY_EXPIRY] = cell.place.heap_at[BY_TURN] = NO_HEAP
    return cell


cdef inline void release_cell(Pool *pool, Memory *memory, Cell *cell) noexcept nogil:
    cdef size_t before
    if cell != NULL:
        before = cell.level * sizeof(Tower)
        pool_release(pool, memory, <char *>cell - before, before + struct_bytes(cell.node.size, cell.room))


# Each level has a quarter of the records of the one below, by the half of the keyed hash that the table does not use.
cdef inline size_t level_of(uint64_t digest) noexcept nogil:
    cdef size_t level = 1
    digest >>= 32
    while digest & 3 == 0 and level < MAX_LEVEL:
        digest >>= 2
        level += 1
    return level


cdef inline void queue_append(Queue *queue, Cell *cell) noexcept nogil:
    cell.prev = queue.last
    cell.next = NULL
    if queue.last != NULL:
        queue.last.next = cell
    else:
        queue.first = cell
    queue.last = cell


cdef inline void queue_remove(Queue *queue, Cell *cell) noexcept nogil:
    if cell.prev != NULL:
        cell.prev.next = cell.next
    else:
        queue.first = cell.next
    if cell.next != NULL:
        cell.next.prev = cell.prev
    else:
        queue.last = cell.prev
    cell.prev = cell.next = NULL


cdef inline bint log_open(ChangeLog *log, Pool *pool, Memory *memory) noexcept nogil:
    cdef size_t level
    log.last_seq = 0
    log.head = new_cell(pool, memory, MAX_LEVEL, 0, 0)
    if log.head == NULL:
        return False
    for level in range(<size_t>MAX_LEVEL):
        tower(log.head, level).prev = tower(log.head, level).next = log.head
    return True


# Gives the cell the next sequence number and the last place.
cdef inline void log_append(ChangeLog *log, Cell *cell) noexcept nogil:
    cdef size_t level
    cdef Cell *last
    log.last_seq += 1
    cell.seq = log.last_seq
    for level in range(cell.level):
        last = tower(log.head, level).prev
        tower(cell, level).prev = last
        tower(cell, level).next = log.head
        tower(last, level).next = cell
        tower(log.head, level).prev = cell


cdef inline void log_remove(Cell *cell) noexcept nogil:
    cdef size_t level
    cdef Tower link
    for level in range(cell.level):
        link = tower(cell, level)[0]
        tower(link.prev, level).next = link.next
        tower(link.next, level).prev = link.prev


# The first cell that changed after `seq`, or the head when there is none.
cdef inline Cell *log_after(const ChangeLog *log, int64_t seq) noexcept nogil:
    cdef Cell *cell = log.head
    cdef Cell *ahead
    cdef int level = MAX_LEVEL - 1
    while level >= 0:
        ahead = tower(cell, level).next
        while ahead != log.head and ahead.seq <= seq:
            cell = ahead
            ahead = tower(cell, level).next
        level -= 1
    return tower(cell, 0).next
