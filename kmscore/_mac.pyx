"""HMAC-SHA256 of canonical bodies, hex, and the recognition of envelopes that already are canonical (protocol §3, §5).

Refuses to be lenient about a MAC: any text but 64 hex digits (optional 0x) is a wrong one. The comparison of MACs is
constant-time (CRYPTO_memcmp). Hex and envelopes are public data and are not treated so.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.string cimport memcmp, memcpy, memset

from kmscore._ffi.crypto cimport (
    CRYPTO_memcmp,
    EVP_DigestFinal_ex,
    EVP_DigestInit_ex,
    EVP_DigestUpdate,
    EVP_MD,
    EVP_MD_CTX_free,
    EVP_MD_CTX_new,
    EVP_MD_fetch,
)
from kmscore._secret cimport SecretBytes, wipe_memory

from enum import Enum

from kmscore.errors import InvariantBroken, Reason, Rejected


cdef enum:
    KEY_BYTES = 32
    NONCE_BYTES = 12
    GCM_TAG_BYTES = 16
    # More than twice a P-384 key in DER (120 bytes): what is longer cannot be a key and is not worth decoding.
    MAX_SENDER_BYTES = 256
    # From here on hex or a MAC takes 10 µs or more, and other threads may run meanwhile.
    RELEASE_GIL_BYTES = 16384


class MacVerdict(Enum):
    """What a request's MAC is worth; the caller decides whether that matters (protocol §5)."""

    VALID = "valid"
    ABSENT = "absent"
    WRONG = "wrong"


# --- HMAC-SHA256 ---------------------------------------------------------------------------------------------------


# Fetched once: libcrypto's one-call HMAC looks SHA-256 up three times, which for short messages is two thirds of it.
cdef const EVP_MD* SHA256 = EVP_MD_fetch(NULL, "SHA256", NULL)
if SHA256 == NULL:
    raise InvariantBroken("libcrypto has no SHA-256")


cdef bint hmac_start(Hmac* mac, const unsigned char* key, size_t key_size) noexcept nogil:
    cdef unsigned char inner[BLOCK_BYTES]
    cdef bint started
    cdef size_t i
    memset(inner, 0, BLOCK_BYTES)
    mac.hash = EVP_MD_CTX_new()
    started = mac.hash != NULL
    if key_size <= BLOCK_BYTES:
        memcpy(inner, key, key_size)
    elif started:
        started = (
            EVP_DigestInit_ex(mac.hash, SHA256, NULL) == 1
            and EVP_DigestUpdate(mac.hash, key, key_size) == 1
            and EVP_DigestFinal_ex(mac.hash, inner, NULL) == 1
        )
    for i in range(<size_t>BLOCK_BYTES):
        mac.outer[i] = inner[i] ^ 0x5C
        inner[i] ^= 0x36
    started = (
        started
        and EVP_DigestInit_ex(mac.hash, SHA256, NULL) == 1
        and EVP_DigestUpdate(mac.hash, inner, BLOCK_BYTES) == 1
    )
    wipe_memory(inner, BLOCK_BYTES)
    return started


cdef bint hmac_update(Hmac* mac, const unsigned char* data, size_t size) noexcept nogil:
    return mac.hash != NULL and EVP_DigestUpdate(mac.hash, data, size) == 1


cdef bint hmac_finish(Hmac* mac, unsigned char* tag) noexcept nogil:
    cdef bint finished = (
        mac.hash != NULL
        and EVP_DigestFinal_ex(mac.hash, tag, NULL) == 1
        and EVP_DigestInit_ex(mac.hash, SHA256, NULL) == 1
        and EVP_DigestUpdate(mac.hash, mac.outer, BLOCK_BYTES) == 1
        and EVP_DigestUpdate(mac.hash, tag, TAG_BYTES) == 1
        and EVP_DigestFinal_ex(mac.hash, tag, NULL) == 1
    )
    EVP_MD_CTX_free(mac.hash)  # wipes what it held
    mac.hash = NULL
    wipe_memory(mac.outer, BLOCK_BYTES)
    return finished


cdef bint compute_tag(
    const unsigned char* key, const unsigned char* data, size_t size, unsigned char* tag
) noexcept nogil:
    """Whether `tag` (TAG_BYTES) now is the HMAC-SHA256 of `data` under `key` (KEY_BYTES)."""
    cdef Hmac mac
    cdef bint computed = hmac_start(&mac, key, KEY_BYTES) and hmac_update(&mac, data, size)
    return hmac_finish(&mac, tag) and computed


cdef int tag_of(SecretBytes key, bytes data, unsigned char* tag) except -1:
    """Fill `tag` (TAG_BYTES). Raises InvariantBroken for a key of another length or a libcrypto that fails."""
    cdef const unsigned char* message = data
    cdef size_t size = <size_t>len(data)
    cdef unsigned char own_key[KEY_BYTES]
    cdef bint computed
    if key.size != KEY_BYTES:
        raise InvariantBroken("a MAC key is not 32 bytes long")
    if size < RELEASE_GIL_BYTES:
        computed = compute_tag(key.pointer(), message, size, tag)
    else:
        # The key may be wiped while the GIL is free, and a MAC under zeros is one that anybody can make.
        memcpy(own_key, key.pointer(), KEY_BYTES)
        with nogil:
            computed = compute_tag(own_key, message, size, tag)
            wipe_memory(own_key, KEY_BYTES)
    if not computed:
        raise InvariantBroken("libcrypto does not compute HMAC-SHA256")
    return 0


def hmac_sha256(SecretBytes key not None, bytes data not None):
    """The HMAC-SHA256 of `data`, 32 bytes, under a key of 32 bytes.

    Raises InvariantBroken for a wiped key or one of another length.
    """
    cdef unsigned char tag[TAG_BYTES]
    tag_of(key, data, tag)
    return tag[:TAG_BYTES]


def sign_canonical(SecretBytes key not None, bytes canonical not None):
    """The HMAC-SHA256 of the canonical body as `X-Sync-Signature` carries it: 64 lowercase hex digits (protocol §5).

    Raises InvariantBroken for a wiped key or one that is not 32 bytes long.
    """
    cdef unsigned char tag[TAG_BYTES]
    cdef unsigned char text[2 * TAG_BYTES]
    tag_of(key, canonical, tag)
    write_hex(tag, TAG_BYTES, text)
    return text[:2 * TAG_BYTES].decode("ascii")


def check_mac(SecretBytes key not None, bytes canonical not None, str mac_hex):
    """Whether `mac_hex` (64 hex digits of either case, optional 0x; None when there is none) is the MAC of `canonical`.

    The time does not depend on how much of a well-formed MAC is right.
    Raises InvariantBroken for a wiped key or one that is not 32 bytes long.
    """
    cdef unsigned char tag[TAG_BYTES]
    cdef unsigned char claimed[TAG_BYTES]
    cdef const unsigned char* text
    cdef Py_ssize_t size
    if mac_hex is None:
        return MacVerdict.ABSENT
    if not mac_hex.isascii():
        return MacVerdict.WRONG
    text = <const unsigned char*>PyUnicode_AsUTF8AndSize(mac_hex, &size)
    if text == NULL:
        raise MemoryError
    skip_prefix(&text, &size)
    if size != 2 * TAG_BYTES or not read_hex(text, TAG_BYTES, claimed):
        return MacVerdict.WRONG
    tag_of(key, canonical, tag)
    return MacVerdict.VALID if CRYPTO_memcmp(tag, claimed, TAG_BYTES) == 0 else MacVerdict.WRONG


# --- hex -----------------------------------------------------------------------------------------------------------


cdef inline void skip_prefix(const unsigned char** text, Py_ssize_t* size) noexcept nogil:
    """Step over 0x in front of hex digits."""
    if size[0] >= 2 and text[0][0] == c'0' and text[0][1] == c'x':
        text[0] += 2
        size[0] -= 2


# In C for its attribute: gcc compiles the function twice, and processors with AVX2 take the version that halves the time:
# 28 µs for the hex of a 400 KB envelope, next to 285 for the MAC. It reads 2 * size characters and writes size bytes.
cdef extern from *:
    """
    #if defined(__x86_64__) && defined(__GLIBC__)
    #define VECTOR_VERSIONS __attribute__((target_clones("avx2", "default")))
    #else
    #define VECTOR_VERSIONS
    #endif

    VECTOR_VERSIONS
    static int read_hex_in_vectors(const unsigned char* text, size_t size, unsigned char* out)
    {
        unsigned char nibbles[4096]; /* they stay in the first-level cache */
        unsigned char wrong = 0;
        size_t start, count, i;
        for (start = 0; start < size && !wrong; start += count) {
            count = size - start < sizeof(nibbles) / 2 ? size - start : sizeof(nibbles) / 2;
            for (i = 0; i < 2 * count; i++) {
                unsigned char digit = (unsigned char)(text[2 * start + i] - '0');
                unsigned char letter = (unsigned char)((text[2 * start + i] | 0x20) - 'a');
                wrong |= (digit > 9) & (letter > 5);
                nibbles[i] = digit <= 9 ? digit : (unsigned char)(letter + 10);
            }
            for (i = 0; i < count; i++)
                out[start + i] = (unsigned char)((nibbles[2 * i] << 4) | nibbles[2 * i + 1]);
        }
        return !wrong;
    }
    """
    bint read_hex_in_vectors(const unsigned char* text, size_t size, unsigned char* out) noexcept nogil


cdef bint read_hex(const unsigned char* text, Py_ssize_t size, unsigned char* out) noexcept nogil:
    return read_hex_in_vectors(text, <size_t>size, out)


# Without overflow checks the compiler makes vectors of the loop: writing the hex of a 400 KB envelope takes 15 µs instead
# of 250. Proof that nothing overflows: a nibble is at most 15 and a character code at most 255, so every value fits the
# 32-bit int C computes it in before it is cut to a byte on purpose; twice `size` is the length of a buffer that exists,
# and bounds every index.
@cython.overflowcheck(False)
cdef void write_hex(const unsigned char* data, Py_ssize_t size, unsigned char* out) noexcept nogil:
    """Write the 2 * `size` lowercase hex digits of `data` to `out`."""
    cdef unsigned char high, low
    cdef Py_ssize_t i
    for i in range(size):
        high = data[i] >> 4
        low = data[i] & 15
        out[2 * i] = <unsigned char>(high + (c'0' if high <= 9 else c'a' - 10))
        out[2 * i + 1] = <unsigned char>(low + (c'0' if low <= 9 else c'a' - 10))


def parse_hex(text):
    """The bytes of a hex text of either case, with or without 0x (protocol, conventions).

    Raises `Rejected(MALFORMED)` for anything else, also for values that are not strings.
    """
    cdef const unsigned char* digits
    cdef unsigned char* out
    cdef Py_ssize_t size
    cdef bytes data
    if isinstance(text, str) and text.isascii():
        digits = <const unsigned char*>PyUnicode_AsUTF8AndSize(text, &size)
        if digits == NULL:
            raise MemoryError
        skip_prefix(&digits, &size)
        if size % 2 == 0:
            data = PyBytes_FromStringAndSize(NULL, size // 2)
            out = <unsigned char*>PyBytes_AS_STRING(data)
            if read_hex(digits, size // 2, out):
                return data
    raise Rejected(Reason.MALFORMED, "a member is not hex")


# --- envelopes -----------------------------------------------------------------------------------------------------

# The canonical envelope is OPENING data NONCE_LABEL nonce SENDER_LABEL sender CLOSING. These four constants are the
# only place where its bytes are written down; the decoder and the encoder below both use them.
cdef bytes OPENING = b'{"encrypted_data":"'
cdef bytes NONCE_LABEL = b'","nonce":"'
cdef bytes SENDER_LABEL = b'","sender_tee_pubkey":"'
cdef bytes CLOSING = b'"}'


cdef struct HexSpan:
    # `size` bytes are written as 2 * size characters at `text`.
    const unsigned char* text
    Py_ssize_t size


cdef inline Py_ssize_t distance(const unsigned char* start, const unsigned char* end) noexcept nogil:
    """end - start; written this way because Cython's overflow check does not compile for pointers."""
    return <Py_ssize_t>(<size_t>end - <size_t>start)


cdef inline bint hex_span(const unsigned char* start, const unsigned char* end, HexSpan* span) noexcept nogil:
    """Whether what lies between the two pointers, less a 0x, has an even length; its characters are not looked at."""
    cdef Py_ssize_t size = distance(start, end)
    skip_prefix(&start, &size)
    span.text = start
    span.size = size // 2
    return size % 2 == 0


cdef inline const unsigned char* quote_before(
    const unsigned char* start, const unsigned char* end, Py_ssize_t reach
) noexcept nogil:
    """The last quote before `end`, at most `reach` bytes back and not before `start`; NULL when there is none."""
    while end > start and reach > 0:
        end -= 1
        reach -= 1
        if end[0] == c'"':
            return end
    return NULL


cdef inline bint ends_with(const unsigned char* start, const unsigned char* end, bytes label):
    cdef Py_ssize_t size = len(label)
    return distance(start, end) >= size and memcmp(end - size, <const char*>label, <size_t>size) == 0


cdef struct EnvelopeSpans:
    HexSpan data
    HexSpan nonce
    HexSpan sender


cdef bint find_members(const unsigned char* body, Py_ssize_t size, EnvelopeSpans* spans):
    """Whether `body` is framed as a canonical envelope whose members have acceptable lengths.

    Works from the end, where everything is short, and never looks at the long first member: that the spans hold hex
    digits only, hence no quote, backslash or non-ASCII byte, is for read_hex to find out.
    """
    cdef const unsigned char* start = body + len(OPENING)
    cdef const unsigned char* end = body + size
    cdef const unsigned char* quote
    if size < len(OPENING) or not ends_with(body, start, OPENING) or not ends_with(start, end, CLOSING):
        return False
    end -= len(CLOSING)
    quote = quote_before(start, end, 2 * MAX_SENDER_BYTES + 3)
    if quote == NULL or not hex_span(quote + 1, end, &spans.sender):
        return False
    end = quote + 1
    if not ends_with(start, end, SENDER_LABEL):
        return False
    end -= len(SENDER_LABEL)
    quote = quote_before(start, end, 2 * NONCE_BYTES + 3)
    if quote == NULL or not hex_span(quote + 1, end, &spans.nonce):
        return False
    end = quote + 1
    if not ends_with(start, end, NONCE_LABEL):
        return False
    end -= len(NONCE_LABEL)
    return (
        hex_span(start, end, &spans.data)
        and spans.data.size >= GCM_TAG_BYTES
        and spans.nonce.size == NONCE_BYTES
        and 0 < spans.sender.size <= MAX_SENDER_BYTES
    )


cdef bytes decode_span(HexSpan span):
    """The bytes of a span, None when it does not hold hex digits only."""
    cdef bytes data = PyBytes_FromStringAndSize(NULL, span.size)
    cdef unsigned char* out = <unsigned char*>PyBytes_AS_STRING(data)
    cdef bint is_hex
    if span.size < RELEASE_GIL_BYTES:
        is_hex = read_hex(span.text, span.size, out)
    else:
        with nogil:
            is_hex = read_hex(span.text, span.size, out)
    return data if is_hex else None


def read_canonical_envelope(bytes body not None):
    """The sender key, nonce and ciphertext of `body` when it is byte for byte a canonical envelope, else None.

    Canonical means: exactly the three members in sorted order, no white space, hex of either case with or without 0x.
    The key has 1 to 256 bytes, the nonce 12, the ciphertext at least 16. One pass; the body is its own canonical form.
    """
    cdef EnvelopeSpans spans
    cdef bytes sender, nonce, ciphertext
    if not find_members(<const unsigned char*>body, len(body), &spans):
        return None
    sender = decode_span(spans.sender)
    nonce = decode_span(spans.nonce)
    if sender is None or nonce is None:
        return None
    ciphertext = decode_span(spans.data)
    if ciphertext is None:
        return None
    return sender, nonce, ciphertext


def canonical_frame(bytes sender not None, bytes nonce not None):
    """What stands in a canonical envelope before the hex of its ciphertext, and what behind it."""
    cdef Py_ssize_t size = (
        len(NONCE_LABEL) + len(SENDER_LABEL) + len(CLOSING) + 2 * (len(sender) + len(nonce))
    )
    cdef bytes behind = PyBytes_FromStringAndSize(NULL, size)
    cdef unsigned char* out = put_text(<unsigned char*>PyBytes_AS_STRING(behind), NONCE_LABEL)
    write_hex(nonce, len(nonce), out)
    out = put_text(out + 2 * len(nonce), SENDER_LABEL)
    write_hex(sender, len(sender), out)
    put_text(out + 2 * len(sender), CLOSING)
    return OPENING, behind


def write_canonical_envelope(bytes sender not None, bytes nonce not None, bytes ciphertext not None):
    """The canonical envelope of these members in lowercase hex, in one buffer. Lengths are the caller's to check."""
    cdef bytes before, behind, body
    cdef unsigned char* out
    cdef const unsigned char* data = ciphertext
    cdef Py_ssize_t data_size = len(ciphertext)
    before, behind = canonical_frame(sender, nonce)
    body = PyBytes_FromStringAndSize(NULL, len(before) + 2 * data_size + len(behind))
    out = put_text(<unsigned char*>PyBytes_AS_STRING(body), before)
    if data_size < RELEASE_GIL_BYTES:
        write_hex(data, data_size, out)
    else:
        with nogil:
            write_hex(data, data_size, out)
    put_text(out + 2 * data_size, behind)
    return body


cdef unsigned char* put_text(unsigned char* out, bytes text):
    memcpy(out, <const char*>text, <size_t>len(text))
    return out + len(text)
