"""The protocol's byte formats, written a second time from the specification alone (protocol §1-§5).

The older peer and the hand-crafting client of the integration tests stand on this module. It must never import the
packages under test: what it proves is that two readings of the same page meet on the wire. It is slow and obvious, and
it wipes nothing.
"""

import base64
import hashlib
import hmac
import json
import re
import secrets
from dataclasses import dataclass

from coincurve import PrivateKey, PublicKey
from Crypto.Hash import keccak as pycryptodome_keccak
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

CAPSULE_LABEL = "capsule-ecdh-aes256gcm-v1"
CAPSULE_API_LABEL = "capsule-api-ecdh-aes256gcm-v1"
ENCLAVER_LABEL = "enclaver-ecdh-aes256gcm-v1"
LABELS = (CAPSULE_LABEL, CAPSULE_API_LABEL, ENCLAVER_LABEL)

SECP256K1_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
P384_SPKI_PREFIX = bytes.fromhex("3076301006072a8648ce3d020106052b81040022036200")
MASTER_SECRET_BYTES = 32


class WireError(Exception):
    """Bytes from outside do not have the form that the protocol asks for."""


# --- text forms ---


def parse_hex(text: object, size: int | None = None) -> bytes:
    """Bytes of `text`: either case, with or without 0x; exactly `size` of them when given."""
    if not isinstance(text, str):
        raise WireError("hex must be text")
    digits = text[2:] if text[:2] in ("0x", "0X") else text
    if not re.fullmatch("(?:[0-9a-fA-F]{2})*", digits):
        raise WireError("not hex")
    data = bytes.fromhex(digits)
    if size is not None and len(data) != size:
        raise WireError(f"expected {size} bytes of hex")
    return data


def parse_base64(text: object) -> bytes:
    """Bytes of standard base64 with padding, decoded strictly."""
    if not isinstance(text, str):
        raise WireError("base64 must be text")
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except ValueError as error:
        raise WireError("not base64") from error
    if base64.b64encode(data).decode() != text:
        raise WireError("base64 is not in its one form")
    return data


def encode_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def parse_wallet(text: object) -> str:
    """The canonical wallet, 0x and 40 lower-case hex digits."""
    if not isinstance(text, str) or not re.fullmatch("(?:0[xX])?[0-9a-fA-F]{40}", text):
        raise WireError("not a wallet")
    return "0x" + text[-40:].lower()


def keccak256(data: bytes) -> bytes:
    return pycryptodome_keccak.new(digest_bits=256, data=data).digest()


def checksum_wallet(wallet: str) -> str:
    """The EIP-55 form: a digit is upper case where the hash of the lower-case text has a nibble of 8 or more."""
    digits = parse_wallet(wallet)[2:]
    nibbles = keccak256(digits.encode()).hex()
    return "0x" + "".join(
        digit.upper() if int(nibble, 16) >= 8 else digit for digit, nibble in zip(digits, nibbles[:40], strict=True)
    )


def canonical_json(value: object) -> bytes:
    """Keys sorted, no white space, UTF-8: what the sync MAC covers."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


# --- wallet signatures (protocol §1, §2) ---


@dataclass(frozen=True)
class SignatureForm:
    """How a signer writes its 65 bytes: `v_base` 0 or 27, `prefix` "0x" or ""."""

    v_base: int = 0
    prefix: str = "0x"


def eip191_digest(message: bytes) -> bytes:
    return keccak256(b"\x19Ethereum Signed Message:\n" + str(len(message)).encode() + message)


class Wallet:
    """A secp256k1 key and the address of its public key."""

    def __init__(self, scalar: bytes | None = None) -> None:
        self.key = PrivateKey(scalar)
        self.address = "0x" + keccak256(self.key.public_key.format(compressed=False)[1:])[-20:].hex()

    def sign_digest(self, digest32: bytes) -> bytes:
        """r, s, v as 65 bytes with v 0 or 1 and s in the lower half."""
        return self.key.sign_recoverable(digest32, hasher=None)

    def sign(self, message: str, form: SignatureForm = SignatureForm()) -> str:
        sig65 = self.sign_digest(eip191_digest(message.encode()))
        return form.prefix + (sig65[:64] + bytes([sig65[64] + form.v_base])).hex()


def recover_signer(message: str, signature: str) -> str:
    """The canonical wallet that signed `message`; WireError for every form that protocol §1 refuses."""
    sig65 = parse_hex(signature, 65)
    r, s, v = int.from_bytes(sig65[:32], "big"), int.from_bytes(sig65[32:64], "big"), sig65[64]
    if v not in (0, 1, 27, 28) or not 0 < r < SECP256K1_ORDER or not 0 < s <= SECP256K1_ORDER // 2:
        raise WireError("signature out of range")
    try:
        public = PublicKey.from_signature_and_message(
            sig65[:64] + bytes([v % 27]), eip191_digest(message.encode()), hasher=None
        )
    except Exception as error:  # coincurve raises bare Exception for a point that is not on the curve
        raise WireError("signature recovers no key") from error
    return "0x" + keccak256(public.format(compressed=False)[1:])[-20:].hex()


def pop_text(kind: str, nonce: str, receiver: str, timestamp: int | str) -> str:
    """What a caller signs; `kind` is AppAuth (app to node) or Auth (node to node)."""
    return f"NovaKMS:{kind}:{nonce}:{receiver}:{timestamp}"


def response_text(caller_signature: str, receiver: str) -> str:
    return f"NovaKMS:Response:{caller_signature}:{receiver}"


# --- P-384 and the envelope (protocol §3) ---


class TeeKey:
    """A P-384 key pair with its public key in both encodings."""

    def __init__(self, scalar: int | None = None) -> None:
        self.private = ec.generate_private_key(ec.SECP384R1()) if scalar is None else _private_key(scalar)
        numbers = self.private.public_key().public_numbers()
        self.sec1 = b"\x04" + numbers.x.to_bytes(48, "big") + numbers.y.to_bytes(48, "big")
        self.der = P384_SPKI_PREFIX + self.sec1

    def agree(self, peer: bytes) -> bytes:
        """The 48-byte x-coordinate shared with `peer` (DER or SEC1)."""
        point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), parse_tee_pubkey(peer)[-97:])
        return self.private.exchange(ec.ECDH(), point)


def _private_key(scalar: int) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(scalar, ec.SECP384R1())


def parse_tee_pubkey(data: bytes) -> bytes:
    """DER of a P-384 key given as DER or as SEC1 uncompressed point; the point must be on the curve."""
    sec1 = data.removeprefix(P384_SPKI_PREFIX)
    if len(sec1) != 97 or sec1[0] != 4:
        raise WireError("not a P-384 key")
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), sec1)
    except ValueError as error:
        raise WireError("not a point of P-384") from error
    return P384_SPKI_PREFIX + sec1


def _hkdf(material: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=salt, info=info).derive(material)


def envelope_key(shared: bytes, a_sec1: bytes, b_sec1: bytes, nonce12: bytes, label: str) -> bytes:
    """The AES-256 key of one message; the two points in ascending byte order make it the same on both sides."""
    first, second = sorted((a_sec1, b_sec1))
    return _hkdf(shared, first + second + nonce12, label.encode(), 32)


def seal(own: TeeKey, peer: bytes, label: str, plaintext: bytes, nonce12: bytes | None = None) -> dict[str, str]:
    """The envelope of `plaintext` from `own` to the key `peer` (DER or SEC1)."""
    nonce12 = secrets.token_bytes(12) if nonce12 is None else nonce12
    key = envelope_key(own.agree(peer), own.sec1, parse_tee_pubkey(peer)[-97:], nonce12, label)
    return {
        "sender_tee_pubkey": own.der.hex(),
        "nonce": nonce12.hex(),
        "encrypted_data": AESGCM(key).encrypt(nonce12, plaintext, None).hex(),
    }


def open_envelope(own: TeeKey, envelope: object, labels: tuple[str, ...] = LABELS) -> tuple[bytes, str]:
    """Plaintext and the label that opened it; the sender key is the envelope's own, to be compared by the caller."""
    sender, nonce12, ciphertext = parse_envelope(envelope)
    shared = own.agree(sender)
    for label in labels:
        key = envelope_key(shared, own.sec1, sender[-97:], nonce12, label)
        try:
            return AESGCM(key).decrypt(nonce12, ciphertext, None), label
        except InvalidTag:
            continue
    raise WireError("no label opens the envelope")


def parse_envelope(envelope: object) -> tuple[bytes, bytes, bytes]:
    """Sender key as DER, nonce and ciphertext of an object with exactly the three members."""
    if not isinstance(envelope, dict) or set(envelope) != {"sender_tee_pubkey", "nonce", "encrypted_data"}:
        raise WireError("not an envelope")
    return (
        parse_tee_pubkey(parse_hex(envelope["sender_tee_pubkey"], 120)),
        parse_hex(envelope["nonce"], 12),
        parse_hex(envelope["encrypted_data"]),
    )


# --- the sync MAC and the sealed master secret (protocol §5) ---


def sync_mac(sync_key: bytes, envelope: object) -> str:
    return hmac.new(sync_key, canonical_json(envelope), hashlib.sha256).hexdigest()


SEALED_SALT = b"nova-kms:sealed-master-secret"
SEALED_INFO = b"aes-gcm-key"


def seal_master_secret(
    secret: bytes, requester: bytes, ephemeral: TeeKey | None = None, nonce12: bytes | None = None
) -> dict[str, str]:
    ephemeral = TeeKey() if ephemeral is None else ephemeral
    nonce12 = secrets.token_bytes(12) if nonce12 is None else nonce12
    key = _hkdf(ephemeral.agree(requester), SEALED_SALT, SEALED_INFO, 32)
    return {
        "ephemeral_pubkey": ephemeral.der.hex(),
        "nonce": nonce12.hex(),
        "encrypted_data": AESGCM(key).encrypt(nonce12, secret, None).hex(),
    }


def open_master_secret(sealed: object, own: TeeKey) -> bytes:
    if not isinstance(sealed, dict) or not {"ephemeral_pubkey", "nonce", "encrypted_data"} <= set(sealed):
        raise WireError("not a sealed master secret")
    key = _hkdf(own.agree(parse_hex(sealed["ephemeral_pubkey"])), SEALED_SALT, SEALED_INFO, 32)
    try:
        secret = AESGCM(key).decrypt(parse_hex(sealed["nonce"], 12), parse_hex(sealed["encrypted_data"]), None)
    except InvalidTag as error:
        raise WireError("the sealed master secret does not open") from error
    if len(secret) != MASTER_SECRET_BYTES:
        raise WireError("a master secret has 32 bytes")
    return secret


# --- derivation and encryption at rest (protocol §4, §5) ---


def derive_key(master_secret: bytes, app_id: int, path: str, context: str = "", length: int = 32) -> bytes:
    info = f"{path}:{context}" if context else path
    return _hkdf(master_secret, f"nova-kms:app:{app_id}".encode(), info.encode(), length)


def derive_sync_key(master_secret: bytes) -> bytes:
    return derive_key(master_secret, 0, "sync_hmac_key")


def derive_data_key(master_secret: bytes, app_id: int) -> bytes:
    return derive_key(master_secret, app_id, "data_key")


def encrypt_value(data_key: bytes, plaintext: bytes, nonce12: bytes | None = None) -> bytes:
    nonce12 = secrets.token_bytes(12) if nonce12 is None else nonce12
    return nonce12 + AESGCM(data_key).encrypt(nonce12, plaintext, None)


def decrypt_value(data_key: bytes, ciphertext: bytes) -> bytes:
    if len(ciphertext) < 28:
        raise WireError("too short for a nonce and a tag")
    try:
        return AESGCM(data_key).decrypt(ciphertext[:12], ciphertext[12:], None)
    except InvalidTag as error:
        raise WireError("the value does not decrypt under the data key of its app") from error
