"""HKDF and AES-GCM over libcrypto against published vectors, the twin, and `cryptography`."""

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from kmscore import _aead as ours
from kmscore.errors import InvariantBroken
from kmscore.secret import SecretBytes
from tests.reference import kdf as twin

relaxed = settings(deadline=None)

# RFC 5869, appendix A.1 to A.3: secret, salt, info, output.
RFC_5869 = {
    "A.1": (
        "0b" * 22,
        "000102030405060708090a0b0c",
        "f0f1f2f3f4f5f6f7f8f9",
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    "A.2": (
        bytes(range(0x50)).hex(),
        bytes(range(0x60, 0xB0)).hex(),
        bytes(range(0xB0, 0x100)).hex(),
        (
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
            "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87"
        ),
    ),
    "A.3": (
        "0b" * 22,
        "",
        "",
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
    ),
}


@pytest.mark.parametrize("row", RFC_5869.values(), ids=RFC_5869)
def test_the_vectors_of_the_rfc_are_met(row):
    secret, salt, info, output = (bytes.fromhex(part) for part in row)
    assert ours.hkdf_sha256(SecretBytes(secret), salt, info, len(output)) == output
    assert twin.hkdf_sha256(secret, salt, info, len(output)) == output


@relaxed
@given(st.binary(max_size=80), st.binary(max_size=300), st.binary(max_size=300), st.integers(1, 8160))
def test_ours_and_the_twin_derive_the_same(secret, salt, info, size):
    assert ours.hkdf_sha256(SecretBytes(secret), salt, info, size) == twin.hkdf_sha256(secret, salt, info, size)


@pytest.mark.parametrize("size", [-1, 0, 8161])
def test_a_size_that_hkdf_does_not_give_is_a_bug(size):
    with pytest.raises(InvariantBroken):
        ours.hkdf_sha256(SecretBytes(b"secret"), b"", b"", size)


def test_a_wiped_secret_derives_nothing():
    secret = SecretBytes(bytes(32))
    secret.wipe()
    with pytest.raises(InvariantBroken):
        ours.hkdf_sha256(secret, b"", b"", 32)


@relaxed
@given(st.binary(min_size=32, max_size=32), st.binary(min_size=12, max_size=12), st.binary(max_size=300))
def test_what_is_sealed_is_what_another_library_seals(key, nonce, plaintext):
    sealed = ours.seal_gcm(key, nonce, plaintext)
    assert sealed == AESGCM(key).encrypt(nonce, plaintext, None)
    assert ours.open_gcm(key, nonce, sealed) == plaintext


@pytest.mark.parametrize("size", [16_383, 16_384, 1_000_000])
def test_large_texts_are_sealed_and_opened_alike(size):
    key, nonce, plaintext = bytes(range(32)), bytes(12), bytes(size)
    sealed = ours.seal_gcm(key, nonce, plaintext)
    assert sealed == AESGCM(key).encrypt(nonce, plaintext, None)
    assert ours.open_gcm(key, nonce, sealed) == plaintext
    assert ours.open_gcm(key, nonce, sealed[:-1] + bytes([sealed[-1] ^ 1])) is None


@relaxed
@given(st.binary(max_size=100), st.data())
def test_any_flipped_bit_and_any_shorter_text_does_not_open(plaintext, data):
    key, nonce = bytes(32), bytes(12)
    sealed = ours.seal_gcm(key, nonce, plaintext)
    damaged = bytearray(sealed)
    damaged[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert ours.open_gcm(key, nonce, bytes(damaged)) is None
    assert ours.open_gcm(key, nonce, sealed[: data.draw(st.integers(0, len(sealed) - 1))]) is None


@pytest.mark.parametrize(("key_size", "nonce_size"), [(31, 12), (33, 12), (16, 12), (0, 12), (32, 11), (32, 16)])
def test_keys_and_nonces_of_other_lengths_are_bugs(key_size, nonce_size):
    for use in (ours.seal_gcm, ours.open_gcm):
        with pytest.raises(InvariantBroken):
            use(bytes(key_size), bytes(nonce_size), bytes(40))
