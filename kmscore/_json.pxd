from libc.stdint cimport int64_t
from libc.string cimport memcpy


cdef inline Py_ssize_t distance(const void* start, const void* end) noexcept nogil:
    """end - start; written this way because Cython's overflow check does not compile for pointers."""
    return <Py_ssize_t>(<size_t>end - <size_t>start)


# What some byte of a string is.
cdef enum:
    HAS_ESCAPE = 1   # a backslash
    HAS_CONTROL = 2  # below 0x20
    HAS_HIGH = 4     # not ASCII
    HAS_QUOTE = 8    # which ends a string that is read, and must be escaped in one that is written


cdef enum:
    MAX_NUMBER_DIGITS = 19  # of an int64


# These write to `out`, which has room for it, and return the place behind.
cdef inline char* put(char* out, const char* text, size_t size) noexcept:
    memcpy(out, text, size)
    return out + size


cdef inline char* put_number(char* out, int64_t number) noexcept:
    cdef char digits[MAX_NUMBER_DIGITS]
    cdef int at = MAX_NUMBER_DIGITS
    while True:
        at -= 1
        digits[at] = <char>(c'0' + number % 10)
        number //= 10
        if number == 0:
            return put(out, digits + at, <size_t>(MAX_NUMBER_DIGITS - at))


cdef char* put_text(char* out, const char* text, size_t size) noexcept
cdef object not_json()
cdef int string_flags(const unsigned char* text, Py_ssize_t size) noexcept nogil


cdef class Reader:
    cdef bytes document
    cdef const unsigned char* at
    cdef const unsigned char* end
    cdef Py_ssize_t items_left
    cdef int max_depth
    cdef dict names

    cdef inline void skip_space(self) noexcept:
        while self.at[0] == c' ' or self.at[0] == c'\n' or self.at[0] == c'\r' or self.at[0] == c'\t':
            self.at += 1

    cdef int open_bracket(self, int depth) except -1
    cdef int count_item(self) except -1
    cdef bint goes_on(self, unsigned char closing) except -1
    cdef bint is_empty(self, unsigned char closing) noexcept
    cdef str read_name(self)
    cdef int add_member(self, dict members, str name, object value) except -1
    cdef object read_value(self, int depth)
    cdef bint skip_word(self, const char* word) noexcept
    cdef dict read_object(self, int depth)
    cdef list read_array(self, int depth)
    cdef str read_string(self)
    cdef str read_escaped_string(self)
    cdef int skip_digits(self) except -1
    cdef object read_number(self)
    cdef int require_end(self) except -1
