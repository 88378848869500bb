"""Token buckets in the order of their last use, and a budget of bytes; `kmscore.limits` says what they are for.

A method is one step under the GIL but for reading the clock, which comes first. Not constant-time: nothing is secret.
"""

cimport cython
from cpython.dict cimport PyDict_GetItemWithError
from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from kmscore._recency cimport Link, open_recency, put_newest, take_out

from kmscore.errors import InvariantBroken, Reason, Rejected, Unavailable


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


@cython.final
cdef class BodyBudget:
    """How many bytes of bodies the whole process keeps at once, and one wallet's part of that.

    Without it callers that are each within their limits could together fill the memory.
    """

    cdef Py_ssize_t _total_bytes
    cdef Py_ssize_t _wallet_bytes
    cdef Py_ssize_t _used_bytes
    cdef dict _used_by

    def __cinit__(self, Py_ssize_t total_bytes, Py_ssize_t wallet_bytes):
        self._total_bytes = total_bytes
        self._wallet_bytes = wallet_bytes
        self._used_by = {}

    def share_of(self, str wallet not None):
        """What one of the wallet's bodies counts its bytes into; all are given back when its `with` block ends."""
        return BodyShare(self, wallet)

    cdef int _take(self, str wallet, Py_ssize_t size) except -1:
        cdef Py_ssize_t used = self._used_by.get(wallet, 0)
        if used + size > self._wallet_bytes or self._used_bytes + size > self._total_bytes:
            raise Unavailable("too many large requests at once", retry_after_s=1.0)
        self._used_by[wallet] = used + size
        self._used_bytes += size
        return 0

    cdef int _give_back(self, str wallet, Py_ssize_t size) except -1:
        cdef Py_ssize_t left = self._used_by.get(wallet, 0) - size
        self._used_bytes -= size
        if left > 0:
            self._used_by[wallet] = left
        else:
            self._used_by.pop(wallet, None)
        return 0


@cython.final
cdef class BodyShare:
    """A wallet's part of the budget for the time of one body; `BodyBudget.share_of` makes it."""

    cdef BodyBudget _budget
    cdef str _wallet
    cdef Py_ssize_t _taken_bytes

    def __cinit__(self, BodyBudget budget not None, str wallet not None):
        self._budget = budget
        self._wallet = wallet

    def __enter__(self):
        return self

    def __exit__(self, *_):
        cdef Py_ssize_t taken_bytes = self._taken_bytes
        self._taken_bytes = 0
        self._budget._give_back(self._wallet, taken_bytes)

    def take(self, Py_ssize_t size):
        """Count so many bytes more. Raises `Unavailable` when there is no room for them, and counts none."""
        self._budget._take(self._wallet, size)
        self._taken_bytes += size
