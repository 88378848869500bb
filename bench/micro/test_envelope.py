"""Envelopes sealed and opened, key agreement, the sealed master secret."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kmscore.envelope import LABELS, AgreementKey, open_envelope, parse_envelope, parse_tee_pubkey_der, seal
from kmscore.sealed import open_master_secret, seal_master_secret
from kmscore.secret import SecretBytes

APP = AgreementKey.from_scalar(2**200 + 7)
NODE = AgreementKey.from_scalar(2**201 + 9)
SHARED = APP.agree(NODE.public)
LABEL = LABELS[0]
NONCE = b"\x03" * 12
MASTER = SecretBytes(b"\x06" * 32)

# The same keys as `cryptography` holds them, for what is measured without kmscore.
RAW_APP = ec.derive_private_key(2**200 + 7, ec.SECP384R1())
RAW_NODE = ec.derive_private_key(2**201 + 9, ec.SECP384R1())
RAW_SHARED = SHARED.reveal()
SALT = b"".join(sorted((APP.public.sec1, NODE.public.sec1))) + NONCE

SEAL = pytest.mark.benchmark(group="envelope sealed to canonical bytes")
OPEN = pytest.mark.benchmark(group="envelope opened from canonical bytes")
AGREE = pytest.mark.benchmark(group="P-384 key agreement")
POINT = pytest.mark.benchmark(group="P-384 public key out of DER")
SEAL_MASTER = pytest.mark.benchmark(group="master secret sealed")
OPEN_MASTER = pytest.mark.benchmark(group="master secret opened")
EACH_SIZE = pytest.mark.parametrize(
    "plaintext_bytes",
    [64, 1024, *(pytest.param(size, marks=pytest.mark.full) for size in (65_536, 1 << 20))],
)


def raw_key() -> bytes:
    return HKDF(SHA256(), 32, SALT, LABEL.encode()).derive(RAW_SHARED)


@SEAL
@EACH_SIZE
def test_seal(ours, plaintext_bytes):
    data = bytes(plaintext_bytes)
    ours("kmscore", lambda: seal(SHARED, APP.public, NODE.public, LABEL, NONCE, data).canonical)


@SEAL
@EACH_SIZE
def test_hkdf_and_encrypt(floor, plaintext_bytes):
    data = bytes(plaintext_bytes)
    floor("HKDF and AES-GCM alone", lambda: AESGCM(raw_key()).encrypt(NONCE, data, None))


@SEAL
@EACH_SIZE
def test_seal_with_json(rival, plaintext_bytes):
    data = bytes(plaintext_bytes)
    sender = APP.public.der

    def sealed():
        members = {
            "sender_tee_pubkey": sender.hex(),
            "nonce": NONCE.hex(),
            "encrypted_data": AESGCM(raw_key()).encrypt(NONCE, data, None).hex(),
        }
        return json.dumps(members, sort_keys=True, separators=(",", ":")).encode()

    assert rival("cryptography and json", sealed) == seal(SHARED, APP.public, NODE.public, LABEL, NONCE, data).canonical


@OPEN
@EACH_SIZE
def test_open(ours, plaintext_bytes):
    body = seal(SHARED, APP.public, NODE.public, LABEL, NONCE, bytes(plaintext_bytes)).canonical
    opened, _ = ours("kmscore", lambda: open_envelope(SHARED, NODE.public, APP.public, LABELS, parse_envelope(body)))
    assert opened == bytes(plaintext_bytes)


@OPEN
@EACH_SIZE
def test_hkdf_and_decrypt(floor, plaintext_bytes):
    ciphertext = seal(SHARED, APP.public, NODE.public, LABEL, NONCE, bytes(plaintext_bytes)).ciphertext
    floor("HKDF and AES-GCM alone", lambda: AESGCM(raw_key()).decrypt(NONCE, ciphertext, None))


@OPEN
@EACH_SIZE
def test_open_with_json(rival, plaintext_bytes):
    body = seal(SHARED, APP.public, NODE.public, LABEL, NONCE, bytes(plaintext_bytes)).canonical

    def opened():
        members = json.loads(body)
        sender, nonce, data = (
            bytes.fromhex(members[name]) for name in ("sender_tee_pubkey", "nonce", "encrypted_data")
        )
        return sender, AESGCM(raw_key()).decrypt(nonce, data, None)

    assert rival("cryptography and json", opened) == (APP.public.der, bytes(plaintext_bytes))


@AGREE
def test_agree(ours):
    ours("kmscore", APP.agree, NODE.public)


@AGREE
def test_exchange(floor):
    assert floor("ECDH of cryptography", RAW_APP.exchange, ec.ECDH(), RAW_NODE.public_key()) == RAW_SHARED


@POINT
def test_parse_tee_pubkey(ours):
    ours("kmscore", parse_tee_pubkey_der, NODE.public.der)


@POINT
def test_from_encoded_point(floor):
    curve, point = ec.SECP384R1(), NODE.public.sec1
    floor("from_encoded_point of cryptography", ec.EllipticCurvePublicKey.from_encoded_point, curve, point)


def raw_master_cipher(private: ec.EllipticCurvePrivateKey, peer_point: bytes) -> AESGCM:
    peer = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), peer_point)
    shared = private.exchange(ec.ECDH(), peer)
    return AESGCM(HKDF(SHA256(), 32, b"nova-kms:sealed-master-secret", b"aes-gcm-key").derive(shared))


@SEAL_MASTER
def test_seal_master_secret(ours):
    ours("kmscore", seal_master_secret, MASTER, NODE.public.der, APP, NONCE)


@SEAL_MASTER
def test_ecdh_hkdf_and_encrypt(floor):
    point, secret = NODE.public.sec1, MASTER.reveal()
    floor("point, ECDH, HKDF, AES-GCM", lambda: raw_master_cipher(RAW_APP, point).encrypt(NONCE, secret, None))


@OPEN_MASTER
def test_open_master_secret(ours):
    sealed = seal_master_secret(MASTER, NODE.public.der, APP, NONCE)
    assert ours("kmscore", open_master_secret, sealed, NODE).matches(MASTER)


@OPEN_MASTER
def test_ecdh_hkdf_and_decrypt(floor):
    encrypted = bytes.fromhex(seal_master_secret(MASTER, NODE.public.der, APP, NONCE)["encrypted_data"])
    point = APP.public.sec1
    floor("point, ECDH, HKDF, AES-GCM", lambda: raw_master_cipher(RAW_NODE, point).decrypt(NONCE, encrypted, None))
