# The kernels of BLAKE3 for other extensions: start with a key, absorb, squeeze.

from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef enum:
    # 2^64 bytes are 2^54 chunks, and the stack holds one chaining value for each bit of the number of whole chunks.
    STACK_DEPTH = 54
    KEYED_HASH = 16  # BLAKE3 specification, table 3


cdef struct State:
    uint32_t[8] key
    uint32_t flags
    # The chunk that is being filled; the last block of a chunk waits until it is known whether it is the root.
    uint32_t[8] chaining
    uint8_t[64] block
    uint32_t block_size
    uint32_t blocks_done
    uint64_t chunk
    # Chaining values of whole subtrees, largest first.
    uint32_t depth
    uint32_t[8 * STACK_DEPTH] stack


# `flags` is the mode: KEYED_HASH.
cdef void start_with_key(State* state, const uint8_t* key32, uint32_t flags) noexcept nogil
cdef void absorb(State* state, const uint8_t* data, size_t size) noexcept nogil
# Wipes what it needed on the way, but not the state, which can absorb more.
cdef void squeeze(const State* state, uint8_t* output, size_t size) noexcept nogil
