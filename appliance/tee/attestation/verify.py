"""Verification of an attestation document, step by step (nitro facts §4.5).

Only what `verify_document` returns may be believed; only a `VerifiedDocument` gives up the keys in a usable form.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from appliance.tee.attestation.chain import VerifiedLeaf, verify_chain
from appliance.tee.attestation.document import PCR_BYTES, UnverifiedDocument, parse_document
from appliance.tee.attestation.errors import Refused, Step
from appliance.tee.attestation.measurements import IMAGE_PCRS, Measurements
from appliance.tee.attestation.statement import CONFIG_PCR, extend_config, parse_statement
from kmscore.envelope import TeePublicKey
from kmscore.errors import InvariantBroken
from kmscore.secret import constant_time_equal

_ZERO: Final = bytes(PCR_BYTES)
_COORDINATE_BYTES: Final = 48
_SIGNATURE_BYTES: Final = 2 * _COORDINATE_BYTES
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class VerificationPolicy:
    """What a document must satisfy.

    `root_der` is the trusted root; `at` (aware) the verifier's own clock, None to verify an archived document at its
    own timestamp, which is sound only when something else proves when it was produced. `nonce` is the one that was
    asked with, None when there was none to check, which leaves a document replayable for `max_age`. `measurements` are
    the acceptable images, None to accept any image that is not in debug mode, an empty sequence to accept none.
    `max_age` bounds how old the document may be, `max_skew` how far the two clocks may be apart in either direction.
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
    pcrs: Mapping[int, bytes] = field(repr=False)
    public_key: bytes | None = field(repr=False)
    user_data: bytes | None = field(repr=False)
    nonce: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class AttestedIdentity:
    """A node's identity as its document states it (enclave §3). Made by `attested_identity` only.

    `config_digest` is what was extended into PCR16, 48 bytes; None when the document does not state it.
    """

    wallet: str
    tee_pubkey: TeePublicKey
    config_digest: bytes | None


def verify_document(data: bytes, policy: VerificationPolicy) -> VerifiedDocument:
    """Verify a document of at most 16 KiB against a policy; some milliseconds of work.

    Raises `Refused` with the first failing step: SIZE, ENVELOPE, HEADER, PAYLOAD, ROOT, CHAIN, LEAF, SECOND_OPINION,
    SIGNATURE, FRESHNESS, NONCE, DEBUG, MEASUREMENTS.
    """
    if policy.at is not None and policy.at.tzinfo is None:
        raise InvariantBroken("a time of verification without a time zone")
    document = parse_document(data)
    timestamp = _timestamp(document)
    leaf = verify_chain(
        document.cabundle, document.certificate, root_der=policy.root_der, at=_reference_time(timestamp, policy)
    )
    _check_signature(document, leaf.key)
    _check_freshness(timestamp, leaf, policy)
    if policy.nonce is not None and not _carries(document, policy.nonce):
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
    """The wallet and teePubkey that a KMS node or app states in its document. Raises `Refused(IDENTITY)`."""
    stated = parse_statement(document.public_key, document.user_data)
    # A document shows the register only once it is locked.
    if stated.config_digest is not None and document.pcrs.get(CONFIG_PCR) != extend_config(stated.config_digest):
        raise Refused(Step.IDENTITY, f"config is not what was extended into PCR{CONFIG_PCR}")
    return AttestedIdentity(stated.wallet, stated.tee_pubkey, stated.config_digest)


def _timestamp(document: UnverifiedDocument) -> datetime:
    try:
        return _EPOCH + timedelta(milliseconds=document.timestamp_ms)
    except OverflowError as error:
        raise Refused(Step.PAYLOAD, "timestamp is not a time") from error


def _reference_time(timestamp: datetime, policy: VerificationPolicy) -> datetime:
    """When the certificates have to hold: the own clock, moved by at most `max_skew` towards the document's time.

    A new leaf is some seconds old at most, and one that was reused may end at any moment: neither must make two clocks
    disagree that are as close as the policy asks for.
    """
    if policy.at is None:
        return timestamp
    apart = min(max(timestamp - policy.at, -policy.max_skew), policy.max_skew)
    return policy.at + apart


def _check_signature(document: UnverifiedDocument, key: ec.EllipticCurvePublicKey) -> None:
    if len(document.signature) != _SIGNATURE_BYTES:
        raise Refused(Step.SIGNATURE, f"an ES384 signature has {_SIGNATURE_BYTES} bytes")
    # Both halves of s occur in production: a document's bytes are no unique id, and no high s is refused.
    r, s = (
        int.from_bytes(half)
        for half in (document.signature[:_COORDINATE_BYTES], document.signature[_COORDINATE_BYTES:])
    )
    try:
        key.verify(encode_dss_signature(r, s), document.signed_bytes, ec.ECDSA(SHA384()))
    except InvalidSignature as error:
        raise Refused(Step.SIGNATURE, "the document is not signed by its certificate's key") from error


def _check_freshness(timestamp: datetime, leaf: VerifiedLeaf, policy: VerificationPolicy) -> None:
    if not leaf.not_before <= timestamp <= leaf.not_after:
        raise Refused(Step.FRESHNESS, "the document's timestamp is outside the validity of its certificate")
    if policy.at is not None and not -policy.max_skew <= policy.at - timestamp <= policy.max_age:
        raise Refused(Step.FRESHNESS, "the document's timestamp is too far from the time of verification")


def _carries(document: UnverifiedDocument, nonce: bytes) -> bool:
    return document.nonce is not None and constant_time_equal(document.nonce, nonce)


def _check_measurements(pcrs: Mapping[int, bytes], acceptable: Sequence[Measurements] | None) -> None:
    if any(index not in pcrs for index in IMAGE_PCRS):
        raise Refused(Step.MEASUREMENTS, "the document lacks PCR0, PCR1 or PCR2")
    # In debug mode PCR0 to PCR2 are zero while PCR3 and PCR4 are real.
    if any(pcrs[index] == _ZERO for index in IMAGE_PCRS):
        raise Refused(Step.DEBUG, "the enclave runs in debug mode: its measurements are zero")
    if acceptable is not None and not any(measurements.match(pcrs) for measurements in acceptable):
        raise Refused(Step.MEASUREMENTS, "the enclave runs none of the acceptable images")
