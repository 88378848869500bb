# Carrying out what was decided. Everything that a change needs is allocated before anything is changed, so that running
# out of memory leaves no trace; from then on nothing can fail.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from kmscore._cell cimport (
    BY_EXPIRY,
    BY_TURN,
    CLOCK_OUTSIDE,
    LIVE,
    MAX_ROOM,
    NO_HEAP,
    TOMBSTONE,
    Cell,
    Space,
    cell_clock,
    cell_key,
    cell_room,
    cell_size,
    clock_bytes,
    level_of,
    log_append,
    log_remove,
    new_cell,
    release_cell,
)
from kmscore._decide cimport Newcomer, Room
from kmscore._heap cimport compare_turns, heap_reserve
from kmscore._index cimport (
    Core,
    attach,
    detach,
    drop_writers,
    forget_cell,
    key_digest,
    strip_cell,
    unlink_cell,
)
from kmscore._pool cimport pool_claim, pool_release
from kmscore._table cimport table_insert, table_reserve, table_update
from kmscore._vclock cimport ClockEntry, Writer, hold_writer, join_clocks


cdef extern from "Python.h":
    void Py_XINCREF(PyObject *value)


cdef struct Text:
    const char *data
    size_t size


# What a record becomes. `clock` is joined with the version that is stored already.
cdef struct Change:
    Text key
    PyObject *value       # borrowed; NULL: tombstone
    int64_t updated_at_ms
    int64_t ttl_ms
    const ClockEntry *clock
    size_t entries
    Writer *source        # held by whoever asks for the change; NULL: none
    bint by_snapshot


# What has been allocated for it. A clock that the cell has room for waits in `short_clock`: the one before is still
# there.
cdef struct Parts:
    Cell *cell
    ClockEntry *clock     # from the pool, or `short_clock`; NULL: out of memory
    ClockEntry short_clock[MAX_ROOM]
    size_t entries


# So that attaching one more live cell of that namespace cannot fail.
cdef inline bint reserve_live(Core *core, Space *space) noexcept nogil:
    return heap_reserve(&core.expiring, &core.memory) and (
        not core.bounds.evict or heap_reserve(&space.evictable, &core.memory)
    )


# How many entries a cell is to have room for when this is the clock it begins with, a large value's digest included;
# for a longer one there must be room for its address.
cdef inline size_t room_for(size_t entries, PyObject *value) noexcept nogil:
    cdef size_t needed = clock_bytes(entries, value) // sizeof(ClockEntry)
    return needed if needed <= MAX_ROOM else 1


# The element-wise maximum of the version in `known`, which may be NULL, and the one in `change`, with interned writers,
# each held once, and what the value needs behind it. Without memory `parts.clock` is NULL and nothing held.
cdef inline void hold_joined(Core *core, const Cell *known, const Change *change, Parts *parts) noexcept nogil:
    cdef const ClockEntry *ours = cell_clock(known) if known != NULL else NULL
    cdef size_t n = known.entries if known != NULL else 0
    cdef Writer *writer
    cdef size_t room
    cdef size_t size
    cdef size_t i
    parts.entries = join_clocks(ours, n, change.clock, change.entries, NULL)
    room = known.room if known != NULL else room_for(parts.entries, change.value)
    size = clock_bytes(parts.entries, change.value)
    if size <= room * sizeof(ClockEntry):
        parts.clock = parts.short_clock
    else:
        parts.clock = <ClockEntry *>pool_claim(&core.blocks, &core.memory, size)
        if parts.clock == NULL:
            return
    join_clocks(ours, n, change.clock, change.entries, parts.clock)
    for i in range(parts.entries):
        writer = hold_writer(&core.writers, &core.memory, core.hash_key, parts.clock[i].writer)
        if writer == NULL:
            parts.entries = i
            drop_clock(core, parts, size)
            return
        parts.clock[i].writer = writer


cdef inline void drop_clock(Core *core, Parts *parts, size_t size) noexcept nogil:
    if parts.clock == NULL:
        return
    drop_writers(core, parts.clock, parts.entries)
    if parts.clock != parts.short_clock:
        pool_release(&core.blocks, &core.memory, parts.clock, size)
    parts.clock = NULL


# A cell for a key that the namespace does not have yet, in no index so far.
cdef inline Cell *make_cell(Core *core, Space *space, const char *key, size_t size, size_t room) noexcept nogil:
    cdef uint64_t digest = key_digest(core, space, key, size)
    cdef Cell *cell = new_cell(&core.blocks, &core.memory, level_of(digest), size, room)
    if cell == NULL:
        return NULL
    cell.node.hash = <uint32_t>digest
    cell.space = space
    memcpy(cell_key(cell), key, size)
    return cell


cdef inline void drop_parts(Core *core, const Cell *known, Parts *parts, PyObject *value) noexcept nogil:
    drop_clock(core, parts, clock_bytes(parts.entries, value))
    if parts.cell != known:
        release_cell(&core.blocks, &core.memory, parts.cell)


# Everything the change of `known` (NULL: a new record) needs; False: out of memory, nothing held.
cdef inline bint claim_parts(
    Core *core, Space *space, Cell *known, const Change *change, Parts *parts
) noexcept nogil:
    parts.cell = known
    hold_joined(core, known, change, parts)
    if known == NULL:
        parts.cell = make_cell(
            core, space, change.key.data, change.key.size, room_for(parts.entries, change.value)
        )
    if (
        parts.clock == NULL
        or parts.cell == NULL
        or not reserve_live(core, space)
        or (known == NULL and not table_reserve(&core.cells, &core.memory))
    ):
        drop_parts(core, known, parts, change.value)
        return False
    return True


# The floor only rises. Takes the cell, which is in no index any more.
cdef inline void raise_floor(Core *core, Space *space, Cell *cell) noexcept:
    cdef Cell *floor = space.floor
    strip_cell(core, cell)
    if floor == NULL or compare_turns(
        floor.updated_at_ms, cell_key(floor), floor.node.size, cell.updated_at_ms, cell_key(cell), cell.node.size
    ) < 0:
        space.floor = cell
        cell = floor
    release_cell(&core.blocks, &core.memory, cell)


cdef inline void evict_oldest(Core *core, Space *space, size_t evictions) noexcept:
    cdef Cell *cell
    while evictions > 0:
        cell = space.evictable.items[0].cell
        detach(core, cell, False)
        unlink_cell(core, cell)
        raise_floor(core, space, cell)
        evictions -= 1


# Expired records go without touching the floor. A lagging peer may then bring an older version back: that is the price
# of a full namespace or store, not of an ordinary expiry (store §1). Other namespaces are asked only when this one has
# given all: then the heap holds theirs alone.
cdef inline void reclaim_expired(Core *core, Space *space, const Room *room) noexcept:
    cdef int64_t reclaim_bytes = room.reclaim_bytes
    cdef int64_t elsewhere_bytes = room.elsewhere_bytes
    cdef Cell *cell
    while reclaim_bytes > 0:
        cell = space.retained_cells.first
        reclaim_bytes -= cell_size(cell)
        forget_cell(core, cell)
    while elsewhere_bytes > 0:
        cell = core.retained.items[0].cell
        elsewhere_bytes -= cell_size(cell)
        forget_cell(core, cell)


# Makes a record what `change` says, as the newest local change, with the room made that was planned for it. False: out
# of memory, and nothing has changed.
cdef inline bint apply_change(
    Core *core, Space *space, Cell *known, const Change *change, const Room *room, int64_t now_ms
) noexcept:
    cdef Parts parts
    cdef Cell *cell
    cdef bint stays = known != NULL and known.state == LIVE and change.value != NULL
    if not claim_parts(core, space, known, change, &parts):
        return False
    if known != NULL:
        detach(core, known, stays)
        log_remove(known)
    reclaim_expired(core, space, room)
    evict_oldest(core, space, room.evictions)
    cell = parts.cell
    Py_XINCREF(change.value)  # first: it may be the value that the cell holds
    strip_cell(core, cell)
    cell.value = change.value
    cell.entries = <uint16_t>parts.entries
    if parts.clock == parts.short_clock:
        memcpy(cell_room(cell), parts.short_clock, parts.entries * sizeof(ClockEntry))
    else:
        (<ClockEntry **>cell_room(cell))[0] = parts.clock
        cell.clock_flags = CLOCK_OUTSIDE
    cell.source = change.source
    if cell.source != NULL:
        cell.source.refs += 1
    cell.by_snapshot = change.by_snapshot
    cell.updated_at_ms = change.updated_at_ms
    cell.ttl_ms = change.ttl_ms
    cell.state = LIVE if change.value != NULL else TOMBSTONE
    if cell.state == TOMBSTONE:
        cell.place.received_at_ms = now_ms
    else:
        cell.place.heap_at[BY_EXPIRY] = cell.place.heap_at[BY_TURN] = NO_HEAP
    if known == NULL:
        table_insert(&core.cells, &core.memory, &cell.node, cell.value)
        space.cells += 1
    else:
        table_update(&core.cells, &cell.node, cell.value)
    log_append(&core.log, cell)
    attach(core, cell, stays)
    return True


# For a record that would be evicted as soon as it is in: what it would have pushed out goes, and it becomes the floor.
# False: out of memory, and nothing has changed.
cdef inline bint apply_floor(
    Core *core, Space *space, Cell *known, const Newcomer *newcomer, const Room *room
) noexcept:
    cdef Cell *floor = make_cell(core, space, newcomer.key, newcomer.key_size, 0)
    if floor == NULL:
        return False
    floor.updated_at_ms = newcomer.updated_at_ms
    if known != NULL:
        forget_cell(core, known)
    reclaim_expired(core, space, room)
    evict_oldest(core, space, room.evictions)
    raise_floor(core, space, floor)
    return True
