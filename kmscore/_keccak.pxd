from libc.stdint cimport uint8_t, uint64_t

cdef struct Keccak256:
    uint64_t[25] lanes
    # Bytes of the current block that are absorbed already: 0..135.
    size_t filled

# start, any number of absorb, finish; a finished state is worth nothing until the next start.
cdef void keccak256_start(Keccak256* state) noexcept nogil
cdef void keccak256_absorb(Keccak256* state, const uint8_t* data, size_t size) noexcept nogil
cdef void keccak256_finish(Keccak256* state, uint8_t* digest32) noexcept nogil
