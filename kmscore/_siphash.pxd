# SipHash-2-4 (Aumasson and Bernstein, 2012): the keyed hash of the store's tables. Apps choose their keys; under an
# unkeyed hash one of them could put a million keys into one bucket.

cimport cython
from libc.stdint cimport uint64_t
from libc.string cimport memcpy


cdef struct HashKey:
    uint64_t k0
    uint64_t k1


# Additions and shifts modulo 2^64 are the definition of the function, so the overflow check is off in here.
@cython.overflowcheck(False)
cdef inline uint64_t rotate_left(uint64_t word, int bits) noexcept nogil:
    return (word << bits) | (word >> (64 - bits))


@cython.overflowcheck(False)
cdef inline void sip_round(uint64_t *v) noexcept nogil:
    v[0] += v[1]
    v[1] = rotate_left(v[1], 13) ^ v[0]
    v[0] = rotate_left(v[0], 32)
    v[2] += v[3]
    v[3] = rotate_left(v[3], 16) ^ v[2]
    v[0] += v[3]
    v[3] = rotate_left(v[3], 21) ^ v[0]
    v[2] += v[1]
    v[1] = rotate_left(v[1], 17) ^ v[2]
    v[2] = rotate_left(v[2], 32)


# Words are read in the machine's order. The function is defined little-endian, as is every machine this is built for, and
# nodes must agree on it: the ranges of digests are cut by it (store §5).
@cython.overflowcheck(False)
cdef inline uint64_t siphash24(HashKey key, const char *data, size_t size) noexcept nogil:
    cdef uint64_t v[4]
    cdef uint64_t word
    cdef size_t offset = 0
    cdef size_t tail = size & 7
    v[0] = key.k0 ^ <uint64_t>0x736F6D6570736575
    v[1] = key.k1 ^ <uint64_t>0x646F72616E646F6D
    v[2] = key.k0 ^ <uint64_t>0x6C7967656E657261
    v[3] = key.k1 ^ <uint64_t>0x7465646279746573
    while offset < size - tail:
        memcpy(&word, data + offset, 8)
        v[3] ^= word
        sip_round(v)
        sip_round(v)
        v[0] ^= word
        offset += 8
    word = 0
    memcpy(&word, data + offset, tail)
    word |= <uint64_t>(size & 0xFF) << 56
    v[3] ^= word
    sip_round(v)
    sip_round(v)
    v[0] ^= word
    v[2] ^= 0xFF
    sip_round(v)
    sip_round(v)
    sip_round(v)
    sip_round(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]
