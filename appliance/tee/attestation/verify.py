"""Verification of an attestation document, step by step (nitro facts §4.5).

Only what `verify_document` returns may be believed; only a `VerifiedDocument` gives up the keys in a usable form.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from appliance.tee.attestation.chain import verify_chain
from appliance.tee.attestation.document import PCR_BYTES, UnverifiedDocument, parse_document
from appliance.tee.attestation.errors import Refused, Step
from kmscore.envelope import TeePublicKey, parse_tee_pubkey_der
from kmscore.errors import Rejected
from kmscore.json import parse_json_object
from kmscore.pop import parse_wallet
from kmscore.secret import constant_time_equal

_ZERO: Final = bytes(PCR_BYTES)
_COORDINATE_BYTES: Final = 48


@dataclass(frozen=True, slots=True)
class Measurements:
    """What an image measures to; `pcr8` None means that the signer of the image does not matter."""

    pcr0: bytes
    pcr1: bytes
    pcr2: bytes
    pcr8: bytes | None = None

    def match(self, pcrs: dict[int, bytes]) -> bool:
        wanted = {0: self.pcr0, 1: self.pcr1, 2: self.pcr2}
        if self.pcr8 is not None:
            wanted[8] = self.pcr8
        return all(pcrs.get(index) == value for index, value in wanted.items())


@dataclass(frozen=True, slots=True)
class VerificationPolicy:
    """What a document must satisfy.

    `root_der` is the trusted root; `at` (aware) the verifier's own clock, None to verify an archived document at its
    own timestamp, which is sound only when something else proves when it was produced. `nonce` is the one that was
    asked with, None for archived documents. `measurements` are the acceptable images, None to accept any image that is
    not in debug mode. `max_age` and `max_skew` bound the timestamp on either side of `at`.
    """

    root_der: bytes = field(repr=False)
    at: datetime | None
    nonce: bytes | None
    measurements: Sequence[Measurements] | None
    max_age: timedelta = timedelta(minutes=5)
    max_skew: timedelta = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class VerifiedDocument:
    """What an enclave that satisfies the policy has said. Made by `verify_document` only."""

    module_id: str
    timestamp: datetime
    pcrs: dict[int, bytes] = field(repr=False)
    public_key: bytes | None = field(repr=False)
    user_data: bytes | None = field(repr=False)
    nonce: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class AttestedIdentity:
    """A node's identity as its document states it (enclave §3).

    `config_digest` is what was extended into PCR16, hex; None when the document does not carry it.
    """

    wallet: str
    tee_pubkey: TeePublicKey
    config_digest: str | None


def verify_document(data: bytes, policy: VerificationPolicy) -> VerifiedDocument:
    """Verify a document of at most 16 KiB against a policy.

    Raises `Refused` with the first failing step: SIZE, ENVELOPE, HEADER, PAYLOAD, ROOT, CHAIN, LEAF, SECOND_OPINION,
    SIGNATURE, FRESHNESS, NONCE, DEBUG, MEASUREMENTS.
    """
    document = parse_document(data)
    timestamp = _timestamp(document)
    at = policy.at or timestamp
    key = verify_chain(document.cabundle, document.certificate, root_der=policy.root_der, at=at)
    _check_signature(document, key)
    if not at - policy.max_age <= timestamp <= at + policy.max_skew:
        raise Refused(Step.FRESHNESS, "the document's timestamp is too far from the time of verification")
    if policy.nonce is not None and not constant_time_equal(document.nonce or b"", policy.nonce):
        raise Refused(Step.NONCE, "the document was not made for this nonce")
    _check_measurements(document.pcrs, policy.measurements)
    return VerifiedDocument(
        module_id=document.module_id,
        timestamp=timestamp,
        pcrs=document.pcrs,
        public_key=document.public_key,
        user_data=document.user_data,
        nonce=document.nonce,
    )


def attested_identity(document: VerifiedDocument) -> AttestedIdentity:
    """The wallet and teePubkey a KMS node or app states in its document. Raises `Refused(IDENTITY)`."""
    if document.public_key is None or document.user_data is None:
        raise Refused(Step.IDENTITY, "the document carries no public key or no user data")
    try:
        tee_pubkey = parse_tee_pubkey_der(document.public_key)
        stated = parse_json_object(document.user_data)
        wallet, config = stated.get("eth_addr"), stated.get("config")
        if not isinstance(wallet, str) or not (config is None or isinstance(config, str)):
            raise Refused(Step.IDENTITY, "the user data does not hold eth_addr, or config is not a text")
        return AttestedIdentity(parse_wallet(wallet), tee_pubkey, config)
    except Refused:
        raise
    except Rejected as error:
        raise Refused(Step.IDENTITY, "the public key or the user data cannot be read") from error


def _timestamp(document: UnverifiedDocument) -> datetime:
    try:
        return datetime.fromtimestamp(document.timestamp_ms / 1000, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise Refused(Step.PAYLOAD, "timestamp is not a time") from error


def _check_signature(document: UnverifiedDocument, key: ec.EllipticCurvePublicKey) -> None:
    # Both halves of s occur in production: a document's bytes are no unique id, and no high s is refused.
    r, s = (
        int.from_bytes(half)
        for half in (document.signature[:_COORDINATE_BYTES], document.signature[_COORDINATE_BYTES:])
    )
    try:
        key.verify(encode_dss_signature(r, s), document.signed_bytes, ec.ECDSA(SHA384()))
    except InvalidSignature as error:
        raise Refused(Step.SIGNATURE, "the document is not signed by its certificate's key") from error


def _check_measurements(pcrs: dict[int, bytes], acceptable: Sequence[Measurements] | None) -> None:
    if any(index not in pcrs for index in (0, 1, 2)):
        raise Refused(Step.MEASUREMENTS, "the document lacks PCR0, PCR1 or PCR2")
    # In debug mode PCR0 to PCR2 are zero while PCR3 and PCR4 are real.
    if pcrs[0] == _ZERO or pcrs[1] == _ZERO or pcrs[2] == _ZERO:
        raise Refused(Step.DEBUG, "the enclave runs in debug mode: its measurements are zero")
    if acceptable is not None and not any(measurements.match(pcrs) for measurements in acceptable):
        raise Refused(Step.MEASUREMENTS, "the enclave runs none of the acceptable images")
