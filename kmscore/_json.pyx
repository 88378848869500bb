"""The strict JSON reader, the compact writer, and what may be written in the canonical form.

It reads UTF-8 as it came and accepts nothing that two readers could understand differently or that costs more than its
size: repeated member names, NaN, infinities, lone surrogates, any nesting, integers whose conversion is quadratic.
Refuses with one word and echoes nothing. `kmscore._message` reads on with the same `Reader`, and writes records with
the same functions.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.math cimport isfinite, isinf
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcpy, strncmp

from kmscore.errors import Reason, Rejected


cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    long long PyLong_AsLongLongAndOverflow(object number, int* overflow) except? -1


cdef enum:
    # The digits of 2**256 - 1, the largest number of the protocol (an app id is a uint256). Also far below the 4,300
    # digits from which on the interpreter's int() raises.
    MAX_DIGITS = 78
    MAX_INT64_DIGITS = 18
    MAX_WRITTEN_DEPTH = 65  # so many levels, and scalars in the last one
    LONGEST_ESCAPE = 6      # of one byte
    FIRST_BYTES = 2048      # on the stack: most of what is written is shorter

cdef const char* HEX_DIGITS = b"0123456789abcdef"

# The deepest body of the protocol is a delta (object, data, list, record, version): five levels. The rest is room for
# members that newer peers add.
MAX_DEPTH = 16
# Commas and opening brackets. Building so many values takes about a second; the largest body of the protocol, 50 MiB of
# records in hex in JSON, has fewer than half as many.
MAX_ITEMS = 1 << 22

# Not 10 ** MAX_DIGITS - 1, which C would compute as a double.
cdef object LARGEST_INTEGER = int("9" * MAX_DIGITS)


cdef object malformed(str message):
    return Rejected(Reason.MALFORMED, message)


cdef object not_json():
    return malformed("the body is not one valid JSON document in UTF-8")


# --- strings ---

cdef inline int hex_digit(unsigned char c) noexcept nogil:
    """The value of a hex digit, -1 when it is none."""
    if c'0' <= c <= c'9':
        return c - c'0'
    c |= 0x20
    if c'a' <= c <= c'f':
        return c - c'a' + 10
    return -1


cdef inline int code_unit(const unsigned char* escape, Py_ssize_t left) noexcept nogil:
    """The UTF-16 code unit of the escape (backslash, u, four digits) with `left` bytes to read; -1 when it is none."""
    cdef int value = 0
    cdef int digit
    cdef Py_ssize_t i
    if left < 6 or escape[0] != c'\\' or escape[1] != c'u':
        return -1
    for i in range(2, 6):
        digit = hex_digit(escape[i])
        if digit < 0:
            return -1
        value = value * 16 + digit
    return value


cdef inline int short_escape(unsigned char c) noexcept nogil:
    """What a backslash and this character stand for, -1 when they stand for nothing."""
    if c == c'"' or c == c'\\' or c == c'/':
        return c
    if c == c'b':
        return 8
    if c == c'f':
        return 12
    if c == c'n':
        return 10
    if c == c'r':
        return 13
    if c == c't':
        return 9
    return -1


cdef inline unsigned char* put_utf8(unsigned char* out, int point) noexcept nogil:
    if point < 0x80:
        out[0] = <unsigned char>point
        return out + 1
    if point < 0x800:
        out[0] = <unsigned char>(0xC0 | point >> 6)
        out[1] = <unsigned char>(0x80 | point & 0x3F)
        return out + 2
    if point < 0x10000:
        out[0] = <unsigned char>(0xE0 | point >> 12)
        out[1] = <unsigned char>(0x80 | point >> 6 & 0x3F)
        out[2] = <unsigned char>(0x80 | point & 0x3F)
        return out + 3
    out[0] = <unsigned char>(0xF0 | point >> 18)
    out[1] = <unsigned char>(0x80 | point >> 12 & 0x3F)
    out[2] = <unsigned char>(0x80 | point >> 6 & 0x3F)
    out[3] = <unsigned char>(0x80 | point & 0x3F)
    return out + 4


cdef Py_ssize_t unescape(const unsigned char* text, Py_ssize_t size, unsigned char* out) noexcept nogil:
    """Write what a string without its quotes stands for and return its size; -1 for a bad escape, -2 for half a pair.

    `out` has room for `size` bytes, which is enough: no escape is shorter than what it stands for.
    """
    cdef unsigned char* start = out
    cdef Py_ssize_t at = 0
    cdef int point, low
    while at < size:
        if text[at] != c'\\':
            out[0] = text[at]
            out += 1
            at += 1
            continue
        if at + 1 < size and text[at + 1] != c'u':
            point = short_escape(text[at + 1])
            at += 2
        else:
            point = code_unit(text + at, size - at)
            at += 6
        if point < 0:
            return -1
        if 0xD800 <= point <= 0xDBFF:
            low = code_unit(text + at, size - at)
            if not 0xDC00 <= low <= 0xDFFF:
                return -2
            at += 6
            point = 0x10000 + ((point - 0xD800) << 10 | low - 0xDC00)
        elif 0xDC00 <= point <= 0xDFFF:
            return -2
        out = put_utf8(out, point)
    return distance(start, out)


# Without overflow checks the compiler makes vectors of the loop. Proof that nothing overflows: `i` is below `size`, the
# length of a buffer that exists, and the flags are only ever joined by `or`.
@cython.overflowcheck(False)
cdef int string_flags(const unsigned char* text, Py_ssize_t size) noexcept nogil:
    cdef unsigned char escape = 0
    cdef unsigned char control = 0
    cdef unsigned char all_bits = 0
    cdef unsigned char quote = 0
    cdef Py_ssize_t i
    for i in range(size):
        escape |= text[i] == c'\\'
        control |= text[i] < 0x20
        all_bits |= text[i]
        quote |= text[i] == c'"'
    return (
        (HAS_ESCAPE if escape else 0)
        | (HAS_CONTROL if control else 0)
        | (HAS_HIGH if all_bits & 0x80 else 0)
        | (HAS_QUOTE if quote else 0)
    )


# --- documents ---

@cython.final
cdef class Reader:
    """One document on its way; `at` is the next byte.

    Reading stops at the zero byte that ends every bytes object, so a single byte may be looked at without asking how
    many are left. `max_items` bounds commas and opening brackets, which is what building the values costs time for.
    """

    def __cinit__(self, bytes document not None, int max_depth, Py_ssize_t max_items):
        self.document = document
        self.at = <const unsigned char*>PyBytes_AS_STRING(document)
        self.end = self.at + PyBytes_GET_SIZE(document)
        self.max_depth = max_depth
        self.items_left = max_items
        self.names = {}

    cdef int open_bracket(self, int depth) except -1:
        """Step over a bracket, inside of which the depth is `depth`."""
        if depth > self.max_depth:
            raise malformed("the JSON document is nested too deeply")
        return self.count_item()

    cdef int count_item(self) except -1:
        """Step over an opening bracket or a comma."""
        self.at += 1
        self.items_left -= 1
        if self.items_left < 0:
            raise malformed("the JSON document has too many items")
        return 0

    cdef bint goes_on(self, unsigned char closing) except -1:
        """Step over a comma, or over the bracket that closes: whether it was a comma."""
        self.skip_space()
        if self.at[0] == closing:
            self.at += 1
            return False
        if self.at[0] != c',':
            raise not_json()
        self.count_item()
        return True

    cdef bint is_empty(self, unsigned char closing) noexcept:
        """Whether the bracket closes at once; then it is stepped over."""
        self.skip_space()
        if self.at[0] != closing:
            return False
        self.at += 1
        return True

    cdef str read_name(self):
        """A member's name and the colon behind it."""
        cdef str name
        self.skip_space()
        if self.at[0] != c'"':
            raise not_json()
        name = self.read_string()
        self.skip_space()
        if self.at[0] != c':':
            raise not_json()
        self.at += 1
        return self.names.setdefault(name, name)  # the same few names again and again

    cdef int add_member(self, dict members, str name, object value) except -1:
        cdef Py_ssize_t before = len(members)
        members[name] = value
        if len(members) == before:
            raise malformed("a JSON object has two members of one name")
        return 0

    cdef object read_value(self, int depth):
        """The value that comes next, inside of `depth` brackets."""
        cdef unsigned char c
        self.skip_space()
        c = self.at[0]
        if c == c'"':
            return self.read_string()
        if c == c'{':
            return self.read_object(depth + 1)
        if c == c'[':
            return self.read_array(depth + 1)
        if c == c'-' or c'0' <= c <= c'9':
            return self.read_number()
        if self.skip_word(b"true"):
            return True
        if self.skip_word(b"false"):
            return False
        if self.skip_word(b"null"):
            return None
        raise not_json()

    cdef bint skip_word(self, const char* word) noexcept:
        # The document's zero byte ends the comparison, too.
        cdef size_t size = 5 if word[0] == c'f' else 4
        if strncmp(<const char*>self.at, word, size) != 0:
            return False
        self.at += size
        return True

    cdef dict read_object(self, int depth):
        cdef dict members = {}
        cdef str name
        self.open_bracket(depth)
        if self.is_empty(c'}'):
            return members
        while True:
            name = self.read_name()
            self.add_member(members, name, self.read_value(depth))
            if not self.goes_on(c'}'):
                return members

    cdef list read_array(self, int depth):
        cdef list items = []
        self.open_bracket(depth)
        if self.is_empty(c']'):
            return items
        while True:
            items.append(self.read_value(depth))
            if not self.goes_on(c']'):
                return items

    cdef str read_string(self):
        """The string whose opening quote comes next."""
        cdef const unsigned char* start = self.at + 1
        cdef const void* quote = memchr(start, c'"', <size_t>distance(start, self.end))
        cdef Py_ssize_t size
        cdef int flags
        if quote == NULL:
            raise not_json()
        size = distance(start, quote)
        flags = string_flags(start, size)
        if flags & HAS_ESCAPE:
            return self.read_escaped_string()
        if flags & HAS_CONTROL:
            raise not_json()
        self.at = start + size + 1
        return decode_utf8(<const char*>start, size)

    cdef str read_escaped_string(self):
        cdef const unsigned char* start = self.at + 1
        cdef const unsigned char* quote = start
        cdef unsigned char* out
        cdef Py_ssize_t size
        while quote[0] != c'"':
            if quote[0] < 0x20:  # also the zero byte at the end
                raise not_json()
            quote += 2 if quote[0] == c'\\' and quote[1] >= 0x20 else 1
        size = distance(start, quote)
        out = <unsigned char*>malloc(<size_t>size)
        if out == NULL:
            raise MemoryError()
        try:
            size = unescape(start, size, out)
            if size == -1:
                raise not_json()
            if size == -2:
                raise malformed("the JSON document has half of a surrogate pair")
            self.at = quote + 1
            return decode_utf8(<const char*>out, size)
        finally:
            free(out)

    cdef int skip_digits(self) except -1:
        """Step over digits; how many there were."""
        cdef int digits = 0
        while c'0' <= self.at[0] <= c'9':
            digits += 1
            if digits > MAX_DIGITS:
                raise malformed(f"the JSON document has a number of more than {MAX_DIGITS} digits")
            self.at += 1
        return digits

    cdef object read_number(self):
        cdef const unsigned char* start = self.at
        cdef const unsigned char* digit
        cdef int64_t small = 0
        cdef bint whole = True
        cdef bytes text
        cdef int digits
        if self.at[0] == c'-':
            self.at += 1
        digit = self.at
        digits = self.skip_digits()
        if digits == 0 or (digit[0] == c'0' and digits > 1):
            raise not_json()
        if self.at[0] == c'.':
            whole = False
            self.at += 1
            if self.skip_digits() == 0:
                raise not_json()
        if self.at[0] == c'e' or self.at[0] == c'E':
            whole = False
            self.at += 1
            if self.at[0] == c'+' or self.at[0] == c'-':
                self.at += 1
            if self.skip_digits() == 0:
                raise not_json()
        if whole and digits <= MAX_INT64_DIGITS:
            while digit < self.at:
                small = small * 10 + (digit[0] - c'0')
                digit += 1
            return -small if start[0] == c'-' else small
        text = start[:distance(start, self.at)]
        return int(text) if whole else finite(float(text))

    cdef int require_end(self) except -1:
        self.skip_space()
        if self.at != self.end:
            raise not_json()
        return 0


cdef str decode_utf8(const char* text, Py_ssize_t size):
    try:
        return PyUnicode_DecodeUTF8(text, size, NULL)
    except UnicodeDecodeError:
        pass
    # Raised out here so that our error does not carry the decoder's, which keeps the text.
    raise not_json()


cdef double finite(double number) except? -1:
    if isinf(number):
        raise malformed("the JSON document has a number that is too large")
    return number


def parse_json(bytes data not None, *, int max_depth=MAX_DEPTH, Py_ssize_t max_items=MAX_ITEMS):
    """The value of the JSON document `data` (UTF-8, whole).

    A scalar has depth 0, `[]` depth 1; `max_depth` must stay far below the interpreter's recursion limit. `max_items`
    bounds commas and opening brackets, and with them the time that building the values takes.

    Raises `Rejected(MALFORMED)` for nesting deeper than `max_depth`, more than `max_items`, more than 78 digits in a
    row, an escaped surrogate without its other half, invalid UTF-8, anything that is not exactly one JSON value, a
    repeated member name, and numbers that are NaN, infinite or too large for a float.
    """
    cdef Reader reader = Reader(data, max_depth, max_items)
    value = reader.read_value(0)
    reader.require_end()
    return value


def parse_json_object(bytes data not None, *, int max_depth=MAX_DEPTH, Py_ssize_t max_items=MAX_ITEMS):
    """Like `parse_json`, for a document that must be an object. Raises `Rejected(MALFORMED)`."""
    value = parse_json(data, max_depth=max_depth, max_items=max_items)
    if not isinstance(value, dict):
        raise malformed("the JSON document is not an object")
    return value


# --- writing ---

cdef char* put_escape(char* out, unsigned char c) noexcept:
    out[0] = c'\\'
    out[1] = c'n' if c == 10 else c'r' if c == 13 else c't' if c == 9 else c'b' if c == 8 else c'f'
    if c == c'"' or c == c'\\':
        out[1] = <char>c
    elif not 8 <= c <= 13 or c == 11:
        out = put(out, b"\\u00", 4)
        out[0] = HEX_DIGITS[c >> 4]
        out[1] = HEX_DIGITS[c & 15]
    return out + 2


cdef bint is_plain(const char* text, Py_ssize_t size) noexcept:
    """Whether nothing of it must be escaped."""
    return string_flags(<const unsigned char*>text, size) & ~HAS_HIGH == 0


cdef char* put_text(char* out, const char* text, size_t size) noexcept:
    """The text between quotes; what JSON must escape is escaped as Python does."""
    cdef size_t i
    cdef unsigned char c
    out[0] = c'"'
    out += 1
    if is_plain(text, <Py_ssize_t>size):
        out = put(out, text, size)
    else:
        for i in range(size):
            c = <unsigned char>text[i]
            if c >= 0x20 and c != c'"' and c != c'\\':
                out[0] = <char>c
                out += 1
            else:
                out = put_escape(out, c)
    out[0] = c'"'
    return out + 1


# What is written, in a buffer that grows: the first one is on the stack.
cdef struct Output:
    char* start
    char* at
    char* end
    char* first


cdef int reserve(Output* out, size_t size) except -1:
    """Make sure that there is room for so many more bytes."""
    cdef size_t used = <size_t>distance(out.start, out.at)
    cdef size_t room
    cdef char* moved
    if size <= <size_t>distance(out.at, out.end):
        return 0
    room = 2 * (used + size)
    moved = <char*>realloc(NULL if out.start == out.first else out.start, room)
    if moved == NULL:
        raise MemoryError()
    if out.start == out.first:
        memcpy(moved, out.first, used)
    out.start = moved
    out.at = moved + used
    out.end = moved + room
    return 0


cdef int write_raw(Output* out, const char* text, size_t size) except -1:
    reserve(out, size)
    out.at = put(out.at, text, size)
    return 0


cdef int write_string(Output* out, object text) except -1:
    cdef Py_ssize_t size = 0
    cdef const char* data = PyUnicode_AsUTF8AndSize(text, &size)
    reserve(out, 2 + (1 if is_plain(data, size) else LONGEST_ESCAPE) * <size_t>size)
    out.at = put_text(out.at, data, <size_t>size)
    return 0


cdef int write_integer(Output* out, object number) except -1:
    cdef int overflow = 0
    cdef long long value = PyLong_AsLongLongAndOverflow(number, &overflow)
    cdef bytes digits
    if overflow == 0 and value >= 0:
        reserve(out, MAX_NUMBER_DIGITS)
        out.at = put_number(out.at, value)
    else:
        digits = int.__repr__(number).encode()
        write_raw(out, PyBytes_AS_STRING(digits), <size_t>PyBytes_GET_SIZE(digits))
    return 0


cdef int write_object(Output* out, object members, int depth) except -1:
    cdef bint first = True
    write_raw(out, b"{", 1)
    for name, value in members.items():
        if not isinstance(name, str):
            raise TypeError("the name of a JSON object's member must be text")
        if not first:
            write_raw(out, b",", 1)
        first = False
        write_string(out, name)
        write_raw(out, b":", 1)
        write_value(out, value, depth)
    write_raw(out, b"}", 1)
    return 0


cdef int write_array(Output* out, object items, int depth) except -1:
    cdef bint first = True
    write_raw(out, b"[", 1)
    for value in items:
        if not first:
            write_raw(out, b",", 1)
        first = False
        write_value(out, value, depth)
    write_raw(out, b"]", 1)
    return 0


cdef int write_value(Output* out, object value, int depth) except -1:
    cdef bytes digits
    if depth == 0:
        raise RecursionError("a value is nested too deeply to be written as JSON")
    if isinstance(value, str):
        write_string(out, value)
    elif value is None:
        write_raw(out, b"null", 4)
    elif value is True:
        write_raw(out, b"true", 4)
    elif value is False:
        write_raw(out, b"false", 5)
    elif isinstance(value, int):
        write_integer(out, value)
    elif isinstance(value, dict):
        write_object(out, value, depth - 1)
    elif isinstance(value, (list, tuple)):
        write_array(out, value, depth - 1)
    elif isinstance(value, float):
        if not isfinite(value):
            raise ValueError("JSON has no number that is not finite")
        digits = float.__repr__(value).encode()
        write_raw(out, PyBytes_AS_STRING(digits), <size_t>PyBytes_GET_SIZE(digits))
    else:
        raise TypeError(f"JSON has no form for {type(value).__name__}")
    return 0


def compact_json(value):
    """JSON as we send it: no white space, UTF-8 without needless escapes, members in the order they have.

    For values of our own making: ValueError for a number that is not finite and half a surrogate pair, TypeError for
    what JSON has no form for and names that are not text, RecursionError for more than 64 levels.
    """
    cdef char[FIRST_BYTES] first
    cdef Output out
    out.start = out.at = out.first = first
    out.end = first + FIRST_BYTES
    try:
        write_value(&out, value, MAX_WRITTEN_DEPTH)
        return PyBytes_FromStringAndSize(out.start, distance(out.start, out.at))
    finally:
        if out.start != first:
            free(out.start)


# --- the canonical form ---

cdef int examine_value(object value, int depth) except -1:
    if value is None or isinstance(value, (str, bool)):
        return 0
    if isinstance(value, int):
        if not -LARGEST_INTEGER <= value <= LARGEST_INTEGER:
            raise Rejected(Reason.MALFORMED, f"a number has more than {MAX_DIGITS} digits")
        return 0
    if not isinstance(value, (dict, list, tuple)):
        raise Rejected(Reason.MALFORMED, "a value has no canonical JSON form")
    if depth == 0:
        raise Rejected(Reason.MALFORMED, "a value is nested too deeply")
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str):
                raise Rejected(Reason.MALFORMED, "a member name is not a string")
        value = value.values()
    for item in value:
        examine_value(item, depth - 1)
    return 0


def examine_canonical(value, int max_depth):
    """Refuse a value that has no canonical form.

    Raises `Rejected(MALFORMED)` for floats (languages print them differently) and other types than those of JSON,
    member names that are not strings, integers of more than 78 digits, and nesting deeper than `max_depth`.
    """
    examine_value(value, max_depth)
