"""Key derivation, values at rest, and proof-of-possession nonces."""

import base64
import hmac

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kmscore.kdf import DataCipher, derive_app_key
from kmscore.nonce import NonceIssuer
from kmscore.secret import SecretBytes
from tests.reference import kdf as reference

MASTER = b"\x06" * 32
SECRET = SecretBytes(MASTER)
NONCE = b"\x03" * 12
RANDOM = b"\x09" * 16
ISSUER = NonceIssuer(SECRET, 120_000)
NOW_MS = 1_000

DERIVE = pytest.mark.benchmark(group="key derivation")
SEAL = pytest.mark.benchmark(group="value encrypted at rest")
OPEN = pytest.mark.benchmark(group="value decrypted at rest")
ISSUE = pytest.mark.benchmark(group="PoP nonce issued")
CHECK = pytest.mark.benchmark(group="PoP nonce checked")
EACH_SIZE = pytest.mark.parametrize("plaintext_bytes", [64, 1024, pytest.param(1 << 20, marks=pytest.mark.full)])
EACH_LENGTH = pytest.mark.parametrize("output_bytes", [32, 1024])


@DERIVE
@EACH_LENGTH
def test_derive(ours, output_bytes):
    key = ours("kmscore", derive_app_key, SECRET, 49, "disk", "volume-1", output_bytes)
    assert key == reference.derive_app_key(SECRET, 49, "disk", "volume-1", output_bytes)


@DERIVE
@EACH_LENGTH
def test_hkdf(floor, output_bytes):
    floor(
        "HKDF of cryptography",
        lambda: HKDF(SHA256(), output_bytes, b"nova-kms:app:49", b"disk:volume-1").derive(MASTER),
    )


@DERIVE
@EACH_LENGTH
def test_hkdf_of_hmac(rival, output_bytes):
    def derive():
        extracted = hmac.digest(b"nova-kms:app:%d" % 49, MASTER, "sha256")
        block, key = b"", b""
        for counter in range(1, -(-output_bytes // 32) + 1):
            block = hmac.digest(extracted, b"%bdisk:volume-1%c" % (block, counter), "sha256")
            key += block
        return key[:output_bytes]

    assert rival("HKDF of hmac", derive) == derive_app_key(SECRET, 49, "disk", "volume-1", output_bytes)


@DERIVE
@EACH_LENGTH
def test_hkdf_with_checks(rival, output_bytes):
    def derive(app_id: int, path: str, context: str) -> bytes:
        if not 0 <= app_id < 1 << 256 or not path or not 1 <= output_bytes <= 1024:
            raise ValueError("out of bounds")
        salt, info = f"nova-kms:app:{app_id}".encode("ascii"), f"{path}:{context}".encode()
        return HKDF(SHA256(), output_bytes, salt, info).derive(MASTER)

    key = rival("cryptography with checks in Python", derive, 49, "disk", "volume-1")
    assert key == derive_app_key(SECRET, 49, "disk", "volume-1", output_bytes)


@SEAL
@EACH_SIZE
def test_seal(ours, plaintext_bytes):
    data = bytes(plaintext_bytes)
    ours("kmscore", DataCipher(SECRET).seal, data, NONCE)


@SEAL
@EACH_SIZE
def test_encrypt(floor, plaintext_bytes):
    data = bytes(plaintext_bytes)
    floor("AES-GCM of cryptography", AESGCM(MASTER).encrypt, NONCE, data, None)


@SEAL
@EACH_SIZE
def test_encrypt_and_join(rival, plaintext_bytes):
    data, aead = bytes(plaintext_bytes), AESGCM(MASTER)
    sealed = rival("cryptography, nonce in front", lambda: NONCE + aead.encrypt(NONCE, data, None))
    assert sealed == DataCipher(SECRET).seal(data, NONCE)


@OPEN
@EACH_SIZE
def test_open(ours, plaintext_bytes):
    cipher = DataCipher(SECRET)
    assert ours("kmscore", cipher.open, cipher.seal(bytes(plaintext_bytes), NONCE)) == bytes(plaintext_bytes)


@OPEN
@EACH_SIZE
def test_decrypt(floor, plaintext_bytes):
    aead = AESGCM(MASTER)
    floor("AES-GCM of cryptography", aead.decrypt, NONCE, aead.encrypt(NONCE, bytes(plaintext_bytes), None), None)


@OPEN
@EACH_SIZE
def test_cut_and_decrypt(rival, plaintext_bytes):
    sealed, aead = DataCipher(SECRET).seal(bytes(plaintext_bytes), NONCE), AESGCM(MASTER)
    opened = rival("cryptography, nonce in front", lambda: aead.decrypt(sealed[:12], sealed[12:], None))
    assert opened == bytes(plaintext_bytes)


@ISSUE
def test_issue(ours):
    ours("kmscore", ISSUER.issue, NOW_MS, RANDOM)


@CHECK
def test_check(ours):
    assert ours("kmscore", ISSUER.check, ISSUER.issue(NOW_MS, RANDOM), NOW_MS) == NOW_MS + 120_000


@ISSUE
def test_hmac_of_issue(floor):
    floor("one HMAC-SHA256", hmac.digest, MASTER, bytes(46), "sha256")


@CHECK
def test_hmac_of_check(floor):
    floor("one HMAC-SHA256", hmac.digest, MASTER, bytes(46), "sha256")


def tag_of(signed: bytes) -> bytes:
    return hmac.digest(MASTER, b"nova-kms:pop-nonce:v1:" + signed, "sha256")[:24]


@ISSUE
def test_issue_in_python(rival):
    def issue(now_ms: int) -> str:
        signed = now_ms.to_bytes(8, "big") + RANDOM
        return base64.b64encode(signed + tag_of(signed)).decode("ascii")

    assert rival("hmac and base64", issue, NOW_MS) == ISSUER.issue(NOW_MS, RANDOM)


@CHECK
def test_check_in_python(rival):
    def check(text: str, now_ms: int) -> int:
        token = base64.b64decode(text, validate=True)
        if base64.b64encode(token).decode("ascii") != text or not hmac.compare_digest(tag_of(token[:24]), token[24:]):
            raise ValueError("not our nonce")
        issued_ms = int.from_bytes(token[:8], "big")
        if not issued_ms <= now_ms < issued_ms + 120_000:
            raise ValueError("expired")
        return issued_ms + 120_000

    assert rival("hmac and base64", check, ISSUER.issue(NOW_MS, RANDOM), NOW_MS) == NOW_MS + 120_000
