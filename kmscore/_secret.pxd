cdef void wipe_memory(void* data, size_t size) noexcept nogil

cdef class SecretBytes:
    cdef unsigned char* _data
    # Read it freely; it stays what it was after wipe().
    cdef readonly Py_ssize_t size
    cdef bint _wiped

    # The secret, self.size bytes. The memory is freed only with the object, so the pointer lives as long as the
    # caller's reference; but wipe() zeroes it, and a key that turns to zeros half way is a key everybody knows.
    # Whoever releases the GIL copies the bytes first and wipes the copy with wipe_memory. Raises InvariantBroken after
    # wipe().
    cdef const unsigned char* pointer(self) except NULL
