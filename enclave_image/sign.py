"""Signs an image with a local P-384 key: a step of its own, after which taking the signature off gives the same bytes.

The one module of this package that needs more than the standard library: private keys are handled by `cryptography`,
never here. Signatures are deterministic (RFC 6979), so that signing twice gives one file.
"""

from dataclasses import replace
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from enclave_image.eif import Section, SectionType, encode_eif, parse_eif, strip_signature
from enclave_image.errors import MalformedError
from enclave_image.measure import measure_eif, pcr8_of_certificate
from enclave_image.signature import (
    ES384,
    bytes_to_sign,
    encode_signature_section,
    protected_header,
    read_signature_section,
    signed_payload,
)

_COORDINATE_BYTES = 48


def load_signing_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """The private key in `pem`, unencrypted.

    Errors: `MalformedError` for anything but a P-384 key.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise MalformedError("the signing key is not an unencrypted PEM private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise MalformedError("the signing key is not on P-384")
    return key


def load_certificate(pem: bytes) -> x509.Certificate:
    """The signing certificate in `pem`.

    Errors: `MalformedError` when it is none.
    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise MalformedError("the signing certificate is not PEM X.509") from error


def sign_eif(data: bytes, key: ec.EllipticCurvePrivateKey, certificate_pem: bytes, now: datetime) -> bytes:
    """The image in `data` with a signature of its PCR0; an older signature is replaced.

    `now` (with time zone) must be in the certificate's validity: the launcher checks that too. Errors: `MalformedError`
    for an image that is none, a certificate of another key, or one that is not valid at `now`.
    """
    certificate = load_certificate(certificate_pem)
    if certificate.public_key() != key.public_key():
        raise MalformedError("the signing certificate is for another key")
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise MalformedError(
            f"the signing certificate is valid from {certificate.not_valid_before_utc} to "
            f"{certificate.not_valid_after_utc}, now it is {now}"
        )
    eif = parse_eif(strip_signature(data))
    payload = signed_payload(measure_eif(eif).pcr0)
    der = key.sign(bytes_to_sign(protected_header(), payload), ec.ECDSA(hashes.SHA384(), deterministic_signing=True))
    r, s = decode_dss_signature(der)
    signature = r.to_bytes(_COORDINATE_BYTES, "big") + s.to_bytes(_COORDINATE_BYTES, "big")
    section = Section(SectionType.SIGNATURE, encode_signature_section(certificate_pem, payload, signature))
    return encode_eif(replace(eif, sections=(*eif.sections, section)))


def verify_signed_eif(data: bytes) -> bytes:
    """PCR8 (48 bytes) of a signed image whose signature is right for its own certificate and PCR0.

    Whose certificate that is must be decided by the caller, from PCR8. Errors: `MalformedError` naming what is wrong.
    """
    eif = parse_eif(data)
    section = eif.first(SectionType.SIGNATURE)
    if section is None:
        raise MalformedError("the image is not signed")
    unverified = read_signature_section(section)
    public_key = load_certificate(unverified.certificate_pem).public_key()
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or not isinstance(public_key.curve, ec.SECP384R1):
        raise MalformedError("the signing certificate is not for a P-384 key")
    if unverified.algorithm != ES384 or len(unverified.signature) != 2 * _COORDINATE_BYTES:
        raise MalformedError("the signature is not ES384")
    if (unverified.register_index, unverified.register_value) != (0, measure_eif(eif).pcr0):
        raise MalformedError("the signature is for another PCR0 than this image has")
    halves = unverified.signature[:_COORDINATE_BYTES], unverified.signature[_COORDINATE_BYTES:]
    der = encode_dss_signature(*(int.from_bytes(half, "big") for half in halves))
    try:
        public_key.verify(der, unverified.signed_bytes, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        raise MalformedError("the signature does not verify with the certificate beside it") from error
    return pcr8_of_certificate(unverified.certificate_der())
