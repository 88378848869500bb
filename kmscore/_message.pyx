"""The records of a peer's message, read from its JSON and written to it without a dictionary for each (protocol §5).

What is read here is what every node writes: the members of a record once each, text without escapes, plain integers. Any
other record is left to the JSON reader and to `parse_record`, which refuse and say why: there is one place that decides
what a record may be, and this one only knows a part of what it accepts. Refuses whatever `kmscore.json` refuses. It is
not constant-time: records are authenticated elsewhere, and no secrets.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memchr, memcmp

from kmscore._json cimport (
    HAS_HIGH,
    MAX_NUMBER_DIGITS,
    Reader,
    distance,
    not_json,
    put,
    put_number,
    put_text,
    string_flags,
)
from kmscore._mac cimport read_hex, write_hex
from kmscore._record cimport Counter, Record, record_json_bytes
from kmscore._vclock cimport MAX_WRITER_BYTES, max_number, writer_name


cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL


cdef enum:
    SEAL_BYTES = 28      # nonce and tag of a value at rest (protocol §5)
    MAX_KEY_BYTES = 65536
    MAX_PLAIN_WRITERS = 64
    RECORD_DEPTH = 4     # object, data, list, record
    # Commas and opening brackets, as `Reader` counts them: 65,536 are read in 1 to 3 ms, and app by app in 10 ms.
    OTHER_ITEMS = 65536  # outside of lists of records; 256 ranges of 32 digests have 26,000, 20,000 apps 40,000
    RECORD_ITEMS = 2048  # in one record, whose 1,024 writers and seven members have 1,031
    STEP_ITEMS = 8192    # more than `step_bytes` of the shortest records of a node have
    HAS_KEY = 1
    HAS_VALUE = 2
    HAS_VERSION = 4
    HAS_TIME = 8
    HAS_TOMBSTONE = 16
    HAS_TTL = 32
    HAS_ALL = 63


# A plainly written record, found in its document. `value` is NULL for null, else the first of twice as many digits as
# `value_size` says.
cdef struct Plain:
    const char *key
    Py_ssize_t key_size
    const unsigned char *value
    Py_ssize_t value_size
    int64_t updated_at_ms
    int64_t ttl_ms
    bint tombstone
    size_t writers
    Counter counters[MAX_PLAIN_WRITERS]


# --- reading: each of these steps over what it says, or answers False and `at` is anywhere ---

cdef bint plain_text(Reader reader, const unsigned char **text, Py_ssize_t *size) noexcept:
    """A string without escapes, and its bytes."""
    cdef const void *quote
    reader.skip_space()
    if reader.at[0] != c'"':
        return False
    text[0] = reader.at + 1
    quote = memchr(text[0], c'"', <size_t>distance(text[0], reader.end))
    if quote == NULL:
        return False
    size[0] = distance(text[0], quote)
    reader.at = text[0] + size[0] + 1
    return True


cdef bint plain_name(Reader reader, const unsigned char **text, Py_ssize_t *size) noexcept:
    """A member's name and the colon behind it."""
    if not plain_text(reader, text, size):
        return False
    reader.skip_space()
    if reader.at[0] != c':':
        return False
    reader.at += 1
    reader.skip_space()
    return True


# Proof that nothing overflows, where four of a record's numbers have 13 digits: 19 of them are below 2^64.
@cython.overflowcheck(False)
cdef bint plain_number(Reader reader, int64_t *number) noexcept:
    """An integer from 0 to 2^62."""
    cdef const unsigned char *start = reader.at
    cdef uint64_t value = 0
    cdef Py_ssize_t digits = 0
    while digits < MAX_NUMBER_DIGITS and c'0' <= start[digits] <= c'9':
        value = value * 10 + (start[digits] - c'0')
        digits += 1
    reader.at += digits
    if digits == 0 or (start[0] == c'0' and digits > 1) or value > <uint64_t>max_number():
        return False
    number[0] = <int64_t>value
    return True


cdef bint plain_value(Reader reader, Plain *plain) noexcept:
    """Null, or text whose digits are looked at later."""
    if reader.skip_word(b"null"):
        plain.value = NULL
        return True
    if not plain_text(reader, &plain.value, &plain.value_size):
        return False
    if plain.value_size >= 2 and plain.value[0] == c'0' and (plain.value[1] == c'x' or plain.value[1] == c'X'):
        plain.value += 2
        plain.value_size -= 2
    if plain.value_size % 2 != 0 or plain.value_size < 2 * SEAL_BYTES:
        return False
    plain.value_size //= 2
    return True


cdef bint plain_version(Reader reader, Plain *plain) noexcept:
    """ASCII names, which may still be there twice, with counters above 0."""
    cdef const unsigned char *name = NULL
    cdef Py_ssize_t size = 0
    cdef Counter *counter
    cdef bint more = True
    if reader.at[0] != c'{' or not plain_item(reader):
        return False
    plain.writers = 0
    while more:
        if plain.writers == MAX_PLAIN_WRITERS or not plain_name(reader, &name, &size) or size > MAX_WRITER_BYTES:
            return False
        if string_flags(name, size) != 0:
            return False
        counter = &plain.counters[plain.writers]
        counter.name = <const char *>name
        counter.name_size = <size_t>size
        if not plain_number(reader, &counter.count) or counter.count == 0:
            return False
        plain.writers += 1
        if not plain_end(reader, &more):
            return False
    return True


cdef bint plain_item(Reader reader) noexcept:
    """An opening bracket or a comma."""
    reader.at += 1
    reader.items_left -= 1
    return reader.items_left >= 0


cdef bint plain_end(Reader reader, bint *more) noexcept:
    """What stands behind a member: a comma, or the bracket."""
    reader.skip_space()
    more[0] = reader.at[0] == c','
    if more[0]:
        return plain_item(reader)
    if reader.at[0] != c'}':
        return False
    reader.at += 1
    return True


cdef bint is_name(const unsigned char *text, Py_ssize_t size, const char *name, Py_ssize_t name_size) noexcept:
    return size == name_size and memcmp(text, name, <size_t>size) == 0


cdef int plain_member(Reader reader, Plain *plain) noexcept:
    """Which member it was, 0 when it is none of those that are plain."""
    cdef const unsigned char *name = NULL
    cdef const unsigned char *text = NULL
    cdef Py_ssize_t size = 0
    if not plain_name(reader, &name, &size):
        return 0
    if is_name(name, size, b"key", 3):
        if not plain_text(reader, &text, &plain.key_size) or string_flags(text, plain.key_size) & ~HAS_HIGH != 0:
            return 0
        plain.key = <const char *>text
        return HAS_KEY if 1 <= plain.key_size <= MAX_KEY_BYTES else 0
    if is_name(name, size, b"value", 5):
        return HAS_VALUE if plain_value(reader, plain) else 0
    if is_name(name, size, b"version", 7):
        return HAS_VERSION if plain_version(reader, plain) else 0
    if is_name(name, size, b"updated_at_ms", 13):
        return HAS_TIME if plain_number(reader, &plain.updated_at_ms) else 0
    if is_name(name, size, b"tombstone", 9):
        plain.tombstone = reader.skip_word(b"true")
        return HAS_TOMBSTONE if plain.tombstone or reader.skip_word(b"false") else 0
    if is_name(name, size, b"ttl_ms", 6):
        return HAS_TTL if plain_number(reader, &plain.ttl_ms) else 0
    return 0


cdef bint find_plain(Reader reader, Plain *plain) noexcept:
    """A record, its key and its digits apart."""
    cdef int found = 0
    cdef int member
    cdef bint more = True
    plain.ttl_ms = 0
    reader.skip_space()
    if reader.at[0] != c'{' or not plain_item(reader):
        return False
    while more:
        member = plain_member(reader, plain)
        if member == 0 or found & member or not plain_end(reader, &more):
            return False
        found |= member
    return found | HAS_TTL == HAS_ALL and plain.tombstone == (plain.value == NULL)


cdef Record make_plain(const Plain *plain):
    """The record, None for one that is not."""
    cdef Record record = Record.__new__(Record)
    cdef bytes value
    if plain.value != NULL:
        value = PyBytes_FromStringAndSize(NULL, plain.value_size)
        if not read_hex(plain.value, plain.value_size, <unsigned char *>PyBytes_AS_STRING(value)):
            return None
        record.value = value
    if not record.set_clock(plain.counters, plain.writers):
        return None
    try:
        record.key = PyUnicode_DecodeUTF8(plain.key, plain.key_size, NULL)
    except UnicodeDecodeError:
        return None
    record.updated_at_ms = plain.updated_at_ms
    record.ttl_ms = plain.ttl_ms
    return record


cdef object read_record(Reader reader):
    """What comes next in a list of records: a Record when it is plainly written, else its JSON value."""
    cdef const unsigned char *start = reader.at
    cdef Py_ssize_t items_left = reader.items_left
    cdef Plain plain
    cdef Record record
    if reader.max_depth > RECORD_DEPTH and find_plain(reader, &plain):
        record = make_plain(&plain)
        if record is not None:
            return record
    reader.at = start
    reader.items_left = items_left
    return reader.read_value(RECORD_DEPTH - 1)


def read_message(bytes document not None, int max_depth, Py_ssize_t max_items, Py_ssize_t step_bytes):
    """Reads an inner object in steps: yields None after each `step_bytes` or 8,192 items of records, the object at last.

    Where its member `data` is an object of lists, their elements are Records when they are plainly written, and JSON
    values when not: `parse_record` takes both. Raises `Rejected(MALFORMED)` for what `parse_json_object` refuses, and
    for more items than a step may cost: 2,048 in an element of those lists, 65,536 in all that is in none.
    """
    cdef Reader reader = Reader(document, max_depth, min(max_items, OTHER_ITEMS))
    cdef Py_ssize_t records_left = max_items - reader.items_left  # and what the reader has left, when that is used up
    cdef Py_ssize_t others_left, record_items
    cdef const unsigned char *pause = reader.at + step_bytes
    cdef Py_ssize_t pause_items = max_items - STEP_ITEMS
    cdef dict members = {}
    cdef dict apps
    cdef list records
    cdef str name
    cdef str app
    cdef object value
    reader.skip_space()
    if reader.at[0] != c'{':
        raise not_json()
    reader.open_bracket(1)
    more = not reader.is_empty(c'}')
    while more:
        name = reader.read_name()
        reader.skip_space()
        if name == "data" and reader.at[0] == c'{':
            value = apps = {}
            reader.open_bracket(2)
            more = not reader.is_empty(c'}')
            while more:
                app = reader.read_name()
                reader.skip_space()
                if reader.at[0] != c'[':
                    reader.add_member(apps, app, reader.read_value(2))
                else:
                    records = []
                    reader.open_bracket(3)
                    more = not reader.is_empty(c']')
                    while more:
                        others_left = reader.items_left
                        record_items = min(others_left + records_left, RECORD_ITEMS)
                        reader.items_left = record_items
                        records.append(read_record(reader))
                        more = reader.goes_on(c']')
                        records_left -= record_items - reader.items_left
                        reader.items_left = others_left + min(records_left, 0)
                        records_left = max(records_left, 0)
                        if reader.at > pause or reader.items_left + records_left < pause_items:
                            pause = reader.at + step_bytes
                            pause_items = reader.items_left + records_left - STEP_ITEMS
                            yield None
                    reader.add_member(apps, app, records)
                more = reader.goes_on(c'}')
                if reader.at > pause or reader.items_left + records_left < pause_items:
                    pause = reader.at + step_bytes
                    pause_items = reader.items_left + records_left - STEP_ITEMS
                    yield None
        else:
            value = reader.read_value(1)
        reader.add_member(members, name, value)
        more = reader.goes_on(c'}')
    reader.require_end()
    yield members


# --- writing ---

cdef char *put_record(char *out, Record record) except NULL:
    cdef Py_ssize_t key_size = 0
    cdef const char *key = PyUnicode_AsUTF8AndSize(record.key, &key_size)
    cdef Py_ssize_t value_size
    cdef size_t i
    out = put_text(put(out, b'{"key":', 7), key, <size_t>key_size)
    if record.value is None:
        out = put(out, b',"value":null', 13)
    else:
        value_size = PyBytes_GET_SIZE(record.value)
        out = put(out, b',"value":"', 10)
        write_hex(<const unsigned char *>PyBytes_AS_STRING(record.value), value_size, <unsigned char *>out)
        out = put(out + 2 * value_size, b'"', 1)
    out = put(out, b',"version":{', 12)
    for i in range(record.entries):
        if i > 0:
            out = put(out, b",", 1)
        out = put_text(out, writer_name(record.clock[i].writer), record.clock[i].writer.node.size)
        out = put_number(put(out, b":", 1), record.clock[i].counter)
    out = put_number(put(out, b'},"updated_at_ms":', 18), record.updated_at_ms)
    out = put(out, b',"tombstone":', 13)
    out = put(out, b"true", 4) if record.value is None else put(out, b"false", 5)
    out = put_number(put(out, b',"ttl_ms":', 10), record.ttl_ms)
    return put(out, b"}", 1)


def count_fitting(entries not None, size_t limit_bytes) -> int:
    """How many of the (app id, sequence number, Record), from the first, take no more than `limit_bytes` in JSON.

    At least one if there is any. The commas between them count, the names of their apps do not.
    """
    cdef size_t size = 0
    cdef Py_ssize_t count = 0
    cdef Record record
    for entry in entries:
        record = (<tuple?>entry)[2]
        size += record_json_bytes(record) + 1
        if size > limit_bytes and count > 0:
            return count
        count += 1
    return count


def take_records(list records not None, size_t limit_bytes):
    """As many Records as fit into `limit_bytes` of JSON, at least one if any, from the end of the list and off it.

    Returned in compact JSON with commas between them, each as `encode_record` says.
    """
    cdef size_t size = 0
    cdef size_t more
    cdef Py_ssize_t kept = len(records)
    cdef list taken
    cdef bytes text
    while kept > 0:
        more = record_json_bytes(records[kept - 1]) + (1 if size > 0 else 0)
        if size > 0 and size + more > limit_bytes:
            break
        size += more
        kept -= 1
    taken = records[kept:]
    del records[kept:]
    text = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
    put_records(PyBytes_AS_STRING(text), taken)
    return text


def write_data(entries not None):
    """The `data` member of a message in compact JSON: the Records of (app id, sequence number, Record) by app.

    Apps stand in the order in which they first appear, the records of each in theirs.
    """
    cdef dict lists = {}
    cdef list records
    cdef list names = []
    cdef size_t size = 1
    cdef bytes text, name
    cdef char *out
    for entry in entries:
        app_id, _, record = <tuple?>entry
        records = lists.get(app_id)
        if records is None:
            lists[app_id] = records = []
        records.append(record)
    for app_id, records in lists.items():
        name = b',"%d":[' % app_id
        names.append(name)
        size += <size_t>PyBytes_GET_SIZE(name) + records_bytes(records) + 1
    if not names:
        return b"{}"
    text = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
    out = PyBytes_AS_STRING(text)
    for name, records in zip(names, lists.values()):
        out = put_records(put(out, PyBytes_AS_STRING(name), <size_t>PyBytes_GET_SIZE(name)), records)
        out = put(out, b"]", 1)
    put(out, b"}", 1)
    PyBytes_AS_STRING(text)[0] = c"{"  # where the first name has a comma
    return text


cpdef size_t records_bytes(list records) except? 0:
    """How many bytes of compact JSON the Records take, with commas between them."""
    cdef size_t size = 0
    cdef Record record
    for item in records:
        record = item
        size += record_json_bytes(record) + 1
    return size - 1 if size > 0 else 0


cdef char *put_records(char *out, list records) except NULL:
    cdef bint first = True
    for item in records:
        if not first:
            out = put(out, b",", 1)
        first = False
        out = put_record(out, item)
    return out
