"""BLAKE3: hash, keyed hash and key derivation with output of any length.

Portable: no SIMD, no threads. No branch and no index depends on key or data, so the time depends on lengths only. The
state of a hash, keys included, is wiped when it is done with. What the compression leaves in registers and on the stack
is not, nor are `bytes` that Python holds: keys given as `bytes`, data, results.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from kmscore._secret cimport SecretBytes, wipe_memory

from kmscore.errors import InvariantBroken


cdef extern from *:
    """
    /* BLAKE3 specification, table 1: the initial value of SHA-256. A C constant, because a Cython array would be filled
       in at import. */
    static const uint32_t BLAKE3_IV[8] = {
        0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au, 0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u
    };
    /* Which word of the block goes where in each of the seven rounds: the powers of the permutation in table 2. */
    static const uint8_t BLAKE3_SCHEDULE[7][16] = {
        {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
        {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8},
        {3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1},
        {10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6},
        {12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4},
        {9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7},
        {11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13}
    };
    """
    const uint32_t* IV "BLAKE3_IV"
    const uint8_t SCHEDULE "BLAKE3_SCHEDULE"[7][16]


cdef enum:
    BLOCK_BYTES = 64
    CHUNK_BLOCKS = 16
    GIL_FREE_FROM = 8192  # bytes: about 10 microseconds of work

# BLAKE3 specification, table 3: domain flags.
cdef enum:
    CHUNK_START = 1
    CHUNK_END = 2
    PARENT = 4
    ROOT = 8
    DERIVE_KEY_CONTEXT = 32
    DERIVE_KEY_MATERIAL = 64


# A node of the tree before it is compressed: the root is compressed again for every 64 bytes of output.
cdef struct Node:
    uint32_t[8] chaining
    uint32_t[16] block
    uint64_t counter
    uint32_t block_size
    uint32_t flags


# Overflow checks are off in the kernels: words are modulo 2^32 and lose bits in shifts on purpose. The other sums are
# bounded: block_size <= 64, blocks_done <= 16, depth <= STACK_DEPTH, and chunk < 2^54 as memory has fewer bytes.

@cython.overflowcheck(False)
cdef inline uint32_t rotated(uint32_t word, int count) noexcept nogil:
    return (word >> count) | (word << (32 - count))


@cython.overflowcheck(False)
cdef inline uint32_t load_word(const uint8_t* data) noexcept nogil:
    return <uint32_t>data[0] | <uint32_t>data[1] << 8 | <uint32_t>data[2] << 16 | <uint32_t>data[3] << 24


@cython.overflowcheck(False)
cdef inline void store_word(uint8_t* data, uint32_t word) noexcept nogil:
    data[0] = <uint8_t>word
    data[1] = <uint8_t>(word >> 8)
    data[2] = <uint8_t>(word >> 16)
    data[3] = <uint8_t>(word >> 24)


@cython.overflowcheck(False)
cdef inline void mix(uint32_t* v, int a, int b, int c, int d, uint32_t x, uint32_t y) noexcept nogil:
    v[a] = v[a] + v[b] + x
    v[d] = rotated(v[d] ^ v[a], 16)
    v[c] = v[c] + v[d]
    v[b] = rotated(v[b] ^ v[c], 12)
    v[a] = v[a] + v[b] + y
    v[d] = rotated(v[d] ^ v[a], 8)
    v[c] = v[c] + v[d]
    v[b] = rotated(v[b] ^ v[c], 7)


@cython.overflowcheck(False)
cdef void compress(
    uint32_t* out, const uint32_t* chaining, const uint32_t* block, uint64_t counter, uint32_t block_size,
    uint32_t flags,
) noexcept nogil:
    # Leaves the 16 words of the state, not yet folded, in out. v is local because out could alias block, which would
    # send every word through memory.
    cdef uint32_t[16] v
    cdef const uint8_t* m
    cdef int i
    for i in range(8):
        v[i] = chaining[i]
    for i in range(4):
        v[8 + i] = IV[i]
    v[12] = <uint32_t>counter
    v[13] = <uint32_t>(counter >> 32)
    v[14] = block_size
    v[15] = flags
    for i in range(7):
        m = SCHEDULE[i]
        mix(v, 0, 4, 8, 12, block[m[0]], block[m[1]])
        mix(v, 1, 5, 9, 13, block[m[2]], block[m[3]])
        mix(v, 2, 6, 10, 14, block[m[4]], block[m[5]])
        mix(v, 3, 7, 11, 15, block[m[6]], block[m[7]])
        mix(v, 0, 5, 10, 15, block[m[8]], block[m[9]])
        mix(v, 1, 6, 11, 12, block[m[10]], block[m[11]])
        mix(v, 2, 7, 8, 13, block[m[12]], block[m[13]])
        mix(v, 3, 4, 9, 14, block[m[14]], block[m[15]])
    memcpy(out, v, sizeof(v))


cdef inline void fold(uint32_t* chaining, const uint32_t* v) noexcept nogil:
    cdef int i
    for i in range(8):
        chaining[i] = v[i] ^ v[i + 8]


cdef void compress_block(State* state, const uint8_t* data, uint32_t flags) noexcept nogil:
    cdef uint32_t[16] v
    cdef uint32_t[16] block
    cdef int i
    for i in range(16):
        block[i] = load_word(&data[4 * i])
    if state.blocks_done == 0:
        flags |= CHUNK_START
    compress(v, state.chaining, block, state.chunk, BLOCK_BYTES, state.flags | flags)
    fold(state.chaining, v)
    state.blocks_done += 1


cdef void start(State* state, const uint32_t* key, uint32_t flags) noexcept nogil:
    memcpy(state.key, key, sizeof(state.key))
    memcpy(state.chaining, key, sizeof(state.key))
    state.flags = flags
    state.block_size = 0
    state.blocks_done = 0
    state.chunk = 0
    state.depth = 0


cdef void start_with_key(State* state, const uint8_t* key32, uint32_t flags) noexcept nogil:
    cdef uint32_t[8] words
    cdef int i
    for i in range(8):
        words[i] = load_word(&key32[4 * i])
    start(state, words, flags)
    wipe_memory(words, sizeof(words))


cdef void parent(const State* state, Node* node, const uint32_t* left, const uint32_t* right) noexcept nogil:
    memcpy(node.chaining, state.key, sizeof(state.key))
    memcpy(&node.block[0], left, 32)
    memcpy(&node.block[8], right, 32)
    node.counter = 0
    node.block_size = BLOCK_BYTES
    node.flags = state.flags | PARENT


cdef void chain(const Node* node, uint32_t* chaining) noexcept nogil:
    cdef uint32_t[16] v
    compress(v, node.chaining, node.block, node.counter, node.block_size, node.flags)
    fold(chaining, v)


@cython.overflowcheck(False)
cdef void finish_chunk(State* state) noexcept nogil:
    # The chunk is whole and more input follows: it is not the root. Each trailing zero bit of the number of chunks
    # closes one subtree.
    cdef Node node
    cdef uint64_t chunks = state.chunk + 1
    compress_block(state, state.block, CHUNK_END)
    while chunks & 1 == 0:
        state.depth -= 1
        parent(state, &node, &state.stack[8 * state.depth], state.chaining)
        chain(&node, state.chaining)
        chunks >>= 1
    memcpy(&state.stack[8 * state.depth], state.chaining, 32)
    state.depth += 1
    state.chunk += 1
    state.blocks_done = 0
    state.block_size = 0
    memcpy(state.chaining, state.key, sizeof(state.key))


@cython.overflowcheck(False)
cdef void absorb(State* state, const uint8_t* data, size_t size) noexcept nogil:
    cdef size_t part
    while size > 0:
        if state.block_size == BLOCK_BYTES:
            if state.blocks_done == CHUNK_BLOCKS - 1:
                finish_chunk(state)
            else:
                compress_block(state, state.block, 0)
                state.block_size = 0
        # Whole blocks that are neither the last of their chunk nor the last of the input need no copy.
        while state.block_size == 0 and size > BLOCK_BYTES and state.blocks_done < CHUNK_BLOCKS - 1:
            compress_block(state, data, 0)
            data += BLOCK_BYTES
            size -= BLOCK_BYTES
        part = BLOCK_BYTES - state.block_size
        if part > size:
            part = size
        memcpy(&state.block[state.block_size], data, part)
        state.block_size += <uint32_t>part
        data += part
        size -= part


@cython.overflowcheck(False)
cdef void squeeze(const State* state, uint8_t* output, size_t size) noexcept nogil:
    cdef Node root
    cdef uint32_t[8] right
    cdef uint32_t[16] v
    cdef uint8_t[64] block
    cdef uint32_t level = state.depth
    cdef size_t part
    cdef int i
    memset(block, 0, sizeof(block))
    memcpy(block, state.block, state.block_size)
    memcpy(root.chaining, state.chaining, sizeof(state.key))
    for i in range(16):
        root.block[i] = load_word(&block[4 * i])
    root.counter = state.chunk
    root.block_size = state.block_size
    root.flags = state.flags | CHUNK_END
    if state.blocks_done == 0:
        root.flags |= CHUNK_START
    while level > 0:
        level -= 1
        chain(&root, right)
        parent(state, &root, &state.stack[8 * level], right)
    root.flags |= ROOT
    root.counter = 0
    while size > 0:
        compress(v, root.chaining, root.block, root.counter, root.block_size, root.flags)
        for i in range(8):
            store_word(&block[4 * i], v[i] ^ v[i + 8])
            store_word(&block[4 * i + 32], v[i + 8] ^ root.chaining[i])
        part = size if size < BLOCK_BYTES else BLOCK_BYTES
        memcpy(output, block, part)
        output += part
        size -= part
        root.counter += 1
    wipe_memory(&root, sizeof(root))
    wipe_memory(right, sizeof(right))
    wipe_memory(v, sizeof(v))
    wipe_memory(block, sizeof(block))


cdef bytes squeezed(const State* state, Py_ssize_t length):
    cdef bytes output
    cdef uint8_t* target
    if length < 0:
        raise InvariantBroken("the length of a BLAKE3 output is not negative")
    output = PyBytes_FromStringAndSize(NULL, length)
    target = <uint8_t*>PyBytes_AS_STRING(output)
    if length < GIL_FREE_FROM:
        squeeze(state, target, <size_t>length)
    else:
        with nogil:
            squeeze(state, target, <size_t>length)
    return output


cdef bytes digest_of(State* state, bytes data, Py_ssize_t length):
    # The whole of a one-shot call once the state is started; the state is the caller's own, so it needs no lock.
    cdef const uint8_t* source = data
    cdef size_t size = len(data)
    if size < GIL_FREE_FROM:
        absorb(state, source, size)
    else:
        with nogil:
            absorb(state, source, size)
    try:
        return squeezed(state, length)
    finally:
        wipe_memory(state, sizeof(State))


cdef int start_keyed(State* state, object key32) except -1:
    cdef const uint8_t* key
    cdef Py_ssize_t size
    if isinstance(key32, SecretBytes):
        key = (<SecretBytes>key32).pointer()
        size = (<SecretBytes>key32).size
    elif isinstance(key32, bytes):
        key = <bytes>key32
        size = len(<bytes>key32)
    else:
        raise TypeError("a BLAKE3 key is SecretBytes or bytes")
    if size != 32:
        raise InvariantBroken("a BLAKE3 key has 32 bytes")
    start_with_key(state, key, KEYED_HASH)
    return 0


cdef int start_derivation(State* state, str context) except -1:
    cdef bytes encoded
    cdef uint8_t[32] context_key
    try:
        encoded = context.encode("utf-8")
    except UnicodeEncodeError:
        # Not chained: that error carries the text.
        raise InvariantBroken("a BLAKE3 context is text that UTF-8 can hold") from None
    start(state, IV, DERIVE_KEY_CONTEXT)
    absorb(state, encoded, <size_t>len(encoded))
    squeeze(state, context_key, 32)
    start_with_key(state, context_key, DERIVE_KEY_MATERIAL)
    wipe_memory(context_key, sizeof(context_key))
    return 0


def blake3(bytes data not None, Py_ssize_t length=32):
    """BLAKE3 of `data`, `length` bytes. Raises InvariantBroken when length is negative."""
    cdef State state
    start(&state, IV, 0)
    return digest_of(&state, data, length)


def blake3_keyed(key32 not None, bytes data not None, Py_ssize_t length=32):
    """Keyed BLAKE3 of `data`, `length` bytes: a MAC, to be compared with constant_time_equal.

    `key32` is SecretBytes or `bytes`, 32 bytes. Raises InvariantBroken when the key has another size or is wiped, or
    length is negative.
    """
    cdef State state
    start_keyed(&state, key32)
    return digest_of(&state, data, length)


def blake3_derive_key(str context not None, bytes material not None, Py_ssize_t length=32):
    """A key of `length` bytes from `material`, for one purpose.

    `context` is a constant of the program that names the purpose, never input. Raises InvariantBroken when UTF-8 cannot
    hold it or length is negative.
    """
    cdef State state
    start_derivation(&state, context)
    return digest_of(&state, material, length)


@cython.final
cdef class Blake3Hasher:
    """BLAKE3 of data that arrives in pieces; `key32` or `context` chooses keyed hashing or key derivation.

    One thread at a time: a call that meets another in progress raises InvariantBroken. The state is wiped with the
    object. Construction raises InvariantBroken as `blake3_keyed` and `blake3_derive_key` do, and when both are given.
    """

    cdef State state
    # update lets the GIL go in the middle of a change of state, so it says so here.
    cdef bint busy

    def __cinit__(self, *, key32=None, str context=None):
        if key32 is not None and context is not None:
            raise InvariantBroken("BLAKE3 takes a key or a context, not both")
        if key32 is not None:
            start_keyed(&self.state, key32)
        elif context is not None:
            start_derivation(&self.state, context)
        else:
            start(&self.state, IV, 0)

    def __dealloc__(self):
        wipe_memory(&self.state, sizeof(State))

    cdef int refuse_when_busy(self) except -1:
        if self.busy:
            raise InvariantBroken("a BLAKE3 hasher was used from two threads at once")
        return 0

    def update(self, bytes data not None):
        """Appends `data`."""
        cdef const uint8_t* source = data
        cdef size_t size = len(data)
        self.refuse_when_busy()
        if size < GIL_FREE_FROM:
            absorb(&self.state, source, size)
            return
        self.busy = True
        with nogil:
            absorb(&self.state, source, size)
        self.busy = False

    def digest(self, Py_ssize_t length=32):
        """`length` bytes for everything appended so far; more may be appended afterwards.

        A shorter output is the beginning of a longer one. Raises InvariantBroken when length is negative.
        """
        self.refuse_when_busy()
        self.busy = True
        try:
            return squeezed(&self.state, length)
        finally:
            self.busy = False

    def __reduce_ex__(self, protocol):
        raise TypeError("a hasher, which may hold a key, cannot be pickled or copied")
