"""Signing with a local key: deterministic, strippable, checked; the signature is not part of what is reproduced."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from enclave_image.describe import describe_eif
from enclave_image.eif import Eif, Section, SectionType, encode_eif, parse_eif, strip_signature
from enclave_image.errors import MalformedError
from enclave_image.measure import pcr8_of_certificate
from enclave_image.sign import load_signing_key, sign_eif, verify_signed_eif

NOW = datetime(2026, 6, 1, tzinfo=UTC)
KEY = ec.derive_private_key(0x1111, ec.SECP384R1())
OTHER_KEY = ec.derive_private_key(0x2222, ec.SECP384R1())


def certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "signer")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, NOW - timedelta(days=1), NOW + timedelta(days=1))
    return builder.sign(key, hashes.SHA384())


CERTIFICATE = certificate(KEY)
PEM = CERTIFICATE.public_bytes(serialization.Encoding.PEM)
UNSIGNED = encode_eif(
    Eif(
        (
            Section(SectionType.KERNEL, b"kernel"),
            Section(SectionType.CMDLINE, b"a=1"),
            Section(SectionType.METADATA, b"{}"),
            Section(SectionType.RAMDISK, b"ramdisk"),
        )
    )
)
SIGNED = sign_eif(UNSIGNED, KEY, PEM, NOW)


def test_a_signed_image_gives_the_unsigned_bytes_back_and_its_pcr8():
    assert strip_signature(SIGNED) == UNSIGNED
    der = CERTIFICATE.public_bytes(serialization.Encoding.DER)
    assert verify_signed_eif(SIGNED) == pcr8_of_certificate(der)
    assert describe_eif(SIGNED).pcr8 == pcr8_of_certificate(der)
    assert describe_eif(SIGNED).unsigned_sha256 == describe_eif(UNSIGNED).sha256


def test_signing_twice_gives_one_file_and_replaces_the_older_signature():
    assert sign_eif(UNSIGNED, KEY, PEM, NOW) == SIGNED
    assert sign_eif(SIGNED, KEY, PEM, NOW) == SIGNED


def test_a_certificate_of_another_key_or_time_is_refused():
    with pytest.raises(MalformedError, match="for another key"):
        sign_eif(UNSIGNED, OTHER_KEY, PEM, NOW)
    with pytest.raises(MalformedError, match="is valid from"):
        sign_eif(UNSIGNED, KEY, PEM, NOW + timedelta(days=2))
    with pytest.raises(MalformedError, match="not PEM"):
        sign_eif(UNSIGNED, KEY, b"nothing", NOW)


def test_only_a_p384_key_signs():
    other = ec.derive_private_key(0x1111, ec.SECP256R1())
    encoding = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    with pytest.raises(MalformedError, match="not on P-384"):
        load_signing_key(other.private_bytes(*encoding))
    with pytest.raises(MalformedError, match="not an unencrypted PEM"):
        load_signing_key(b"nothing")
    assert load_signing_key(KEY.private_bytes(*encoding)).private_numbers() == KEY.private_numbers()


def with_signature(section: bytes) -> bytes:
    return encode_eif(Eif((*parse_eif(UNSIGNED).sections, Section(SectionType.SIGNATURE, section))))


def test_a_changed_image_or_signature_does_not_verify():
    section = parse_eif(SIGNED).first(SectionType.SIGNATURE)
    assert section is not None
    changed = tuple(
        Section(s.kind, b"other") if s.kind is SectionType.RAMDISK else s for s in parse_eif(SIGNED).sections
    )
    with pytest.raises(MalformedError, match="another PCR0"):
        verify_signed_eif(encode_eif(Eif(changed)))
    with pytest.raises(MalformedError, match="does not verify"):
        verify_signed_eif(with_signature(section[:-1] + bytes([section[-1] ^ 1])))
    with pytest.raises(MalformedError, match="is not signed"):
        verify_signed_eif(UNSIGNED)
