"""From a request's headers to a verified wallet: the whole check of a proof of possession (protocol §2).

Refuses to know what the wallet may do. A stranger can make it remember nothing. Works on public data only, but for the
key of the nonces, which stays with their issuer.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t

from kmscore._pop import PopKind, parse_wallet, recover_pop
from kmscore.errors import InvariantBroken, Reason, Rejected


cdef extern from "Python.h":
    object PyUnicode_FromStringAndSize(const char* text, Py_ssize_t size)


# What a proof consists of, and how many headers that makes.
cdef enum:
    SIGNATURE = 0
    NONCE = 1
    TIMESTAMP = 2
    WALLET = 3
    FIELDS = 4
    NO_FIELD = -1

cdef enum:
    PREFIX_CHARACTERS = 6
    MAX_SIGNATURE_CHARACTERS = 132  # 0x and 65 bytes in hex
    MAX_NONCE_CHARACTERS = 512
    MAX_TIMESTAMP_DIGITS = 12

MAX_SIGNATURE_CHARS = MAX_SIGNATURE_CHARACTERS
MAX_NONCE_CHARS = MAX_NONCE_CHARACTERS

cdef tuple FIELD_NAMES = ("signature", "nonce", "timestamp", "wallet")


# ---- headers -------------------------------------------------------------------------------------------------------

cdef struct Value:
    # A header's value without the white space around it; data is NULL when the header was not sent.
    const char* data
    Py_ssize_t size


cdef inline bint is_text(const char* sent, const char* lower, Py_ssize_t size) noexcept nogil:
    """Whether `sent` is `lower`, both of `size` characters, whatever the case of its letters."""
    cdef Py_ssize_t i
    cdef char character
    for i in range(size):
        character = sent[i]
        if c'A' <= character <= c'Z':
            character |= 32
        if character != lower[i]:
            return False
    return True


cdef int field_of(const char* name, Py_ssize_t size, const char* prefix) noexcept nogil:
    """Which part of a proof the header `name` carries, NO_FIELD for none; the prefix says for which kind of caller."""
    cdef const char* rest = name + PREFIX_CHARACTERS
    size -= PREFIX_CHARACTERS
    if size < 5 or size > 9 or not is_text(name, prefix, PREFIX_CHARACTERS):
        return NO_FIELD
    if size == 9:
        if is_text(rest, "signature", 9):
            return SIGNATURE
        return TIMESTAMP if is_text(rest, "timestamp", 9) else NO_FIELD
    if size == 5:
        return NONCE if is_text(rest, "nonce", 5) else NO_FIELD
    return WALLET if size == 6 and is_text(rest, "wallet", 6) else NO_FIELD


cdef inline bint is_space(char character) noexcept nogil:
    return character == c' ' or character == c'\t'


cdef Value stripped(bytes sent):
    """`sent` without the white space around it (RFC 9110 §5.5); `size` -1 when not all of it is ASCII."""
    cdef Value value
    cdef Py_ssize_t i
    value.data = PyBytes_AS_STRING(sent)
    value.size = PyBytes_GET_SIZE(sent)
    while value.size and is_space(value.data[0]):
        value.data += 1
        value.size -= 1
    while value.size and is_space(value.data[value.size - 1]):
        value.size -= 1
    for i in range(value.size):
        if <unsigned char>value.data[i] > 127:
            value.size = -1
            break
    return value


cdef int64_t decimal(Value value) noexcept nogil:
    """The number that 1 to 12 digits stand for, -1 for any other text."""
    cdef int64_t number = 0
    cdef Py_ssize_t i
    if not 1 <= value.size <= MAX_TIMESTAMP_DIGITS:
        return -1
    for i in range(value.size):
        if not c'0' <= value.data[i] <= c'9':
            return -1
        number = 10 * number + (value.data[i] - c'0')
    return number


cdef object bad_header(const char* prefix, int field, str what):
    return Rejected(Reason.POP, f"header {prefix.decode('ascii')}{FIELD_NAMES[field]} {what}")


@cython.final
cdef class UnverifiedPop:
    """What the headers claim; nothing in it may be believed."""

    cdef readonly str signature
    cdef readonly str nonce
    cdef readonly int64_t timestamp_s
    cdef readonly str wallet_hint

    def __init__(self, str signature not None, str nonce not None, int64_t timestamp_s, str wallet_hint):
        self.signature = signature
        self.nonce = nonce
        self.timestamp_s = timestamp_s
        self.wallet_hint = wallet_hint


@cython.final
cdef class VerifiedPop:
    """A caller that holds the key of `wallet`; made by `PopVerifier.verify` only.

    `signature` and `nonce` are the caller's texts exactly as sent; `nonce_expires_ms` is on the monotonic clock.
    """

    cdef readonly str wallet
    cdef readonly str signature
    cdef readonly str nonce
    cdef readonly int64_t nonce_expires_ms

    def __init__(self, str wallet not None, str signature not None, str nonce not None, int64_t nonce_expires_ms):
        self.wallet = wallet
        self.signature = signature
        self.nonce = nonce
        self.nonce_expires_ms = nonce_expires_ms


def parse_pop_headers(kind not None, list headers not None):
    """Read what a caller of this kind claims out of raw ASGI headers, a list of pairs of bytes; names in any case.

    Raises `Rejected(POP)` when one is missing, repeated, too long or not ASCII, `Rejected(TIMESTAMP)` for a timestamp
    that is not a decimal integer, `Rejected(WALLET)` for a hint that is no wallet.
    """
    cdef Value[FIELDS] found
    cdef const char* prefix
    cdef bytes name, sent
    cdef int field
    cdef int64_t timestamp_s
    cdef str hint = None
    if kind is PopKind.APP:
        prefix = "x-app-"
    elif kind is PopKind.PEER:
        prefix = "x-kms-"
    else:
        raise InvariantBroken("the kind of a proof of possession is a PopKind")
    for field in range(FIELDS):
        found[field].data = NULL
        found[field].size = 0
    # The pairs outlive this call with the list, and so does what is pointed to.
    for name, sent in headers:
        if name is None or sent is None:
            raise InvariantBroken("headers are pairs of bytes")
        field = field_of(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), prefix)
        if field == NO_FIELD:
            continue
        if found[field].data != NULL:
            raise bad_header(prefix, field, "is given more than once")
        found[field] = stripped(sent)
        if found[field].size < 0:
            raise bad_header(prefix, field, "is not ASCII")
    for field in range(WALLET):
        if found[field].size == 0:
            raise bad_header(prefix, field, "is missing")
    if found[NONCE].size > MAX_NONCE_CHARACTERS:
        raise bad_header(prefix, NONCE, f"is longer than {MAX_NONCE_CHARACTERS} characters")
    if found[SIGNATURE].size > MAX_SIGNATURE_CHARACTERS:
        raise bad_header(prefix, SIGNATURE, f"is longer than {MAX_SIGNATURE_CHARACTERS} characters")
    timestamp_s = decimal(found[TIMESTAMP])
    if timestamp_s < 0:
        raise Rejected(Reason.TIMESTAMP, f"header {prefix.decode('ascii')}timestamp is not unix seconds in decimal")
    if found[WALLET].data != NULL:
        hint = parse_wallet(PyUnicode_FromStringAndSize(found[WALLET].data, found[WALLET].size))
    return UnverifiedPop(
        PyUnicode_FromStringAndSize(found[SIGNATURE].data, found[SIGNATURE].size),
        PyUnicode_FromStringAndSize(found[NONCE].data, found[NONCE].size),
        timestamp_s,
        hint,
    )


# ---- verification --------------------------------------------------------------------------------------------------

@cython.final
cdef class PopVerifier:
    """Issues nonces and verifies proofs made with them.

    Stateless but for the nonces that authorised callers have used. `wallet` is the node's own, to which proofs must be
    addressed; `issuer` is a `NonceIssuer`, `used` the `UsedNonces`; `clock` has `now_ms()` and `monotonic_ms()`, and
    `random_bytes(n)` returns n bytes.
    """

    cdef str _wallet
    cdef object _issuer
    cdef object _used
    cdef object _clock
    cdef object _random_bytes
    cdef int64_t _max_age_ms

    def __init__(
        self,
        *,
        str wallet not None,
        issuer not None,
        used not None,
        clock not None,
        random_bytes not None,
        double max_age_s,
    ):
        self._wallet = wallet
        self._issuer = issuer
        self._used = used
        self._clock = clock
        self._random_bytes = random_bytes
        self._max_age_ms = <int64_t>(max_age_s * 1000)

    def issue_nonce(self):
        """A fresh nonce text for `GET /nonce` or `X-KMS-Next-Nonce`."""
        return self._issuer.issue(self._clock.monotonic_ms(), self._random_bytes(16))

    def verify(self, kind not None, UnverifiedPop claimed not None):
        """Check timestamp, nonce MAC and age, signature, wallet hint, in this order; changes nothing.

        Raises `Rejected` with TIMESTAMP, NONCE, SIGNATURE or WALLET.
        """
        cdef int64_t now_ms = self._clock.now_ms()
        cdef int64_t expires_ms
        cdef str wallet
        # Both are far below the largest number: twelve digits of seconds, and what the machine's clock says.
        if not -self._max_age_ms <= now_ms - 1000 * claimed.timestamp_s <= self._max_age_ms:
            raise Rejected(Reason.TIMESTAMP, "the timestamp is too far from this node's clock")
        expires_ms = self._issuer.check(claimed.nonce, self._clock.monotonic_ms())
        wallet = recover_pop(kind, claimed.nonce, self._wallet, claimed.timestamp_s, claimed.signature)
        if claimed.wallet_hint is not None and claimed.wallet_hint != wallet:
            raise Rejected(Reason.WALLET, "the wallet header differs from the wallet that signed")
        return VerifiedPop(wallet, claimed.signature, claimed.nonce, expires_ms)

    def require_unused(self, VerifiedPop pop not None):
        """A look before a body is read, so that a used proof opens none. Raises `Rejected(REPLAY)`; changes nothing."""
        self._used.require_unused(pop.nonce)

    def consume(self, VerifiedPop pop not None):
        """Use the nonce up. Only for callers found authorised: what is remembered must not grow with strangers.

        Raises `Rejected(REPLAY)` when it was used before, `Rejected(RATE)` when this wallet uses too many.
        """
        self._used.consume(pop.nonce, pop.nonce_expires_ms, self._clock.monotonic_ms(), pop.wallet)
