"""The machine's clocks, without a Python-level call: a request reads them nine times."""

cimport cython
from libc.stdint cimport int64_t
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, clockid_t, timespec

from kmscore.errors import InvariantBroken


cdef int64_t read_ms(clockid_t clock) except? -1:
    cdef timespec now
    if clock_gettime(clock, &now) != 0:
        raise InvariantBroken("a clock of the machine cannot be read")
    return <int64_t>now.tv_sec * 1000 + <int64_t>now.tv_nsec // 1_000_000


@cython.final
cdef class SystemClock:
    """The machine's clocks."""

    def now_ms(self):
        """Unix time in milliseconds."""
        return read_ms(CLOCK_REALTIME)

    def monotonic_ms(self):
        """Milliseconds since an arbitrary start, never going backwards."""
        return read_ms(CLOCK_MONOTONIC)
