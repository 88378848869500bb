"""A throw-away certificate authority in the shape of the platform's, from root to leaf (nitro facts §4.3).

Keys are made here, stay in memory and are never written; only the root's certificate is meant to leave. What is signed
under it proves nothing to anyone who was not told to trust this one root.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

ROOT_LIFETIME: Final = timedelta(days=365)
LEAF_LIFETIME: Final = timedelta(hours=3)
# Certificates begin this much before they are made, as the platform's do: the enclave's clock may be a little behind.
BACKDATING: Final = timedelta(seconds=3)
# A leaf is reused until it is this close to its end.
LEAF_MARGIN: Final = timedelta(minutes=10)

_ORGANISATION: Final = "Nova KMS emulator"
_UNIT: Final = "throw-away"
# Reserved names (RFC 2606): nobody can serve a revocation list there.
_DOMAIN: Final = "emulated.invalid"
_CRL_URL: Final = "http://crl.emulated.invalid/{serial:x}.crl"


@dataclass(frozen=True, slots=True)
class _Level:
    """One kind of certificate below the root; `path_length` None is the leaf."""

    label: str
    lifetime: timedelta
    path_length: int | None
    names_issuer: bool


_LEVELS: Final = (
    _Level("regional", timedelta(days=20), 2, names_issuer=True),
    _Level("zonal", timedelta(days=6), 1, names_issuer=True),
    _Level("instance", timedelta(hours=24), 0, names_issuer=False),
    _Level("leaf", LEAF_LIFETIME, None, names_issuer=False),
)
# Renewed while it can still outlive everything below it.
_MARGINS: Final = (*(level.lifetime for level in _LEVELS[1:]), LEAF_MARGIN)


@dataclass(frozen=True, slots=True)
class _Holder:
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What signs a document, and what goes into it: the leaf and the bundle, DER, root first."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: bytes = field(repr=False)
    cabundle: tuple[bytes, ...] = field(repr=False)


class ThrowAwayRoot:
    """A self-signed P-384 root made now; several emulated enclaves may share it."""

    def __init__(self, now: datetime) -> None:
        key = ec.generate_private_key(ec.SECP384R1())
        subject = _name(_DOMAIN)
        certificate = (
            _builder(subject, subject, key, now, ROOT_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(_key_usage(authority=True), critical=True)
            .sign(key, SHA384())
        )
        self._holder = _Holder(key, certificate)

    @property
    def der(self) -> bytes:
        """The root's certificate as a verifier pins it."""
        return self._holder.der

    @property
    def pem(self) -> bytes:
        """The same certificate in the form that is written to files."""
        return self._holder.certificate.public_bytes(Encoding.PEM)

    def issuer(self, module_id: str) -> "LeafIssuer":
        """The chain of one emulated enclave; `module_id` is at most 40 ASCII characters."""
        return LeafIssuer(self._holder, module_id)


class LeafIssuer:
    """Keeps a chain from a root to the leaf of one module, renewing each certificate before its end."""

    def __init__(self, root: _Holder, module_id: str) -> None:
        self._root = root
        self._module_id = module_id
        self._chain: list[_Holder] = []

    def credentials(self, now: datetime) -> Credentials:
        """A leaf with at least ten minutes to live at `now` (aware), and the bundle that leads to it."""
        fresh = 0
        while fresh < len(self._chain) and _remaining(self._chain[fresh], now) >= _MARGINS[fresh]:
            fresh += 1
        del self._chain[fresh:]
        for level in _LEVELS[fresh:]:
            issuer = self._chain[-1] if self._chain else self._root
            self._chain.append(_issue(level, issuer, self._module_id, now))
        *authorities, leaf = self._chain
        return Credentials(leaf.key, leaf.der, _bundle(self._root, authorities))


def _bundle(root: _Holder, authorities: Sequence[_Holder]) -> tuple[bytes, ...]:
    return (root.der, *(authority.der for authority in authorities))


def _remaining(holder: _Holder, now: datetime) -> timedelta:
    return holder.certificate.not_valid_after_utc - now


def _issue(level: _Level, issuer: _Holder, module_id: str, now: datetime) -> _Holder:
    key = ec.generate_private_key(ec.SECP384R1())
    authority = level.path_length is not None
    host = f"{level.label}.{_DOMAIN}" if authority else f"{module_id}.{_DOMAIN}"
    builder = _builder(_name(host), issuer.certificate.subject, key, now, level.lifetime)
    builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=level.path_length), critical=True)
    builder = builder.add_extension(_key_usage(authority=authority), critical=authority)
    if level.names_issuer:
        serial = issuer.certificate.serial_number
        location = x509.UniformResourceIdentifier(_CRL_URL.format(serial=serial))
        builder = (
            builder.add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.CRLDistributionPoints([x509.DistributionPoint([location], None, None, None)]), critical=False
            )
        )
    return _Holder(key, builder.sign(issuer.key, SHA384()))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATING)
        .not_valid_after(now + lifetime)
    )


def _name(host: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, host),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, _UNIT),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, _ORGANISATION),
        ]
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=not authority,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
