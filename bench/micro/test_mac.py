"""The envelope's canonical form and its MAC, both ways, from 64 bytes to a mebibyte of ciphertext."""

import hashlib
import hmac
import json

import pytest

from kmscore.envelope import encode_envelope, parse_envelope
from kmscore.mac import MacVerdict, check_mac, sign_canonical
from kmscore.secret import SecretBytes
from tests.reference import envelope as reference_envelope
from tests.reference import mac as reference_mac

KEY = b"\x02" * 32
SECRET = SecretBytes(KEY)
SENDER = b"\x30" * 120
NONCE = b"\x03" * 12

READ = pytest.mark.benchmark(group="canonical form and HMAC, read")
WRITE = pytest.mark.benchmark(group="canonical form and HMAC, written")
# 199,850 bytes of ciphertext make an envelope of 400,000.
EACH_SIZE = pytest.mark.parametrize(
    "ciphertext_bytes",
    [64, 256, 1024, *(pytest.param(size, marks=pytest.mark.full) for size in (4096, 32_768, 1 << 20)), 199_850],
)
SMALL = pytest.mark.parametrize("ciphertext_bytes", [64])


def envelope(size: int):
    return encode_envelope(SENDER, NONCE, b"\x04" * size)


@READ
@EACH_SIZE
def test_parse_and_check(ours, ciphertext_bytes):
    body = envelope(ciphertext_bytes).canonical
    mac = sign_canonical(SECRET, body)
    assert ours("kmscore", lambda: check_mac(SECRET, parse_envelope(body).canonical, mac)) is MacVerdict.VALID


@READ
@EACH_SIZE
def test_hmac_of_what_is_read(floor, ciphertext_bytes):
    floor("HMAC-SHA256 of the same bytes", hmac.digest, KEY, envelope(ciphertext_bytes).canonical, "sha256")


@READ
@EACH_SIZE
def test_json_and_hmac(rival, ciphertext_bytes):
    body = envelope(ciphertext_bytes).canonical
    mac = sign_canonical(SECRET, body)

    def check():
        members = json.loads(body)
        opened = [bytes.fromhex(members[name]) for name in ("sender_tee_pubkey", "nonce", "encrypted_data")]
        canonical = json.dumps(members, sort_keys=True, separators=(",", ":")).encode()
        return hmac.compare_digest(hmac.digest(KEY, canonical, "sha256"), bytes.fromhex(mac)), opened

    right, _ = rival("json and hmac", check)
    assert right


@READ
@EACH_SIZE
def test_split_and_hmac(rival, ciphertext_bytes):
    """No JSON parser at all: a canonical body is cut at its quotes and put together again."""
    body = envelope(ciphertext_bytes).canonical
    mac = sign_canonical(SECRET, body)

    def check():
        parts = body.decode("ascii").split('"')
        data, nonce, sender = parts[3], parts[7], parts[11]
        members = [bytes.fromhex(text) for text in (data, nonce, sender)]
        canonical = f'{{"encrypted_data":"{data}","nonce":"{nonce}","sender_tee_pubkey":"{sender}"}}'.encode()
        return hmac.compare_digest(hmac.digest(KEY, canonical, "sha256"), bytes.fromhex(mac)), members

    right, _ = rival("split and hmac", check)
    assert right


@READ
@SMALL
def test_parse_and_check_in_the_twin(twin, ciphertext_bytes):
    body = envelope(ciphertext_bytes).canonical
    mac = sign_canonical(SECRET, body)
    twin(
        "Python twin",
        lambda: reference_mac.check_mac(SECRET, reference_envelope.parse_envelope(body).canonical, mac),
    )


@WRITE
@EACH_SIZE
def test_encode_and_sign(ours, ciphertext_bytes):
    data = b"\x04" * ciphertext_bytes
    mac = ours("kmscore", lambda: sign_canonical(SECRET, encode_envelope(SENDER, NONCE, data).canonical))
    assert mac == hmac.digest(KEY, envelope(ciphertext_bytes).canonical, hashlib.sha256).hex()


@WRITE
@EACH_SIZE
def test_hmac_of_what_is_written(floor, ciphertext_bytes):
    floor("HMAC-SHA256 of the same bytes", hmac.digest, KEY, envelope(ciphertext_bytes).canonical, "sha256")


@WRITE
@EACH_SIZE
def test_dumps_and_hmac(rival, ciphertext_bytes):
    data = b"\x04" * ciphertext_bytes

    def sign():
        members = {"sender_tee_pubkey": SENDER.hex(), "nonce": NONCE.hex(), "encrypted_data": data.hex()}
        canonical = json.dumps(members, sort_keys=True, separators=(",", ":")).encode()
        return hmac.digest(KEY, canonical, "sha256").hex()

    assert rival("json and hmac", sign) == sign_canonical(SECRET, envelope(ciphertext_bytes).canonical)


@WRITE
@EACH_SIZE
def test_format_and_hmac(rival, ciphertext_bytes):
    data = b"\x04" * ciphertext_bytes

    def sign():
        canonical = (
            f'{{"encrypted_data":"{data.hex()}","nonce":"{NONCE.hex()}","sender_tee_pubkey":"{SENDER.hex()}"}}'
        ).encode()
        return hmac.digest(KEY, canonical, "sha256").hex()

    assert rival("format and hmac", sign) == sign_canonical(SECRET, envelope(ciphertext_bytes).canonical)
