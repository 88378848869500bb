"""Encrypted envelopes between two P-384 keys (protocol §3).

Refuses plaintext bodies, other members than the three, keys in other encodings than the one the platform writes, and
points off the curve. It does not know who may send what, nor which nonces were used: the callers do. `cryptography`
does the elliptic curve; `kmscore._envelope` parses, seals and opens, `kmscore._mac` has the hex and the canonical form.
"""

from typing import Final, Self, final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kmscore._envelope import (
    Envelope,
    EnvelopeWriter,
    SharedSecretCache,
    encode_envelope,
    envelope_key,
    open_envelope,
    parse_envelope,
    parse_envelope_object,
    seal,
)
from kmscore.errors import InvariantBroken, Reason, Rejected
from kmscore.secret import SecretBytes

__all__ = [
    "DER_BYTES",
    "LABELS",
    "NONCE_BYTES",
    "P384_ORDER",
    "SEC1_BYTES",
    "SHARED_SECRET_BYTES",
    "SPKI_PREFIX",
    "TAG_BYTES",
    "AgreementKey",
    "Envelope",
    "EnvelopeWriter",
    "SharedSecretCache",
    "TeePublicKey",
    "encode_envelope",
    "envelope_key",
    "open_envelope",
    "parse_envelope",
    "parse_envelope_object",
    "parse_tee_pubkey",
    "parse_tee_pubkey_der",
    "seal",
]

# Every label the platform has used, the current one first (protocol §3).
LABELS: Final = (
    "capsule-ecdh-aes256gcm-v1",
    "capsule-api-ecdh-aes256gcm-v1",
    "enclaver-ecdh-aes256gcm-v1",
)

# SubjectPublicKeyInfo of id-ecPublicKey on secp384r1 up to the point (RFC 5480), as the platform writes it.
SPKI_PREFIX: Final = bytes.fromhex("3076301006072a8648ce3d020106052b81040022036200")
# The order of P-384 (SP 800-186 §3.2.1.4).
P384_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
SEC1_BYTES: Final = 97  # 0x04 ‖ X ‖ Y of 48 bytes each (SEC 1 §2.3.3)
DER_BYTES: Final = 120
SHARED_SECRET_BYTES: Final = 48
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16


@final
class TeePublicKey:
    """A P-384 public key that is known to be a point on the curve. Equal and hashed by its DER.

    `sec1` is the uncompressed point, 97 bytes; `der` its SubjectPublicKeyInfo, 120 bytes.
    """

    __slots__ = ("_key", "der", "sec1")

    def __init__(self, sec1: bytes) -> None:
        """Raises `Rejected(BAD_FIELD)` unless `sec1` is an uncompressed point on the curve."""
        if len(sec1) != SEC1_BYTES:
            raise _bad_key()
        try:
            self._key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), sec1)
        except ValueError as error:
            raise _bad_key() from error
        self.sec1: Final = sec1
        self.der: Final = SPKI_PREFIX + sec1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TeePublicKey) and self.der == other.der

    def __hash__(self) -> int:
        return hash(self.der)

    def __repr__(self) -> str:
        return f"TeePublicKey({self.sec1[1:5].hex()})"


def parse_tee_pubkey(data: bytes) -> TeePublicKey:
    """A key in DER (120 bytes) or as an uncompressed SEC1 point (97 bytes).

    Raises `Rejected(BAD_FIELD)` for every other encoding and for points off the curve.
    """
    return TeePublicKey(data) if len(data) == SEC1_BYTES else parse_tee_pubkey_der(data)


def parse_tee_pubkey_der(data: bytes) -> TeePublicKey:
    """A key in DER, exactly as the platform writes it. Raises `Rejected(BAD_FIELD)`, also for a point off the curve."""
    if len(data) != DER_BYTES or not data.startswith(SPKI_PREFIX):
        raise _bad_key()
    return TeePublicKey(data[len(SPKI_PREFIX) :])


def _bad_key() -> Rejected:
    return Rejected(Reason.BAD_FIELD, "the public key is not a P-384 key in the expected encoding")


@final
class AgreementKey:
    """A P-384 private key for key agreement.

    The scalar lives in `cryptography`'s (OpenSSL's) memory, which clears it when the object goes. The class offers no
    way to export it, and neither prints nor pickles it.
    """

    __slots__ = ("_key", "public")

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        """Raises InvariantBroken for a key on another curve."""
        if not isinstance(key.curve, ec.SECP384R1):
            raise InvariantBroken("an agreement key is not on P-384")
        self._key = key
        self.public: Final = TeePublicKey(key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))

    @classmethod
    def generate(cls) -> Self:
        """A fresh key from the random source of libcrypto."""
        return cls(ec.generate_private_key(ec.SECP384R1()))

    @classmethod
    def from_scalar(cls, scalar: int) -> Self:
        """The key of this scalar. Raises `Rejected(BAD_FIELD)` unless it lies in 1..n-1."""
        if not 1 <= scalar < P384_ORDER:
            raise Rejected(Reason.BAD_FIELD, "the scalar is not a P-384 private key")
        return cls(ec.derive_private_key(scalar, ec.SECP384R1()))

    def agree(self, peer: TeePublicKey) -> SecretBytes:
        """The x-coordinate shared with `peer`, 48 bytes big-endian with leading zeros kept (SEC 1 §3.3.1)."""
        return SecretBytes(self._key.exchange(ec.ECDH(), peer._key))

    def __repr__(self) -> str:
        return f"AgreementKey(public={self.public!r})"

    def __reduce__(self) -> str:
        raise TypeError("an agreement key cannot be pickled or copied")
