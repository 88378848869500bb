# The store's state as one struct, and the moves that keep its parts in step: a cell enters and leaves all indexes of its
# state together (attach, detach), and everything that a change needs is allocated before the first of these moves.
#
# Nothing here frees a value or makes a Python object unless its declaration lacks `nogil`.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from kmscore._cell cimport (
    BY_EXPIRY,
    BY_TURN,
    LIVE,
    RECORD_COST,
    RETAINED,
    TOMBSTONE,
    Cell,
    ChangeLog,
    Heap,
    PyBytes_AS_STRING,
    Queue,
    Space,
    cell_key,
    cell_size,
    expires_at,
    is_visible,
    level_of,
    log_append,
    log_open,
    log_remove,
    new_cell,
    queue_append,
    queue_remove,
    value_size,
)
from kmscore._heap cimport (
    compare_turns,
    heap_push,
    heap_remove,
    heap_reserve,
    heap_restore,
    heap_set_aside,
)
from kmscore._memory cimport Memory, claim, release
from kmscore._merge cimport (
    IGNORED_EXPIRED,
    REFUSED_CAPACITY,
    REFUSED_CLOCK,
    REFUSED_EVICTED,
    REFUSED_FUTURE,
    Verdict,
    View,
    decide_merge,
)
from kmscore._siphash cimport HashKey, siphash24
from kmscore._table cimport Node, Table, bucket_of, table_insert, table_open, table_remove
from kmscore._vclock cimport (
    MAX_CLOCK_ENTRIES,
    ClockEntry,
    Writer,
    drop_writer,
    hold_writer,
    join_clocks,
    max_number,
)


cdef extern from "Python.h":
    void Py_XDECREF(PyObject *value)


cdef enum:
    NOTICES_PER_CALL = 16          # expiries handled by an ordinary call: more than it can add
    NOTICES_UNDER_PRESSURE = 1000  # when their bytes are asked for: still well below a millisecond


# StoreLimits, and whether the policy is to evict.
cdef struct Bounds:
    int64_t key_bytes
    int64_t peer_key_bytes
    int64_t value_bytes
    int64_t app_bytes
    int64_t store_bytes
    size_t tombstones
    int64_t retention_ms
    int64_t skew_ms
    bint evict


cdef struct Core:
    Memory memory
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


cdef enum RoomVerdict:
    ROOM_FITS
    ROOM_STORE_FULL
    ROOM_APP_FULL
    ROOM_BELOW_FLOOR       # the newcomer itself is the next to be evicted


# How to make room for a record: expired ones first, then (policy evict) the oldest live ones.
cdef struct Room:
    RoomVerdict verdict
    int64_t reclaim_bytes
    size_t evictions


# A record on its way in: its place in the eviction order, and what it adds.
cdef struct Newcomer:
    const char *key
    size_t key_size
    int64_t updated_at_ms
    int64_t size
    bint tombstone


cdef enum Effect:
    CHANGES_NOTHING
    CHANGES_RECORD
    RAISES_FLOOR  # what comes before the newcomer goes, and the newcomer with it


# Whether and how a merge goes through.
cdef struct Decision:
    Verdict verdict
    Effect effect
    Room room
    int64_t own_counter  # for a survivor that is issued anew


cdef inline bint core_open(Core *core) noexcept nogil:
    core.expiring.slot = core.retained.slot = BY_EXPIRY
    core.retained_by_seq.slot = BY_TURN
    return (
        table_open(&core.cells, &core.memory)
        and table_open(&core.writers, &core.memory)
        and log_open(&core.log, &core.memory)
    )


# --- finding ---

# The namespace takes part through the key of the hash, so that one app's keys say nothing about another's.
cdef inline uint64_t key_digest(const Core *core, const Space *space, const char *key, size_t size) noexcept nogil:
    cdef HashKey hash_key = core.hash_key
    hash_key.k1 ^= space.number
    return siphash24(hash_key, key, size)


cdef inline Cell *find_cell(const Core *core, const Space *space, const char *key, size_t size) noexcept nogil:
    cdef uint32_t digest
    cdef Node *node
    cdef Cell *cell
    if space == NULL:
        return NULL
    digest = <uint32_t>key_digest(core, space, key, size)
    node = bucket_of(&core.cells, digest)[0]
    while node != NULL:
        cell = <Cell *>node
        if (
            node.hash == digest
            and node.size == size
            and cell.space == space
            and memcmp(cell_key(cell), key, size) == 0
        ):
            return cell
        node = node.chain
    return NULL


cdef inline View view_of_cell(const Cell *cell) noexcept nogil:
    cdef View view
    view.value = PyBytes_AS_STRING(cell.value) if cell.value != NULL else NULL
    view.value_size = value_size(cell)
    view.updated_at_ms = cell.updated_at_ms
    view.ttl_ms = cell.ttl_ms
    view.clock = cell.clock
    view.entries = cell.entries
    return view


# The largest counter we have issued for the key, as far as its stored version tells.
cdef inline int64_t own_counter(const Core *core, const Cell *cell) noexcept nogil:
    cdef size_t i
    if cell != NULL:
        for i in range(cell.entries):
            if cell.clock[i].writer == core.own:
                return cell.clock[i].counter
    return 0


# --- indexes ---

cdef inline void attach(Core *core, Cell *cell) noexcept nogil:
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
    else:
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


cdef inline void detach(Core *core, Cell *cell) noexcept nogil:
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
    else:
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


# So that attaching one more live cell of that namespace cannot fail.
cdef inline bint reserve_live(Core *core, Space *space) noexcept nogil:
    return heap_reserve(&core.expiring, &core.memory) and (
        not core.bounds.evict or heap_reserve(&space.evictable, &core.memory)
    )


# Moves up to `budget` records whose time is over out of the live ones. What is left over, or cannot be moved for want of
# memory, waits for the next call; reads look at the time themselves.
cdef inline void notice_expired(Core *core, int64_t now_ms, size_t budget) noexcept nogil:
    cdef Cell *cell
    while budget > 0 and core.expiring.count > 0 and core.expiring.items[0].rank < now_ms:
        if not (
            heap_reserve(&core.retained, &core.memory) and heap_reserve(&core.retained_by_seq, &core.memory)
        ):
            return
        cell = core.expiring.items[0].cell
        detach(core, cell)
        cell.state = RETAINED
        attach(core, cell)
        budget -= 1


# --- freeing ---

cdef inline void mark_emptied(Core *core, Space *space) noexcept nogil:
    if not space.emptied:
        space.emptied = True
        space.next_emptied = core.emptied
        core.emptied = space


cdef inline void drop_clock(Core *core, ClockEntry *clock, size_t entries) noexcept nogil:
    cdef size_t i
    for i in range(entries):
        drop_writer(&core.writers, &core.memory, clock[i].writer)
    release(&core.memory, clock)


# Leaves key and time, which is what a floor is made of.
cdef inline void strip_cell(Core *core, Cell *cell) noexcept:
    drop_clock(core, cell.clock, cell.entries)
    if cell.source != NULL:
        drop_writer(&core.writers, &core.memory, cell.source)
    Py_XDECREF(cell.value)
    cell.clock = NULL
    cell.entries = 0
    cell.source = NULL
    cell.value = NULL


cdef inline void free_cell(Core *core, Cell *cell) noexcept:
    strip_cell(core, cell)
    release(&core.memory, cell)


# Takes a detached cell out of table and log; it then belongs to nobody.
cdef inline void unlink_cell(Core *core, Cell *cell) noexcept nogil:
    log_remove(cell)
    table_remove(&core.cells, &core.memory, &cell.node)
    cell.space.cells -= 1
    if cell.space.cells == 0:
        mark_emptied(core, cell.space)


cdef inline void forget_cell(Core *core, Cell *cell) noexcept:
    detach(core, cell)
    unlink_cell(core, cell)
    free_cell(core, cell)


# The floor only rises. Takes the cell, which is in no index any more.
cdef inline void raise_floor(Core *core, Space *space, Cell *cell) noexcept:
    cdef Cell *floor = space.floor
    strip_cell(core, cell)
    if floor == NULL or compare_turns(
        floor.updated_at_ms, cell_key(floor), floor.node.size, cell.updated_at_ms, cell_key(cell), cell.node.size
    ) < 0:
        space.floor = cell
        cell = floor
    if cell != NULL:
        release(&core.memory, cell)


cdef inline void evict_oldest(Core *core, Space *space, size_t evictions) noexcept:
    cdef Cell *cell
    while evictions > 0:
        cell = space.evictable.items[0].cell
        detach(core, cell)
        unlink_cell(core, cell)
        raise_floor(core, space, cell)
        evictions -= 1


# Expired records go without touching the floor: an older version that comes back instead of them would be a resurrection,
# and that is the price of a full namespace, not of an ordinary expiry (store §1).
cdef inline void reclaim_expired(Core *core, Space *space, int64_t reclaim_bytes) noexcept:
    cdef Cell *cell
    while reclaim_bytes > 0:
        cell = space.retained_cells.first
        reclaim_bytes -= cell_size(cell)
        forget_cell(core, cell)


# --- deciding; nothing below changes what anyone can see ---

cdef inline bint is_below_floor(const Space *space, const Newcomer *newcomer) noexcept nogil:
    return space != NULL and space.floor != NULL and compare_turns(
        newcomer.updated_at_ms,
        newcomer.key,
        newcomer.key_size,
        space.floor.updated_at_ms,
        cell_key(space.floor),
        space.floor.node.size,
    ) <= 0


# Which live records, other than `cell` that is being replaced, must go to save so many bytes. It is tried on the heap
# itself, which is put back as it was.
cdef inline void plan_evictions(
    Space *space, const Cell *cell, const Newcomer *newcomer, int64_t over_app, int64_t over_store, Room *room
) noexcept nogil:
    cdef size_t count = space.evictable.count
    cdef Cell *oldest
    while over_app > 0 or over_store > 0:
        if space.evictable.count == 0:
            room.verdict = ROOM_APP_FULL if over_app > 0 else ROOM_STORE_FULL
            break
        oldest = heap_set_aside(&space.evictable)
        if oldest == cell:
            continue
        if compare_turns(
            newcomer.updated_at_ms,
            newcomer.key,
            newcomer.key_size,
            oldest.updated_at_ms,
            cell_key(oldest),
            oldest.node.size,
        ) < 0:
            room.verdict = ROOM_BELOW_FLOOR if over_app > 0 else ROOM_STORE_FULL
            break
        over_app -= cell_size(oldest)
        over_store -= cell_size(oldest)
        room.evictions += 1
    heap_restore(&space.evictable, count)


# `cell` is the record that the newcomer replaces, or NULL. Tombstones are never too much for a namespace, and a record
# that grows nothing is never too much for the store.
cdef inline Room plan_room(
    const Core *core, Space *space, const Cell *cell, const Newcomer *newcomer, bint limit_app
) noexcept nogil:
    cdef Room room
    cdef int64_t replaced = cell_size(cell) if cell != NULL else 0
    cdef int64_t retained = space.retained_bytes if space != NULL else 0
    cdef int64_t over_app = 0
    cdef int64_t over_store = 0
    room.verdict = ROOM_FITS
    room.reclaim_bytes = 0
    room.evictions = 0
    if newcomer.size > replaced:
        over_store = core.total_bytes - replaced + newcomer.size - core.bounds.store_bytes
    if limit_app and not newcomer.tombstone:
        over_app = newcomer.size - core.bounds.app_bytes
        if over_app > 0:
            room.verdict = ROOM_APP_FULL
            return room
        if space != NULL:
            over_app += space.live_bytes + space.retained_bytes
            if cell != NULL and cell.state != TOMBSTONE:
                over_app -= replaced
    if cell != NULL and cell.state == RETAINED:
        retained -= replaced
    room.reclaim_bytes = min(max(over_app, over_store), retained)
    over_app -= retained
    over_store -= retained
    if over_app > 0 or over_store > 0:
        if core.bounds.evict and space != NULL and not newcomer.tombstone:
            plan_evictions(space, cell, newcomer, over_app, over_store, &room)
        else:
            room.verdict = ROOM_APP_FULL if over_app > 0 else ROOM_STORE_FULL
    return room


# With the expired records that make the difference counted as such: most calls need no more than the cheap first look.
cdef inline Room find_room(
    Core *core, Space *space, const Cell *cell, const Newcomer *newcomer, bint limit_app, int64_t now_ms
) noexcept nogil:
    cdef Room room = plan_room(core, space, cell, newcomer, limit_app)
    if room.verdict != ROOM_FITS or room.evictions > 0 or room.reclaim_bytes > 0:
        notice_expired(core, now_ms, NOTICES_UNDER_PRESSURE)
        room = plan_room(core, space, cell, newcomer, limit_app)
    return room


# Unknown here and expired for longer than any node retains what has expired: to take it in would let nodes pass it
# around for ever, each after the other has dropped it.
cdef inline bint is_long_expired(const Core *core, const View *theirs, int64_t now_ms) noexcept nogil:
    return (
        theirs.value != NULL
        and theirs.ttl_ms > 0
        and theirs.ttl_ms < now_ms - theirs.updated_at_ms - core.bounds.retention_ms
    )


# A joined version must stay one that peers accept, and a new own counter within the range of counters.
cdef inline bint clock_fits(const Core *core, const Cell *cell, const View *theirs, const Decision *decision) noexcept nogil:
    cdef ClockEntry own
    if decision.verdict.join:
        return join_clocks(cell.clock, cell.entries, theirs.clock, theirs.entries, NULL) <= MAX_CLOCK_ENTRIES
    if not decision.verdict.reissue:
        return True
    own.writer = core.own
    own.counter = decision.own_counter
    return (
        own.counter <= max_number() and join_clocks(cell.clock, cell.entries, &own, 1, NULL) <= MAX_CLOCK_ENTRIES
    )


# Store §2 and §3 for a record from a peer, in the order: time, merge rule, bound of the clock, floor, room.
cdef inline Decision decide(
    Core *core, Space *space, const Cell *cell, const View *theirs, const Newcomer *newcomer, int64_t now_ms
) noexcept nogil:
    cdef Decision decision
    cdef View ours
    memset(&decision, 0, sizeof(Decision))
    if theirs.updated_at_ms - core.bounds.skew_ms > now_ms:
        decision.verdict.outcome = REFUSED_FUTURE
        return decision
    if cell == NULL:
        decision.verdict = decide_merge(NULL, theirs)
        if is_long_expired(core, theirs, now_ms):
            decision.verdict.outcome = IGNORED_EXPIRED
            return decision
    else:
        ours = view_of_cell(cell)
        decision.verdict = decide_merge(&ours, theirs)
    if decision.verdict.reissue:
        decision.own_counter = max(own_counter(core, cell) + 1, now_ms)
    if not clock_fits(core, cell, theirs, &decision):
        decision.verdict.outcome = REFUSED_CLOCK
        return decision
    if decision.verdict.take_theirs:
        take_in(core, space, cell, newcomer, now_ms, &decision)
    elif decision.verdict.join or decision.verdict.reissue:
        decision.effect = CHANGES_RECORD
    return decision


# The second half: their payload wins, and needs a place.
cdef inline void take_in(
    Core *core, Space *space, const Cell *cell, const Newcomer *newcomer, int64_t now_ms, Decision *decision
) noexcept nogil:
    if not newcomer.tombstone and is_below_floor(space, newcomer):
        decision.verdict.outcome = REFUSED_EVICTED
        return
    decision.room = find_room(core, space, cell, newcomer, core.bounds.evict, now_ms)
    if decision.room.verdict == ROOM_FITS:
        decision.effect = CHANGES_RECORD
    elif decision.room.verdict == ROOM_BELOW_FLOOR:
        decision.verdict.outcome = REFUSED_EVICTED
        decision.effect = RAISES_FLOOR
    else:
        decision.verdict.outcome = REFUSED_CAPACITY


# --- building ---

# The element-wise maximum of a stored version (`cell` may be NULL) and another one, with interned writers, each held
# once; NULL: out of memory, nothing held.
cdef inline ClockEntry *hold_joined(
    Core *core, const Cell *cell, const ClockEntry *theirs, size_t m, size_t *entries
) noexcept nogil:
    cdef const ClockEntry *ours = cell.clock if cell != NULL else NULL
    cdef size_t n = cell.entries if cell != NULL else 0
    cdef ClockEntry *clock
    cdef Writer *writer
    cdef size_t i
    entries[0] = join_clocks(ours, n, theirs, m, NULL)
    clock = <ClockEntry *>claim(&core.memory, entries[0] * sizeof(ClockEntry))
    if clock == NULL:
        return NULL
    join_clocks(ours, n, theirs, m, clock)
    for i in range(entries[0]):
        writer = hold_writer(&core.writers, &core.memory, core.hash_key, clock[i].writer)
        if writer == NULL:
            drop_clock(core, clock, i)
            return NULL
        clock[i].writer = writer
    return clock


# A cell for a key that the namespace does not have yet, in no index so far.
cdef inline Cell *make_cell(Core *core, Space *space, const char *key, size_t size) noexcept nogil:
    cdef uint64_t digest = key_digest(core, space, key, size)
    cdef Cell *cell = new_cell(&core.memory, level_of(digest), size)
    if cell == NULL:
        return NULL
    cell.node.hash = <uint32_t>digest
    cell.node.size = <uint32_t>size
    cell.space = space
    memcpy(cell_key(cell), key, size)
    return cell


# Puts a finished cell where its state and its new place in the log belong.
cdef inline void enter_cell(Core *core, Cell *cell, bint is_new, int64_t now_ms) noexcept nogil:
    if is_new:
        table_insert(&core.cells, &core.memory, &cell.node)
        cell.space.cells += 1
    log_append(&core.log, cell)
    cell.state = LIVE if cell.value != NULL else TOMBSTONE
    cell.received_at_ms = now_ms
    attach(core, cell)
