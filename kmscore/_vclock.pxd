# Vector clocks: arrays of (writer, counter), sorted by the bytes of the writer's name, counters at least 1 (an absent
# entry counts as 0). Names are opaque and compared byte for byte (protocol §5).

from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcmp, memcpy

from kmscore._memory cimport Memory, claim, release
from kmscore._siphash cimport HashKey, siphash24
from kmscore._table cimport Node, Search, Table, next_found, search, table_insert, table_remove, table_reserve


cdef enum:
    MAX_WRITER_BYTES = 128    # protocol §5
    MAX_CLOCK_ENTRIES = 1024  # ours: a wallet per node and boot, and a bound on what a peer can make us keep


# Largest counter, time and ttl that is accepted (store §1, §2); a sum of two is the only thing that can pass int64.
cdef inline int64_t max_number() noexcept nogil:
    return <int64_t>1 << 62


# The name follows the struct. `refs` counts the clocks, sources and running calls that hold an interned writer; it is 0
# for a writer that lies inside the clock of a Record and is freed with it.
cdef struct Writer:
    Node node
    size_t refs


cdef struct ClockEntry:
    Writer *writer
    int64_t counter


cdef enum ClockOrder:
    CLOCK_EQUAL
    CLOCK_OLDER       # theirs is causally before ours
    CLOCK_NEWER       # theirs is causally after ours
    CLOCK_CONCURRENT


cdef inline char *writer_name(Writer *writer) noexcept nogil:
    return <char *>(writer + 1)


cdef inline int compare_bytes(const char *a, size_t a_size, const char *b, size_t b_size) noexcept nogil:
    cdef size_t common = min(a_size, b_size)
    cdef int order = memcmp(a, b, common) if common else 0  # an empty side may be NULL, which memcmp must not see
    if order != 0:
        return order
    return (a_size > b_size) - (a_size < b_size)


cdef inline int compare_writers(Writer *a, Writer *b) noexcept nogil:
    if a == b:
        return 0
    return compare_bytes(writer_name(a), a.node.size, writer_name(b), b.node.size)


# Which of two clocks has the next name: below 0 ours, above 0 theirs, 0 both. Not to be called past the end of both.
cdef inline int next_writer(
    const ClockEntry *ours, size_t i, size_t n, const ClockEntry *theirs, size_t j, size_t m
) noexcept nogil:
    if j == m:
        return -1
    if i == n:
        return 1
    return compare_writers(ours[i].writer, theirs[j].writer)


cdef inline ClockOrder compare_clocks(
    const ClockEntry *ours, size_t n, const ClockEntry *theirs, size_t m
) noexcept nogil:
    cdef size_t i = 0
    cdef size_t j = 0
    cdef bint ahead = False
    cdef bint behind = False
    cdef int order
    while i < n or j < m:
        order = next_writer(ours, i, n, theirs, j, m)
        if order == 0:
            ahead |= ours[i].counter > theirs[j].counter
            behind |= ours[i].counter < theirs[j].counter
        else:
            ahead |= order < 0
            behind |= order > 0
        i += order <= 0
        j += order >= 0
    if ahead:
        return CLOCK_CONCURRENT if behind else CLOCK_OLDER
    return CLOCK_NEWER if behind else CLOCK_EQUAL


# Element-wise maximum into `joined`, which has room for n + m entries, or only counted when it is NULL. Entries that
# both have keep our writer.
cdef inline size_t join_clocks(
    const ClockEntry *ours, size_t n, const ClockEntry *theirs, size_t m, ClockEntry *joined
) noexcept nogil:
    cdef size_t i = 0
    cdef size_t j = 0
    cdef size_t count = 0
    cdef int order
    while i < n or j < m:
        order = next_writer(ours, i, n, theirs, j, m)
        if joined != NULL:
            joined[count] = ours[i] if order <= 0 else theirs[j]
            if order == 0:
                joined[count].counter = max(ours[i].counter, theirs[j].counter)
        count += 1
        i += order <= 0
        j += order >= 0
    return count


cdef inline Writer *find_writer(
    const Table *writers, HashKey key, const char *name, size_t size
) noexcept nogil:
    cdef uint32_t digest = <uint32_t>siphash24(key, name, size)
    cdef Search found = search(writers, digest)
    cdef Node *node = next_found(&found)
    while node != NULL:
        if node.hash == digest and node.size == size and memcmp(writer_name(<Writer *>node), name, size) == 0:
            return <Writer *>node
        node = next_found(&found)
    return NULL


# One more reference to the interned writer of that name, which is made when there is none; NULL: out of memory.
cdef inline Writer *hold_name(
    Table *writers, Memory *memory, HashKey key, const char *name, size_t size
) noexcept nogil:
    cdef Writer *writer = find_writer(writers, key, name, size)
    if writer == NULL:
        if not table_reserve(writers, memory):
            return NULL
        writer = <Writer *>claim(memory, sizeof(Writer) + size)
        if writer == NULL:
            return NULL
        writer.node.hash = <uint32_t>siphash24(key, name, size)
        writer.node.size = <uint32_t>size
        writer.refs = 0
        memcpy(writer_name(writer), name, size)
        table_insert(writers, memory, &writer.node, NULL)
    writer.refs += 1
    return writer


# The same for a writer that may or may not be interned already.
cdef inline Writer *hold_writer(Table *writers, Memory *memory, HashKey key, Writer *writer) noexcept nogil:
    if writer.refs == 0:
        return hold_name(writers, memory, key, writer_name(writer), writer.node.size)
    writer.refs += 1
    return writer


cdef inline void drop_writer(Table *writers, Memory *memory, Writer *writer) noexcept nogil:
    writer.refs -= 1
    if writer.refs == 0:
        table_remove(writers, memory, &writer.node)
        release(memory, writer)
