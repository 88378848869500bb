# Memory for Python's small objects, which ciphertexts of up to 480 bytes are, in regions that huge pages can back, for the
# reason given in _pages.pxd. Python asks for arenas of 1 MiB, two of which share a region.

from kmscore._pages cimport MADV_HUGEPAGE, MADV_NOHUGEPAGE, REGION_BYTES, madvise, map_region, munmap


cdef extern from "Python.h" nogil:
    ctypedef struct PyObjectArenaAllocator:
        void *ctx
        void *(*alloc)(void *ctx, size_t size) noexcept
        void (*free)(void *ctx, void *arena, size_t size) noexcept
    void PyObject_SetArenaAllocator(PyObjectArenaAllocator *allocator)


cdef enum:
    ORDINARY_REGIONS_OF_OBJECTS = 32  # a process with few objects takes the pages that it uses, not 2 MiB at once


# The region that arenas are cut from, and what is left of it. Python calls with the GIL held.
cdef struct Arenas:
    char *rest
    size_t left
    size_t regions


cdef inline void *arena_claim(void *ctx, size_t size) noexcept nogil:
    cdef Arenas *arenas = <Arenas *>ctx
    cdef void *arena
    if size > REGION_BYTES:
        return NULL
    if arenas.left < size:
        if arenas.left > 0:
            munmap(arenas.rest, arenas.left)
        arenas.left = 0
        arenas.rest = <char *>map_region()
        if arenas.rest == NULL:
            return NULL
        madvise(
            arenas.rest,
            REGION_BYTES,
            MADV_NOHUGEPAGE if arenas.regions < ORDINARY_REGIONS_OF_OBJECTS else MADV_HUGEPAGE,
        )
        arenas.regions += 1
        arenas.left = REGION_BYTES
    arena = arenas.rest
    arenas.rest += size
    arenas.left -= size
    return arena


# Also for arenas that were there before: Python's own allocator maps and unmaps as well.
cdef inline void arena_release(void *ctx, void *arena, size_t size) noexcept nogil:
    munmap(arena, size)


cdef inline void take_arenas(Arenas *arenas) noexcept nogil:
    cdef PyObjectArenaAllocator allocator
    allocator.ctx = arenas
    allocator.alloc = arena_claim
    allocator.free = arena_release
    PyObject_SetArenaAllocator(&allocator)
