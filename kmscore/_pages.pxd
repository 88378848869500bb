# Pages of 4 KiB for what every operation on a large store touches: cells, clocks and the buckets of tables. They are cut
# from regions of 2 MiB that the kernel is asked to back by one huge page each, because in a large store of ordinary pages
# every cache miss is a miss of the TLB, too, which makes it half as long again. Where the kernel has no huge pages, or has
# them switched off, nothing else changes.

from libc.stdint cimport uint8_t
from libc.string cimport memset

from kmscore._memory cimport Memory, Region


cdef extern from "sys/mman.h" nogil:
    enum:
        PROT_READ
        PROT_WRITE
        MAP_PRIVATE
        MAP_ANONYMOUS
        MADV_HUGEPAGE
        MADV_NOHUGEPAGE
    void *MAP_FAILED
    void *mmap(void *address, size_t size, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t size)
    int madvise(void *address, size_t size, int advice)


cdef enum:
    PAGE_BYTES = 4096
    REGION_BYTES = 2097152
    REGION_PAGES = 511    # the first one holds the struct
    ORDINARY_REGIONS = 16 # the first ones are ordinary until they are full: 2 MiB at once are much for a small store


cdef inline Region *region_of(const void *page) noexcept nogil:
    return <Region *>(<size_t>page & ~<size_t>(REGION_BYTES - 1))


cdef inline void list_region(Memory *memory, Region *region) noexcept nogil:
    region.prev = NULL
    region.next = memory.roomy
    if region.next != NULL:
        region.next.prev = region
    memory.roomy = region


cdef inline void unlist_region(Memory *memory, Region *region) noexcept nogil:
    if region.prev != NULL:
        region.prev.next = region.next
    else:
        memory.roomy = region.next
    if region.next != NULL:
        region.next.prev = region.prev


# Twice as much is mapped as is needed, so that a multiple of the size lies in it, and the rest given back.
cdef inline void *map_region() noexcept nogil:
    cdef uint8_t *mapped = <uint8_t *>mmap(
        NULL, 2 * REGION_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0
    )
    cdef size_t before = 0
    if <void *>mapped == MAP_FAILED:
        return NULL
    if <size_t>mapped & (REGION_BYTES - 1) != 0:
        before = REGION_BYTES - (<size_t>mapped & (REGION_BYTES - 1))
        munmap(mapped, before)
    munmap(mapped + before + REGION_BYTES, REGION_BYTES - before)
    return mapped + before


cdef inline Region *add_region(Memory *memory) noexcept nogil:
    cdef Region *region = <Region *>map_region()
    if region != NULL:
        madvise(region, REGION_BYTES, MADV_NOHUGEPAGE if memory.regions < ORDINARY_REGIONS else MADV_HUGEPAGE)
        memset(region, 0, sizeof(Region))
        region.untouched = REGION_PAGES
        memory.regions += 1
        list_region(memory, region)
    return region


# A page at a multiple of its size, its content undefined, or NULL.
cdef inline void *page_claim(Memory *memory) noexcept nogil:
    cdef Region *region = memory.roomy
    cdef void *page
    if region == NULL:
        region = add_region(memory)
        if region == NULL:
            return NULL
    page = region.freed
    if page != NULL:
        region.freed = (<void **>page)[0]
    else:
        page = <uint8_t *>region + (REGION_PAGES + 1 - region.untouched) * PAGE_BYTES
        region.untouched -= 1
    region.used += 1
    if region.freed == NULL and region.untouched == 0:
        unlist_region(memory, region)
        madvise(region, REGION_BYTES, MADV_HUGEPAGE)
    memory.used += PAGE_BYTES
    return page


# A region without pages in use is given back, unless it is the only one with room: it would soon be needed again.
cdef inline void page_release(Memory *memory, void *page) noexcept nogil:
    cdef Region *region = region_of(page)
    if region.freed == NULL and region.untouched == 0:
        list_region(memory, region)
    (<void **>page)[0] = region.freed
    region.freed = page
    region.used -= 1
    memory.used -= PAGE_BYTES
    if region.used == 0 and (region.prev != NULL or region.next != NULL):
        unlist_region(memory, region)
        memory.regions -= 1
        munmap(region, REGION_BYTES)


# Gives back the last region, when every page has been released.
cdef inline void pages_close(Memory *memory) noexcept nogil:
    if memory.roomy != NULL and memory.roomy.used == 0:
        munmap(memory.roomy, REGION_BYTES)
        memory.roomy = NULL
        memory.regions = 0
