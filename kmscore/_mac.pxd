from kmscore._ffi.crypto cimport EVP_MD_CTX


cdef enum:
    BLOCK_BYTES = 64  # of SHA-256, to which HMAC pads its key
    TAG_BYTES = 32


# An HMAC-SHA256 under way. It holds what follows from the key: hmac_finish wipes it, whatever happened before.
cdef struct Hmac:
    EVP_MD_CTX* hash
    unsigned char outer[BLOCK_BYTES]


# Start, any number of updates, finish; the first that answers False makes the MAC worthless, and hmac_finish must be
# called all the same.
cdef bint hmac_start(Hmac* mac, const unsigned char* key, size_t key_size) noexcept nogil
cdef bint hmac_update(Hmac* mac, const unsigned char* data, size_t size) noexcept nogil
cdef bint hmac_finish(Hmac* mac, unsigned char* tag) noexcept nogil


# Whether the 2 * size characters of text are hex digits of either case; then out has the size bytes they mean.
cdef bint read_hex(const unsigned char* text, Py_ssize_t size, unsigned char* out) noexcept nogil

# The 2 * size lowercase hex digits of data.
cdef void write_hex(const unsigned char* data, Py_ssize_t size, unsigned char* out) noexcept nogil
