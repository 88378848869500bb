"""What people hand to the verifier beside a document: measurements, nonces, and the pinned root; and statements."""

import hashlib
import json
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from appliance.tee.attestation.measurements import MAX_MEASUREMENTS_BYTES, Measurements
from appliance.tee.attestation.nonce import parse_nonce_text
from appliance.tee.attestation.root import AWS_ROOT_SHA256, aws_root
from appliance.tee.attestation.statement import encode_statement, parse_statement, require_own
from appliance.tee.port import TeeIdentity
from enclave_image import measure as image
from kmscore.envelope import AgreementKey
from kmscore.errors import InvariantBroken, Reason, Rejected
from tests.support.attestation import CONFIG_DIGEST, NONCE, TEE_PUBKEY, WALLET, document

REGISTERS = {f"PCR{index}": bytes([index + 1] * 48).hex() for index in (0, 1, 2)}


def measurements(**changes: Any) -> bytes:
    return json.dumps({name: value for name, value in {**REGISTERS, **changes}.items() if value is not None}).encode()


ACCEPTED = {
    "three registers": {},
    "what the image build writes beside them": {"code_measurement": "0xab", "sources": {"a": "b"}, "sources_locked": 1},
    "a signed image": {"PCR8": "08" * 48},
    "a bound configuration": {"PCR16": "10" * 48},
    "upper case and a prefix": {"PCR0": "0x" + "AB" * 48},
}


@pytest.mark.parametrize("changes", ACCEPTED.values(), ids=ACCEPTED)
def test_measurements_are_read(changes: dict[str, Any]) -> None:
    parsed = Measurements.parse(measurements(**changes))

    expected = {**REGISTERS, **{name: text for name, text in changes.items() if name.startswith("PCR")}}
    assert parsed.pcrs == {int(name[3:]): bytes.fromhex(text.removeprefix("0x")) for name, text in expected.items()}


def test_the_code_measurement_is_that_of_the_image_builder() -> None:
    parsed = Measurements.parse(measurements(PCR16="10" * 48))

    assert parsed.code_measurement == image.Measurements(*(parsed.pcrs[index] for index in (0, 1, 2))).code_measurement


REFUSED = {
    **{f"no PCR{index}": measurements(**{f"PCR{index}": None}) for index in (0, 1, 2)},
    **{f"PCR{index} zero": measurements(**{f"PCR{index}": "00" * 48}) for index in (0, 1, 2)},
    "a prefix": measurements(PCR0="01" * 47),
    "too much": measurements(PCR0="01" * 49),
    "base64": measurements(PCR0="AQEB" * 16),
    "a number": measurements(PCR0=1),
    "bytes as numbers": measurements(PCR0=[1] * 48),
    "null": measurements(PCR8=None)[:-1] + b',"PCR8":null}',
    "a register that does not exist": measurements(PCR32="01" * 48),
    "a register with a zero in front": measurements(PCR08="01" * 48),
    "a register in lower case": measurements(pcr8="01" * 48),
    "a register without a number": measurements(PCR="01" * 48),
    "a register of another script": measurements(PCR٣="01" * 48),
    "a register twice": measurements()[:-1] + b',"PCR0":"' + b"01" * 48 + b'"}',
    "an underscore": measurements(PCR0="0_" + "01" * 47),
    "no object": b"[]",
    "no JSON": b"PCR0=01",
    "nothing": b"",
    "without end": b" " * MAX_MEASUREMENTS_BYTES + measurements(),
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_measurements_that_could_match_by_accident_are_refused(data: bytes) -> None:
    with pytest.raises(Rejected):
        Measurements.parse(data)


@pytest.mark.parametrize("pcrs", [{}, {0: b"x", 1: b"x", 2: b"x"}, {index: bytes(48) for index in (0, 1, 2)}])
def test_measurements_cannot_be_made_of_something_else(pcrs: dict[int, bytes]) -> None:
    with pytest.raises(Rejected) as refusal:
        Measurements(pcrs)
    assert refusal.value.reason is Reason.BAD_FIELD


NONCES = {
    "hex": ("00ff", b"\0\xff"),
    "hex in upper case": ("00FF", b"\0\xff"),
    "hex with a prefix": ("0x00ff", b"\0\xff"),
    "base64": ("AP8=", b"\0\xff"),
    "base64 with every letter": ("+/+/", b"\xfb\xff\xbf"),
    "what is both": ("abcd", b"\xab\xcd"),
    "as long as allowed": ("ab" * 64, b"\xab" * 64),
    "as long as allowed with a prefix": ("0x" + "ab" * 64, b"\xab" * 64),
    "as long as allowed in base64": ("/" * 85 + "w==", b"\xff" * 64),
}


@pytest.mark.parametrize(("text", "nonce"), NONCES.values(), ids=NONCES)
def test_nonces_are_read_in_hex_and_base64(text: str, nonce: bytes) -> None:
    assert parse_nonce_text(text, 64) == nonce


NO_NONCES = [
    "", "0x", "0", "abc", "0xabc", "zz", "a b", " 00", "00 ", "00\n", "AP8", "AP8==", "AP8=AP8=", "AP-_", "é", "００",
    "ab" * 65, "0x" + "ab" * 65, "/" * 86 + "w==", "A" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("text", NO_NONCES)
def test_what_is_no_nonce_is_refused(text: str) -> None:
    with pytest.raises(Rejected) as refusal:
        parse_nonce_text(text, 64)
    assert refusal.value.reason is Reason.BAD_FIELD


@given(st.text(max_size=140))
def test_any_text_is_a_nonce_or_refused(text: str) -> None:
    try:
        assert 1 <= len(parse_nonce_text(text, 64)) <= 64
    except Rejected:
        return


def test_the_pinned_root_is_the_published_one() -> None:
    der = aws_root()
    root = x509.load_der_x509_certificate(der)

    assert hashlib.sha256(der).hexdigest() == AWS_ROOT_SHA256
    assert len(der) == 533
    assert f"{root.serial_number:x}" == "f93175681b90afe11d46ccb4e4e7f856"
    assert root.not_valid_before_utc.isoformat() == "2019-10-28T13:28:05+00:00"
    assert root.not_valid_after_utc.isoformat() == "2049-10-28T14:28:05+00:00"


# --- statements ---


def test_a_statement_is_compact_json_within_every_stated_limit() -> None:
    encoded = encode_statement(WALLET, CONFIG_DIGEST)

    assert encoded == b'{"eth_addr":"%b","config":"%b"}' % (WALLET.encode(), CONFIG_DIGEST.hex().encode())
    assert len(encoded) <= 512


def test_a_statement_without_a_configuration_says_nothing_of_one() -> None:
    assert encode_statement(WALLET, None) == b'{"eth_addr":"%b"}' % WALLET.encode()


def test_a_statement_too_large_for_a_document_is_a_bug() -> None:
    with pytest.raises(InvariantBroken):
        encode_statement(WALLET * 12, None)


def test_what_is_stated_is_read_again() -> None:
    stated = parse_statement(TEE_PUBKEY.der, encode_statement(WALLET, CONFIG_DIGEST))

    assert (stated.wallet, stated.tee_pubkey, stated.config_digest) == (WALLET, TEE_PUBKEY, CONFIG_DIGEST)


OWN = TeeIdentity(WALLET, TEE_PUBKEY)


def test_a_document_of_ones_own_is_recognised() -> None:
    assert require_own(document(), OWN, NONCE) == document()


STRANGE: dict[str, tuple[bytes, TeeIdentity, bytes | None]] = {
    "another wallet": (document(), TeeIdentity("0x" + "00" * 20, TEE_PUBKEY), NONCE),
    "another key": (document(), TeeIdentity(WALLET, AgreementKey.from_scalar(5).public), NONCE),
    "another nonce": (document(), OWN, b"other"),
    "a nonce where none was asked for": (document(), OWN, None),
    "no nonce where one was asked for": (document(nonce=None), OWN, NONCE),
    "no document": (b"\x84", OWN, NONCE),
}


@pytest.mark.parametrize(("data", "identity", "nonce"), STRANGE.values(), ids=STRANGE)
def test_a_document_of_anothers_is_not_ones_own(data: bytes, identity: TeeIdentity, nonce: bytes | None) -> None:
    with pytest.raises(Rejected):
        require_own(data, identity, nonce)
