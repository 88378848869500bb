"""The throw-away authority: certificates shaped like the platform's, renewed before they end."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID, SignatureAlgorithmOID

from appliance.tee.attestation.chain import verify_chain
from appliance.tee.software.pki import LEAF_MARGIN, ThrowAwayRoot

MODULE = "i-0123456789abcdef0-enc0123456789abcdef"
NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)


def chain_at(now: datetime) -> list[x509.Certificate]:
    credentials = ThrowAwayRoot(now).issuer(MODULE).credentials(now)
    return [x509.load_der_x509_certificate(der) for der in (*credentials.cabundle, credentials.certificate)]


def test_five_certificates_lead_from_the_root_to_the_leaf() -> None:
    root = ThrowAwayRoot(NOW)
    credentials = root.issuer(MODULE).credentials(NOW)

    verified = verify_chain(credentials.cabundle, credentials.certificate, root_der=root.der, at=NOW)

    assert len(credentials.cabundle) == 4
    assert verified.key.public_numbers() == credentials.key.public_key().public_numbers()


def test_lifetimes_and_path_lengths_are_those_observed() -> None:
    _, regional, zonal, instance, leaf = chain_at(NOW)

    lifetimes = [item.not_valid_after_utc - item.not_valid_before_utc for item in (regional, zonal, instance, leaf)]
    assert lifetimes == [
        timedelta(seconds=3) + life
        for life in (timedelta(days=20), timedelta(days=6), timedelta(hours=24), timedelta(hours=3))
    ]
    lengths = [
        item.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length for item in chain_at(NOW)
    ]
    assert lengths == [None, 2, 1, 0, None]


def test_extensions_are_those_observed() -> None:
    root, _, zonal, instance, leaf = chain_at(NOW)
    held = {
        name: {item.oid: item.critical for item in certificate.extensions}
        for name, certificate in {"root": root, "zonal": zonal, "instance": instance, "leaf": leaf}.items()
    }
    basic = {ExtensionOID.BASIC_CONSTRAINTS: True}

    assert held["leaf"] == basic | {ExtensionOID.KEY_USAGE: False}
    assert held["instance"] == basic | {ExtensionOID.KEY_USAGE: True}
    assert held["root"] == basic | {ExtensionOID.KEY_USAGE: True, ExtensionOID.SUBJECT_KEY_IDENTIFIER: False}
    assert {ExtensionOID.AUTHORITY_KEY_IDENTIFIER, ExtensionOID.CRL_DISTRIBUTION_POINTS} <= held["zonal"].keys()
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.digital_signature, usage.content_commitment, usage.key_cert_sign) == (True, True, False)


def test_every_certificate_is_p384_with_sha384_and_at_most_1024_bytes() -> None:
    for certificate in chain_at(NOW):
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert isinstance(key.curve, ec.SECP384R1)
        assert certificate.signature_algorithm_oid == SignatureAlgorithmOID.ECDSA_WITH_SHA384
        assert len(certificate.public_bytes(Encoding.DER)) <= 1024


def test_a_leaf_is_reused_until_shortly_before_its_end() -> None:
    issuer = ThrowAwayRoot(NOW).issuer(MODULE)
    first = issuer.credentials(NOW)
    last_moment = NOW + timedelta(hours=3) - LEAF_MARGIN

    assert issuer.credentials(last_moment) == first
    renewed = issuer.credentials(last_moment + timedelta(seconds=1))
    assert renewed.certificate != first.certificate
    assert renewed.cabundle == first.cabundle


@pytest.mark.parametrize(("later", "kept"), [(timedelta(hours=22), 3), (timedelta(days=6), 2), (timedelta(days=15), 1)])
def test_an_authority_is_renewed_while_it_outlives_what_it_signs(later: timedelta, kept: int) -> None:
    root = ThrowAwayRoot(NOW)
    issuer = root.issuer(MODULE)
    before, after = issuer.credentials(NOW), issuer.credentials(NOW + later)

    assert [old == new for old, new in zip(before.cabundle, after.cabundle, strict=True)].count(True) == kept
    leaf = x509.load_der_x509_certificate(after.certificate)
    verify_chain(after.cabundle, after.certificate, root_der=root.der, at=leaf.not_valid_after_utc)


def test_two_roots_have_nothing_in_common() -> None:
    first, second = ThrowAwayRoot(NOW), ThrowAwayRoot(NOW)

    assert first.der != second.der
    assert x509.load_pem_x509_certificate(first.pem).public_bytes(Encoding.DER) == first.der


def test_no_key_shows_in_a_repr() -> None:
    credentials = ThrowAwayRoot(NOW).issuer(MODULE).credentials(NOW)

    assert repr(credentials) == "Credentials()"
