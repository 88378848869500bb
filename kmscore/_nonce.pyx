"""PoP nonces that authenticate themselves (protocol §2): a time, randomness, and a MAC over both, in base64.

Refuses to remember anything. Tags are compared in constant time (CRYPTO_memcmp); nonces themselves are public.
"""

cimport cython
from cpython.unicode cimport PyUnicode_1BYTE_DATA, PyUnicode_GET_LENGTH
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

from kmscore._ffi.crypto cimport CRYPTO_memcmp
from kmscore._mac cimport TAG_BYTES as MAC_BYTES
from kmscore._mac cimport Hmac, hmac_finish, hmac_start, hmac_update
from kmscore._secret cimport SecretBytes

from kmscore.errors import InvariantBroken, Reason, Rejected


cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object text)


cdef extern from *:
    """
    static const char NONCE_ALPHABET[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    """
    const char* ALPHABET "NONCE_ALPHABET"


# A token is time ‖ random ‖ tag. 48 bytes are 64 base64 characters without padding, so every text stands for a
# different token and every token has one text. 24 bytes of tag are more than the half that RFC 2104 §5 asks for.
cdef enum:
    TIME_BYTES = 8
    RANDOM_BYTES = 16
    SIGNED_BYTES = 24
    TOKEN_TAG_BYTES = 24
    TOKEN_BYTES = 48
    TOKEN_CHARACTERS = 64
    DOMAIN_BYTES = 22

# Separates these MACs from whatever else the key might be used for one day.
cdef bytes DOMAIN = b"nova-kms:pop-nonce:v1:"


cdef void encode_token(const uint8_t* token, char* text) noexcept nogil:
    cdef uint32_t group
    cdef size_t i, j
    for i in range(<size_t>(TOKEN_BYTES // 3)):
        group = (<uint32_t>token[3 * i] << 16) | (<uint32_t>token[3 * i + 1] << 8) | token[3 * i + 2]
        for j in range(4):
            text[4 * i + j] = ALPHABET[(group >> (18 - 6 * j)) & 63]


cdef inline int digit_of(uint8_t character) noexcept nogil:
    # The value of a character of the alphabet, -1 for any other.
    if c'A' <= character <= c'Z':
        return character - c'A'
    if c'a' <= character <= c'z':
        return character - c'a' + 26
    if c'0' <= character <= c'9':
        return character - c'0' + 52
    if character == c'+':
        return 62
    return 63 if character == c'/' else -1


cdef bint decode_token(const uint8_t* text, uint8_t* token) noexcept nogil:
    # Whether the 64 characters are all of the alphabet.
    cdef uint32_t group
    cdef size_t i, j
    cdef int digit
    for i in range(<size_t>(TOKEN_CHARACTERS // 4)):
        group = 0
        for j in range(4):
            digit = digit_of(text[4 * i + j])
            if digit < 0:
                return False
            group = (group << 6) | <uint32_t>digit
        token[3 * i] = <uint8_t>(group >> 16)
        token[3 * i + 1] = <uint8_t>((group >> 8) & 0xFF)
        token[3 * i + 2] = <uint8_t>(group & 0xFF)
    return True


@cython.final
cdef class NonceIssuer:
    """Issues PoP nonces that authenticate themselves, so that none has to be kept (protocol §2).

    `key` has 32 bytes and is made at boot: nonces of an earlier boot are worth nothing. A nonce shows its issue time on
    the monotonic clock, hence roughly how long the machine has been up; that is public.
    """

    cdef SecretBytes _key
    cdef int64_t _max_age_ms

    def __init__(self, SecretBytes key not None, int64_t max_age_ms):
        self._key = key
        self._max_age_ms = max_age_ms

    cdef int _put_tag(self, const uint8_t* signed, uint8_t* mac_out) except -1:
        cdef Hmac mac
        cdef bint computed = (
            hmac_start(&mac, self._key.pointer(), <size_t>self._key.size)
            and hmac_update(&mac, DOMAIN, DOMAIN_BYTES)
            and hmac_update(&mac, signed, SIGNED_BYTES)
        )
        computed = hmac_finish(&mac, mac_out) and computed
        if not computed:
            raise InvariantBroken("libcrypto does not compute HMAC-SHA256")
        return 0

    def issue(self, int64_t now_ms, bytes random16 not None):
        """A fresh nonce: 64 characters of base64. InvariantBroken unless `random16` has 16 bytes."""
        cdef uint8_t token[TOKEN_BYTES]
        cdef uint8_t mac[MAC_BYTES]
        cdef char text[TOKEN_CHARACTERS]
        cdef size_t i
        if len(random16) != RANDOM_BYTES:
            raise InvariantBroken("a nonce is issued with randomness of a wrong length")
        for i in range(<size_t>TIME_BYTES):
            token[i] = <uint8_t>((now_ms >> (56 - 8 * i)) & 0xFF)
        memcpy(&token[TIME_BYTES], <const uint8_t*>random16, RANDOM_BYTES)
        self._put_tag(token, mac)
        memcpy(&token[SIGNED_BYTES], mac, TOKEN_TAG_BYTES)
        encode_token(token, text)
        return text[:TOKEN_CHARACTERS].decode("ascii")

    def check(self, str text not None, int64_t now_ms):
        """When the nonce `text` expires, if this issuer made it and it has not expired at `now_ms`.

        Says nothing about single use: that is `UsedNonces`. Raises `Rejected(NONCE)` for any other text, for a nonce
        that has expired, and for one issued after `now_ms`.
        """
        cdef uint8_t token[TOKEN_BYTES]
        cdef uint8_t mac[MAC_BYTES]
        cdef bint ours = (
            PyUnicode_IS_ASCII(text)
            and PyUnicode_GET_LENGTH(text) == TOKEN_CHARACTERS
            and decode_token(<const uint8_t*>PyUnicode_1BYTE_DATA(text), token)
        )
        cdef int64_t issued_ms = 0
        cdef size_t i
        if ours:
            self._put_tag(token, mac)
            ours = CRYPTO_memcmp(mac, &token[SIGNED_BYTES], TOKEN_TAG_BYTES) == 0
        if not ours:
            raise Rejected(Reason.NONCE, "the nonce was not issued by this node since it started")
        for i in range(<size_t>TIME_BYTES):
            issued_ms = (issued_ms << 8) | token[i]
        # Not issued_ms + max_age > now, which the largest time would overflow.
        if not 0 <= now_ms - issued_ms < self._max_age_ms:
            raise Rejected(Reason.NONCE, "the nonce has expired")
        return issued_ms + self._max_age_ms

    def __repr__(self):
        return f"NonceIssuer(max_age_ms={self._max_age_ms})"
