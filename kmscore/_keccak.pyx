"""Keccak-256 as Ethereum uses it: the sponge of the SHA-3 competition, with its padding byte 0x01 (SHA3-256 has 0x06).

Public data only: nothing here is wiped. No branch and no index depends on the data, so the time depends on its length.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset


cdef extern from *:
    """
    /* FIPS 202, section 3.2.5 (iota). A C constant, because a Cython array would be filled in at import. */
    static const uint64_t KECCAK_ROUND_CONSTANTS[24] = {
        0x0000000000000001u, 0x0000000000008082u, 0x800000000000808au, 0x8000000080008000u, 0x000000000000808bu,
        0x0000000080000001u, 0x8000000080008081u, 0x8000000000008009u, 0x000000000000008au, 0x0000000000000088u,
        0x0000000080008009u, 0x000000008000000au, 0x000000008000808bu, 0x800000000000008bu, 0x8000000000008089u,
        0x8000000000008003u, 0x8000000000008002u, 0x8000000000000080u, 0x000000000000800au, 0x800000008000000au,
        0x8000000080008081u, 0x8000000000008080u, 0x0000000080000001u, 0x8000000080008008u
    };
    """
    const uint64_t* ROUND_CONSTANTS "KECCAK_ROUND_CONSTANTS"


cdef enum:
    RATE = 136  # bytes a block: 200 minus twice the 32 bytes of the digest
    GIL_FREE_FROM = 4096  # bytes: about 10 microseconds of work


# Overflow checks are off in the kernels: lanes are words modulo 2^64 whose shifts drop bits on purpose, and the sizes
# only shrink from the caller's or stay below RATE. A check on a shift raises on every second permutation.

@cython.overflowcheck(False)
cdef inline uint64_t rotated(uint64_t lane, int count) noexcept nogil:
    return (lane << count) | (lane >> (64 - count))


@cython.overflowcheck(False)
cdef inline uint64_t little_endian(const uint8_t* data) noexcept nogil:
    return (
        <uint64_t>data[0] | <uint64_t>data[1] << 8 | <uint64_t>data[2] << 16 | <uint64_t>data[3] << 24
        | <uint64_t>data[4] << 32 | <uint64_t>data[5] << 40 | <uint64_t>data[6] << 48 | <uint64_t>data[7] << 56
    )


@cython.overflowcheck(False)
cdef void permute(uint64_t* lanes) noexcept nogil:
    # Lane (x, y) of FIPS 202 is lanes[x + 5 * y], held in the variable axy so that the compiler can use registers.
    cdef uint64_t a00 = lanes[0], a10 = lanes[1], a20 = lanes[2], a30 = lanes[3], a40 = lanes[4]
    cdef uint64_t a01 = lanes[5], a11 = lanes[6], a21 = lanes[7], a31 = lanes[8], a41 = lanes[9]
    cdef uint64_t a02 = lanes[10], a12 = lanes[11], a22 = lanes[12], a32 = lanes[13], a42 = lanes[14]
    cdef uint64_t a03 = lanes[15], a13 = lanes[16], a23 = lanes[17], a33 = lanes[18], a43 = lanes[19]
    cdef uint64_t a04 = lanes[20], a14 = lanes[21], a24 = lanes[22], a34 = lanes[23], a44 = lanes[24]
    cdef uint64_t b00, b10, b20, b30, b40
    cdef uint64_t b01, b11, b21, b31, b41
    cdef uint64_t b02, b12, b22, b32, b42
    cdef uint64_t b03, b13, b23, b33, b43
    cdef uint64_t b04, b14, b24, b34, b44
    cdef uint64_t c0, c1, c2, c3, c4, d0, d1, d2, d3, d4
    cdef int turn
    for turn in range(24):
        # theta: every lane takes the parity of two columns.
        c0 = a00 ^ a01 ^ a02 ^ a03 ^ a04
        c1 = a10 ^ a11 ^ a12 ^ a13 ^ a14
        c2 = a20 ^ a21 ^ a22 ^ a23 ^ a24
        c3 = a30 ^ a31 ^ a32 ^ a33 ^ a34
        c4 = a40 ^ a41 ^ a42 ^ a43 ^ a44
        d0 = c4 ^ rotated(c1, 1)
        d1 = c0 ^ rotated(c2, 1)
        d2 = c1 ^ rotated(c3, 1)
        d3 = c2 ^ rotated(c4, 1)
        d4 = c3 ^ rotated(c0, 1)
        # rho and pi: lane (x, y) turns and moves to (y, 2x + 3y).
        b00 = a00 ^ d0
        b13 = rotated(a01 ^ d0, 36)
        b21 = rotated(a02 ^ d0, 3)
        b34 = rotated(a03 ^ d0, 41)
        b42 = rotated(a04 ^ d0, 18)
        b02 = rotated(a10 ^ d1, 1)
        b10 = rotated(a11 ^ d1, 44)
        b23 = rotated(a12 ^ d1, 10)
        b31 = rotated(a13 ^ d1, 45)
        b44 = rotated(a14 ^ d1, 2)
        b04 = rotated(a20 ^ d2, 62)
        b12 = rotated(a21 ^ d2, 6)
        b20 = rotated(a22 ^ d2, 43)
        b33 = rotated(a23 ^ d2, 15)
        b41 = rotated(a24 ^ d2, 61)
        b01 = rotated(a30 ^ d3, 28)
        b14 = rotated(a31 ^ d3, 55)
        b22 = rotated(a32 ^ d3, 25)
        b30 = rotated(a33 ^ d3, 21)
        b43 = rotated(a34 ^ d3, 56)
        b03 = rotated(a40 ^ d4, 27)
        b11 = rotated(a41 ^ d4, 20)
        b24 = rotated(a42 ^ d4, 39)
        b32 = rotated(a43 ^ d4, 8)
        b40 = rotated(a44 ^ d4, 14)
        # chi, and iota on the first lane.
        a00 = b00 ^ (~b10 & b20) ^ ROUND_CONSTANTS[turn]
        a10 = b10 ^ (~b20 & b30)
        a20 = b20 ^ (~b30 & b40)
        a30 = b30 ^ (~b40 & b00)
        a40 = b40 ^ (~b00 & b10)
        a01 = b01 ^ (~b11 & b21)
        a11 = b11 ^ (~b21 & b31)
        a21 = b21 ^ (~b31 & b41)
        a31 = b31 ^ (~b41 & b01)
        a41 = b41 ^ (~b01 & b11)
        a02 = b02 ^ (~b12 & b22)
        a12 = b12 ^ (~b22 & b32)
        a22 = b22 ^ (~b32 & b42)
        a32 = b32 ^ (~b42 & b02)
        a42 = b42 ^ (~b02 & b12)
        a03 = b03 ^ (~b13 & b23)
        a13 = b13 ^ (~b23 & b33)
        a23 = b23 ^ (~b33 & b43)
        a33 = b33 ^ (~b43 & b03)
        a43 = b43 ^ (~b03 & b13)
        a04 = b04 ^ (~b14 & b24)
        a14 = b14 ^ (~b24 & b34)
        a24 = b24 ^ (~b34 & b44)
        a34 = b34 ^ (~b44 & b04)
        a44 = b44 ^ (~b04 & b14)
    lanes[0] = a00
    lanes[1] = a10
    lanes[2] = a20
    lanes[3] = a30
    lanes[4] = a40
    lanes[5] = a01
    lanes[6] = a11
    lanes[7] = a21
    lanes[8] = a31
    lanes[9] = a41
    lanes[10] = a02
    lanes[11] = a12
    lanes[12] = a22
    lanes[13] = a32
    lanes[14] = a42
    lanes[15] = a03
    lanes[16] = a13
    lanes[17] = a23
    lanes[18] = a33
    lanes[19] = a43
    lanes[20] = a04
    lanes[21] = a14
    lanes[22] = a24
    lanes[23] = a34
    lanes[24] = a44


cdef void keccak256_start(Keccak256* state) noexcept nogil:
    memset(state, 0, sizeof(Keccak256))


@cython.overflowcheck(False)
cdef void keccak256_absorb(Keccak256* state, const uint8_t* data, size_t size) noexcept nogil:
    cdef size_t at = 0
    cdef int lane
    while at < size:
        if state.filled == 0 and size - at >= RATE:
            for lane in range(RATE // 8):
                state.lanes[lane] ^= little_endian(&data[at + 8 * lane])
            at += RATE
            permute(state.lanes)
            continue
        state.lanes[state.filled // 8] ^= <uint64_t>data[at] << (8 * (state.filled % 8))
        at += 1
        state.filled += 1
        if state.filled == RATE:
            permute(state.lanes)
            state.filled = 0


@cython.overflowcheck(False)
cdef void keccak256_finish(Keccak256* state, uint8_t* digest32) noexcept nogil:
    cdef size_t at
    state.lanes[state.filled // 8] ^= <uint64_t>0x01 << (8 * (state.filled % 8))
    state.lanes[RATE // 8 - 1] ^= <uint64_t>0x80 << 56
    permute(state.lanes)
    for at in range(32):
        digest32[at] = <uint8_t>(state.lanes[at // 8] >> (8 * (at % 8)))


def keccak256(bytes data not None):
    """Keccak-256 of `data`, 32 bytes. Raises nothing of ours."""
    cdef const uint8_t* source = data
    cdef size_t size = len(data)
    cdef uint8_t[32] digest
    cdef Keccak256 state
    keccak256_start(&state)
    if size < GIL_FREE_FROM:
        keccak256_absorb(&state, source, size)
    else:
        with nogil:
            keccak256_absorb(&state, source, size)
    keccak256_finish(&state, digest)
    return PyBytes_FromStringAndSize(<char*>digest, 32)
