"""Wallet keys and proof of possession: EIP-191 signatures over secp256k1 (protocol §1 and §2).

Refuses: signatures in any form but 65 bytes of hex, v outside {0, 1, 27, 28}, s in the upper half of the group order,
printing, pickling or copying a key. Verification works on public data and is not constant-time; signing is as
constant-time as libsecp256k1, whose context is blinded.
"""

from enum import StrEnum

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_1BYTE_DATA, PyUnicode_GET_LENGTH
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy

from kmscore._ffi.secp256k1 cimport (
    SECP256K1_CONTEXT_NONE,
    SECP256K1_EC_UNCOMPRESSED,
    secp256k1_context,
    secp256k1_context_create,
    secp256k1_context_destroy,
    secp256k1_context_randomize,
    secp256k1_context_static,
    secp256k1_ec_pubkey_create,
    secp256k1_ec_pubkey_serialize,
    secp256k1_ec_seckey_verify,
    secp256k1_ecdsa_recover,
    secp256k1_ecdsa_recoverable_signature,
    secp256k1_ecdsa_recoverable_signature_convert,
    secp256k1_ecdsa_recoverable_signature_parse_compact,
    secp256k1_ecdsa_recoverable_signature_serialize_compact,
    secp256k1_ecdsa_sign_recoverable,
    secp256k1_ecdsa_signature,
    secp256k1_ecdsa_signature_normalize,
    secp256k1_pubkey,
    secp256k1_selftest,
)
from kmscore._keccak cimport Keccak256, keccak256_absorb, keccak256_finish, keccak256_start
from kmscore._secret cimport SecretBytes, wipe_memory

from kmscore.errors import InvariantBroken, Reason, Rejected


cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object text)


cdef extern from *:
    """
    static const char POP_HEX_DIGITS[] = "0123456789abcdef";
    static const char POP_EIP191_PREFIX[] = "\\x19" "Ethereum Signed Message:\\n";
    """
    const char* HEX_DIGITS "POP_HEX_DIGITS"
    const char* EIP191_PREFIX "POP_EIP191_PREFIX"


cdef enum:
    EIP191_PREFIX_BYTES = 26
    SIGNATURE_DIGITS = 130
    WALLET_CHARACTERS = 42
    WALLET_DIGITS = 40
    # Nonces are opaque: nodes of other makes choose their form, and this only keeps the text in a buffer on the stack.
    MAX_NONCE_CHARACTERS = 512
    # "NovaKMS:" + "AppAuth" + ":" + nonce + ":" + wallet + ":" + 19 digits is 591 at most.
    MAX_POP_BYTES = 640
    GIL_FREE_FROM = 4096  # bytes to hash: about 10 microseconds of work

cdef enum Verdict:
    GOOD
    BAD_SIGNATURE_FORM
    BAD_RECOVERY_ID
    HIGH_S
    NO_SIGNER
    LIBRARY_BROKEN
    BAD_NONCE
    BAD_WALLET


# secp256k1.h: "It is highly recommended to call secp256k1_selftest before using this context", once a process and for
# the cost of one SHA-256 block; it aborts when the library does not fit the machine.
secp256k1_selftest()


class PopKind(StrEnum):
    """Who proves possession to a node; a signature for one kind is worth nothing for the other (protocol §5)."""

    APP = "AppAuth"
    PEER = "Auth"


# ---- text ----------------------------------------------------------------------------------------------------------

cdef struct Span:
    # Characters of a str or bytes that the caller keeps alive. size is -1 when they are not all ASCII.
    const uint8_t* data
    Py_ssize_t size


cdef Span span_of(str text):
    cdef Span span
    span.data = NULL
    span.size = -1
    if PyUnicode_IS_ASCII(text):
        span.data = <const uint8_t*>PyUnicode_1BYTE_DATA(text)
        span.size = PyUnicode_GET_LENGTH(text)
    return span


cdef inline int hex_digit(uint8_t character) noexcept nogil:
    if 48 <= character <= 57:
        return character - 48
    character |= 32
    if 97 <= character <= 102:
        return character - 87
    return -1


cdef int parse_hex(Span text, Py_ssize_t digits, uint8_t* output) noexcept nogil:
    # 1 when text is exactly that many digits, in either case, after an optional 0x; 0 otherwise.
    cdef const uint8_t* data = text.data
    cdef Py_ssize_t at
    cdef int high, low
    if text.size == digits + 2 and data[0] == 48 and data[1] == 120:
        data += 2
    elif text.size != digits:
        return 0
    for at in range(digits // 2):
        high = hex_digit(data[2 * at])
        low = hex_digit(data[2 * at + 1])
        if high < 0 or low < 0:
            return 0
        output[at] = <uint8_t>(high * 16 + low)
    return 1


cdef void write_hex(char* output, const uint8_t* data, Py_ssize_t size) noexcept nogil:
    # 0x and two lower-case digits a byte.
    cdef Py_ssize_t at
    output[0] = 48
    output[1] = 120
    for at in range(size):
        output[2 + 2 * at] = HEX_DIGITS[data[at] // 16]
        output[3 + 2 * at] = HEX_DIGITS[data[at] % 16]


cdef str wallet_text(const uint8_t* address20):
    cdef char[WALLET_CHARACTERS] text
    write_hex(text, address20, 20)
    return text[:WALLET_CHARACTERS].decode("ascii")


cdef int decimal(uint8_t* output, int64_t value) noexcept nogil:
    # Writes value, which is not negative, and returns how many of at most 19 digits that took.
    cdef uint8_t[19] reversed_digits
    cdef int count = 0
    cdef int at
    while True:
        reversed_digits[count] = <uint8_t>(48 + value % 10)
        value //= 10
        count += 1
        if value == 0:
            break
    for at in range(count):
        output[at] = reversed_digits[count - 1 - at]
    return count


cdef struct PopText:
    uint8_t[MAX_POP_BYTES] data
    Py_ssize_t size


cdef void append(PopText* text, const void* data, Py_ssize_t size) noexcept nogil:
    memcpy(&text.data[text.size], data, <size_t>size)
    text.size += size


cdef Verdict write_pop_text(PopText* text, bint app, Span nonce, Span receiver, int64_t timestamp) noexcept nogil:
    # The one encoder of the text of protocol §2. A nonce may hold a colon: what precedes it is fixed and what follows
    # holds none, so the text still reads one way only.
    cdef uint8_t[20] address
    cdef char[WALLET_CHARACTERS] wallet
    cdef Py_ssize_t at
    if not 1 <= nonce.size <= MAX_NONCE_CHARACTERS:
        return BAD_NONCE
    for at in range(nonce.size):
        if not 32 <= nonce.data[at] <= 126:
            return BAD_NONCE
    if parse_hex(receiver, WALLET_DIGITS, address) != 1:
        return BAD_WALLET
    write_hex(wallet, address, 20)
    text.size = 0
    if app:
        append(text, b"NovaKMS:AppAuth:", 16)
    else:
        append(text, b"NovaKMS:Auth:", 13)
    append(text, nonce.data, nonce.size)
    append(text, b":", 1)
    append(text, wallet, WALLET_CHARACTERS)
    append(text, b":", 1)
    text.size += decimal(&text.data[text.size], timestamp)
    return GOOD


# ---- digests and recovery ------------------------------------------------------------------------------------------

cdef void digest_message(const uint8_t* message, Py_ssize_t size, uint8_t* digest32) noexcept nogil:
    cdef Keccak256 state
    cdef uint8_t[19] digits
    keccak256_start(&state)
    keccak256_absorb(&state, <const uint8_t*>EIP191_PREFIX, EIP191_PREFIX_BYTES)
    keccak256_absorb(&state, digits, <size_t>decimal(digits, size))
    keccak256_absorb(&state, message, <size_t>size)
    keccak256_finish(&state, digest32)


cdef int public_address(
    const secp256k1_context* context, const secp256k1_pubkey* public, uint8_t* address20
) noexcept nogil:
    # 1 on success. public comes from a call of the library that succeeded.
    cdef uint8_t[65] point
    cdef uint8_t[32] digest
    cdef size_t size = sizeof(point)
    cdef Keccak256 state
    if secp256k1_ec_pubkey_serialize(context, point, &size, public, SECP256K1_EC_UNCOMPRESSED) != 1 or size != 65:
        return 0
    keccak256_start(&state)
    keccak256_absorb(&state, &point[1], 64)
    keccak256_finish(&state, digest)
    memcpy(address20, &digest[12], 20)
    return 1


cdef Verdict recover_address(const uint8_t* digest32, const uint8_t* sig65, uint8_t* address20) noexcept nogil:
    cdef secp256k1_ecdsa_recoverable_signature signature
    cdef secp256k1_ecdsa_signature plain
    cdef secp256k1_pubkey public
    cdef int recovery_id = sig65[64]
    if recovery_id >= 27:
        recovery_id -= 27
    if recovery_id > 1:
        return BAD_RECOVERY_ID
    if secp256k1_ecdsa_recoverable_signature_parse_compact(
        secp256k1_context_static, &signature, sig65, recovery_id
    ) != 1:
        return NO_SIGNER
    if secp256k1_ecdsa_recoverable_signature_convert(secp256k1_context_static, &plain, &signature) != 1:
        return LIBRARY_BROKEN
    if secp256k1_ecdsa_signature_normalize(secp256k1_context_static, NULL, &plain) != 0:
        return HIGH_S
    if secp256k1_ecdsa_recover(secp256k1_context_static, &public, &signature, digest32) != 1:
        return NO_SIGNER
    if public_address(secp256k1_context_static, &public, address20) != 1:
        return LIBRARY_BROKEN
    return GOOD


cdef object refusal(Verdict verdict):
    if verdict == BAD_SIGNATURE_FORM:
        return Rejected(Reason.SIGNATURE, "the signature must be 65 bytes in hex")
    if verdict == BAD_RECOVERY_ID:
        return Rejected(Reason.SIGNATURE, "the last byte of the signature must be 0, 1, 27 or 28")
    if verdict == HIGH_S:
        return Rejected(Reason.SIGNATURE, "the signature's s must lie in the lower half of the group order")
    if verdict == NO_SIGNER:
        return Rejected(Reason.SIGNATURE, "the signature belongs to no key")
    if verdict == BAD_NONCE:
        return Rejected(Reason.NONCE, "the nonce must be 1 to 512 printable ASCII characters")
    if verdict == BAD_WALLET:
        return Rejected(Reason.WALLET, "the wallet must be 20 bytes in hex")
    return InvariantBroken("libsecp256k1 failed where its documentation says it cannot")


cdef bint is_app(object kind) except -1:
    if kind is PopKind.APP:
        return True
    if kind is PopKind.PEER:
        return False
    raise InvariantBroken("the kind of a proof of possession is a PopKind")


cdef int64_t checked_timestamp(object timestamp) except -1:
    # A bool is an int to Python, but its decimal form is not that of the number it stands for.
    if type(timestamp) is not int or not 0 <= timestamp <= 0x7FFFFFFFFFFFFFFF:
        raise Rejected(Reason.TIMESTAMP, "the timestamp must be unix seconds")
    return timestamp


def pop_text(kind not None, str nonce not None, str receiver not None, timestamp not None):
    """The text that a caller signs to prove possession of its wallet (protocol §2).

    `kind` is a PopKind; `nonce` the text the receiver issued, 1 to 512 printable ASCII characters, opaque; `receiver` a
    wallet in any accepted form, canonical in the text; `timestamp` unix seconds, 0 to 2^63 - 1.
    Raises, in this order: Rejected(TIMESTAMP), Rejected(NONCE), Rejected(WALLET).
    """
    cdef PopText text
    cdef bint app = is_app(kind)
    cdef int64_t seconds = checked_timestamp(timestamp)
    cdef Verdict verdict = write_pop_text(&text, app, span_of(nonce), span_of(receiver), seconds)
    if verdict != GOOD:
        raise refusal(verdict)
    return PyBytes_FromStringAndSize(<char*>text.data, text.size)


def recover_pop(kind not None, str nonce not None, str receiver not None, timestamp not None, str signature not None):
    """The canonical wallet that signed `pop_text` of the other arguments (protocol §1 and §2).

    `signature` is 65 bytes of hex, r, s and v, in any accepted form. Says nothing about whether the nonce is fresh or
    the wallet authorised. Takes some 30 microseconds, the GIL released.
    Raises, in this order: Rejected(TIMESTAMP), Rejected(NONCE), Rejected(WALLET), Rejected(SIGNATURE).
    """
    cdef PopText text
    cdef uint8_t[65] sig65
    cdef uint8_t[32] digest
    cdef uint8_t[20] address
    cdef bint app = is_app(kind)
    cdef int64_t seconds = checked_timestamp(timestamp)
    cdef Span nonce_span = span_of(nonce)
    cdef Span receiver_span = span_of(receiver)
    cdef Span signature_span = span_of(signature)
    cdef Verdict verdict
    # The spans stay valid without the GIL: a str does not change, and the arguments hold theirs.
    with nogil:
        verdict = write_pop_text(&text, app, nonce_span, receiver_span, seconds)
        if verdict == GOOD and parse_hex(signature_span, SIGNATURE_DIGITS, sig65) != 1:
            verdict = BAD_SIGNATURE_FORM
        if verdict == GOOD:
            digest_message(text.data, text.size, digest)
            verdict = recover_address(digest, sig65, address)
    if verdict != GOOD:
        raise refusal(verdict)
    return wallet_text(address)


def recover_signer(bytes message not None, signature not None):
    """The canonical wallet that signed `message`, of any length, as EIP-191 says (protocol §1).

    `signature` is 65 bytes of hex, r, s and v, as `str` or `bytes`, in any accepted form.
    Takes some 30 microseconds, the GIL released. Raises Rejected(SIGNATURE).
    """
    cdef const uint8_t* data = message
    cdef Py_ssize_t size = len(message)
    cdef uint8_t[65] sig65
    cdef uint8_t[32] digest
    cdef uint8_t[20] address
    cdef Span span
    cdef Verdict verdict = GOOD
    if type(signature) is str:
        span = span_of(signature)
    elif type(signature) is bytes:
        span.data = <bytes>signature
        span.size = len(<bytes>signature)
    else:
        raise TypeError("a signature is str or bytes")
    with nogil:
        if parse_hex(span, SIGNATURE_DIGITS, sig65) != 1:
            verdict = BAD_SIGNATURE_FORM
        else:
            digest_message(data, size, digest)
            verdict = recover_address(digest, sig65, address)
    if verdict != GOOD:
        raise refusal(verdict)
    return wallet_text(address)


def eip191_digest(bytes message not None):
    """The 32 bytes that are signed for `message`: Keccak-256 of prefix, decimal length and message (protocol §1)."""
    cdef const uint8_t* data = message
    cdef Py_ssize_t size = len(message)
    cdef uint8_t[32] digest
    if size < GIL_FREE_FROM:
        digest_message(data, size, digest)
    else:
        with nogil:
            digest_message(data, size, digest)
    return PyBytes_FromStringAndSize(<char*>digest, 32)


def response_text(str caller_signature not None, str receiver not None):
    """What a node signs under every answer: proof that the addressed node answered this very request (protocol §2).

    `caller_signature` is the request's signature exactly as sent, 130 or 132 ASCII characters; `receiver` the wallet of
    the answering node in any accepted form, canonical in the text.
    Raises, in this order: Rejected(SIGNATURE), Rejected(WALLET).
    """
    cdef PopText text
    cdef uint8_t[20] address
    cdef char[WALLET_CHARACTERS] wallet
    cdef Span signature = span_of(caller_signature)
    if signature.size != SIGNATURE_DIGITS and signature.size != SIGNATURE_DIGITS + 2:
        raise refusal(BAD_SIGNATURE_FORM)
    if parse_hex(span_of(receiver), WALLET_DIGITS, address) != 1:
        raise refusal(BAD_WALLET)
    write_hex(wallet, address, 20)
    text.size = 0
    append(&text, b"NovaKMS:Response:", 17)
    append(&text, signature.data, signature.size)
    append(&text, b":", 1)
    append(&text, wallet, WALLET_CHARACTERS)
    return PyBytes_FromStringAndSize(<char*>text.data, text.size)


def parse_wallet(str text not None):
    """The canonical form of a wallet, 0x and 40 lower-case digits; any case and a missing 0x are accepted (protocol).

    Raises Rejected(WALLET) for everything else.
    """
    cdef uint8_t[20] address
    if parse_hex(span_of(text), WALLET_DIGITS, address) != 1:
        raise refusal(BAD_WALLET)
    return wallet_text(address)


# ---- keys ----------------------------------------------------------------------------------------------------------

@cython.final
cdef class WalletKey:
    """A secp256k1 private key and the wallet it signs for.

    `secret` holds 32 bytes, a number in 1..n-1, and is copied: the caller wipes its own. `blinding32` is 32 random
    bytes that hide the key's computations from side channels; without it the blinding is derived from the key, which is
    as secret but the same after a restart. The copy is zeroed by `wipe` and with the object.
    Raises, in this order: InvariantBroken when the secret is wiped, Rejected(BAD_FIELD) when it has another size,
    InvariantBroken when the blinding has, Rejected(BAD_FIELD) when the number is out of range.
    """

    cdef uint8_t[32] _key
    cdef secp256k1_context* _context
    cdef bint _wiped
    cdef readonly str address

    def __cinit__(self, SecretBytes secret not None, bytes blinding32=None):
        cdef const unsigned char* key = secret.pointer()
        cdef secp256k1_pubkey public
        cdef uint8_t[20] address
        if secret.size != 32:
            raise Rejected(Reason.BAD_FIELD, "a wallet key has 32 bytes")
        if blinding32 is not None and len(blinding32) != 32:
            raise InvariantBroken("the blinding of a wallet key has 32 bytes")
        memcpy(self._key, key, 32)
        self._context = secp256k1_context_create(SECP256K1_CONTEXT_NONE)
        if self._context == NULL:
            raise MemoryError
        if secp256k1_ec_seckey_verify(self._context, self._key) != 1:
            raise Rejected(Reason.BAD_FIELD, "a wallet key lies between 1 and the group order")
        self.blind(blinding32)
        if secp256k1_ec_pubkey_create(self._context, &public, self._key) != 1:
            raise refusal(LIBRARY_BROKEN)
        if public_address(self._context, &public, address) != 1:
            raise refusal(LIBRARY_BROKEN)
        self.address = wallet_text(address)

    def __dealloc__(self):
        wipe_memory(self._key, sizeof(self._key))
        if self._context != NULL:
            secp256k1_context_destroy(self._context)
            self._context = NULL

    cdef int blind(self, bytes blinding32) except -1:
        cdef const uint8_t* given
        cdef uint8_t[32] seed
        cdef Keccak256 state
        cdef int outcome
        if blinding32 is not None:
            given = blinding32
            memcpy(seed, given, 32)
        else:
            keccak256_start(&state)
            keccak256_absorb(&state, b"NovaKMS:WalletKey:blinding:", 27)
            keccak256_absorb(&state, self._key, sizeof(self._key))
            keccak256_finish(&state, seed)
            wipe_memory(&state, sizeof(state))
        outcome = secp256k1_context_randomize(self._context, seed)
        wipe_memory(seed, sizeof(seed))
        if outcome != 1:
            raise refusal(LIBRARY_BROKEN)
        return 0

    cdef int sign(self, const uint8_t* digest32, uint8_t* sig65) except -1:
        # The GIL is released, so another thread may wipe meanwhile: signing works on a copy of its own, lest it signs
        # with half a key, which would give the rest away. The context is destroyed with the object only, and this
        # call holds the object.
        cdef secp256k1_ecdsa_recoverable_signature signature
        cdef uint8_t[32] key
        cdef int recovery_id = -1
        cdef int outcome
        if self._wiped:
            raise InvariantBroken("a wallet key was used after it had been wiped")
        memcpy(key, self._key, 32)
        with nogil:
            outcome = secp256k1_ecdsa_sign_recoverable(self._context, &signature, digest32, key, NULL, NULL)
            wipe_memory(key, sizeof(key))
            if outcome == 1:
                outcome = secp256k1_ecdsa_recoverable_signature_serialize_compact(
                    self._context, sig65, &recovery_id, &signature
                )
        # 2 and 3 would take an r above the group order, which no form of the protocol can express: one in 2^127.
        if outcome != 1 or not 0 <= recovery_id <= 1:
            raise refusal(LIBRARY_BROKEN)
        sig65[64] = <uint8_t>recovery_id
        return 0

    def sign_message(self, bytes message not None):
        """The EIP-191 signature of `message`: 0x and 130 digits, r, s and v, s low, v 0 or 1 (protocol §1).

        Deterministic (RFC 6979). Raises InvariantBroken after `wipe`.
        """
        cdef const uint8_t* data = message
        cdef Py_ssize_t size = len(message)
        cdef uint8_t[32] digest
        cdef uint8_t[65] sig65
        cdef char[SIGNATURE_DIGITS + 2] text
        with nogil:
            digest_message(data, size, digest)
        self.sign(digest, sig65)
        write_hex(text, sig65, 65)
        return text[:SIGNATURE_DIGITS + 2].decode("ascii")

    def sign_digest(self, bytes digest32 not None):
        """The signature of a 32-byte digest, as transactions need it: 65 bytes, r, s and v, s low, v 0 or 1.

        Deterministic (RFC 6979). Raises InvariantBroken when the digest has another size and after `wipe`.
        """
        cdef const uint8_t* digest = digest32
        cdef uint8_t[65] sig65
        if len(digest32) != 32:
            raise InvariantBroken("a digest to be signed has 32 bytes")
        self.sign(digest, sig65)
        return PyBytes_FromStringAndSize(<char*>sig65, 65)

    def wipe(self):
        """Zeroes the key now; calling it again is harmless. Signing afterwards raises InvariantBroken.

        A signature that another thread is making at this moment is finished, on a copy that is wiped with it.
        """
        wipe_memory(self._key, sizeof(self._key))
        self._wiped = True

    def __repr__(self):
        return f"WalletKey({self.address})"

    def __reduce_ex__(self, protocol):
        raise TypeError("a wallet key cannot be pickled")

    def __reduce__(self):
        raise TypeError("a wallet key cannot be pickled")

    def __copy__(self):
        raise TypeError("a wallet key cannot be copied")

    def __deepcopy__(self, memo):
        raise TypeError("a wallet key cannot be copied")
