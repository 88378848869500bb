"""The envelope's canonical form and its MAC against HMAC alone and against json with hmac: `make bench`."""

import hashlib
import hmac
import json

import pytest

from kmscore.envelope import encode_envelope, parse_envelope
from kmscore.mac import MacVerdict, check_mac, sign_canonical
from kmscore.secret import SecretBytes

KEY = b"\x02" * 32
SIZES = [64, 4 * 1024, 200 * 1024, 1024 * 1024]


@pytest.fixture(params=SIZES, ids=lambda size: f"{size} B")
def body(request):
    return encode_envelope(b"\x30" * 120, b"\x03" * 12, b"\x04" * request.param).canonical


@pytest.mark.benchmark(group="canonical form and MAC")
def test_parse_and_check(benchmark, body):
    key = SecretBytes(KEY)
    mac = sign_canonical(key, body)
    assert benchmark(lambda: check_mac(key, parse_envelope(body).canonical, mac)) is MacVerdict.VALID


@pytest.mark.benchmark(group="canonical form and MAC")
def test_hmac_alone(benchmark, body):
    benchmark(hmac.digest, KEY, body, hashlib.sha256)


@pytest.mark.benchmark(group="canonical form and MAC")
def test_json_and_hmac(benchmark, body):
    def check():
        envelope = json.loads(body)
        canonical = json.dumps(envelope, sort_keys=True, separators=(",", ":")).encode()
        bytes.fromhex(envelope["encrypted_data"])
        return hmac.digest(KEY, canonical, hashlib.sha256)

    benchmark(check)
