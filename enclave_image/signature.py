"""The signature section: its CBOR, and the COSE_Sign1 inside, encoded and read without checking the signature itself.

The shapes are nitro-facts §1.5: byte strings are arrays of small integers there. Only what such a section may hold can
be read; anything else is refused, so that no part of a stranger's file is interpreted.
"""

import base64
import binascii
from dataclasses import dataclass, field
from typing import Final

from enclave_image.eif import MAX_SIGNATURE_BYTES
from enclave_image.errors import MalformedError
from enclave_image.init.cbor import CborError, decode_cbor, encode_cbor
from enclave_image.measure import PCR_BYTES

ES384: Final = -35


@dataclass(frozen=True, slots=True)
class UnverifiedSignature:
    """What a signature section claims; nothing in it has been checked against a key."""

    certificate_pem: bytes = field(repr=False)
    cose_sign1: bytes = field(repr=False)
    algorithm: int
    register_index: int
    register_value: bytes
    signed_bytes: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    def certificate_der(self) -> bytes:
        """The DER bytes inside the PEM armour, not parsed.

        Errors: `MalformedError` when there is no such armour.
        """
        return certificate_der(self.certificate_pem)


def certificate_der(pem: bytes) -> bytes:
    """DER of the first certificate in `pem`.

    Errors: `MalformedError` when there is none.
    """
    _, begin, rest = pem.partition(b"-----BEGIN CERTIFICATE-----")
    body, end, _ = rest.partition(b"-----END CERTIFICATE-----")
    if not begin or not end:
        raise MalformedError("the signing certificate is not PEM")
    try:
        return base64.b64decode(b"".join(body.split()), validate=True)
    except binascii.Error as error:
        raise MalformedError("the signing certificate is not PEM: its base64 is broken") from error


def _decoded(data: bytes) -> object:
    try:
        return decode_cbor(data)
    except CborError as error:
        raise MalformedError(f"the signature section is not the CBOR of one: {error}") from error


def _octets(value: object) -> bytes:
    if not isinstance(value, list) or not all(isinstance(item, int) and 0 <= item <= 255 for item in value):
        raise MalformedError("a signature section holds something else where an array of bytes belongs")
    return bytes(value)


# --- the section ---


def signed_payload(pcr0: bytes) -> bytes:
    """The COSE payload that binds PCR0."""
    return encode_cbor({"register_index": 0, "register_value": list(pcr0)})


def protected_header(algorithm: int = ES384) -> bytes:
    """The protected header, which holds the algorithm alone."""
    return encode_cbor({1: algorithm})


def bytes_to_sign(protected: bytes, payload: bytes) -> bytes:
    """The Sig_structure of COSE_Sign1 without external data."""
    return encode_cbor(["Signature1", protected, b"", payload])


def encode_signature_section(certificate_pem: bytes, payload: bytes, signature: bytes) -> bytes:
    """The data of a signature section with one element.

    `signature` is r ‖ s of ES384, 96 bytes. Errors: `MalformedError` when it would be larger than tools read.
    """
    cose = encode_cbor([protected_header(), {}, payload, signature])
    section = encode_cbor([{"signing_certificate": list(certificate_pem), "signature": list(cose)}])
    if len(section) > MAX_SIGNATURE_BYTES:
        raise MalformedError(
            f"the signature section would have {len(section)} bytes, tools read {MAX_SIGNATURE_BYTES}: "
            "use a PEM file with the signing certificate alone"
        )
    return section


def read_signature_section(data: bytes) -> UnverifiedSignature:
    """The first element of a signature section, shapes checked, signature not.

    Errors: `MalformedError` naming what does not have its shape.
    """
    if len(data) > MAX_SIGNATURE_BYTES:
        raise MalformedError(f"a signature section of {len(data)} bytes; tools read at most {MAX_SIGNATURE_BYTES}")
    elements = _decoded(data)
    if not isinstance(elements, list) or not elements or not isinstance(elements[0], dict):
        raise MalformedError("a signature section is not an array of maps")
    element = elements[0]
    if list(element) != ["signing_certificate", "signature"]:
        raise MalformedError("a signature element has other members than signing_certificate and signature")
    certificate, cose = _octets(element["signing_certificate"]), _octets(element["signature"])
    sign1 = _decoded(cose)
    if not isinstance(sign1, list) or len(sign1) != 4:
        raise MalformedError("the signature is not a COSE_Sign1 of four items")
    protected, unprotected, payload, signature = sign1
    if not isinstance(protected, bytes) or not isinstance(payload, bytes) or not isinstance(signature, bytes):
        raise MalformedError("the signature is not a COSE_Sign1: header, payload and signature must be byte strings")
    header = _decoded(protected)
    register = _decoded(payload)
    if not isinstance(header, dict) or list(header) != [1] or unprotected != {}:
        raise MalformedError("the COSE header of the signature holds something else than the algorithm")
    algorithm = header[1]
    if not isinstance(register, dict) or list(register) != ["register_index", "register_value"]:
        raise MalformedError("the signed payload is not a register index and value")
    index, value = register["register_index"], _octets(register["register_value"])
    if not isinstance(algorithm, int) or not isinstance(index, int) or len(value) != PCR_BYTES:
        raise MalformedError("the signed payload is not a register of 48 bytes")
    signed = bytes_to_sign(protected, payload)
    return UnverifiedSignature(certificate, cose, algorithm, index, value, signed, signature)
