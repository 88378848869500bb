from kmscore._ffi.crypto cimport EVP_CIPHER_CTX


cdef enum:
    KEY_BYTES = 32
    NONCE_BYTES = 12
    TAG_BYTES = 16
    MAX_DATA_BYTES = 0x7FFFFF00  # libcrypto counts in int


# The two halves of HKDF-SHA256 (RFC 5869 §2.2, §2.3); False when libcrypto fails. key32 is the caller's to wipe.
cdef bint extract(
    const unsigned char* salt, size_t salt_size, const unsigned char* secret, size_t size, unsigned char* key32
) noexcept nogil
cdef bint expand(
    const unsigned char* key32, const unsigned char* info, size_t info_size, unsigned char* out, size_t size
) noexcept nogil

# AES-256-GCM under a key of 32 bytes and a nonce of 12, for at most MAX_DATA_BYTES. put_sealed writes the ciphertext
# and behind it the tag; opened returns None when the tag behind `size` bytes is wrong. Both raise InvariantBroken.
cdef int put_sealed(const unsigned char* key, const unsigned char* nonce, bytes plaintext, unsigned char* out) except -1
cdef bytes opened(const unsigned char* key, const unsigned char* nonce, const unsigned char* sealed, Py_ssize_t size)

# The same in parts: start (NULL when libcrypto fails), any number of parts, the tag; the first that answers False makes
# all of it worthless. The context holds the key: it is the caller's to free, with EVP_CIPHER_CTX_free.
cdef EVP_CIPHER_CTX* start_encrypting(const unsigned char* key, const unsigned char* nonce) noexcept nogil
cdef bint encrypt_part(EVP_CIPHER_CTX* context, const unsigned char* data, int size, unsigned char* out) noexcept nogil
cdef bint put_tag(EVP_CIPHER_CTX* context, unsigned char* tag) noexcept nogil
