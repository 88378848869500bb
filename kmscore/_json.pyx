"""The checks before and after the standard library's JSON scanner, and its hooks.

The scanner accepts what this project must not: any nesting, repeated member names, NaN, infinities, lone surrogates and
integers whose conversion is quadratic. Refuses to build values itself: syntax and UTF-8 are the scanner's and the
decoder's to refuse, in `kmscore.json`.
"""

from libc.string cimport memchr

from math import isinf

from kmscore.errors import Reason, Rejected


cdef enum:
    # The digits of 2**256 - 1, the largest number of the protocol (an app id is a uint256). Also far below the 4,300
    # digits from which on the interpreter's int() raises.
    MAX_DIGITS = 78
    # From here on a scan takes 10 µs or more, and other threads may run meanwhile.
    RELEASE_GIL_BYTES = 16384

# Not 10 ** MAX_DIGITS - 1, which C would compute as a double.
cdef object LARGEST_INTEGER = int("9" * MAX_DIGITS)


cdef enum Verdict:
    ACCEPTABLE
    TOO_DEEP
    TOO_MANY
    TOO_LONG_NUMBER
    LONE_SURROGATE
    BROKEN


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


cdef inline Py_ssize_t distance(const void* start, const void* end) noexcept nogil:
    """end - start; written this way because Cython's overflow check does not compile for pointers."""
    return <Py_ssize_t>(<size_t>end - <size_t>start)


cdef Verdict skip_string(const unsigned char* data, Py_ssize_t size, Py_ssize_t* position) noexcept nogil:
    """Move *position from just behind an opening quote to just behind the closing one.

    Linear: every byte is searched once for a quote and once for a backslash.
    """
    cdef Py_ssize_t at = position[0]
    cdef Py_ssize_t quote = -1
    cdef int unit
    cdef const void* found
    while True:
        if quote < at:
            found = memchr(data + at, c'"', <size_t>(size - at))
            if found == NULL:
                return BROKEN
            quote = distance(data, found)
        found = memchr(data + at, c'\\', <size_t>(quote - at))
        if found == NULL:
            position[0] = quote + 1
            return ACCEPTABLE
        at = distance(data, found)
        if data[at + 1] != c'u':
            at += 2
            continue
        unit = code_unit(data + at, size - at)
        if unit < 0:
            return BROKEN
        at += 6
        if 0xD800 <= unit <= 0xDBFF:
            unit = code_unit(data + at, size - at)
            if not 0xDC00 <= unit <= 0xDFFF:
                return LONE_SURROGATE
            at += 6
        elif 0xDC00 <= unit <= 0xDFFF:
            return LONE_SURROGATE


cdef Verdict examine(
    const unsigned char* data, Py_ssize_t size, int max_depth, Py_ssize_t max_items, Py_ssize_t* members
) noexcept nogil:
    """What the scanner would not refuse, up to the first byte at which it stops anyway; counts the colons."""
    cdef Py_ssize_t at = 0
    cdef int depth = 0
    cdef int digits = 0
    cdef Py_ssize_t items = 0
    cdef unsigned char c
    cdef Verdict verdict
    while at < size:
        c = data[at]
        at += 1
        if c'0' <= c <= c'9':
            digits += 1
            if digits > MAX_DIGITS:
                return TOO_LONG_NUMBER
            continue
        digits = 0
        if c == c'"':
            verdict = skip_string(data, size, &at)
            if verdict != ACCEPTABLE:
                return verdict
        elif c == c'{' or c == c'[':
            depth += 1
            items += 1
            if depth > max_depth:
                return TOO_DEEP
        elif c == c',':
            items += 1
        elif c == c':':
            members[0] += 1
        elif c == c'}' or c == c']':
            depth -= 1
            if depth < 0:
                return BROKEN
    return ACCEPTABLE if items <= max_items else TOO_MANY


def examine_document(bytes data not None, int max_depth, Py_ssize_t max_items):
    """Refuse a document for what the scanner would let through; linear in its size, no allocation.

    Returns how many members its objects have together, for `require_members`, if the scanner accepts it. `max_items` bounds commas and opening brackets together, which is what building the values costs time for. Raises
    `Rejected(MALFORMED)` for arrays and objects nested deeper than `max_depth`, more than `max_items`, more than 78 digits in a row, an
    escaped surrogate without its other half, or brackets and quotes that do not close.
    """
    cdef const unsigned char* text = data
    cdef Py_ssize_t size = len(data)
    cdef Py_ssize_t members = 0
    cdef Verdict verdict
    if size < RELEASE_GIL_BYTES:
        verdict = examine(text, size, max_depth, max_items, &members)
    else:
        with nogil:
            verdict = examine(text, size, max_depth, max_items, &members)
    if verdict == ACCEPTABLE:
        return members
    if verdict == TOO_DEEP:
        raise Rejected(Reason.MALFORMED, "the JSON document is nested too deeply")
    if verdict == TOO_MANY:
        raise Rejected(Reason.MALFORMED, "the JSON document has too many items")
    if verdict == TOO_LONG_NUMBER:
        raise Rejected(Reason.MALFORMED, f"the JSON document has a number of more than {MAX_DIGITS} digits")
    if verdict == LONE_SURROGATE:
        raise Rejected(Reason.MALFORMED, "the JSON document has half of a surrogate pair")
    raise Rejected(Reason.MALFORMED, "the body is not one valid JSON document in UTF-8")


cdef Py_ssize_t count_members(object value) except -1:
    cdef Py_ssize_t members = 0
    if isinstance(value, dict):
        members = len(<dict>value)
        for item in (<dict>value).values():
            if isinstance(item, (dict, list)):
                members += count_members(item)
    elif isinstance(value, list):
        for item in <list>value:
            if isinstance(item, (dict, list)):
                members += count_members(item)
    return members


def require_members(value, Py_ssize_t members):
    """Refuse a parsed value with fewer members than its document had.

    Raises `Rejected(MALFORMED)`: then a name was there twice in one object. Counting costs a fifth of a hook that
    looks at every object.
    """
    if count_members(value) != members:
        raise Rejected(Reason.MALFORMED, "a JSON object has two members of one name")


def finite_number(str text not None):
    """The number with a fraction or exponent that `text` is. Raises `Rejected(MALFORMED)` when it overflows."""
    number = float(text)
    if isinf(number):
        raise Rejected(Reason.MALFORMED, "the JSON document has a number that is too large")
    return number


def refuse_constant(str name not None):
    """Raises `Rejected(MALFORMED)`: NaN, Infinity and -Infinity are not JSON."""
    raise Rejected(Reason.MALFORMED, "the JSON document has a number that is not finite")


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
