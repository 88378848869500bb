# What to do with a write or with a record from a peer, decided without changing anything that anyone can see (expired
# records may be noticed, and a heap is tried out and put back).

from libc.stdint cimport int64_t
from libc.string cimport memset

from kmscore._cell cimport RETAINED, TOMBSTONE, Cell, Space, cell_clock, cell_key, cell_size
from kmscore._heap cimport compare_turns, heap_restore, heap_set_aside
from kmscore._index cimport NOTICES_UNDER_PRESSURE, Core, notice_expired, own_counter, view_of_cell
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
from kmscore._vclock cimport MAX_CLOCK_ENTRIES, ClockEntry, join_clocks, max_number


cdef enum RoomVerdict:
    ROOM_FITS
    ROOM_STORE_FULL
    ROOM_APP_FULL
    ROOM_BELOW_FLOOR       # the newcomer itself is the next to be evicted


# How to make room for a record: expired ones of its namespace first, then, when the store is full, of the others, then
# (policy evict) the oldest live ones of its namespace.
cdef struct Room:
    RoomVerdict verdict
    int64_t reclaim_bytes
    int64_t elsewhere_bytes
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
    cdef int64_t elsewhere = core.retained_bytes - retained
    cdef int64_t over_app = 0
    cdef int64_t over_store = 0
    room.verdict = ROOM_FITS
    room.reclaim_bytes = 0
    room.elsewhere_bytes = 0
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
    room.elsewhere_bytes = max(min(over_store, elsewhere), 0)
    over_store -= elsewhere
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
    if room.verdict != ROOM_FITS or room.evictions > 0 or room.reclaim_bytes + room.elsewhere_bytes > 0:
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
cdef inline bint clock_fits(
    const Core *core, const Cell *cell, const View *theirs, const Decision *decision
) noexcept nogil:
    cdef ClockEntry own
    if decision.verdict.join:
        return join_clocks(cell_clock(cell), cell.entries, theirs.clock, theirs.entries, NULL) <= MAX_CLOCK_ENTRIES
    if not decision.verdict.reissue:
        return True
    own.writer = core.own
    own.counter = decision.own_counter
    return (
        own.counter <= max_number() and join_clocks(cell_clock(cell), cell.entries, &own, 1, NULL) <= MAX_CLOCK_ENTRIES
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
