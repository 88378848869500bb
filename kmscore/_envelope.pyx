"""Envelopes parsed, sealed and opened, and their keys, which never become Python objects on the way (protocol §3).

Refuses lengths that are not the protocol's. Whether a key is a point and whom it belongs to is settled before.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.string cimport memcmp, memcpy

from kmscore._aead cimport (
    KEY_BYTES,
    MAX_DATA_BYTES,
    NONCE_BYTES,
    TAG_BYTES,
    encrypt_part,
    expand,
    extract,
    opened,
    put_sealed,
    put_tag,
    start_encrypting,
)
from kmscore._ffi.crypto cimport EVP_CIPHER_CTX, EVP_CIPHER_CTX_free
from kmscore._mac cimport write_hex
from kmscore._secret cimport SecretBytes, wipe_memory

from kmscore._mac import canonical_frame, read_canonical_envelope, write_canonical_envelope
from kmscore.errors import InvariantBroken, Reason, Rejected
from kmscore.json import canonical_json, parse_json_object


cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL


cdef enum:
    SHARED_SECRET_BYTES = 48
    SEC1_BYTES = 97
    SALT_BYTES = 206  # two points and a nonce
    MAX_SENDER_BYTES = 256
    CHUNK_BYTES = 4096  # ciphertext on its way into hex: it stays in the first-level cache


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


def parse_envelope(bytes body not None):
    """The envelope that a request or answer body is; hex of either case, with or without 0x.

    A body that already is canonical is decoded in one pass and kept as its own canonical form. Raises
    `Rejected(MALFORMED)` for anything but one strict JSON object of exactly the three members.
    """
    cdef tuple members = read_canonical_envelope(body)
    if members is not None:
        return Envelope(members[0], members[1], members[2], body)
    # One brace and two commas: an envelope has no more, and what a stranger sends is not read on.
    return parse_envelope_object(parse_json_object(body, max_depth=1, max_items=3))


def parse_envelope_object(value):
    """The envelope that a parsed JSON value is. Raises `Rejected(MALFORMED)`."""
    cdef tuple members
    if isinstance(value, dict):
        canonical = canonical_json(value)
        members = read_canonical_envelope(canonical)
        if members is not None:
            return Envelope(members[0], members[1], members[2], canonical)
    raise Rejected(
        Reason.MALFORMED,
        "the body is not an envelope: exactly sender_tee_pubkey, nonce (12 bytes) and encrypted_data, in hex",
    )


def encode_envelope(bytes sender_der not None, bytes nonce not None, bytes ciphertext not None):
    """The envelope of these members; `.canonical` is the body to send.

    Raises InvariantBroken unless the key has 1 to 256 bytes, the nonce 12 and the ciphertext at least 16.
    """
    if not 0 < len(sender_der) <= MAX_SENDER_BYTES or len(nonce) != NONCE_BYTES or len(ciphertext) < TAG_BYTES:
        raise InvariantBroken("an envelope member has a wrong length")
    return Envelope(sender_der, nonce, ciphertext, write_canonical_envelope(sender_der, nonce, ciphertext))


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


@cython.final
cdef class EnvelopeWriter:
    """The body of a long envelope, made piece by piece of a plaintext that comes in parts (protocol §3).

    Takes what `seal` takes, with the size of the plaintext in place of it, and raises what that raises. The pieces of
    `write`, one for each part, and that of `finish` are together the `canonical` of `seal`, of `body_bytes` bytes. One
    thread at a time. Holds the key of this one envelope for as long as it is there.
    """

    cdef readonly Py_ssize_t body_bytes
    cdef Py_ssize_t _missing
    cdef bytes _before
    cdef bytes _behind
    cdef EVP_CIPHER_CTX* _context

    def __cinit__(
        self,
        SecretBytes shared not None,
        own not None,
        peer not None,
        str label not None,
        bytes nonce not None,
        Py_ssize_t size,
    ):
        cdef unsigned char[KEY_BYTES] pseudorandom
        cdef unsigned char[KEY_BYTES] key
        if not 0 <= size <= MAX_DATA_BYTES:
            raise InvariantBroken("an envelope holds less than 2 GiB")
        try:
            start_key(shared, own.sec1, peer.sec1, nonce, pseudorandom)
            finish_key(pseudorandom, label, key)
            self._context = start_encrypting(key, nonce)
        finally:
            wipe_memory(pseudorandom, KEY_BYTES)
            wipe_memory(key, KEY_BYTES)
        if self._context == NULL:
            raise unencryptable()
        self._before, self._behind = canonical_frame(own.der, nonce)
        self._missing = size
        self.body_bytes = len(self._before) + 2 * (size + TAG_BYTES) + len(self._behind)

    def __dealloc__(self):
        EVP_CIPHER_CTX_free(self._context)  # wipes what it held

    def write(self, bytes part not None):
        """The next piece of the body. Raises InvariantBroken when the plaintext is longer than was said."""
        cdef Py_ssize_t size = len(part)
        cdef Py_ssize_t done = 0
        cdef Py_ssize_t count
        cdef unsigned char[CHUNK_BYTES] chunk
        cdef const unsigned char* data = part
        cdef bytes piece
        cdef unsigned char* out
        cdef bint sealed = True
        if size > self._missing:
            raise InvariantBroken("a plaintext is longer than was said, or goes on after its end")
        piece = PyBytes_FromStringAndSize(NULL, len(self._before) + 2 * size)
        out = <unsigned char*>PyBytes_AS_STRING(piece)
        memcpy(out, <const char*>self._before, <size_t>len(self._before))
        out += len(self._before)
        with nogil:
            while sealed and done < size:
                count = min(size - done, <Py_ssize_t>CHUNK_BYTES)
                sealed = encrypt_part(self._context, data + done, <int>count, chunk)
                write_hex(chunk, count, out + 2 * done)
                done += count
        if not sealed:
            self._missing = -1
            raise unencryptable()
        self._before = b""
        self._missing -= size
        return piece

    def finish(self):
        """The last piece: the tag and the other members. Raises InvariantBroken unless all of the plaintext has come."""
        cdef unsigned char[TAG_BYTES] tag
        cdef unsigned char[2 * TAG_BYTES] text
        if self._missing != 0:
            raise InvariantBroken("a plaintext is shorter than was said, or finished twice")
        self._missing = -1
        if not put_tag(self._context, tag):
            raise unencryptable()
        write_hex(tag, TAG_BYTES, text)
        return self._before + text[:2 * TAG_BYTES] + self._behind

    def __repr__(self):
        return f"EnvelopeWriter({self.body_bytes} bytes)"


cdef object unencryptable():
    return InvariantBroken("libcrypto does not encrypt with AES-256-GCM")


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


@cython.final
cdef class SharedSecretCache:
    """The secrets that `key` shares with the peers it met last: one key agreement per peer (protocol §3).

    At most `max_peers` are kept, the least recently used goes first. A secret that goes, by eviction or `clear`, is
    dropped rather than wiped under the feet of another thread: it wipes itself with its last reference, which is at
    once unless it is being used at that moment. Safe to use from several threads.
    """

    cdef object _key
    cdef Py_ssize_t _max_peers
    cdef dict _secrets

    def __init__(self, key not None, *, Py_ssize_t max_peers=4096):
        self._key = key
        self._max_peers = max_peers
        self._secrets = {}

    def get(self, peer not None):
        """The 48 bytes shared with `peer`. Hold them no longer than the call at hand, and do not wipe them."""
        cdef bytes der = peer.der
        # Out and in again: a dict keeps the order in which things came. No step here needs another one to have been the
        # last: a thread that finds a secret out agrees anew, on the same bytes.
        secret = self._secrets.pop(der, None)
        if secret is None:
            secret = self._key.agree(peer)
        self._secrets[der] = secret
        while len(self._secrets) > self._max_peers:
            self._secrets.pop(next(iter(self._secrets)), None)
        return secret

    def clear(self):
        """Drop every secret."""
        self._secrets.clear()

    def __len__(self):
        return len(self._secrets)

    def __repr__(self):
        return f"SharedSecretCache({len(self)} of {self._max_peers} peers)"
