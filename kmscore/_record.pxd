from libc.stdint cimport int64_t

from kmscore._merge cimport View
from kmscore._vclock cimport ClockEntry


cdef class Record:
    cdef readonly str key
    cdef readonly bytes value
    cdef readonly int64_t updated_at_ms
    cdef readonly int64_t ttl_ms
    cdef ClockEntry *clock  # one block: the entries, then the writers they point to
    cdef size_t entries

    cdef int _set_version(self, object version) except -1


cdef View view_of_record(Record record) except *
cdef Record make_record(
    str key, bytes value, int64_t updated_at_ms, int64_t ttl_ms, const ClockEntry *clock, size_t entries
)
