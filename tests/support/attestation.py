"""Attestation documents made to measure: the platform's shapes under a root of our own, any part of them spoiled.

Everything is fixed: keys come from names, dates from `NOW`, signatures are deterministic (RFC 6979). The same plan
gives the same bytes on every machine, so documents can be committed and made again. The keys are public knowledge.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from appliance.tee.attestation.cbor import encode_cbor
from appliance.tee.attestation.errors import Step
from appliance.tee.attestation.measurements import Measurements
from appliance.tee.attestation.statement import encode_statement, extend_config
from appliance.tee.attestation.verify import VerificationPolicy, verify_document
from kmscore.envelope import AgreementKey
from kmscore.errors import Rejected

NOW = datetime(2026, 1, 15, 12, 0, 0, tzinfo=UTC)
TIMESTAMP_MS = int(NOW.timestamp() * 1000)
MODULE_ID = "i-0123456789abcdef0-enc0123456789abcdef"
WALLET = "0x" + "0b" * 20
TEE_PUBKEY = AgreementKey.from_scalar(0x11).public
CONFIG_DIGEST = bytes(range(48))
NONCE = b"nonce of the verifier"
P384_ORDER = (
    0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFF_C7634D81_F4372DDF_581A0DB2_48B0A77A_ECEC196A_CCC52973
)
ES384 = {1: -35}
PCRS = {index: bytes(48) for index in range(16)} | {
    index: hashlib.sha384(b"register %d" % index).digest() for index in (0, 1, 2, 3, 4, 8)
}


@dataclass(frozen=True)
class CertificatePlan:
    """One certificate. Times are minutes from `NOW`; `issuer` None names the plan before it."""

    name: str
    starts_min: float
    ends_min: float
    authority: bool | None = True
    path_length: int | None = None
    constraints_critical: bool = True
    cert_sign: bool = True
    digital_signature: bool = False
    key_usage: bool = True
    names_issuer: bool = False
    key_name: str | None = None
    subject: str | None = None
    issuer: str | None = None
    signed_by: str | None = None
    curve: ec.EllipticCurve = field(default_factory=ec.SECP384R1, compare=False)
    digest: HashAlgorithm = field(default_factory=SHA384, compare=False)
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = field(default=(), compare=False)

    def key(self) -> ec.EllipticCurvePrivateKey:
        return private_key(self.key_name or self.name, self.curve)

    def name_of_subject(self) -> x509.Name:
        return _name(self.subject or self.name)


DAY = 24 * 60
CHAIN = (
    CertificatePlan("root", -400 * DAY, 8000 * DAY),
    CertificatePlan("regional", -10 * DAY, 10 * DAY, path_length=2, names_issuer=True),
    CertificatePlan("zonal", -3 * DAY, 3 * DAY, path_length=1, names_issuer=True),
    CertificatePlan("instance", -12 * 60, 12 * 60, path_length=0),
    # Three hours and three seconds, reused for a while already.
    CertificatePlan("leaf", -26.05, 154, authority=False, cert_sign=False, digital_signature=True),
)  # fmt: skip


def chain(**changes: Mapping[str, Any]) -> tuple[CertificatePlan, ...]:
    """The usual chain with fields of some certificates changed: `chain(leaf={"path_length": 0})`."""
    assert set(changes) <= {plan.name for plan in CHAIN}
    return tuple(replace(plan, **changes.get(plan.name, {})) for plan in CHAIN)


@cache
def private_key(name: str, curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    scalar = int.from_bytes(hashlib.sha512(f"key of {name}".encode()).digest())
    kind = curve or ec.SECP384R1()
    # Below the order of every curve that is used here.
    return ec.derive_private_key(scalar >> max(513 - kind.key_size, 0), kind)


def certificates(plans: Sequence[CertificatePlan] = CHAIN) -> list[bytes]:
    """DER of the plans, root first."""
    return [_certify(plan, plans[max(position - 1, 0)]) for position, plan in enumerate(plans)]


def root_der() -> bytes:
    return certificates()[0]


def _certify(plan: CertificatePlan, parent: CertificatePlan) -> bytes:
    key, signer = plan.key(), private_key(plan.signed_by) if plan.signed_by else parent.key()
    issuer = _name(plan.issuer) if plan.issuer else parent.name_of_subject()
    builder = (
        x509.CertificateBuilder()
        .subject_name(plan.name_of_subject())
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(hashlib.sha256(plan.name.encode()).digest()[:16]) | 1)
        .not_valid_before(NOW + timedelta(minutes=plan.starts_min))
        .not_valid_after(NOW + timedelta(minutes=plan.ends_min))
    )
    if plan.authority is not None:
        constraints = x509.BasicConstraints(ca=plan.authority, path_length=plan.path_length if plan.authority else None)
        builder = builder.add_extension(constraints, critical=plan.constraints_critical)
    if plan.key_usage:
        builder = builder.add_extension(_usage(plan), critical=plan.cert_sign)
    if plan.names_issuer:
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        builder = builder.add_extension(identifier, critical=False).add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
        )
    for extension, critical in plan.extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(signer, plan.digest, ecdsa_deterministic=True).public_bytes(Encoding.DER)


def _usage(plan: CertificatePlan) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=plan.digital_signature,
        content_commitment=plan.digital_signature,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=plan.cert_sign,
        crl_sign=plan.cert_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, f"{text}.nova-kms.invalid"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Nova KMS tests"),
        ]
    )


# --- documents ---


def members(plans: Sequence[CertificatePlan] = CHAIN, **changes: Any) -> dict[int | str, Any]:
    """The members of a node's document, in the order in which the module writes them."""
    made = certificates(plans)
    return {
        "module_id": MODULE_ID,
        "digest": "SHA384",
        "timestamp": TIMESTAMP_MS,
        "pcrs": PCRS | {16: extend_config(CONFIG_DIGEST)},
        "certificate": made[-1],
        "cabundle": made[:-1],
        "public_key": TEE_PUBKEY.der,
        "user_data": encode_statement(WALLET, CONFIG_DIGEST),
        "nonce": NONCE,
        **changes,
    }


def indefinite_map(value: Mapping[int | str, Any]) -> bytes:
    """How the module has written the payload since 2026."""
    pairs = (encode_cbor(key) + encode_cbor(member) for key, member in value.items())
    return b"\xbf" + b"".join(pairs) + b"\xff"


def sign(
    payload: bytes,
    *,
    protected: bytes = encode_cbor(ES384),
    signer: str = "leaf",
    high_s: bool | None = None,
    digest: HashAlgorithm | None = None,
) -> bytes:
    """r ‖ s over a payload; `high_s` picks the half, None leaves it to chance, as the module does."""
    signed = encode_cbor(["Signature1", protected, b"", payload])
    key = private_key(signer)
    r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(digest or SHA384(), deterministic_signing=True)))
    if high_s is not None and (s > P384_ORDER // 2) is not high_s:
        s = P384_ORDER - s
    return r.to_bytes(48) + s.to_bytes(48)


def envelope(payload: bytes, **options: Any) -> bytes:
    """The untagged COSE_Sign1 of a payload."""
    protected = options.get("protected", encode_cbor(ES384))
    return encode_cbor([protected, {}, payload, sign(payload, **options)])


def document(
    plans: Sequence[CertificatePlan] = CHAIN,
    *,
    encode: Callable[[Mapping[int | str, Any]], bytes] = encode_cbor,  # type: ignore[assignment]
    without: Sequence[str] = (),
    **changes: Any,
) -> bytes:
    """A node's document, signed by the leaf of `plans`."""
    made = {name: value for name, value in members(plans, **changes).items() if name not in without}
    return envelope(encode(made))


# --- what no certificate builder makes ---


def resign(der: bytes, spoil: Callable[[bytes], bytes], signer: str) -> bytes:
    """A certificate whose signed part was changed and signed again by `signer`: lengths must stay as they are."""
    certificate = x509.load_der_x509_certificate(der)
    signed = spoil(certificate.tbs_certificate_bytes)
    assert len(signed) == len(certificate.tbs_certificate_bytes)
    algorithm = bytes.fromhex("300a06082a8648ce3d040303")  # ecdsa-with-SHA384
    signature = private_key(signer).sign(signed, ec.ECDSA(SHA384(), deterministic_signing=True))
    return _tlv(0x30, signed + algorithm + _tlv(0x03, b"\0" + signature))


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    encoded = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(encoded)]) + encoded + content


# --- verification ---

IMAGE = Measurements({index: PCRS[index] for index in (0, 1, 2)})
POLICY = VerificationPolicy(root_der=root_der(), at=NOW, nonce=NONCE, measurements=[IMAGE])


def refused_at(data: bytes, policy: VerificationPolicy) -> Step:
    with pytest.raises(Rejected) as refusal:
        verify_document(data, policy)
    step = getattr(refusal.value, "step", None)
    assert isinstance(step, Step)
    assert str(refusal.value).startswith(f"attestation refused at {step.value}: ")
    return step
