"""Wallets and proof of possession with the pure-Python curve of eth_keys; the twin of kmscore._pop."""

import re

from eth_keys import KeyAPI
from eth_keys.backends import NativeECCBackend
from eth_keys.constants import SECPK1_N
from eth_keys.exceptions import BadSignature, ValidationError

from kmscore.errors import InvariantBroken, Reason, Rejected
from kmscore.pop import PopKind
from kmscore.secret import SecretBytes
from tests.reference.keccak import keccak256

_KEYS = KeyAPI(NativeECCBackend())


class WalletKey:
    def __init__(self, secret: SecretBytes) -> None:
        raw = secret.reveal()
        if len(raw) != 32 or not 1 <= int.from_bytes(raw, "big") < SECPK1_N:
            raise Rejected(Reason.BAD_FIELD, "not a key")
        self._key = _KEYS.PrivateKey(raw)
        self.address = _address(self._key.public_key)

    def sign_message(self, message: bytes) -> str:
        return "0x" + self.sign_digest(eip191_digest(message)).hex()

    def sign_digest(self, digest32: bytes) -> bytes:
        if len(digest32) != 32:
            raise InvariantBroken("a digest has 32 bytes")
        return self._key.sign_msg_hash(digest32).to_bytes()


def eip191_digest(message: bytes) -> bytes:
    return keccak256(b"\x19Ethereum Signed Message:\n%d%b" % (len(message), message))


def parse_wallet(text: str) -> str:
    if re.fullmatch(r"(0x)?[0-9a-fA-F]{40}", text) is None:
        raise Rejected(Reason.WALLET, "not a wallet")
    return "0x" + text[-40:].lower()


def pop_text(kind: PopKind, nonce: str, receiver: str, timestamp: int) -> bytes:
    if kind not in tuple(PopKind):
        raise InvariantBroken("not a kind")
    if type(timestamp) is not int or not 0 <= timestamp < 1 << 63:
        raise Rejected(Reason.TIMESTAMP, "not a timestamp")
    if re.fullmatch(r"[ -~]{1,512}", nonce) is None:
        raise Rejected(Reason.NONCE, "not a nonce")
    return f"NovaKMS:{kind.value}:{nonce}:{parse_wallet(receiver)}:{timestamp}".encode()


def recover_pop(kind: PopKind, nonce: str, receiver: str, timestamp: int, signature: str) -> str:
    return recover_signer(pop_text(kind, nonce, receiver, timestamp), signature)


def recover_signer(message: bytes, signature: str | bytes) -> str:
    text = signature.decode("latin-1") if isinstance(signature, bytes) else signature
    if re.fullmatch(r"(0x)?[0-9a-fA-F]{130}", text) is None:
        raise Rejected(Reason.SIGNATURE, "not 65 bytes")
    raw = bytes.fromhex(text[-130:])
    if raw[64] not in (0, 1, 27, 28):
        raise Rejected(Reason.SIGNATURE, "not a recovery id")
    if int.from_bytes(raw[32:64], "big") > SECPK1_N // 2:
        raise Rejected(Reason.SIGNATURE, "s is high")
    try:
        parsed = _KEYS.Signature(raw[:64] + bytes([raw[64] % 27]))
        return _address(parsed.recover_public_key_from_msg_hash(eip191_digest(message)))
    except (BadSignature, ValidationError):
        raise Rejected(Reason.SIGNATURE, "belongs to no key") from None


def _address(public: KeyAPI.PublicKey) -> str:
    return "0x" + keccak256(public.to_bytes())[12:].hex()
