# The store's state as one struct, and the moves that keep its parts in step: a cell enters and leaves all indexes of
# its state together (attach, detach). Only what lacks `nogil` touches the reference count of a value.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset

from kmscore._cell cimport (
    BY_EXPIRY,
    BY_TURN,
    CLOCK_OUTSIDE,
    RETAINED,
    TOMBSTONE,
    Cell,
    ChangeLog,
    Heap,
    PyBytes_AS_STRING,
    Queue,
    Space,
    Trie,
    cell_clock,
    cell_key,
    cell_of_node,
    cell_size,
    clock_bytes,
    expires_at,
    log_open,
    log_remove,
    prefetch_cell,
    prefetch_neighbours,
    prefetch_value,
    queue_append,
    queue_remove,
    release_cell,
    tower,
    value_size,
)
from kmscore._heap cimport heap_push, heap_remove, heap_reserve
from kmscore._memory cimport Memory, prefetch
from kmscore._merge cimport View
from kmscore._pool cimport Pool, pool_release
from kmscore._siphash cimport HashKey, siphash24
from kmscore._table cimport Node, Search, Table, next_found, search, table_open, table_remove, value_found
from kmscore._trie cimport trie_remove, trie_touch
from kmscore._vclock cimport ClockEntry, Writer, drop_writer


cdef extern from "Python.h":
    void Py_XDECREF(PyObject *value)


cdef enum:
    NOTICES_PER_CALL = 16          # expiries handled by an ordinary call: more than it can add
    NOTICES_UNDER_PRESSURE = 1000  # when it matters that none is left: still well below a millisecond


# StoreLimits, and whether the policy is to evict.
cdef struct Bounds:
    int64_t key_bytes  # of a key that is put here
    int64_t known_key_bytes  # of one that may have come from a peer
    int64_t value_bytes
    int64_t app_bytes
    int64_t store_bytes
    size_t tombstones
    int64_t retention_ms
    int64_t skew_ms
    bint evict


# The digests of store §5: which changes they cover, and under which key.
cdef struct Digests:
    Trie spaces
    int64_t seq
    bint keyed
    uint8_t key[32]


cdef struct Core:
    Memory memory
    Pool blocks             # cells and clocks
    Bounds bounds
    HashKey hash_key
    Table cells
    Table writers
    ChangeLog log
    Heap expiring          # live cells with a ttl, by expiry
    Heap retained          # expired cells, by expiry
    Heap retained_by_seq   # the same cells, by change
    Queue tombstones       # in the order of their changes, which is also the order of receipt
    Writer *own
    Space *emptied         # namespaces that may have lost their last cell
    uint64_t spaces_made
    size_t live_spaces
    size_t live
    int64_t live_bytes
    size_t tombstone_count
    int64_t total_bytes    # of all states: what the store limit bounds
    int64_t retained_bytes  # of those, in expired cells
    Digests digests


cdef inline bint core_open(Core *core) noexcept nogil:
    core.expiring.slot = core.retained.slot = BY_EXPIRY
    core.retained_by_seq.slot = BY_TURN
    core.digests.spaces.of_spaces = True
    return (
        table_open(&core.cells, &core.memory)
        and table_open(&core.writers, &core.memory)
        and log_open(&core.log, &core.blocks, &core.memory)
    )


# --- finding ---

# The namespace takes part through the key of the hash, so that one app's keys say nothing about another's.
cdef inline uint64_t key_digest(const Core *core, const Space *space, const char *key, size_t size) noexcept nogil:
    cdef HashKey hash_key = core.hash_key
    hash_key.k1 ^= space.number
    return siphash24(hash_key, key, size)


# Begins to look for a key; `space` may be NULL.
cdef inline Search search_key(const Core *core, const Space *space, const char *key, size_t size) noexcept nogil:
    cdef Search found
    memset(&found, 0, sizeof(Search))
    if space != NULL:
        found = search(&core.cells, <uint32_t>key_digest(core, space, key, size))
    return found


# Ends it. With `to_change` what freeing the record's content needs is fetched, too.
cdef inline Cell *find_cell(
    Search *found, const Space *space, const char *key, size_t size, bint to_change
) noexcept nogil:
    cdef Node *node
    cdef Cell *cell
    if found.bucket == NULL:
        return NULL
    node = next_found(found)
    while node != NULL:
        cell = cell_of_node(node)
        prefetch_cell(cell)
        if to_change:
            prefetch(tower(cell, 0))
        prefetch_value(value_found(found), to_change)
        if (
            node.hash == found.hash
            and node.size == size
            and cell.space == space
            and memcmp(cell_key(cell), key, size) == 0
        ):
            if cell.clock_flags & CLOCK_OUTSIDE:
                prefetch(cell_clock(cell))
            if to_change:
                prefetch_neighbours(cell)
            return cell
        node = next_found(found)
    return NULL


cdef inline View view_of_cell(const Cell *cell) noexcept nogil:
    cdef View view
    view.value = PyBytes_AS_STRING(cell.value) if cell.value != NULL else NULL
    view.value_size = value_size(cell)
    view.updated_at_ms = cell.updated_at_ms
    view.ttl_ms = cell.ttl_ms
    view.clock = cell_clock(cell)
    view.entries = cell.entries
    return view


# The largest counter we have issued for the key, as far as its stored version tells.
cdef inline int64_t own_counter(const Core *core, const Cell *cell) noexcept nogil:
    cdef const ClockEntry *clock
    cdef size_t i
    if cell != NULL:
        clock = cell_clock(cell)
        for i in range(cell.entries):
            if clock[i].writer == core.own:
                return clock[i].counter
    return 0


# --- indexes ---

# With `in_queue` the cell is in its queue already; without it that is where it goes.
cdef inline void attach(Core *core, Cell *cell, bint in_queue) noexcept nogil:
    cdef Space *space = cell.space
    cdef int64_t size = cell_size(cell)
    core.total_bytes += size
    if cell.state == TOMBSTONE:
        queue_append(&core.tombstones, cell)
        core.tombstone_count += 1
        space.tombstones += 1
    elif cell.state == RETAINED:
        queue_append(&space.retained_cells, cell)
        heap_push(&core.retained, cell, expires_at(cell))
        heap_push(&core.retained_by_seq, cell, cell.seq)
        space.retained_bytes += size
        core.retained_bytes += size
    else:
        if not in_queue:
            queue_append(&space.live_cells, cell)
        if cell.ttl_ms > 0:
            heap_push(&core.expiring, cell, expires_at(cell))
        if core.bounds.evict:
            heap_push(&space.evictable, cell, cell.updated_at_ms)
        space.newest_ms = max(space.newest_ms, cell.updated_at_ms)
        space.live_bytes += size
        core.live_spaces += space.live == 0
        space.live += 1
        core.live += 1
        core.live_bytes += size


# With `in_queue` the cell stays in the queue of the live ones, whose order says nothing.
cdef inline void detach(Core *core, Cell *cell, bint in_queue) noexcept nogil:
    cdef Space *space = cell.space
    cdef int64_t size = cell_size(cell)
    core.total_bytes -= size
    if cell.state == TOMBSTONE:
        queue_remove(&core.tombstones, cell)
        core.tombstone_count -= 1
        space.tombstones -= 1
    elif cell.state == RETAINED:
        queue_remove(&space.retained_cells, cell)
        heap_remove(&core.retained, &core.memory, cell)
        heap_remove(&core.retained_by_seq, &core.memory, cell)
        space.retained_bytes -= size
        core.retained_bytes -= size
    else:
        if not in_queue:
            queue_remove(&space.live_cells, cell)
        if cell.ttl_ms > 0:
            heap_remove(&core.expiring, &core.memory, cell)
        if core.bounds.evict:
            heap_remove(&space.evictable, &core.memory, cell)
        space.live_bytes -= size
        space.live -= 1
        core.live_spaces -= space.live == 0
        core.live -= 1
        core.live_bytes -= size


# Takes a record out of the digests. It was put there by a refresh, not by the change that stored it.
cdef inline void uncount_cell(Core *core, Cell *cell) noexcept nogil:
    cdef Space *space = cell.space
    if not cell.counted:
        return
    cell.counted = False
    trie_remove(&space.trie, &core.memory, &cell.item)
    if space.trie.count > 0:
        trie_touch(&core.digests.spaces, &space.item)
    else:
        trie_remove(&core.digests.spaces, &core.memory, &space.item)


# Moves up to `budget` records whose time is over out of the live ones. What is left over, or cannot be moved for want
# of memory, waits for the next call; reads look at the time themselves.
cdef inline void notice_expired(Core *core, int64_t now_ms, size_t budget) noexcept nogil:
    cdef Cell *cell
    while budget > 0 and core.expiring.count > 0 and core.expiring.items[0].rank < now_ms:
        if not (
            heap_reserve(&core.retained, &core.memory) and heap_reserve(&core.retained_by_seq, &core.memory)
        ):
            return
        cell = core.expiring.items[0].cell
        detach(core, cell, False)
        cell.state = RETAINED
        attach(core, cell, False)
        uncount_cell(core, cell)
        budget -= 1


# --- freeing ---

cdef inline void mark_emptied(Core *core, Space *space) noexcept nogil:
    if not space.emptied:
        space.emptied = True
        space.next_emptied = core.emptied
        core.emptied = space


cdef inline void drop_writers(Core *core, const ClockEntry *clock, size_t entries) noexcept nogil:
    cdef size_t i
    for i in range(entries):
        drop_writer(&core.writers, &core.memory, clock[i].writer)


# Leaves key and time, which is what a floor is made of.
cdef inline void strip_cell(Core *core, Cell *cell) noexcept:
    cdef ClockEntry *clock = cell_clock(cell)
    drop_writers(core, clock, cell.entries)
    if cell.clock_flags & CLOCK_OUTSIDE:
        pool_release(&core.blocks, &core.memory, clock, clock_bytes(cell.entries, cell.value))
    if cell.source != NULL:
        drop_writer(&core.writers, &core.memory, cell.source)
    Py_XDECREF(cell.value)
    cell.clock_flags = 0
    cell.entries = 0
    cell.source = NULL
    cell.value = NULL


cdef inline void free_cell(Core *core, Cell *cell) noexcept:
    strip_cell(core, cell)
    release_cell(&core.blocks, &core.memory, cell)


# Takes a detached cell out of table and log; it then belongs to nobody.
cdef inline void unlink_cell(Core *core, Cell *cell) noexcept nogil:
    uncount_cell(core, cell)
    log_remove(cell)
    table_remove(&core.cells, &core.memory, &cell.node)
    cell.space.cells -= 1
    if cell.space.cells == 0:
        mark_emptied(core, cell.space)


cdef inline void forget_cell(Core *core, Cell *cell) noexcept:
    detach(core, cell, False)
    unlink_cell(core, cell)
    free_cell(core, cell)
