"""Records of the replicated store: immutable, cheap to merge, and parsed strictly from what peers send (store §1, §2).

This module refuses everything about a record that can be judged without a store: wrong types, counters and times out of
range, tombstones with a value, values and keys over the limit. It does not know a clock and does not decrypt. It is not
constant-time: ciphertexts, keys and versions are no secrets.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_CheckExact, PyDict_GetItemWithError, PyDict_Next
from cpython.long cimport PyLong_CheckExact
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_CheckExact, PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memcpy

from kmscore._mac cimport read_hex
from kmscore._merge cimport Verdict, View, compare_payloads, decide_merge
from kmscore._vclock cimport (
    CLOCK_EQUAL,
    MAX_CLOCK_ENTRIES,
    MAX_WRITER_BYTES,
    ClockEntry,
    Writer,
    compare_clocks,
    compare_writers,
    join_clocks,
    max_number,
    writer_name,
)

from kmscore.store_types import MergeOutcome, RecordRefused, SkipReason


cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    long long PyLong_AsLongLongAndOverflow(object number, int *overflow) except? -1


cdef enum:
    SEAL_BYTES = 28         # nonce and tag of a value at rest (protocol §5)
    MAX_PEER_KEY_BYTES = 65536
    STEP_RECORD_BYTES = 512  # checking and merging a record takes about as long as decrypting so much
    STEP_ENTRY_BYTES = 64    # and an entry of its clock so much
    STEP_JSON_BYTES = 4096   # what came as a JSON value may be made of thousands, which are freed with it

cdef tuple OUTCOMES = tuple(MergeOutcome)


# --- clocks in one block ---

# Writers start at multiples of 8, as the struct needs.
cdef inline size_t writer_block(size_t name_size) noexcept nogil:
    return (sizeof(Writer) + name_size + 7) & ~<size_t>7


cdef inline Writer *place_writer(char *at, const char *name, size_t size) noexcept nogil:
    cdef Writer *writer = <Writer *>at
    writer.node.hash = 0
    writer.node.size = <uint32_t>size
    writer.refs = 0
    memcpy(writer_name(writer), name, size)
    return writer


cdef ClockEntry *copy_clock(const ClockEntry *clock, size_t entries) noexcept nogil:
    cdef size_t size = entries * sizeof(ClockEntry)
    cdef size_t i
    cdef char *at
    cdef ClockEntry *copy
    for i in range(entries):
        size += writer_block(clock[i].writer.node.size)
    copy = <ClockEntry *>malloc(size)
    if copy == NULL:
        return NULL
    at = <char *>(copy + entries)
    for i in range(entries):
        copy[i].counter = clock[i].counter
        copy[i].writer = place_writer(at, writer_name(clock[i].writer), clock[i].writer.node.size)
        at += writer_block(clock[i].writer.node.size)
    return copy


cdef int order_of_entries(const void *a, const void *b) noexcept nogil:
    return compare_writers((<const ClockEntry *>a).writer, (<const ClockEntry *>b).writer)


cdef void sort_clock(ClockEntry *clock, size_t entries) noexcept nogil:
    cdef size_t i
    for i in range(1, entries):  # peers send versions sorted: one pass and no sort
        if compare_writers(clock[i - 1].writer, clock[i].writer) > 0:
            qsort(clock, entries, sizeof(ClockEntry), order_of_entries)
            return


# --- checking single fields ---

cdef object malformed(str message):
    return RecordRefused(SkipReason.MALFORMED, message)


# A number of a record: an int and not a bool, from 0 to 2^62.
cdef int64_t checked_number(object number, str message) except -1:
    cdef int overflow = 0
    cdef int64_t result
    if not PyLong_CheckExact(number):
        raise malformed(message)
    result = PyLong_AsLongLongAndOverflow(number, &overflow)
    if overflow != 0 or not 0 <= result <= max_number():
        raise malformed(message)
    return result


# The UTF-8 form, which lives as long as `text`.
cdef const char *checked_utf8(object text, Py_ssize_t *size, str message) except NULL:
    if not PyUnicode_CheckExact(text):
        raise malformed(message)
    try:
        return PyUnicode_AsUTF8AndSize(text, size)
    except UnicodeEncodeError:
        raise malformed(message) from None


cdef int check_key(object key, Py_ssize_t limit_bytes) except -1:
    cdef Py_ssize_t size = 0
    checked_utf8(key, &size, "a record's key must be text")
    if size == 0:
        raise malformed("a record's key must not be empty")
    if size > limit_bytes:
        raise RecordRefused(SkipReason.KEY_TOO_LARGE, "a record's key is too long")
    return 0


# The ciphertext of a live record: hex in either case, `0x` or not (protocol, conventions).
cdef bytes parse_value(object text, Py_ssize_t limit_bytes):
    cdef Py_ssize_t size = 0
    cdef const char *digits = checked_utf8(text, &size, "a record's value must be hex or null")
    cdef bytes value
    if size >= 2 and digits[0] == b"0" and (digits[1] == b"x" or digits[1] == b"X"):
        digits += 2
        size -= 2
    if size & 1:
        raise malformed("a record's value must be hex or null")
    size >>= 1
    if size > limit_bytes + SEAL_BYTES:
        raise RecordRefused(SkipReason.VALUE_TOO_LARGE, "a record's value is too large")
    if size < SEAL_BYTES:
        raise malformed("a record's value is shorter than a nonce and a tag")
    value = PyBytes_FromStringAndSize(NULL, size)
    if not read_hex(<const unsigned char *>digits, size, <unsigned char *>PyBytes_AS_STRING(value)):
        raise malformed("a record's value must be hex or null")
    return value


# --- the record ---

@cython.final
cdef class Record:
    """One record of a namespace, immutable (store §1). Without a value it is a tombstone.

    `key` is text of 1 to 65,536 UTF-8 bytes, `value` the ciphertext or None, `version` maps writers (at most 128 UTF-8
    bytes) to counters, of which zeros are dropped and at least one must be left; at most 1,024 entries, `entries` says
    how many. Numbers are integers from 0 to 2^62. Raises RecordRefused for the first of key, value, times, version that is not like this.

    Equal when all of this is equal. The repr shows sizes only.
    """

    def __init__(self, key, value, version, updated_at_ms, ttl_ms=0):
        if self.clock != NULL:
            raise TypeError("a record cannot be initialised again")
        check_key(key, MAX_PEER_KEY_BYTES)
        if value is not None and not PyBytes_CheckExact(value):
            raise malformed("a record's value must be bytes or None")
        self.updated_at_ms = checked_number(updated_at_ms, "a record's time must be an integer from 0 to 2^62")
        self.ttl_ms = checked_number(ttl_ms, "a record's ttl must be an integer from 0 to 2^62")
        self.key = key
        self.value = value
        self._set_version(version)

    def __dealloc__(self):
        free(self.clock)

    cdef bint set_clock(self, const Counter *counters, size_t entries) except -1:
        """Whether no name is there twice. Counters are above 0, names at most 128 bytes."""
        cdef size_t size = entries * sizeof(ClockEntry)
        cdef size_t i
        cdef char *at
        for i in range(entries):
            size += writer_block(counters[i].name_size)
        self.clock = <ClockEntry *>malloc(size)
        if self.clock == NULL:
            raise MemoryError()
        at = <char *>(self.clock + entries)
        for i in range(entries):
            self.clock[i].counter = counters[i].count
            self.clock[i].writer = place_writer(at, counters[i].name, counters[i].name_size)
            at += writer_block(counters[i].name_size)
        self.entries = entries
        sort_clock(self.clock, entries)
        for i in range(1, entries):
            if compare_writers(self.clock[i - 1].writer, self.clock[i].writer) == 0:
                return False
        return True

    cdef int _set_version(self, object version) except -1:
        cdef Py_ssize_t position = 0
        cdef PyObject *name
        cdef PyObject *counter
        cdef Py_ssize_t name_size = 0
        cdef const char *text
        cdef int64_t count
        cdef size_t entries = 0
        cdef size_t size = 0
        cdef char *at
        if not PyDict_CheckExact(version):
            raise malformed("a record's version must be an object")
        while PyDict_Next(version, &position, &name, &counter):
            checked_utf8(<object>name, &name_size, "a writer's name must be text")
            if name_size > MAX_WRITER_BYTES:
                raise malformed("a writer's name is too long")
            if checked_number(<object>counter, "a counter must be an integer from 0 to 2^62") > 0:
                entries += 1
                size += sizeof(ClockEntry) + writer_block(name_size)
        if not 1 <= entries <= MAX_CLOCK_ENTRIES:
            raise malformed("a record's version must have 1 to 1024 counters above 0")
        self.clock = <ClockEntry *>malloc(size)
        if self.clock == NULL:
            raise MemoryError()
        # Nothing between the two passes runs Python code, so they see the same entries.
        at = <char *>(self.clock + entries)
        position = 0
        while PyDict_Next(version, &position, &name, &counter):
            count = checked_number(<object>counter, "")
            if count > 0:
                text = PyUnicode_AsUTF8AndSize(<object>name, &name_size)
                self.clock[self.entries].counter = count
                self.clock[self.entries].writer = place_writer(at, text, name_size)
                at += writer_block(name_size)
                self.entries += 1
        sort_clock(self.clock, self.entries)
        return 0

    @property
    def tombstone(self) -> bool:
        return self.value is None

    @property
    def version(self) -> dict:
        """A new dict of writer and counter, sorted by the bytes of the writer."""
        cdef dict version = {}
        cdef size_t i
        cdef Writer *writer
        for i in range(self.entries):
            writer = self.clock[i].writer
            version[PyUnicode_DecodeUTF8(writer_name(writer), writer.node.size, NULL)] = self.clock[i].counter
        return version

    def __eq__(self, other):
        cdef View ours
        cdef View theirs
        if not isinstance(other, Record):
            return NotImplemented
        ours = view_of_record(self)
        theirs = view_of_record(<Record>other)
        return (
            self.key == (<Record>other).key
            and compare_payloads(&ours, &theirs) == 0
            and compare_clocks(ours.clock, ours.entries, theirs.clock, theirs.entries) == CLOCK_EQUAL
        )

    def __hash__(self):
        return hash((self.key, self.updated_at_ms))

    def __repr__(self):
        if self.value is None:
            return f"<Record tombstone, {self.entries} writers>"
        return f"<Record {len(self.value)} bytes, {self.entries} writers>"


cdef View view_of_record(Record record) except *:
    cdef View view
    if record is None or record.clock == NULL:
        raise TypeError("a record that was never initialised")
    view.value = NULL
    view.value_size = 0
    if record.value is not None:
        view.value = PyBytes_AS_STRING(record.value)
        view.value_size = PyBytes_GET_SIZE(record.value)
    view.updated_at_ms = record.updated_at_ms
    view.ttl_ms = record.ttl_ms
    view.clock = record.clock
    view.entries = record.entries
    return view


# Of a record that is new.
cdef int fill_record(
    Record record,
    str key,
    bytes value,
    int64_t updated_at_ms,
    int64_t ttl_ms,
    const ClockEntry *clock,
    size_t entries,
) except -1:
    record.clock = copy_clock(clock, entries)
    if record.clock == NULL:
        raise MemoryError()
    record.entries = entries
    record.key = key
    record.value = value
    record.updated_at_ms = updated_at_ms
    record.ttl_ms = ttl_ms
    return 0


cdef object member(dict members, str name):
    cdef PyObject *found = PyDict_GetItemWithError(members, name)
    if found == NULL:
        raise malformed("a record lacks a member")
    return <object>found


def parse_record(obj, limits):
    """The record in a peer's JSON object `obj`, as it comes out of the JSON parser (protocol §5).

    A Record, as `read_message` makes them of what is plainly written, is held to the sizes in `limits` and returned.

    `limits` is a StoreLimits. Unknown members are ignored; `ttl_ms` may be absent. Raises RecordRefused for, in this
    order: an object that is none or lacks a member; a bad or too long key; a tombstone with a value or a live record
    without one; a value that is not hex, is over the limit (28 bytes of nonce and tag beyond `max_value_bytes`) or
    shorter than those 28; times; the version.
    """
    return record_in(obj, limits.max_peer_key_bytes, limits.max_value_bytes)


cdef Record record_in(object obj, Py_ssize_t max_key_bytes, Py_ssize_t max_value_bytes):
    cdef dict members
    cdef Record record
    cdef object tombstone
    cdef object value
    cdef PyObject *ttl_ms
    if isinstance(obj, Record):
        record = obj
        check_key(record.key, max_key_bytes)
        if record.value is not None and PyBytes_GET_SIZE(record.value) > max_value_bytes + SEAL_BYTES:
            raise RecordRefused(SkipReason.VALUE_TOO_LARGE, "a record's value is too large")
        return record
    if not PyDict_CheckExact(obj):
        raise malformed("a record must be an object")
    members = obj
    record = Record.__new__(Record)
    record.key = member(members, "key") if PyUnicode_CheckExact(member(members, "key")) else None
    value = member(members, "value")
    tombstone = member(members, "tombstone")
    updated_at_ms = member(members, "updated_at_ms")
    version = member(members, "version")
    check_key(record.key, max_key_bytes)
    if tombstone is not True and tombstone is not False:
        raise malformed("a record's tombstone must be true or false")
    if (value is None) is not tombstone:
        raise malformed("a tombstone must have no value, any other record must have one")
    if value is not None:
        record.value = parse_value(value, max_value_bytes)
    record.updated_at_ms = checked_number(updated_at_ms, "a record's time must be an integer from 0 to 2^62")
    ttl_ms = PyDict_GetItemWithError(members, "ttl_ms")
    if ttl_ms != NULL:
        record.ttl_ms = checked_number(<object>ttl_ms, "a record's ttl must be an integer from 0 to 2^62")
    record._set_version(version)
    return record


def parse_records(list items not None, Py_ssize_t first, limits, Py_ssize_t step_bytes) -> tuple:
    """What `parse_record` makes of the items from `first` on, until about `step_bytes` of values have been read.

    Returns the records, the SkipReason of each item that is none, the position to go on from, and what is left of
    `step_bytes`, which is not above 0 unless the list has come to its end. The items are gone from the list then: None
    takes their place, so that what is read in steps is also freed in steps.
    """
    cdef list records = []
    cdef list refusals = []
    cdef Py_ssize_t at = first
    cdef Py_ssize_t max_key_bytes = limits.max_peer_key_bytes
    cdef Py_ssize_t max_value_bytes = limits.max_value_bytes
    cdef object item
    cdef Record record
    while at < len(items) and step_bytes > 0:
        item = items[at]
        items[at] = None
        at += 1
        step_bytes -= STEP_RECORD_BYTES if isinstance(item, Record) else STEP_JSON_BYTES
        try:
            record = record_in(item, max_key_bytes, max_value_bytes)
        except RecordRefused as refusal:
            refusals.append(refusal.skip_reason)
        else:
            step_bytes -= STEP_ENTRY_BYTES * <Py_ssize_t>record.entries
            if record.value is not None:
                step_bytes -= PyBytes_GET_SIZE(record.value)
            records.append(record)
    return records, refusals, at, step_bytes


def count_entries(list records not None) -> int:
    """How many entries the clocks of these Records have together."""
    cdef size_t count = 0
    for record in records:
        count += (<Record?>record).entries
    return count


def encode_record(Record record not None) -> dict:
    """The wire form of a record, ready for JSON (protocol §5)."""
    return {
        "key": record.key,
        "value": None if record.value is None else record.value.hex(),
        "version": record.version,
        "updated_at_ms": record.updated_at_ms,
        "tombstone": record.value is None,
        "ttl_ms": record.ttl_ms,
    }


# The bytes of a text in compact JSON: two quotes, and more than one for what is escaped.
cdef size_t json_text_bytes(const char *text, size_t size) noexcept nogil:
    cdef size_t total = size + 2
    cdef size_t i
    cdef uint8_t char
    for i in range(size):
        char = <uint8_t>text[i]
        if char == c'"' or char == c'\\':
            total += 1
        elif char < 0x20:
            total += 1 if char == 8 or char == 9 or char == 10 or char == 12 or char == 13 else 5
    return total


cdef size_t json_number_bytes(int64_t number) noexcept nogil:
    cdef size_t digits = 1
    while number >= 10:
        number //= 10
        digits += 1
    return digits


def encoded_bytes(Record record not None) -> int:
    """The length of `encode_record(record)` in compact JSON, without making it."""
    return record_json_bytes(record)


cdef size_t record_json_bytes(Record record) except 0:
    cdef Py_ssize_t key_size = 0
    cdef const char *key = PyUnicode_AsUTF8AndSize(record.key, &key_size)
    cdef size_t total = 70 + json_text_bytes(key, <size_t>key_size)  # 70: braces, member names, colons and commas
    cdef Writer *writer
    cdef size_t i
    total += 4 + 4 if record.value is None else 2 + 2 * <size_t>PyBytes_GET_SIZE(record.value) + 5
    total += json_number_bytes(record.updated_at_ms) + json_number_bytes(record.ttl_ms)
    for i in range(record.entries):
        writer = record.clock[i].writer
        # Name, colon and counter; one comma less than there are writers.
        total += json_text_bytes(writer_name(writer), writer.node.size) + json_number_bytes(record.clock[i].counter) + 2
    return total - 1


def merge_records(Record ours, Record theirs not None) -> tuple:
    """Store §3 as a pure function: (MergeOutcome, the record to keep) for our record of a key, or None, and theirs.

    The survivor of equal versions with different payloads keeps that version here: a store issues it anew.
    """
    cdef View their_view = view_of_record(theirs)
    cdef View our_view
    cdef Verdict verdict
    cdef Record winner
    cdef Record merged
    cdef ClockEntry *joined
    cdef size_t entries
    if ours is None:
        return MergeOutcome.INSERTED, theirs
    our_view = view_of_record(ours)
    verdict = decide_merge(&our_view, &their_view)
    winner = theirs if verdict.take_theirs else ours
    if not verdict.join:
        return OUTCOMES[<int>verdict.outcome], winner
    joined = <ClockEntry *>malloc((ours.entries + theirs.entries) * sizeof(ClockEntry))
    if joined == NULL:
        raise MemoryError()
    try:
        entries = join_clocks(ours.clock, ours.entries, theirs.clock, theirs.entries, joined)
        if entries > MAX_CLOCK_ENTRIES:
            return MergeOutcome.REFUSED_CLOCK, ours
        merged = Record.__new__(Record)
        fill_record(merged, winner.key, winner.value, winner.updated_at_ms, winner.ttl_ms, joined, entries)
    finally:
        free(joined)
    return OUTCOMES[<int>verdict.outcome], merged
