cimport cython
from libc.stdint cimport int64_t

from kmscore._merge cimport View
from kmscore._vclock cimport ClockEntry


# A writer's name and its counter, somewhere in a document.
cdef struct Counter:
    const char *name
    size_t name_size
    int64_t count


@cython.no_gc
cdef class Record:
    cdef readonly str key
    cdef readonly bytes value
    cdef readonly int64_t updated_at_ms
    cdef readonly int64_t ttl_ms
    cdef ClockEntry *clock  # one block: the entries, then the writers they point to
    cdef readonly size_t entries

    cdef bint set_clock(self, const Counter *counters, size_t entries) except -1
    cdef int _set_version(self, object version) except -1


cdef View view_of_record(Record record) except *
cdef int fill_record(
    Record record,
    str key,
    bytes value,
    int64_t updated_at_ms,
    int64_t ttl_ms,
    const ClockEntry *clock,
    size_t entries,
) except -1
cdef size_t record_json_bytes(Record record) except 0
