"""Envelopes sealed and opened, and their keys, which never become Python objects on the way (protocol §3).

Refuses lengths that are not the protocol's. Whether a key is a point and whom it belongs to is settled before.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.string cimport memcmp, memcpy

from kmscore._aead cimport KEY_BYTES, MAX_DATA_BYTES, NONCE_BYTES, TAG_BYTES, expand, extract, opened, put_sealed
from kmscore._secret cimport SecretBytes, wipe_memory

from kmscore._mac import write_canonical_envelope
from kmscore.errors import InvariantBroken, Reason, Rejected


cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL


cdef enum:
    SHARED_SECRET_BYTES = 48
    SEC1_BYTES = 97
    SALT_BYTES = 206  # two points and a nonce


@cython.final
cdef class Envelope:
    """A well-formed envelope; whether it opens, and who sent it, is not known yet.

    `sender` is the key in DER as sent (1 to 256 bytes, not parsed), `nonce` has 12 bytes, `ciphertext` ends with the
    16-byte tag. `canonical` is the canonical JSON of the members as sent: the body we send, and what the MAC covers.
    """

    cdef readonly bytes sender
    cdef readonly bytes nonce
    cdef readonly bytes ciphertext
    cdef readonly bytes canonical

    def __init__(
        self, bytes sender not None, bytes nonce not None, bytes ciphertext not None, bytes canonical not None
    ):
        self.sender = sender
        self.nonce = nonce
        self.ciphertext = ciphertext
        self.canonical = canonical

    def __eq__(self, other):
        cdef Envelope that
        if not isinstance(other, Envelope):
            return NotImplemented
        that = other
        return (self.sender, self.nonce, self.ciphertext, self.canonical) == (
            that.sender, that.nonce, that.ciphertext, that.canonical
        )

    def __hash__(self):
        return hash(self.canonical)

    def __repr__(self):
        return f"Envelope(sender={self.sender!r}, nonce={self.nonce!r})"


cdef int start_key(SecretBytes shared, bytes a, bytes b, bytes nonce, unsigned char* key32) except -1:
    """HKDF up to the label: `key32` is its pseudorandom key, the caller's to wipe. `a`, `b` are points, in any order."""
    cdef unsigned char[SALT_BYTES] salt
    cdef const unsigned char* first = a
    cdef const unsigned char* second = b
    if (
        shared.size != SHARED_SECRET_BYTES
        or len(nonce) != NONCE_BYTES
        or len(a) != SEC1_BYTES
        or len(b) != SEC1_BYTES
    ):
        raise InvariantBroken("an envelope key is derived from a secret or nonce of a wrong length")
    if memcmp(first, second, SEC1_BYTES) > 0:
        first, second = second, first
    memcpy(salt, first, SEC1_BYTES)
    memcpy(&salt[SEC1_BYTES], second, SEC1_BYTES)
    memcpy(&salt[2 * SEC1_BYTES], <const unsigned char*>nonce, NONCE_BYTES)
    if not extract(salt, SALT_BYTES, shared.pointer(), SHARED_SECRET_BYTES, key32):
        raise underivable()
    return 0


cdef int finish_key(const unsigned char* pseudorandom32, str label, unsigned char* key32) except -1:
    cdef Py_ssize_t size
    cdef const char* text = PyUnicode_AsUTF8AndSize(label, &size)
    if not expand(pseudorandom32, <const unsigned char*>text, <size_t>size, key32, KEY_BYTES):
        raise underivable()
    return 0


cdef object underivable():
    return InvariantBroken("libcrypto does not compute HKDF-SHA256")


def envelope_key(SecretBytes shared not None, a not None, b not None, bytes nonce not None, str label not None):
    """The AES-256 key, 32 bytes, of one envelope between the public keys `a` and `b`, in whichever order (protocol §3).

    `shared` has 48 bytes, `nonce` 12. Raises InvariantBroken for other lengths. The result cannot be wiped, and opens
    this one envelope only; `seal` and `open_envelope` keep theirs to themselves.
    """
    cdef unsigned char[KEY_BYTES] pseudorandom
    cdef bytes key = PyBytes_FromStringAndSize(NULL, KEY_BYTES)
    try:
        start_key(shared, a.sec1, b.sec1, nonce, pseudorandom)
        finish_key(pseudorandom, label, <unsigned char*>PyBytes_AS_STRING(key))
    finally:
        wipe_memory(pseudorandom, KEY_BYTES)
    return key


def seal(
    SecretBytes shared not None,
    own not None,
    peer not None,
    str label not None,
    bytes nonce not None,
    bytes plaintext not None,
):
    """Encrypt `plaintext` from `own` to `peer`. `nonce` (12 bytes) must never have been used between the two keys.

    Raises InvariantBroken for a secret or nonce of a wrong length, and from 2 GiB on.
    """
    cdef unsigned char[KEY_BYTES] pseudorandom
    cdef unsigned char[KEY_BYTES] key
    cdef bytes sealed
    cdef bytes sender = own.der
    if len(plaintext) > MAX_DATA_BYTES:
        raise InvariantBroken("an envelope holds less than 2 GiB")
    try:
        start_key(shared, own.sec1, peer.sec1, nonce, pseudorandom)
        finish_key(pseudorandom, label, key)
        sealed = PyBytes_FromStringAndSize(NULL, len(plaintext) + TAG_BYTES)
        put_sealed(key, nonce, plaintext, <unsigned char*>PyBytes_AS_STRING(sealed))
    finally:
        wipe_memory(pseudorandom, KEY_BYTES)
        wipe_memory(key, KEY_BYTES)
    return Envelope(sender, nonce, sealed, write_canonical_envelope(sender, nonce, sealed))


def open_envelope(
    SecretBytes shared not None, own not None, peer not None, tuple labels not None, Envelope envelope not None
):
    """The plaintext of an envelope between `own` and `peer`, and the one of `labels` it was under.

    The labels are tried in their order; a wrong one costs half an HKDF and a failed tag, never a key agreement. The
    caller has compared `envelope.sender` with `peer`. Raises `Rejected(UNDECRYPTABLE)` when no label opens it.
    """
    cdef unsigned char[KEY_BYTES] pseudorandom
    cdef unsigned char[KEY_BYTES] key
    cdef const unsigned char* sealed = envelope.ciphertext
    cdef Py_ssize_t size = len(envelope.ciphertext) - TAG_BYTES
    cdef bytes plaintext
    if not 0 <= size <= MAX_DATA_BYTES:
        raise undecryptable()
    try:
        start_key(shared, own.sec1, peer.sec1, envelope.nonce, pseudorandom)
        for label in labels:
            finish_key(pseudorandom, label, key)
            plaintext = opened(key, envelope.nonce, sealed, size)
            if plaintext is not None:
                return plaintext, label
    finally:
        wipe_memory(pseudorandom, KEY_BYTES)
        wipe_memory(key, KEY_BYTES)
    raise undecryptable()


cdef object undecryptable():
    return Rejected(Reason.UNDECRYPTABLE, "the envelope cannot be decrypted")
