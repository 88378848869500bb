"""HKDF-SHA256 and AES-256-GCM over libcrypto: the keys of envelopes and apps, envelopes, values at rest (protocol §3-§5).

Refuses nonces and keys of other lengths, and data of 2 GiB and more. Plaintext that did not authenticate is never
handed out. AES and GHASH are libcrypto's and as constant-time as those; tags are compared by it. The same through
`cryptography` costs two to four times as much, most of it in objects that are made for a single use.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.string cimport memcpy

from kmscore._ffi.crypto cimport (
    EVP_CIPHER,
    EVP_CIPHER_CTX,
    EVP_CIPHER_CTX_ctrl,
    EVP_CIPHER_CTX_free,
    EVP_CIPHER_CTX_new,
    EVP_CIPHER_fetch,
    EVP_CTRL_AEAD_GET_TAG,
    EVP_CTRL_AEAD_SET_TAG,
    EVP_DecryptFinal_ex,
    EVP_DecryptInit_ex,
    EVP_DecryptUpdate,
    EVP_EncryptFinal_ex,
    EVP_EncryptInit_ex,
    EVP_EncryptUpdate,
)
from kmscore._mac cimport TAG_BYTES as BLOCK_BYTES
from kmscore._mac cimport Hmac, hmac_finish, hmac_start, hmac_update
from kmscore._record cimport Record
from kmscore._secret cimport SecretBytes, wipe_memory

from kmscore.errors import InvariantBroken, Reason, Rejected


cdef enum:
    MAX_HKDF_BYTES = 8160     # 255 blocks (RFC 5869 §2.3)
    # From here on AES-GCM takes 10 µs or more, and other threads may run meanwhile.
    RELEASE_GIL_BYTES = 16384
    CHECKED_INLINE_BYTES = 4096  # plaintext that is checked and thrown away lies on the stack

cdef enum Verdict:
    GOOD
    WRONG_TAG
    LIBRARY_BROKEN


cdef const EVP_CIPHER* AES_256_GCM = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL)
if AES_256_GCM == NULL:
    raise InvariantBroken("libcrypto has no AES-256-GCM")


# ---- HKDF ----------------------------------------------------------------------------------------------------------

cdef bint extract(
    const unsigned char* salt, size_t salt_size, const unsigned char* secret, size_t size, unsigned char* key32
) noexcept nogil:
    cdef Hmac mac
    cdef bint computed = hmac_start(&mac, salt, salt_size) and hmac_update(&mac, secret, size)
    return hmac_finish(&mac, key32) and computed


cdef bint expand(
    const unsigned char* key32, const unsigned char* info, size_t info_size, unsigned char* out, size_t size
) noexcept nogil:
    cdef unsigned char block[BLOCK_BYTES]
    cdef unsigned char counter = 0
    cdef size_t done = 0
    cdef size_t taken
    cdef Hmac mac
    cdef bint computed = True
    while computed and done < size:
        counter += 1
        computed = (
            hmac_start(&mac, key32, BLOCK_BYTES)
            and (done == 0 or hmac_update(&mac, block, BLOCK_BYTES))
            and hmac_update(&mac, info, info_size)
            and hmac_update(&mac, &counter, 1)
        )
        computed = hmac_finish(&mac, block) and computed
        taken = min(size - done, <size_t>BLOCK_BYTES)
        memcpy(out + done, block, taken)
        done += taken
    wipe_memory(block, BLOCK_BYTES)
    return computed


def hkdf_sha256(SecretBytes secret not None, bytes salt not None, bytes info not None, Py_ssize_t size):
    """`size` bytes (1 to 8,160) derived from `secret` as RFC 5869 says.

    Raises InvariantBroken for another size and a wiped secret. The result cannot be wiped.
    """
    cdef unsigned char key[BLOCK_BYTES]
    cdef bytes derived
    cdef bint computed
    if not 1 <= size <= MAX_HKDF_BYTES:
        raise InvariantBroken("HKDF is asked for a number of bytes that it does not give")
    derived = PyBytes_FromStringAndSize(NULL, size)
    computed = extract(salt, <size_t>len(salt), secret.pointer(), <size_t>secret.size, key) and expand(
        key, info, <size_t>len(info), <unsigned char*>PyBytes_AS_STRING(derived), <size_t>size
    )
    wipe_memory(key, BLOCK_BYTES)
    if not computed:
        raise InvariantBroken("libcrypto does not compute HKDF-SHA256")
    return derived


# ---- AES-256-GCM ---------------------------------------------------------------------------------------------------

cdef EVP_CIPHER_CTX* start_encrypting(const unsigned char* key, const unsigned char* nonce) noexcept nogil:
    cdef EVP_CIPHER_CTX* context = EVP_CIPHER_CTX_new()
    if context != NULL and EVP_EncryptInit_ex(context, AES_256_GCM, NULL, key, nonce) != 1:
        EVP_CIPHER_CTX_free(context)
        context = NULL
    return context


cdef bint encrypt_part(EVP_CIPHER_CTX* context, const unsigned char* data, int size, unsigned char* out) noexcept nogil:
    cdef int written = 0
    return EVP_EncryptUpdate(context, out, &written, data, size) == 1 and written == size


cdef bint put_tag(EVP_CIPHER_CTX* context, unsigned char* tag) noexcept nogil:
    cdef int rest = 0
    return (
        EVP_EncryptFinal_ex(context, tag, &rest) == 1
        and rest == 0
        and EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, TAG_BYTES, tag) == 1
    )


cdef Verdict encrypt(
    const unsigned char* key, const unsigned char* nonce, const unsigned char* data, int size, unsigned char* out
) noexcept nogil:
    # Writes the ciphertext and behind it the tag.
    cdef EVP_CIPHER_CTX* context = start_encrypting(key, nonce)
    cdef bint done = context != NULL and encrypt_part(context, data, size, out) and put_tag(context, out + size)
    EVP_CIPHER_CTX_free(context)
    return GOOD if done else LIBRARY_BROKEN


cdef Verdict decrypt_with(
    EVP_CIPHER_CTX* context, const unsigned char* nonce, const unsigned char* sealed, int size, unsigned char* out
) noexcept nogil:
    # `context` has a key. `size` is that of the plaintext; the tag stands behind it. What is in `out` after another
    # verdict than GOOD is not to be used.
    cdef int written = 0
    if (
        EVP_DecryptInit_ex(context, NULL, NULL, NULL, nonce) == 1
        and EVP_DecryptUpdate(context, out, &written, sealed, size) == 1
        and written == size
        # The library does not write to the tag, though its signature would let it.
        and EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, TAG_BYTES, <void*>(sealed + size)) == 1
    ):
        return GOOD if EVP_DecryptFinal_ex(context, out + size, &written) == 1 else WRONG_TAG
    return LIBRARY_BROKEN


cdef Verdict decrypt(
    const unsigned char* key, const unsigned char* nonce, const unsigned char* sealed, int size, unsigned char* out
) noexcept nogil:
    # The same with a key.
    cdef EVP_CIPHER_CTX* context = EVP_CIPHER_CTX_new()
    cdef Verdict verdict = LIBRARY_BROKEN
    if context != NULL and EVP_DecryptInit_ex(context, AES_256_GCM, NULL, key, NULL) == 1:
        verdict = decrypt_with(context, nonce, sealed, size, out)
    EVP_CIPHER_CTX_free(context)
    return verdict


cdef int check_lengths(Py_ssize_t key_size, Py_ssize_t nonce_size, Py_ssize_t data_size) except -1:
    if key_size != KEY_BYTES or nonce_size != NONCE_BYTES or data_size > MAX_DATA_BYTES:
        raise InvariantBroken("a key, a nonce or data for AES-256-GCM has a wrong length")
    return 0


cdef int put_sealed(
    const unsigned char* key, const unsigned char* nonce, bytes plaintext, unsigned char* out
) except -1:
    cdef const unsigned char* data = plaintext
    cdef int size = <int>len(plaintext)
    cdef unsigned char own_key[KEY_BYTES]
    cdef Verdict verdict
    if size < RELEASE_GIL_BYTES:
        verdict = encrypt(key, nonce, data, size, out)
    else:
        # The owner of the key may go while the GIL is free.
        memcpy(own_key, key, KEY_BYTES)
        with nogil:
            verdict = encrypt(own_key, nonce, data, size, out)
            wipe_memory(own_key, KEY_BYTES)
    if verdict != GOOD:
        raise InvariantBroken("libcrypto does not encrypt with AES-256-GCM")
    return 0


cdef bytes opened(const unsigned char* key, const unsigned char* nonce, const unsigned char* sealed, Py_ssize_t size):
    """The plaintext, `size` bytes, None when the tag behind it is wrong."""
    cdef bytes plaintext = PyBytes_FromStringAndSize(NULL, size)
    cdef unsigned char* out = <unsigned char*>PyBytes_AS_STRING(plaintext)
    cdef unsigned char own_key[KEY_BYTES]
    cdef Verdict verdict
    if size < RELEASE_GIL_BYTES:
        verdict = decrypt(key, nonce, sealed, <int>size, out)
    else:
        memcpy(own_key, key, KEY_BYTES)
        with nogil:
            verdict = decrypt(own_key, nonce, sealed, <int>size, out)
            wipe_memory(own_key, KEY_BYTES)
    if verdict == GOOD:
        return plaintext
    wipe_memory(out, <size_t>size)
    if verdict == WRONG_TAG:
        return None
    raise InvariantBroken("libcrypto does not decrypt with AES-256-GCM")


def seal_gcm(bytes key not None, bytes nonce not None, bytes plaintext not None):
    """The ciphertext of `plaintext` and its tag of 16 bytes; `key` has 32 bytes, `nonce` 12, no associated data.

    Raises InvariantBroken for other lengths.
    """
    cdef bytes sealed
    check_lengths(len(key), len(nonce), len(plaintext))
    sealed = PyBytes_FromStringAndSize(NULL, len(plaintext) + TAG_BYTES)
    put_sealed(key, nonce, plaintext, <unsigned char*>PyBytes_AS_STRING(sealed))
    return sealed


def open_gcm(bytes key not None, bytes nonce not None, bytes sealed not None):
    """The plaintext of what `seal_gcm` made, None when it is too short for a tag or the tag is wrong.

    Raises InvariantBroken for a key or nonce of another length.
    """
    check_lengths(len(key), len(nonce), len(sealed))
    if len(sealed) < TAG_BYTES:
        return None
    return opened(key, nonce, sealed, len(sealed) - TAG_BYTES)


# ---- values at rest ------------------------------------------------------------------------------------------------

cdef object undecryptable():
    return Rejected(Reason.UNDECRYPTABLE, "the value cannot be decrypted with the key of this app")


@cython.final
cdef class DataCipher:
    """AES-256-GCM of one app's values: 12-byte nonce ‖ ciphertext ‖ 16-byte tag, no associated data (protocol §5).

    The key is copied, and wiped with the object. Raises InvariantBroken for a key that is not 32 bytes long.
    """

    cdef unsigned char _key[KEY_BYTES]
    # With the key: to expand it for each of a delta's records costs more than to check one. Used under the GIL only.
    cdef EVP_CIPHER_CTX* _checking

    def __cinit__(self, SecretBytes key not None):
        if key.size != KEY_BYTES:
            raise InvariantBroken("a data key is not 32 bytes long")
        memcpy(self._key, key.pointer(), KEY_BYTES)
        self._checking = EVP_CIPHER_CTX_new()
        if self._checking == NULL or EVP_DecryptInit_ex(self._checking, AES_256_GCM, NULL, self._key, NULL) != 1:
            raise InvariantBroken("libcrypto does not take a key for AES-256-GCM")

    def __dealloc__(self):
        EVP_CIPHER_CTX_free(self._checking)  # wipes what it held
        wipe_memory(self._key, KEY_BYTES)

    def seal(self, bytes plaintext not None, bytes nonce not None):
        """Encrypt a value. `nonce` is 12 random bytes, so equal values differ; InvariantBroken for another length."""
        cdef bytes sealed
        cdef unsigned char* out
        check_lengths(KEY_BYTES, len(nonce), len(plaintext))
        sealed = PyBytes_FromStringAndSize(NULL, NONCE_BYTES + len(plaintext) + TAG_BYTES)
        out = <unsigned char*>PyBytes_AS_STRING(sealed)
        memcpy(out, <const unsigned char*>nonce, NONCE_BYTES)
        put_sealed(self._key, nonce, plaintext, out + NONCE_BYTES)
        return sealed

    def open(self, bytes ciphertext not None):
        """Decrypt a value. Raises `Rejected(UNDECRYPTABLE)` when it is too short or was not made with this key."""
        cdef const unsigned char* data = ciphertext
        cdef bytes plaintext = None
        check_lengths(KEY_BYTES, NONCE_BYTES, len(ciphertext))
        if len(ciphertext) >= NONCE_BYTES + TAG_BYTES:
            plaintext = opened(self._key, data, data + NONCE_BYTES, len(ciphertext) - NONCE_BYTES - TAG_BYTES)
        if plaintext is None:
            raise undecryptable()
        return plaintext

    def check(self, bytes ciphertext not None):
        """Raises `Rejected(UNDECRYPTABLE)` for a ciphertext that `open` would refuse; nothing is returned."""
        if not self._opens(ciphertext):
            raise undecryptable()

    def readable(self, list records not None):
        """Those of the Records whose values `open` would take, and the tombstones."""
        cdef list kept = []
        cdef Record record
        for item in records:
            record = item
            if record.value is None or self._opens(record.value):
                kept.append(record)
        return kept

    cdef bint _opens(self, bytes ciphertext) except -1:
        cdef const unsigned char* data = ciphertext
        cdef Py_ssize_t size = len(ciphertext) - NONCE_BYTES - TAG_BYTES
        cdef unsigned char plaintext[CHECKED_INLINE_BYTES]
        cdef Verdict verdict
        if size < 0:
            return False
        if size > CHECKED_INLINE_BYTES:
            check_lengths(KEY_BYTES, NONCE_BYTES, len(ciphertext))
            return opened(self._key, data, data + NONCE_BYTES, size) is not None
        verdict = decrypt_with(self._checking, data, data + NONCE_BYTES, <int>size, plaintext)
        wipe_memory(plaintext, <size_t>size)
        if verdict == LIBRARY_BROKEN:
            raise InvariantBroken("libcrypto does not decrypt with AES-256-GCM")
        return verdict == GOOD

    def __repr__(self):
        return "DataCipher()"

    def __reduce__(self):
        raise TypeError("a data cipher cannot be pickled or copied")
