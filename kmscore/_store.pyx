"""The replicated in-memory store of one node: namespaces, their records, the log of local changes, and digests of what
is live (store §1-§5).

Every operation costs O(1) or O(log n) in the number of records, or what it returns. The store refuses to read a clock,
to make random numbers and to know plaintext: callers pass in the time, the seed of the keyed hash and ciphertexts. It
is not constant-time: keys, versions and ciphertexts are no secrets. A method is one step under the GIL, which it keeps
because it is over in about a microsecond: it happens, or it raises and has changed nothing.
"""

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItemWithError
from cpython.long cimport PyLong_CheckExact
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_CheckExact, PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy, memset

from kmscore._cell cimport (
    BY_TURN,
    CLOCK_OUTSIDE,
    DIGEST_BYTES,
    RECORD_COST,
    Cell,
    Item,
    Space,
    cell_clock,
    cell_key,
    cell_of,
    cell_size,
    is_visible,
    log_after,
    prefetch_cell,
    prefetch_queue,
    prefetch_value,
    release_cell,
    tower,
)
from kmscore._change cimport Change, Text, apply_change, apply_floor
from kmscore._decide cimport (
    CHANGES_RECORD,
    RAISES_FLOOR,
    ROOM_FITS,
    Decision,
    Newcomer,
    Room,
    decide,
    find_room,
)
from kmscore._digest cimport (
    PROGRESS_DONE,
    PROGRESS_NO_MEMORY,
    Found,
    Progress,
    Range,
    begin_digests,
    find_range,
    hash_item,
    lies_in,
    range_digests,
    refresh,
)
from kmscore._index cimport (
    NOTICES_PER_CALL,
    NOTICES_UNDER_PRESSURE,
    Core,
    core_open,
    find_cell,
    forget_cell,
    mark_emptied,
    notice_expired,
    own_counter,
    search_key,
)
from kmscore._memory cimport prefetch, release
from kmscore._merge cimport INSERTED, REPLACED_BY_VERSION, View
from kmscore._pages cimport pages_close
from kmscore._record cimport Record, fill_record, view_of_record
from kmscore._secret cimport SecretBytes, wipe_memory
from kmscore._siphash cimport HashKey
from kmscore._siphash cimport siphash24 as siphash24_kernel
from kmscore._table cimport Search, table_close
from kmscore._trie cimport DEPTH, FANOUT
from kmscore._vclock cimport (
    MAX_CLOCK_ENTRIES,
    MAX_WRITER_BYTES,
    ClockEntry,
    Writer,
    drop_writer,
    find_writer,
    hold_name,
    join_clocks,
    max_number,
)

from kmscore.errors import Reason, Rejected
from kmscore.store_types import Batch, MergeOutcome, QuotaPolicy, StoreStats


cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    long long PyLong_AsLongLongAndOverflow(object number, int *overflow) except? -1


cdef enum:
    SEED_BYTES = 16
    SEAL_BYTES = 28        # nonce and tag of a value at rest (protocol §5)
    DIGEST_KEY_BYTES = 32
    SCANS_PER_BATCH = 10000  # positions of the log one `since` looks at: some 100 µs when all are left out

cdef tuple OUTCOMES = tuple(MergeOutcome)
cdef str HEX_DIGITS = "0123456789abcdef"


# An own write that has been found acceptable, and what it will store. `space` and `cell` are NULL when there are none.
cdef struct Write:
    Text key
    Space *space
    Search found
    Cell *cell
    int64_t updated_at_ms
    int64_t ttl_ms
    ClockEntry own
    Room room


@cython.final
@cython.no_gc
cdef class Namespace:
    """Keeps the C struct of a namespace at one address, and its app id alive."""

    cdef Space space
    cdef object app_id


cdef object bad_field(str message):
    return Rejected(Reason.BAD_FIELD, message)


cdef HashKey hash_key_of(bytes seed) except *:
    cdef HashKey key
    if PyBytes_GET_SIZE(seed) != SEED_BYTES:
        raise bad_field("the seed of a store must be 16 bytes")
    memcpy(&key, <const char *>seed, SEED_BYTES)
    return key


cdef Text name_of(object name) except *:
    cdef Text text
    cdef Py_ssize_t size = 0
    text.data = PyUnicode_AsUTF8AndSize(name, &size)
    text.size = <size_t>size
    if text.size > MAX_WRITER_BYTES:
        raise bad_field("a writer's name is too long")
    return text


cdef Text key_text(key) except *:
    cdef Text text
    cdef Py_ssize_t size = 0
    if not PyUnicode_CheckExact(key):
        raise bad_field("key must be text")
    try:
        text.data = PyUnicode_AsUTF8AndSize(key, &size)
    except UnicodeEncodeError:
        raise bad_field("key must be text that UTF-8 can hold") from None
    text.size = <size_t>size
    return text


def siphash24(bytes key not None, bytes data not None) -> int:
    """SipHash-2-4 of `data` under a key of 16 bytes, as an unsigned integer: for its test vectors."""
    return siphash24_kernel(hash_key_of(key), data, PyBytes_GET_SIZE(data))


def count_outcomes(list outcomes not None) -> dict:
    """How often each MergeOutcome is in the list, those that are not left out."""
    cdef dict counts = {}
    cdef Py_ssize_t count
    cdef Py_ssize_t left = len(outcomes)
    for kind in OUTCOMES:
        if left == 0:
            break
        count = 0
        for outcome in outcomes:
            count += outcome is kind
        if count:
            counts[kind] = count
            left -= count
    return counts


# It holds Python objects that cannot point back at it, and must never be cleared before it is deallocated.
@cython.final
@cython.no_gc
cdef class Store:
    """The records of all namespaces of one node.

    `writer` is this node's name in version clocks (its wallet, at most 128 UTF-8 bytes), `limits` a StoreLimits, `seed`
    16 random bytes, new for each process, for the keyed hash of the tables. Raises Rejected (bad_field) for a name or
    seed of another size.

    `now_ms` is unix time in milliseconds everywhere. App ids are integers from 0 to 2^256 - 1.
    """

    cdef Core core
    cdef dict namespaces

    def __cinit__(self, str writer not None, limits, *, bytes seed not None):
        cdef Text name = name_of(writer)
        self.namespaces = {}
        self.core.hash_key = hash_key_of(seed)
        self.core.bounds.key_bytes = limits.max_key_bytes
        self.core.bounds.known_key_bytes = max(limits.max_key_bytes, limits.max_peer_key_bytes)
        self.core.bounds.value_bytes = limits.max_value_bytes
        self.core.bounds.app_bytes = limits.max_app_bytes
        self.core.bounds.store_bytes = limits.max_store_bytes
        self.core.bounds.tombstones = limits.max_tombstones_per_app
        self.core.bounds.retention_ms = limits.tombstone_retention_ms
        self.core.bounds.skew_ms = limits.max_clock_skew_ms
        self.core.bounds.evict = limits.quota_policy == QuotaPolicy.EVICT
        if not core_open(&self.core):
            raise MemoryError()
        self.core.own = hold_name(
            &self.core.writers, &self.core.memory, self.core.hash_key, name.data, name.size
        )
        if self.core.own == NULL:
            raise MemoryError()

    def __dealloc__(self):
        if self.core.log.head != NULL:
            self._free_records()
            release_cell(&self.core.blocks, &self.core.memory, self.core.log.head)
        if self.core.own != NULL:
            drop_writer(&self.core.writers, &self.core.memory, self.core.own)
        release(&self.core.memory, self.core.expiring.items)
        release(&self.core.memory, self.core.retained.items)
        release(&self.core.memory, self.core.retained_by_seq.items)
        table_close(&self.core.cells, &self.core.memory)
        table_close(&self.core.writers, &self.core.memory)
        pages_close(&self.core.memory)
        wipe_memory(&self.core.digests, sizeof(self.core.digests))

    @property
    def last_seq(self) -> int:
        """The sequence number of the newest local change, 0 before the first (store §4)."""
        return self.core.log.last_seq

    # --- own writes ---

    def plan_put(self, app_id, key, Py_ssize_t ciphertext_size, ttl_ms, int64_t now_ms) -> int:
        """What `put` would return or raise for a ciphertext of that many bytes; changes nothing."""
        cdef Write write
        self._plan_put(app_id, key, ciphertext_size, ttl_ms, now_ms, &write)
        return write.updated_at_ms

    def put(self, app_id, key, bytes ciphertext not None, ttl_ms, int64_t now_ms) -> int:
        """Stores `ciphertext` under `key` and returns the record's updated_at_ms (store §1).

        `key` is text of 1 to `max_key_bytes` UTF-8 bytes, `ttl_ms` an integer from 0 (no expiry) to 2^62. Raises
        Rejected, in this order: bad_field for app id, key or ttl; value_too_large; bad_field when a counter or time is
        used up; quota when the namespace or the store is full. MemoryError changes nothing either.
        """
        cdef Write write
        self._plan_put(app_id, key, PyBytes_GET_SIZE(ciphertext), ttl_ms, now_ms, &write)
        self._apply_write(app_id, &write, ciphertext, now_ms)
        return write.updated_at_ms

    def plan_delete(self, app_id, key, int64_t now_ms) -> int:
        """What `delete` would return or raise; changes nothing."""
        cdef Write write
        self._plan_delete(app_id, key, now_ms, &write)
        return write.updated_at_ms

    def delete(self, app_id, key, int64_t now_ms) -> int:
        """Leaves a tombstone for `key` and returns its updated_at_ms (store §1).

        Raises Rejected, in this order: bad_field for the key; not_found when the key is absent, expired or deleted;
        quota at `max_tombstones_per_app`; bad_field when a counter or time is used up.
        """
        cdef Write write
        self._plan_delete(app_id, key, now_ms, &write)
        self._apply_write(app_id, &write, None, now_ms)
        return write.updated_at_ms

    # --- reads ---

    def get(self, app_id, key, int64_t now_ms):
        """The live record of `key`, or None. Raises Rejected (bad_field) for the key.

        Like `delete` it takes the longer keys, too, that peers may have brought.
        """
        cdef Text text = self._checked_key(key, self.core.bounds.known_key_bytes)
        cdef Space *space = self._find_space(app_id)
        cdef Search found = search_key(&self.core, space, text.data, text.size)
        # Not an object that the garbage collector tracks, for the reason given in `since`.
        cdef Record record = Record.__new__(Record)
        cdef Cell *cell
        notice_expired(&self.core, now_ms, NOTICES_PER_CALL)
        cell = find_cell(&found, space, text.data, text.size, False)
        if cell == NULL or not is_visible(cell, now_ms):
            return None
        fill_record_of(record, cell)
        return record

    def keys(self, app_id, int64_t now_ms) -> list:
        """The keys of the live records of a namespace, sorted. Costs what it lists."""
        cdef list keys = []
        cdef Space *space
        cdef Cell *cell
        notice_expired(&self.core, now_ms, NOTICES_UNDER_PRESSURE)
        space = self._find_space(app_id)
        cell = space.live_cells.first if space != NULL else NULL
        while cell != NULL:
            if is_visible(cell, now_ms):
                keys.append(key_of(cell))
            cell = cell.next
        keys.sort()
        return keys

    def stats(self, int64_t now_ms):
        """Counts of live records, as a StoreStats.

        Expired records are out of it as soon as they are noticed: at most 1,000 in one call, more in the next.
        """
        notice_expired(&self.core, now_ms, NOTICES_UNDER_PRESSURE)
        return StoreStats(
            namespaces=self.core.live_spaces,
            total_keys=self.core.live,
            total_bytes=self.core.live_bytes,
            tombstones=self.core.tombstone_count,
        )

    def memory_used(self) -> int:
        """Bytes that the store holds in C structures: keys, versions and indexes, with what malloc adds to each block.

        Not in it are ciphertexts, which are bytes objects and may be shared with callers.
        """
        return self.core.memory.used

    # --- records of peers ---

    def evaluate(self, app_id, Record record not None, int64_t now_ms):
        """The MergeOutcome that `merge` would have now; changes nothing. Raises Rejected (bad_field) for the app id."""
        return OUTCOMES[self._evaluate(self._known_space(app_id), record, now_ms)]

    def evaluate_each(self, app_id, list records not None, int64_t now_ms) -> list:
        """`evaluate` for each of the records, as if the others were not there."""
        cdef list outcomes = []
        cdef Space *space = self._known_space(app_id)
        for record in records:
            outcomes.append(OUTCOMES[self._evaluate(space, record, now_ms)])
        return outcomes

    def merge(self, app_id, Record record not None, int64_t now_ms, source=None, bint snapshot=False):
        """Merges a peer's record and returns the MergeOutcome (store §2, §3).

        `source` names the peer (at most 128 UTF-8 bytes): `since` can leave out what is exactly as that peer sent it.
        `snapshot` marks what came by snapshot in the same way. A refusal changes nothing, with one exception: a record
        that is refused because it would be evicted at once raises the eviction floor, so that the order of arrival does
        not matter. Raises Rejected (bad_field) for the app id or the source.
        """
        cdef Writer *writer = self._hold_source(source)
        try:
            return OUTCOMES[self._merge(app_id, record, now_ms, writer, snapshot)]
        finally:
            self._drop_source(writer)

    def merge_each(self, app_id, list records not None, int64_t now_ms, source=None, bint snapshot=False) -> list:
        """`merge` for each of the records in order; what raises leaves those before it merged."""
        cdef list outcomes = []
        cdef Writer *writer = self._hold_source(source)
        try:
            for record in records:
                outcomes.append(OUTCOMES[self._merge(app_id, record, now_ms, writer, snapshot)])
        finally:
            self._drop_source(writer)
        return outcomes

    def since(
        self,
        int64_t seq,
        *,
        Py_ssize_t limit_records,
        int64_t limit_bytes,
        exclude_source=None,
        bint exclude_snapshot=False,
    ):
        """The records that changed after `seq`, oldest change first, as a Batch (store §4).

        At most `limit_records`, and at most `limit_bytes` counted as key, ciphertext and 128 each, but at least one
        record when there is one. Left out are records that are exactly as the peer `exclude_source` sent them and, with
        `exclude_snapshot`, live ones that came by snapshot. One call looks at no more than 10,000 records.
        """
        # While a cell is held nothing here makes an object that the garbage collector tracks: a collection could run
        # code that changes the store. Lists grow without one; the tuples are made afterwards.
        cdef list app_ids = []
        cdef list seqs = []
        cdef list records = []
        cdef Writer *excluded = NULL
        cdef Text name
        cdef Py_ssize_t scans = SCANS_PER_BATCH
        cdef bint done
        cdef Cell *cell
        cdef Cell *following
        if exclude_source is not None:
            name = name_of(exclude_source)
            excluded = find_writer(&self.core.writers, self.core.hash_key, name.data, name.size)
        cell = log_after(&self.core.log, seq)
        while cell != self.core.log.head and scans > 0 and limit_records > 0:
            scans -= 1
            following = tower(cell, 0).next
            prefetch_value(following.value, False)
            if following.clock_flags & CLOCK_OUTSIDE:
                prefetch(cell_clock(following))
            prefetch_cell(tower(following, 0).next)
            prefetch(tower(tower(following, 0).next, 0))
            if not ((excluded != NULL and cell.source == excluded) or (exclude_snapshot and cell.by_snapshot and cell.value != NULL)):
                limit_bytes -= cell_size(cell)
                if limit_bytes < 0 and records:
                    break
                limit_records -= 1
                app_ids.append(<object>cell.space.app_id)
                seqs.append(cell.seq)
                records.append(record_of(cell))
            seq = cell.seq
            cell = following
        done = cell == self.core.log.head
        if done:
            seq = self.core.log.last_seq
        return Batch(records=list(zip(app_ids, seqs, records)), next_seq=seq, done=done)

    # --- digests ---

    def find(self, app_id, key):
        """What is stored under `key`, tombstones and expired records included, or None.

        Keys of peers may be longer than our own apps'. Raises Rejected (bad_field) for a key that is not text.
        """
        cdef Text text = key_text(key)
        cdef Space *space = self._find_space(app_id)
        cdef Search found = search_key(&self.core, space, text.data, text.size)
        cdef Cell *cell = find_cell(&found, space, text.data, text.size, False)
        return record_of(cell) if cell != NULL else None

    def track_digests(self, SecretBytes key not None) -> None:
        """Makes digests with this key of 32 bytes from now on (store §5).

        A change of key forgets what was computed, in time proportional to the records; the same key again costs
        nothing. Raises Rejected (bad_field) for a key of another size.
        """
        cdef const unsigned char *key32 = key.pointer()
        cdef unsigned int different = 0
        cdef size_t i
        if key.size != DIGEST_KEY_BYTES:
            raise bad_field("the key of digests must be 32 bytes")
        for i in range(<size_t>DIGEST_KEY_BYTES):
            different |= key32[i] ^ self.core.digests.key[i]
        if different or not self.core.digests.keyed:
            begin_digests(&self.core, key32)

    def refresh_digests(self, int64_t now_ms, int64_t budget=2000) -> bool:
        """Brings the digests up to date with the records that are live now; False when the budget did not suffice.

        `budget` counts blocks of BLAKE3, roughly: the default is below a millisecond. One value of any size may come
        on top. Puts and merges do nothing for digests, so the cost of all changes since the last call is paid here.
        Raises Rejected (bad_field) before `track_digests`; MemoryError, and the next call goes on.
        """
        cdef Progress progress
        if not self.core.digests.keyed:
            raise bad_field("there is no key for digests")
        progress = refresh(&self.core, now_ms, budget)
        if progress == PROGRESS_NO_MEMORY:
            raise MemoryError()
        return progress == PROGRESS_DONE

    def digest_children(self, app_id, str prefix not None) -> list:
        """The digests, 16 bytes each, of the sixteen parts of a range, as of the last refresh (store §5).

        `app_id` names a namespace; None is the level of all namespaces. `prefix` is up to 15 lower-case hex digits: the
        beginning of the positions in the range. Raises Rejected (bad_field) for another prefix.
        """
        cdef uint8_t digests[FANOUT * DIGEST_BYTES]
        cdef Range wanted = self._range_of(app_id, prefix, DEPTH - 1)
        cdef bytes joined
        if wanted.trie == NULL:
            return [bytes(DIGEST_BYTES)] * FANOUT
        range_digests(&self.core, &wanted, digests)
        joined = (<char *>digests)[:FANOUT * DIGEST_BYTES]
        return [joined[start:start + DIGEST_BYTES] for start in range(0, FANOUT * DIGEST_BYTES, DIGEST_BYTES)]

    def digest_items(self, app_id, str prefix not None):
        """What lies in a range of at most 32 records: a list of (key, digest); None when the range holds more.

        For `app_id` None the list is of (app id, digest of the namespace). `prefix` is up to 16 lower-case hex digits.
        Raises Rejected (bad_field) for another prefix.
        """
        cdef Range wanted = self._range_of(app_id, prefix, DEPTH)
        cdef uint8_t digest[DIGEST_BYTES]
        cdef list names = []
        cdef list digests = []
        cdef Found found
        cdef Item *item
        if wanted.trie == NULL:
            return []
        found = find_range(&wanted)
        if found.branch != NULL:
            return None
        item = found.chain
        # Nothing here makes an object that the garbage collector tracks, for the reason given in `since`.
        while item != NULL:
            if lies_in(wanted.trie, item, wanted.start, wanted.nibbles):
                hash_item(&self.core, wanted.trie, item, digest)
                names.append(<object>(<Space *>item).app_id if app_id is None else key_of(cell_of(item)))
                digests.append((<char *>digest)[:DIGEST_BYTES])
            item = item.next
        return list(zip(names, digests))

    # --- upkeep ---

    def sweep(self, int64_t now_ms, int64_t acked_seq, Py_ssize_t budget=1000) -> int:
        """Frees up to `budget` records that nobody needs any more and returns how many (store §1).

        `acked_seq` is the sequence number up to which every eligible peer has acknowledged. Expired records go once it
        covers them, or after the tombstone retention since their expiry; tombstones once it covers them and the
        retention since their receipt is over.
        """
        cdef Cell *cell
        cdef Py_ssize_t freed = 0
        cdef int64_t horizon_ms = now_ms - self.core.bounds.retention_ms
        notice_expired(&self.core, now_ms, NOTICES_UNDER_PRESSURE)
        while freed < budget:
            cell = self._sweepable(horizon_ms, acked_seq)
            if cell == NULL:
                break
            forget_cell(&self.core, cell)
            freed += 1
        self._forget_namespaces()
        return freed

    def forget(self, int64_t seq) -> bool:
        """Drops the record whose newest change has the sequence number `seq`, without a tombstone; False when none has.

        For what the cluster has deleted and forgotten while this node was cut off from it (store §1).
        """
        cdef Cell *cell = log_after(&self.core.log, seq - 1)
        if cell == self.core.log.head or cell.seq != seq:
            return False
        forget_cell(&self.core, cell)
        self._forget_namespaces()
        return True

    def clear(self) -> None:
        """Forgets every record and eviction floor, in time proportional to the records. Sequence numbers go on."""
        self._free_records()
        self._forget_namespaces()

    # --- helpers ---

    cdef Cell *_sweepable(self, int64_t horizon_ms, int64_t acked_seq) noexcept:
        cdef Core *core = &self.core
        cdef Cell *oldest = core.tombstones.first
        if core.retained.count > 0:
            if core.retained_by_seq.items[0].rank <= acked_seq:
                return core.retained_by_seq.items[0].cell
            if core.retained.items[0].rank < horizon_ms:
                return core.retained.items[0].cell
        if oldest != NULL and oldest.place.received_at_ms <= horizon_ms and oldest.seq <= acked_seq:
            return oldest
        return NULL

    cdef void _free_records(self) noexcept:
        cdef Cell *cell = tower(self.core.log.head, 0).next
        cdef Cell *following
        cdef Namespace namespace
        while cell != self.core.log.head:
            following = tower(cell, 0).next
            forget_cell(&self.core, cell)
            cell = following
        for namespace in self.namespaces.values():
            release_cell(&self.core.blocks, &self.core.memory, namespace.space.floor)
            namespace.space.floor = NULL
            mark_emptied(&self.core, &namespace.space)
        self._forget_namespaces()

    # Drops the namespaces that have neither records nor a floor left.
    cdef void _forget_namespaces(self) noexcept:
        cdef Space *space = self.core.emptied
        cdef Space *following
        self.core.emptied = NULL
        while space != NULL:
            following = space.next_emptied
            space.emptied = False
            if space.cells == 0 and space.floor == NULL:
                release(&self.core.memory, space.evictable.items)
                space.evictable.items = NULL
                del self.namespaces[<object>space.app_id]
            space = following

    cdef int _check_app_id(self, app_id) except -1:
        if not PyLong_CheckExact(app_id) or not 0 <= app_id < 1 << 256:
            raise bad_field("an app id must be an integer from 0 to 2^256 - 1")
        return 0

    cdef Text _checked_key(self, key, int64_t limit_bytes) except *:
        cdef Text text
        cdef Py_ssize_t size = 0
        if not PyUnicode_CheckExact(key):
            raise bad_field("key must be text")
        try:
            text.data = PyUnicode_AsUTF8AndSize(key, &size)
        except UnicodeEncodeError:
            raise bad_field("key must be text that UTF-8 can hold") from None
        if not 1 <= size <= limit_bytes:
            raise bad_field("key must be between 1 byte and the limit for keys")
        text.size = <size_t>size
        return text

    cdef Space *_find_space(self, app_id) except? NULL:
        cdef PyObject *found = PyDict_GetItemWithError(self.namespaces, app_id)
        return &(<Namespace>found).space if found != NULL else NULL

    # A range of the namespace, or of the namespaces; its trie is NULL when there is no such namespace.
    cdef Range _range_of(self, app_id, str prefix, Py_ssize_t longest) except *:
        cdef Range wanted
        cdef Space *space
        cdef str digit
        cdef Py_ssize_t value
        if len(prefix) > longest:
            raise bad_field("the prefix of a range is too long")
        wanted.start = 0
        wanted.nibbles = 0
        for digit in prefix:
            value = HEX_DIGITS.find(digit)
            if value < 0:
                raise bad_field("the prefix of a range must be lower-case hex digits")
            wanted.start |= <uint64_t>value << (60 - 4 * wanted.nibbles)
            wanted.nibbles += 1
        if app_id is None:
            wanted.trie = &self.core.digests.spaces
        else:
            space = self._find_space(app_id)
            wanted.trie = &space.trie if space != NULL else NULL
        return wanted

    # The namespace of an app id, NULL when it has none.
    cdef Space *_known_space(self, app_id) except? NULL:
        cdef Space *space = self._find_space(app_id)
        if space == NULL:
            self._check_app_id(app_id)
        return space

    # One reference to the name of a peer, NULL for none.
    cdef Writer *_hold_source(self, source) except? NULL:
        cdef Text name
        cdef Writer *writer
        if source is None:
            return NULL
        name = name_of(source)
        writer = hold_name(&self.core.writers, &self.core.memory, self.core.hash_key, name.data, name.size)
        if writer == NULL:
            raise MemoryError()
        return writer

    cdef void _drop_source(self, Writer *writer) noexcept:
        if writer != NULL:
            drop_writer(&self.core.writers, &self.core.memory, writer)

    cdef int _evaluate(self, Space *space, Record record, int64_t now_ms) except -1:
        cdef View theirs = view_of_record(record)
        cdef Newcomer newcomer = newcomer_of(record, &theirs)
        cdef Search found = search_key(&self.core, space, newcomer.key, newcomer.key_size)
        cdef Cell *cell
        notice_expired(&self.core, now_ms, NOTICES_PER_CALL)
        cell = find_cell(&found, space, newcomer.key, newcomer.key_size, False)
        return <int>decide(&self.core, space, cell, &theirs, &newcomer, now_ms).verdict.outcome

    cdef int _merge(self, app_id, Record record, int64_t now_ms, Writer *source, bint snapshot) except -1:
        cdef View theirs = view_of_record(record)
        cdef Space *space = self._known_space(app_id)
        cdef Newcomer newcomer = newcomer_of(record, &theirs)
        cdef Search found = search_key(&self.core, space, newcomer.key, newcomer.key_size)
        cdef Change change
        cdef Cell *cell
        cdef Decision decision
        memset(&change, 0, sizeof(Change))
        change.key.data = newcomer.key
        change.key.size = newcomer.key_size
        change.by_snapshot = snapshot
        change.source = source
        notice_expired(&self.core, now_ms, NOTICES_PER_CALL)
        cell = find_cell(&found, space, newcomer.key, newcomer.key_size, True)
        decision = decide(&self.core, space, cell, &theirs, &newcomer, now_ms)
        if decision.effect == CHANGES_RECORD:
            self._apply_merge(app_id, space, cell, record, &decision, &change, now_ms)
        elif decision.effect == RAISES_FLOOR:
            if not apply_floor(&self.core, space, cell, &newcomer, &decision.room):
                raise MemoryError()
        return <int>decision.verdict.outcome

    # The namespace of an app id that is valid and has none; it goes again when nothing is put into it.
    cdef Space *_make_space(self, app_id) except NULL:
        cdef Namespace namespace = Namespace.__new__(Namespace)
        cdef bytes encoded
        namespace.app_id = app_id
        namespace.space.app_id = <PyObject *>app_id
        encoded = app_id.to_bytes(32, "big")
        memcpy(namespace.space.app, <const char *>encoded, 32)
        namespace.space.evictable.slot = BY_TURN
        self.core.spaces_made += 1
        namespace.space.number = self.core.spaces_made
        self.namespaces[app_id] = namespace
        mark_emptied(&self.core, &namespace.space)
        return &namespace.space

    # Begins to look for the record of a write's key; `_plan_write` ends it, when the bucket has been fetched.
    cdef int _search(self, app_id, Write *write) except -1:
        write.space = self._find_space(app_id)
        write.found = search_key(&self.core, write.space, write.key.data, write.key.size)
        return 0

    # Finds the record and the numbers of a write that supersedes it (store §1).
    cdef int _plan_write(self, int64_t now_ms, Write *write) except -1:
        write.cell = find_cell(&write.found, write.space, write.key.data, write.key.size, True)
        write.updated_at_ms = now_ms
        write.own.writer = self.core.own
        write.own.counter = max(own_counter(&self.core, write.cell) + 1, now_ms)
        if write.cell != NULL:
            write.updated_at_ms = max(now_ms, write.cell.updated_at_ms + 1)
        return 0

    cdef int _check_numbers(self, const Write *write) except -1:
        cdef size_t entries = 0
        if write.own.counter > max_number() or write.updated_at_ms > max_number():
            raise bad_field("the counters of this key are used up")
        if write.cell != NULL:
            entries = join_clocks(cell_clock(write.cell), write.cell.entries, &write.own, 1, NULL)
        if entries > MAX_CLOCK_ENTRIES:
            raise bad_field("the version of this key has too many writers")
        return 0

    cdef int _plan_put(
        self, app_id, key, Py_ssize_t ciphertext_size, ttl_ms, int64_t now_ms, Write *write
    ) except -1:
        cdef int overflow = 0
        cdef Newcomer newcomer
        self._check_app_id(app_id)
        write.key = self._checked_key(key, self.core.bounds.key_bytes)
        self._search(app_id, write)
        if not PyLong_CheckExact(ttl_ms):
            raise bad_field("ttl_ms must be an integer")
        write.ttl_ms = PyLong_AsLongLongAndOverflow(ttl_ms, &overflow)
        if overflow != 0 or not 0 <= write.ttl_ms <= max_number():
            raise bad_field("ttl_ms must be from 0 to 2^62")
        if not 0 <= ciphertext_size <= self.core.bounds.value_bytes + SEAL_BYTES:
            raise Rejected(Reason.VALUE_TOO_LARGE, "the value is too large")
        notice_expired(&self.core, now_ms, NOTICES_PER_CALL)
        self._plan_write(now_ms, write)
        if write.space != NULL and write.space.floor != NULL:
            write.updated_at_ms = max(write.updated_at_ms, write.space.floor.updated_at_ms + 1)
        newcomer.key = write.key.data
        newcomer.key_size = write.key.size
        newcomer.size = <int64_t>write.key.size + ciphertext_size + RECORD_COST
        newcomer.tombstone = False
        newcomer.updated_at_ms = max_number() + 1  # after everything that may have to make room for it
        write.room = find_room(&self.core, write.space, write.cell, &newcomer, True, now_ms)
        if write.room.evictions > 0:
            write.updated_at_ms = max(write.updated_at_ms, write.space.newest_ms + 1)
        self._check_numbers(write)
        if write.room.verdict != ROOM_FITS:
            raise Rejected(Reason.QUOTA, "the storage of this app or of the node is full")
        return 0

    cdef int _plan_delete(self, app_id, key, int64_t now_ms, Write *write) except -1:
        write.key = self._checked_key(key, self.core.bounds.known_key_bytes)
        self._search(app_id, write)
        notice_expired(&self.core, now_ms, NOTICES_PER_CALL)
        self._plan_write(now_ms, write)
        if write.cell != NULL:
            prefetch_queue(write.cell)
        write.ttl_ms = 0
        write.room.reclaim_bytes = 0
        write.room.elsewhere_bytes = 0
        write.room.evictions = 0
        if write.cell == NULL or not is_visible(write.cell, now_ms):
            raise Rejected(Reason.NOT_FOUND, "there is no such key")
        if write.space.tombstones >= self.core.bounds.tombstones:
            raise Rejected(Reason.QUOTA, "this app has too many deleted keys that are not forgotten yet")
        self._check_numbers(write)
        return 0

    cdef int _carry_out(
        self, app_id, Space *space, Cell *known, const Change *change, const Room *room, int64_t now_ms
    ) except -1:
        cdef bint done
        if space == NULL:
            space = self._make_space(app_id)
        done = apply_change(&self.core, space, known, change, room, now_ms)
        self._forget_namespaces()
        if not done:
            raise MemoryError()
        return 0

    cdef int _apply_write(self, app_id, const Write *write, bytes ciphertext, int64_t now_ms) except -1:
        cdef Change change
        memset(&change, 0, sizeof(Change))
        change.key = write.key
        change.value = <PyObject *>ciphertext if ciphertext is not None else NULL
        change.updated_at_ms = write.updated_at_ms
        change.ttl_ms = write.ttl_ms
        change.clock = &write.own
        change.entries = 1
        return self._carry_out(app_id, write.space, write.cell, &change, &write.room, now_ms)

    # `change` knows already where the record comes from; this adds what the verdict makes of it.
    cdef int _apply_merge(
        self,
        app_id,
        Space *space,
        Cell *known,
        Record record,
        const Decision *decision,
        Change *change,
        int64_t now_ms,
    ) except -1:
        cdef ClockEntry own
        if decision.verdict.outcome != INSERTED and decision.verdict.outcome != REPLACED_BY_VERSION:
            change.source = NULL  # what is stored will not be exactly what the peer sent
            change.by_snapshot = False
        change.clock = record.clock
        change.entries = record.entries
        if decision.verdict.reissue:
            own.writer = self.core.own
            own.counter = decision.own_counter
            change.clock = &own
            change.entries = 1
        if decision.verdict.take_theirs:
            change.value = <PyObject *>record.value if record.value is not None else NULL
            change.updated_at_ms = record.updated_at_ms
            change.ttl_ms = record.ttl_ms
        else:
            change.value = known.value
            change.updated_at_ms = known.updated_at_ms
            change.ttl_ms = known.ttl_ms
        return self._carry_out(app_id, space, known, change, &decision.room, now_ms)


cdef Newcomer newcomer_of(Record record, const View *theirs) except *:
    cdef Newcomer newcomer
    cdef Py_ssize_t size = 0
    newcomer.key = PyUnicode_AsUTF8AndSize(record.key, &size)
    newcomer.key_size = <size_t>size
    newcomer.updated_at_ms = theirs.updated_at_ms
    newcomer.size = <int64_t>(newcomer.key_size + theirs.value_size) + RECORD_COST
    newcomer.tombstone = theirs.value == NULL
    return newcomer


cdef str key_of(const Cell *cell):
    return PyUnicode_DecodeUTF8(cell_key(cell), cell.node.size, NULL)


cdef Record record_of(const Cell *cell):
    cdef Record record = Record.__new__(Record)
    fill_record_of(record, cell)
    return record


cdef int fill_record_of(Record record, const Cell *cell) except -1:
    return fill_record(
        record,
        key_of(cell),
        <bytes>cell.value if cell.value != NULL else None,
        cell.updated_at_ms,
        cell.ttl_ms,
        cell_clock(cell),
        cell.entries,
    )
