# Allocation for the store's C structures, counted, so that what a record costs can be asserted instead of estimated.

from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc, realloc


cdef extern from "malloc.h" nogil:
    size_t malloc_usable_size(void *block)


# A hint that this address will be needed: it is fetched while other work goes on. Any address may be given, NULL too.
cdef extern from *:
    void prefetch "__builtin_prefetch"(const void *address) nogil


cdef enum:
    CACHE_LINE = 64
    CHUNK_HEADER = 8  # what glibc's malloc keeps in front of every block


# What pages are cut from; it begins the region. `untouched` counts the pages that were never given out, at its end.
cdef struct Region:
    Region *prev          # among the regions that have room
    Region *next
    void *freed           # pages that came back, each pointing to the next
    uint32_t used
    uint32_t untouched


cdef struct Memory:
    size_t used      # bytes held now, rounding and headers of malloc included, but not what is free in a region
    Region *roomy    # full regions are in no list
    size_t regions


cdef inline size_t block_cost(void *block) noexcept nogil:
    return malloc_usable_size(block) + CHUNK_HEADER if block != NULL else 0


cdef inline void *claim(Memory *memory, size_t size) noexcept nogil:
    cdef void *block = malloc(size)
    memory.used += block_cost(block)
    return block


# NULL leaves `block` as it was, as realloc does.
cdef inline void *resize(Memory *memory, void *block, size_t size) noexcept nogil:
    cdef size_t cost = block_cost(block)
    cdef void *moved = realloc(block, size)
    if moved != NULL:
        memory.used = memory.used - cost + block_cost(moved)
    return moved


cdef inline void release(Memory *memory, void *block) noexcept nogil:
    memory.used -= block_cost(block)
    free(block)
