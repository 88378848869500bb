"""Token buckets in the order of their last use; `kmscore.limits` says what they are for.

A method is one step under the GIL but for reading the clock, which comes first. Not constant-time: nothing is secret.
"""

cimport cython
from cpython.dict cimport PyDict_GetItemWithError
from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from kmscore._recency cimport Link, open_recency, put_newest, take_out

from kmscore.errors import InvariantBroken, Reason, Rejected


cdef enum:
    MOST_KEYS = 65536
    MINUTE_MS = 60000

MAX_TRACKED = MOST_KEYS


@cython.final
@cython.internal
cdef class _Bucket:
    """What is left to one key, as of its last use."""

    cdef double tokens
    cdef int64_t at_ms
    cdef Link link
    cdef str key

    def __cinit__(self, str key not None):
        self.key = key
        self.link.owner = <PyObject *>self


@cython.final
cdef class RateLimiter:
    """Token buckets of one minute's capacity; `per_minute` 0 turns the limit off.

    `clock` has a `monotonic_ms()`. Bounded: beyond `MAX_TRACKED` keys the one longest unused is forgotten, which can
    only be generous to it. Raises InvariantBroken when `per_minute` is negative.
    """

    cdef double _capacity
    cdef double _per_ms
    cdef object _now_ms
    cdef dict _buckets
    cdef Link _by_use

    def __cinit__(self, int64_t per_minute, clock not None):
        if per_minute < 0:
            raise InvariantBroken("a rate limit is negative")
        self._capacity = <double>per_minute
        self._per_ms = <double>per_minute / MINUTE_MS
        self._now_ms = clock.monotonic_ms
        self._buckets = {}
        open_recency(&self._by_use)

    def take(self, str key not None):
        """Use one request of `key`. Raises `Rejected(RATE)` when there is none left."""
        cdef int64_t now_ms
        cdef double tokens
        cdef PyObject *found
        if self._capacity == 0:
            return
        now_ms = self._now_ms()
        found = PyDict_GetItemWithError(self._buckets, key)
        tokens = self._capacity if found == NULL else self._tokens(<_Bucket>found, now_ms)
        if tokens < 1:
            raise Rejected(Reason.RATE, "too many requests")
        self._put(self._add(key) if found == NULL else <_Bucket>found, tokens - 1, now_ms)

    def give_back(self, str key not None):
        """Return one request: it turned out to be authenticated, and its wallet is limited instead."""
        cdef int64_t now_ms
        cdef PyObject *found
        if self._capacity == 0:
            return
        now_ms = self._now_ms()
        found = PyDict_GetItemWithError(self._buckets, key)
        if found != NULL:
            self._put(<_Bucket>found, min(self._capacity, self._tokens(<_Bucket>found, now_ms) + 1), now_ms)

    cdef double _tokens(self, _Bucket bucket, int64_t now_ms) except? -1:
        return min(self._capacity, bucket.tokens + <double>(now_ms - bucket.at_ms) * self._per_ms)

    cdef _Bucket _add(self, str key):
        # A bucket for a key that has none, perhaps in place of the one longest unused.
        cdef _Bucket bucket = _Bucket(key)
        cdef _Bucket oldest
        self._buckets[key] = bucket
        put_newest(&self._by_use, &bucket.link)
        if len(self._buckets) > MOST_KEYS:
            oldest = <_Bucket>self._by_use.newer.owner
            take_out(&oldest.link)
            del self._buckets[oldest.key]
        return bucket

    cdef int _put(self, _Bucket bucket, double tokens, int64_t now_ms) except -1:
        bucket.tokens = tokens
        bucket.at_ms = now_ms
        take_out(&bucket.link)
        put_newest(&self._by_use, &bucket.link)
        return 0

    def __repr__(self):
        return f"RateLimiter({self._capacity:.0f} a minute, {len(self._buckets)} keys)"

    def __reduce__(self):
        raise TypeError("a rate limiter cannot be copied")
