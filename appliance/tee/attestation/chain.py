"""The certificates of an attestation document, from the pinned root to the leaf (nitro facts §4.3, §4.5 steps 4 to 6).

The explicit walk is the rule; the library's own path verification is a second opinion that has to agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.x509.oid import ExtensionOID, SignatureAlgorithmOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder, Store, VerificationError

from appliance.tee.attestation.errors import Refused, Step

ExtensionT = TypeVar("ExtensionT", bound=x509.ExtensionType)

# What the walk looks at itself; any other critical extension is one it does not understand.
_UNDERSTOOD: Final = frozenset({ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE})
# Everything that `cryptography` raises about the content of a certificate; several of these are bare `Exception`s.
_UNREADABLE: Final = (
    ValueError,
    TypeError,
    OverflowError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True, slots=True)
class VerifiedLeaf:
    """The key that signs the document, and when its certificate holds. Made by `verify_chain` only."""

    key: ec.EllipticCurvePublicKey = field(repr=False)
    not_before: datetime
    not_after: datetime


def verify_chain(cabundle: Sequence[bytes], leaf_der: bytes, *, root_der: bytes, at: datetime) -> VerifiedLeaf:
    """The leaf, if every certificate, the root included, holds at the time `at` (aware).

    `cabundle` is root first. Raises `Refused` with the step ROOT, CHAIN, LEAF or SECOND_OPINION.
    """
    if cabundle[0] != root_der:
        raise Refused(Step.ROOT, "the bundle does not begin with the trusted root, byte for byte")
    if len(cabundle) < 2:
        raise Refused(Step.ROOT, "the bundle holds nothing but a root")
    authorities = [_load(der, Step.CHAIN) for der in cabundle]
    leaf = _load(leaf_der, Step.LEAF)
    _check_time(authorities[0], at, Step.CHAIN)
    for position, certificate in enumerate(authorities):
        if position:
            _check_link(certificate, authorities[position - 1], at, Step.CHAIN)
        _check_authority(certificate, authorities_below=len(authorities) - 1 - position)
    _check_link(leaf, authorities[-1], at, Step.LEAF)
    key = _check_leaf(leaf)
    _second_opinion(authorities, leaf, at)
    return VerifiedLeaf(key, leaf.not_valid_before_utc, leaf.not_valid_after_utc)


def _load(der: bytes, step: Step) -> x509.Certificate:
    """A certificate of which every part that is looked at later can be read; the library takes strict DER only."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        # The library reads on demand: ask for everything here, so that nothing fails later.
        _ = (
            certificate.version,
            certificate.extensions,
            certificate.public_key(),
            certificate.signature,
            certificate.signature_algorithm_oid,
            certificate.subject.public_bytes(),
            certificate.issuer.public_bytes(),
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
        )
    except _UNREADABLE as error:
        raise Refused(step, "a certificate cannot be read") from error
    return certificate


def _check_link(certificate: x509.Certificate, parent: x509.Certificate, at: datetime, step: Step) -> None:
    if certificate.issuer.public_bytes() != parent.subject.public_bytes():
        raise Refused(step, "a certificate names another issuer than the one before it")
    if certificate.issuer.public_bytes() == certificate.subject.public_bytes():
        raise Refused(step, "a certificate below the root names itself as its issuer")
    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA384:
        raise Refused(step, "a certificate is not signed with ECDSA and SHA-384")
    try:
        _p384(parent, step).verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(SHA384()))
    except InvalidSignature as error:
        raise Refused(step, "a certificate's signature is not its issuer's") from error
    _check_time(certificate, at, step)


def _check_time(certificate: x509.Certificate, at: datetime, step: Step) -> None:
    if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
        raise Refused(step, "a certificate is not valid at the time of verification")


def _check_authority(certificate: x509.Certificate, *, authorities_below: int) -> None:
    _check_critical(certificate, Step.CHAIN)
    constraints = _extension(certificate, x509.BasicConstraints)
    if constraints is None or not constraints.critical or not constraints.value.ca:
        raise Refused(Step.CHAIN, "an authority's certificate does not say that it is one")
    if constraints.value.path_length is not None and constraints.value.path_length < authorities_below:
        raise Refused(Step.CHAIN, "more authorities follow than a certificate allows")
    usage = _extension(certificate, x509.KeyUsage)
    if usage is None or not usage.value.key_cert_sign:
        raise Refused(Step.CHAIN, "an authority's key is not for signing certificates")


def _check_leaf(leaf: x509.Certificate) -> ec.EllipticCurvePublicKey:
    _check_critical(leaf, Step.LEAF)
    constraints = _extension(leaf, x509.BasicConstraints)
    if constraints is None or constraints.value.ca or constraints.value.path_length is not None:
        raise Refused(Step.LEAF, "the leaf's certificate is an authority's, or does not say what it is")
    usage = _extension(leaf, x509.KeyUsage)
    if usage is None or not usage.value.digital_signature:
        raise Refused(Step.LEAF, "the leaf's key is not for signatures")
    return _p384(leaf, Step.LEAF)


def _check_critical(certificate: x509.Certificate, step: Step) -> None:
    if any(extension.critical and extension.oid not in _UNDERSTOOD for extension in certificate.extensions):
        raise Refused(step, "a certificate has a critical extension that is not understood")


def _p384(certificate: x509.Certificate, step: Step) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise Refused(step, "a certificate's key is not on P-384")
    return key


def _extension(certificate: x509.Certificate, kind: type[ExtensionT]) -> x509.Extension[ExtensionT] | None:
    try:
        return certificate.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def _second_opinion(authorities: Sequence[x509.Certificate], leaf: x509.Certificate, at: datetime) -> None:
    """`cryptography`'s path building, with policies for certificates that are no web server's."""
    authority_policy = (
        ExtensionPolicy.permit_all()
        .require_present(x509.BasicConstraints, Criticality.CRITICAL, None)
        .require_present(x509.KeyUsage, Criticality.AGNOSTIC, None)
    )
    leaf_policy = (
        ExtensionPolicy.permit_all()
        .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
        .require_present(x509.KeyUsage, Criticality.AGNOSTIC, None)
    )
    verifier = (
        PolicyBuilder()
        .store(Store([authorities[0]]))
        .time(at.astimezone(UTC).replace(tzinfo=None))
        .max_chain_depth(len(authorities))
        .extension_policies(ca_policy=authority_policy, ee_policy=leaf_policy)
        .build_client_verifier()
    )
    try:
        verifier.verify(leaf, list(authorities[1:]))
    except (VerificationError, *_UNREADABLE) as error:
        raise Refused(Step.SECOND_OPINION, "the library's path verification does not agree") from error
