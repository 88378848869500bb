"""An attestation document as bytes say it is: parsed, bounded, believed in nothing (nitro facts §4.1, §4.2).

A document is a COSE_Sign1 of four items whose payload is a CBOR map. The received bytes of protected header and payload
are kept as they came, because they are what was signed.
"""

from dataclasses import dataclass, field
from typing import Final

from appliance.tee.attestation.cbor import CborValue, decode_cbor, encode_cbor
from appliance.tee.attestation.errors import Refused, Step
from kmscore.errors import Rejected

MAX_DOCUMENT_BYTES: Final = 16 * 1024
COSE_SIGN1_TAG: Final = 0xD2
ES384_HEADER: Final = encode_cbor({1: -35})
DIGEST: Final = "SHA384"
PCR_BYTES: Final = 48
MAX_PCRS: Final = 32
MAX_CERTIFICATE_BYTES: Final = 1024
MAX_BUNDLE: Final = 8
# AWS states 512 in some texts and 1024 in others for user_data and nonce; 1024 are accepted, 512 are sent.
MAX_OPTIONAL_BYTES: Final = 1024

_REQUIRED: Final = frozenset({"module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"})
# The module writes null for one that is unset; the syntax also lets it leave the member out.
_OPTIONAL: Final = frozenset({"public_key", "user_data", "nonce"})


@dataclass(frozen=True, slots=True)
class UnverifiedDocument:
    """A well-formed document. Nothing in it is true until `verify_document` says so."""

    protected: bytes
    payload: bytes
    signature: bytes
    module_id: str
    timestamp_ms: int
    pcrs: dict[int, bytes] = field(repr=False)
    certificate: bytes = field(repr=False)
    cabundle: tuple[bytes, ...] = field(repr=False)
    public_key: bytes | None = field(repr=False)
    user_data: bytes | None = field(repr=False)
    nonce: bytes | None = field(repr=False)

    @property
    def signed_bytes(self) -> bytes:
        """What the leaf key signed: the COSE Sig_structure over the bytes as received."""
        return encode_cbor(["Signature1", self.protected, b"", self.payload])


def parse_document(data: bytes) -> UnverifiedDocument:
    """Read a document of at most 16 KiB.

    Raises `Refused` with the step SIZE, ENVELOPE, HEADER or PAYLOAD.
    """
    if not 0 < len(data) <= MAX_DOCUMENT_BYTES:
        raise Refused(Step.SIZE, f"a document has 1 to {MAX_DOCUMENT_BYTES} bytes")
    protected, unprotected, payload, signature = _envelope(data)
    if protected != ES384_HEADER or unprotected != {}:
        raise Refused(Step.HEADER, "the protected header must say ES384 and nothing else, the unprotected one nothing")
    members = _decode(payload, Step.PAYLOAD)
    if not isinstance(members, dict) or not _REQUIRED <= members.keys() <= _REQUIRED | _OPTIONAL:
        raise Refused(Step.PAYLOAD, "the payload must be a map of a document's members and no others")
    if members["digest"] != DIGEST:
        raise Refused(Step.PAYLOAD, "the digest must be SHA384")
    cabundle = members["cabundle"]
    if not isinstance(cabundle, list) or not 1 <= len(cabundle) <= MAX_BUNDLE:
        raise Refused(Step.PAYLOAD, f"cabundle must have 1 to {MAX_BUNDLE} certificates")
    return UnverifiedDocument(
        protected=protected,
        payload=payload,
        signature=signature,
        module_id=_text(members["module_id"]),
        timestamp_ms=_positive(members["timestamp"]),
        pcrs=_pcrs(members["pcrs"]),
        certificate=_bytes(members["certificate"], "certificate", MAX_CERTIFICATE_BYTES),
        cabundle=tuple(_bytes(item, "cabundle", MAX_CERTIFICATE_BYTES) for item in cabundle),
        public_key=_optional(members, "public_key", least_bytes=1),
        user_data=_optional(members, "user_data", least_bytes=0),
        nonce=_optional(members, "nonce", least_bytes=0),
    )


def _envelope(data: bytes) -> tuple[bytes, CborValue, bytes, bytes]:
    untagged = data[1:] if data[0] == COSE_SIGN1_TAG else data
    items = _decode(untagged, Step.ENVELOPE)
    if not isinstance(items, list) or len(items) != 4:
        raise Refused(Step.ENVELOPE, "a COSE_Sign1 has four items")
    protected, unprotected, payload, signature = items
    if not isinstance(protected, bytes) or not isinstance(payload, bytes) or not isinstance(signature, bytes):
        raise Refused(Step.ENVELOPE, "header, payload and signature of a COSE_Sign1 are byte strings")
    return protected, unprotected, payload, signature


def _decode(data: bytes, step: Step) -> CborValue:
    try:
        return decode_cbor(data)
    except Rejected as error:
        raise Refused(step, str(error)) from error


def _text(value: CborValue) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 256:
        raise Refused(Step.PAYLOAD, "module_id must be a text of 1 to 256 characters")
    return value


def _positive(value: CborValue) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise Refused(Step.PAYLOAD, "timestamp must be a positive number of milliseconds")
    return value


def _pcrs(value: CborValue) -> dict[int, bytes]:
    if not isinstance(value, dict) or not 1 <= len(value) <= MAX_PCRS:
        raise Refused(Step.PAYLOAD, f"pcrs must be a map of 1 to {MAX_PCRS} registers")
    pcrs: dict[int, bytes] = {}
    for index, content in value.items():
        if not isinstance(index, int) or not 0 <= index < MAX_PCRS:
            raise Refused(Step.PAYLOAD, "a PCR index is from 0 to 31")
        if not isinstance(content, bytes) or len(content) != PCR_BYTES:
            raise Refused(Step.PAYLOAD, f"a PCR has {PCR_BYTES} bytes")
        pcrs[index] = content
    return pcrs


def _bytes(value: CborValue, name: str, limit_bytes: int) -> bytes:
    if not isinstance(value, bytes) or not 0 < len(value) <= limit_bytes:
        raise Refused(Step.PAYLOAD, f"{name} must have 1 to {limit_bytes} bytes")
    return value


def _optional(members: dict[int | str, CborValue], name: str, *, least_bytes: int) -> bytes | None:
    value = members.get(name)
    if value is None:
        return None
    if not isinstance(value, bytes) or not least_bytes <= len(value) <= MAX_OPTIONAL_BYTES:
        raise Refused(Step.PAYLOAD, f"{name} must be null or {least_bytes} to {MAX_OPTIONAL_BYTES} bytes")
    return value
