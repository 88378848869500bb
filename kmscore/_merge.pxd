# The merge rule of store §3, once: the store, the dry run before it and the worked rows all go through decide_merge.

from libc.stdint cimport int64_t

from kmscore._vclock cimport (
    CLOCK_CONCURRENT,
    CLOCK_NEWER,
    CLOCK_OLDER,
    ClockEntry,
    ClockOrder,
    compare_bytes,
    compare_clocks,
)


# In the order of MergeOutcome.
cdef enum Outcome:
    INSERTED
    REPLACED_BY_VERSION
    REPLACED_BY_CONCURRENT_LWW
    IGNORED_EXISTING_NEWER_VERSION
    IGNORED_EQUAL_VERSION
    IGNORED_CONCURRENT_TIE_BREAK
    IGNORED_EXPIRED
    REFUSED_FUTURE
    REFUSED_CAPACITY
    REFUSED_EVICTED
    REFUSED_CLOCK


# What a merge looks at. A tombstone has value NULL and value_size 0.
cdef struct View:
    const char *value
    size_t value_size
    int64_t updated_at_ms
    int64_t ttl_ms
    const ClockEntry *clock
    size_t entries


cdef struct Verdict:
    Outcome outcome
    bint take_theirs  # their payload is the one to keep
    bint join         # the version becomes the element-wise maximum of both
    bint reissue      # equal versions, different payloads: the survivor needs a version of its own


cdef inline int compare_numbers(int64_t a, int64_t b) noexcept nogil:
    return (a > b) - (a < b)


# The total order that settles concurrent writes: time, ciphertext bytes (a tombstone counts as empty), and then, only
# so that two nodes can never disagree, ttl and tombstone.
cdef inline int compare_payloads(const View *a, const View *b) noexcept nogil:
    cdef int order = compare_numbers(a.updated_at_ms, b.updated_at_ms)
    if order == 0:
        order = compare_bytes(a.value, a.value_size, b.value, b.value_size)
    if order == 0:
        order = compare_numbers(a.ttl_ms, b.ttl_ms)
    if order == 0:
        order = (a.value == NULL) - (b.value == NULL)
    return order


# `ours` is NULL when there is no such key.
cdef inline Verdict decide_merge(const View *ours, const View *theirs) noexcept nogil:
    cdef Verdict verdict
    cdef ClockOrder order
    cdef int payloads
    verdict.take_theirs = verdict.join = verdict.reissue = False
    if ours == NULL:
        verdict.outcome = INSERTED
        verdict.take_theirs = True
        return verdict
    order = compare_clocks(ours.clock, ours.entries, theirs.clock, theirs.entries)
    if order == CLOCK_NEWER:
        verdict.outcome = REPLACED_BY_VERSION
        verdict.take_theirs = True
        return verdict
    if order == CLOCK_OLDER:
        verdict.outcome = IGNORED_EXISTING_NEWER_VERSION
        return verdict
    payloads = compare_payloads(theirs, ours)
    if order != CLOCK_CONCURRENT and payloads == 0:
        verdict.outcome = IGNORED_EQUAL_VERSION
        return verdict
    verdict.outcome = REPLACED_BY_CONCURRENT_LWW if payloads > 0 else IGNORED_CONCURRENT_TIE_BREAK
    verdict.take_theirs = payloads > 0
    verdict.join = order == CLOCK_CONCURRENT
    verdict.reissue = order != CLOCK_CONCURRENT
    return verdict
