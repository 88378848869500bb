# Binary min-heaps of cells, which know where in a heap they are. Ties are broken by key bytes and then by change, so
# that the order is total and two nodes agree on it (store §1: eviction in order of time and key).

from libc.stdint cimport int64_t, uint32_t

from kmscore._cell cimport NO_HEAP, Cell, Heap, HeapItem, cell_key
from kmscore._memory cimport Memory, resize
from kmscore._vclock cimport compare_bytes


cdef enum:
    MIN_CAPACITY = 16


cdef inline int compare_turns(
    int64_t a_ms, const char *a_key, size_t a_size, int64_t b_ms, const char *b_key, size_t b_size
) noexcept nogil:
    if a_ms != b_ms:
        return -1 if a_ms < b_ms else 1
    return compare_bytes(a_key, a_size, b_key, b_size)


cdef inline bint comes_before(const HeapItem *a, const HeapItem *b) noexcept nogil:
    cdef int order = compare_turns(
        a.rank, cell_key(a.cell), a.cell.node.size, b.rank, cell_key(b.cell), b.cell.node.size
    )
    return order < 0 or (order == 0 and a.cell.seq < b.cell.seq)


cdef inline void heap_place(Heap *heap, size_t index, HeapItem item) noexcept nogil:
    heap.items[index] = item
    item.cell.place.heap_at[heap.slot] = <uint32_t>index


cdef inline void heap_rise(Heap *heap, size_t index) noexcept nogil:
    cdef HeapItem item = heap.items[index]
    cdef size_t parent
    while index > 0:
        parent = (index - 1) >> 1
        if not comes_before(&item, &heap.items[parent]):
            break
        heap_place(heap, index, heap.items[parent])
        index = parent
    heap_place(heap, index, item)


cdef inline void heap_sink(Heap *heap, size_t index) noexcept nogil:
    cdef HeapItem item = heap.items[index]
    cdef size_t child = 2 * index + 1
    while child < heap.count:
        if child + 1 < heap.count and comes_before(&heap.items[child + 1], &heap.items[child]):
            child += 1
        if not comes_before(&heap.items[child], &item):
            break
        heap_place(heap, index, heap.items[child])
        index = child
        child = 2 * index + 1
    heap_place(heap, index, item)


# Room for one more item, so that the push which follows cannot fail.
cdef inline bint heap_reserve(Heap *heap, Memory *memory) noexcept nogil:
    cdef size_t capacity = heap.capacity
    cdef void *moved
    if heap.count < capacity:
        return True
    capacity = max(capacity + (capacity >> 1), <size_t>MIN_CAPACITY)
    moved = resize(memory, heap.items, capacity * sizeof(HeapItem))
    if moved == NULL:
        return False
    heap.items = <HeapItem *>moved
    heap.capacity = capacity
    return True


cdef inline void heap_push(Heap *heap, Cell *cell, int64_t rank) noexcept nogil:
    heap.items[heap.count].rank = rank
    heap.items[heap.count].cell = cell
    heap.count += 1
    heap_rise(heap, heap.count - 1)


# Takes the smallest item out but leaves it behind the last one, where heap_restore finds it: an eviction can be tried
# without memory and without a trace.
cdef inline Cell *heap_set_aside(Heap *heap) noexcept nogil:
    cdef HeapItem smallest = heap.items[0]
    heap.count -= 1
    heap_place(heap, 0, heap.items[heap.count])
    heap_place(heap, heap.count, smallest)
    if heap.count > 0:
        heap_sink(heap, 0)
    return smallest.cell


# Puts back everything that was set aside when the heap had `count` items.
cdef inline void heap_restore(Heap *heap, size_t count) noexcept nogil:
    while heap.count < count:
        heap.count += 1
        heap_rise(heap, heap.count - 1)


# Gives memory back once three quarters are unused; a failure to shrink costs only that memory.
cdef inline void heap_trim(Heap *heap, Memory *memory) noexcept nogil:
    cdef void *moved
    if heap.capacity <= MIN_CAPACITY or heap.count >= heap.capacity >> 2:
        return
    moved = resize(memory, heap.items, (heap.capacity >> 1) * sizeof(HeapItem))
    if moved != NULL:
        heap.items = <HeapItem *>moved
        heap.capacity >>= 1


cdef inline void heap_remove(Heap *heap, Memory *memory, Cell *cell) noexcept nogil:
    cdef size_t index = cell.place.heap_at[heap.slot]
    cdef HeapItem last = heap.items[heap.count - 1]
    heap.count -= 1
    if index < heap.count:
        heap_place(heap, index, last)
        heap_rise(heap, index)
        heap_sink(heap, last.cell.place.heap_at[heap.slot])
    cell.place.heap_at[heap.slot] = NO_HEAP
    heap_trim(heap, memory)
