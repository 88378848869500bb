# Small blocks, cells and clocks, without malloc's header and rounding, which cost a clock of three entries a third more
# than it holds. Each slab is one page and has blocks of one size; a block's slab is found by its address.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset

from kmscore._memory cimport Memory, claim, release
from kmscore._pages cimport PAGE_BYTES, page_claim, page_release


cdef enum:
    GRAIN = 8  # sizes of blocks are multiples of it
    SIZES = 64  # blocks of up to 512 bytes; larger ones are malloc's


# The blocks lie behind it. `untouched` counts those that were never given out, at the end of the slab.
cdef struct Slab:
    Slab *prev            # among the slabs of this size that have room
    Slab *next
    void *freed           # blocks that came back, each pointing to the next
    uint32_t used
    uint32_t untouched


# Slabs with room, by size. Full ones are in no list.
cdef struct Pool:
    Slab *roomy[SIZES]


cdef inline size_t size_class(size_t size) noexcept nogil:
    return (size - 1) // GRAIN if size > 0 else 0


cdef inline bint has_room(const Slab *slab) noexcept nogil:
    return slab.freed != NULL or slab.untouched > 0


cdef inline Slab *slab_of(const void *block) noexcept nogil:
    return <Slab *>(<size_t>block & ~<size_t>(PAGE_BYTES - 1))


cdef inline void list_slab(Pool *pool, size_t index, Slab *slab) noexcept nogil:
    slab.prev = NULL
    slab.next = pool.roomy[index]
    if slab.next != NULL:
        slab.next.prev = slab
    pool.roomy[index] = slab


cdef inline void unlist_slab(Pool *pool, size_t index, Slab *slab) noexcept nogil:
    if slab.prev != NULL:
        slab.prev.next = slab.next
    else:
        pool.roomy[index] = slab.next
    if slab.next != NULL:
        slab.next.prev = slab.prev


cdef inline Slab *add_slab(Pool *pool, Memory *memory, size_t index) noexcept nogil:
    cdef Slab *slab = <Slab *>page_claim(memory)
    if slab != NULL:
        memset(slab, 0, sizeof(Slab))
        slab.untouched = <uint32_t>((PAGE_BYTES - sizeof(Slab)) // ((index + 1) * GRAIN))
        list_slab(pool, index, slab)
    return slab


# A block of at least `size` bytes, or NULL.
cdef inline void *pool_claim(Pool *pool, Memory *memory, size_t size) noexcept nogil:
    cdef size_t index = size_class(size)
    cdef Slab *slab
    cdef void *block
    if index >= SIZES:
        return claim(memory, size)
    slab = pool.roomy[index]
    if slab == NULL:
        slab = add_slab(pool, memory, index)
        if slab == NULL:
            return NULL
    block = slab.freed
    if block != NULL:
        slab.freed = (<void **>block)[0]
    else:
        slab.untouched -= 1
        block = <uint8_t *>(slab + 1) + slab.untouched * (index + 1) * GRAIN
    slab.used += 1
    if not has_room(slab):
        unlist_slab(pool, index, slab)
    return block


# `size` is the one that was claimed. A slab without blocks in use is given back at once.
cdef inline void pool_release(Pool *pool, Memory *memory, void *block, size_t size) noexcept nogil:
    cdef size_t index = size_class(size)
    cdef Slab *slab
    if block == NULL or index >= SIZES:
        release(memory, block)
        return
    slab = slab_of(block)
    if not has_room(slab):
        list_slab(pool, index, slab)
    (<void **>block)[0] = slab.freed
    slab.freed = block
    slab.used -= 1
    if slab.used == 0:
        unlist_slab(pool, index, slab)
        page_release(memory, slab)
