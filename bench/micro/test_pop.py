"""Proof of possession: checked from the headers on, wallet signatures made."""

import base64
import hashlib
import hmac

import cffi
import pytest
from coincurve import PrivateKey, PublicKey
from coincurve._libsecp256k1 import ffi as coincurve_ffi
from coincurve._libsecp256k1 import lib as coincurve_lib
from coincurve.context import GLOBAL_CONTEXT
from Crypto.Hash import keccak
from eth_account import Account
from eth_account.messages import encode_defunct

from kmscore.nonce import NonceIssuer, UsedNonces
from kmscore.pop import PopKind, WalletKey, eip191_digest, pop_text, recover_pop
from kmscore.proof import PopVerifier, parse_pop_headers
from kmscore.secret import SecretBytes
from tests.reference import pop as reference

KEY = b"\x01" * 32
MAX_AGE_MS = 120_000
NONCE_KEY = b"\x02" * 32
NONCE = NonceIssuer(SecretBytes(NONCE_KEY), MAX_AGE_MS).issue(0, bytes(16))
RECEIVER = "0x5050a4f4b3f9338c3472dcc01a87c76a144b3c9c"
TIMESTAMP = 1_700_000_000
WALLET = WalletKey(SecretBytes(KEY))
TEXT = pop_text(PopKind.APP, NONCE, RECEIVER, TIMESTAMP)
DIGEST = eip191_digest(TEXT)
SIGNATURE = WALLET.sign_message(TEXT)
RAW_SIGNATURE = bytes.fromhex(SIGNATURE[2:])
# As an app's client sends them, among what every request carries.
HEADERS = [
    (b"host", b"127.0.0.1:8443"),
    (b"accept", b"*/*"),
    (b"content-type", b"application/json"),
    (b"content-length", b"611"),
    (b"x-app-signature", SIGNATURE.encode()),
    (b"x-app-nonce", NONCE.encode()),
    (b"x-app-timestamp", str(TIMESTAMP).encode()),
    (b"x-app-wallet", WALLET.address.encode()),
]


class StoppedClock:
    """The moment at which the proof was made."""

    def now_ms(self) -> int:
        return TIMESTAMP * 1000

    def monotonic_ms(self) -> int:
        return 0


VERIFIER = PopVerifier(
    wallet=RECEIVER,
    issuer=NonceIssuer(SecretBytes(NONCE_KEY), MAX_AGE_MS),
    used=UsedNonces(),
    clock=StoppedClock(),
    random_bytes=bytes,
    max_age_s=MAX_AGE_MS / 1000,
)

RECOVER = pytest.mark.benchmark(group="signer of a proof")
CHECK = pytest.mark.benchmark(group="PoP check, headers to wallet")
SIGN = pytest.mark.benchmark(group="signature of a text")

LINKED_DECLARATIONS = """
    extern const void *secp256k1_context_static;
    void *secp256k1_context_create(unsigned int flags);
    int secp256k1_ecdsa_recoverable_signature_parse_compact(const void *, void *, const char *, int);
    int secp256k1_ecdsa_recover(const void *, void *, const void *, const char *);
    int secp256k1_ecdsa_sign_recoverable(const void *, void *, const char *, const char *, void *, void *);
"""
CONTEXT_NONE = 1


@pytest.fixture(scope="session")
def linked():
    """The libsecp256k1 that kmscore links, by cffi."""
    ffi = cffi.FFI()
    ffi.cdef(LINKED_DECLARATIONS)
    return ffi, ffi.dlopen("libsecp256k1.so.1")


@CHECK
def test_verify(ours):
    pop = ours("kmscore", lambda: VERIFIER.verify(PopKind.APP, parse_pop_headers(PopKind.APP, HEADERS)))
    assert pop.wallet == WALLET.address


@RECOVER
def test_recover_pop(ours):
    wallet = ours("kmscore", recover_pop, PopKind.APP, NONCE, RECEIVER, TIMESTAMP, SIGNATURE)
    assert wallet == WALLET.address


@CHECK
def test_recover_of_the_linked_library(floor, linked):
    ffi, library = linked
    context = library.secp256k1_context_static
    signature, public, digest = ffi.new("char[65]"), ffi.new("char[64]"), ffi.new("char[]", DIGEST)
    parsed = library.secp256k1_ecdsa_recoverable_signature_parse_compact(
        context, signature, RAW_SIGNATURE[:64], RAW_SIGNATURE[64]
    )
    assert parsed == 1
    assert floor("libsecp256k1 as linked", library.secp256k1_ecdsa_recover, context, public, signature, digest) == 1


@CHECK
def test_recover_of_the_library_in_coincurve(floor):
    context = GLOBAL_CONTEXT.ctx
    signature = coincurve_ffi.new("secp256k1_ecdsa_recoverable_signature *")
    public = coincurve_ffi.new("secp256k1_pubkey *")
    digest = coincurve_ffi.new("unsigned char[32]", DIGEST)
    parsed = coincurve_lib.secp256k1_ecdsa_recoverable_signature_parse_compact(
        context, signature, RAW_SIGNATURE[:64], RAW_SIGNATURE[64]
    )
    assert parsed == 1
    recover = coincurve_lib.secp256k1_ecdsa_recover
    assert floor("libsecp256k1 in coincurve", recover, context, public, signature, digest) == 1


def eth_account_signer(nonce: str, timestamp: str, signature: str) -> str:
    text = f"NovaKMS:AppAuth:{nonce}:{RECEIVER}:{timestamp}"
    return Account.recover_message(encode_defunct(text=text), signature=signature).lower()


@CHECK
def test_verify_with_eth_account(rival):
    def verify():
        sent = {name.decode(): value.decode() for name, value in HEADERS}
        nonce, timestamp = sent["x-app-nonce"], sent["x-app-timestamp"]
        token = base64.b64decode(nonce)
        tag = hmac.digest(NONCE_KEY, b"nova-kms:pop-nonce:v1:" + token[:24], hashlib.sha256)[:24]
        assert hmac.compare_digest(tag, token[24:])
        assert int.from_bytes(token[:8]) < MAX_AGE_MS
        assert abs(TIMESTAMP - int(timestamp)) < MAX_AGE_MS
        wallet = eth_account_signer(nonce, timestamp, sent["x-app-signature"])
        assert wallet == sent["x-app-wallet"]
        return wallet

    assert rival("eth_account with coincurve", verify) == WALLET.address


@RECOVER
def test_recover_with_eth_account(rival):
    assert rival("eth_account with coincurve", eth_account_signer, NONCE, str(TIMESTAMP), SIGNATURE) == WALLET.address


@RECOVER
def test_recover_by_hand(rival):
    def recover():
        text = f"NovaKMS:AppAuth:{NONCE}:{RECEIVER}:{TIMESTAMP}".encode()
        digest = _keccak(b"\x19Ethereum Signed Message:\n%d%b" % (len(text), text))
        public = PublicKey.from_signature_and_message(bytes.fromhex(SIGNATURE[2:]), digest, hasher=None)
        return "0x" + _keccak(public.format(compressed=False)[1:])[12:].hex()

    assert rival("coincurve and pycryptodome by hand", recover) == WALLET.address


@RECOVER
@pytest.mark.full
def test_recover_pop_of_the_twin(twin):
    wallet = twin("Python twin", reference.recover_pop, PopKind.APP, NONCE, RECEIVER, TIMESTAMP, SIGNATURE)
    assert wallet == WALLET.address


@SIGN
def test_sign_message(ours):
    assert ours("kmscore", WALLET.sign_message, TEXT) == SIGNATURE


@SIGN
def test_sign_of_the_linked_library(floor, linked):
    ffi, library = linked
    context = library.secp256k1_context_create(CONTEXT_NONE)
    signature, key, digest = ffi.new("char[65]"), ffi.new("char[]", KEY), ffi.new("char[]", DIGEST)
    sign = library.secp256k1_ecdsa_sign_recoverable
    assert floor("libsecp256k1 as linked", sign, context, signature, digest, key, ffi.NULL, ffi.NULL) == 1


@SIGN
def test_sign_with_eth_account(rival):
    account = Account.from_key(KEY)

    def sign():
        return account.sign_message(encode_defunct(TEXT)).signature

    assert bytes(rival("eth_account with coincurve", sign))[:64] == RAW_SIGNATURE[:64]


@SIGN
def test_sign_by_hand(rival):
    key = PrivateKey(KEY)

    def sign():
        digest = _keccak(b"\x19Ethereum Signed Message:\n%d%b" % (len(TEXT), TEXT))
        return "0x" + key.sign_recoverable(digest, hasher=None).hex()

    assert rival("coincurve and pycryptodome by hand", sign) == SIGNATURE


def _keccak(data: bytes) -> bytes:
    return keccak.new(digest_bits=256, data=data).digest()
