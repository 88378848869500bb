"""PoP nonces with the standard library: a time, randomness and a MAC over both, in base64."""

import base64
import hashlib
import hmac

from kmscore.errors import Reason, Rejected
from kmscore.secret import SecretBytes

_DOMAIN = b"nova-kms:pop-nonce:v1:"


class NonceIssuer:
    def __init__(self, key: SecretBytes, max_age_ms: int) -> None:
        self._key = key
        self._max_age_ms = max_age_ms

    def issue(self, now_ms: int, random16: bytes) -> str:
        signed = now_ms.to_bytes(8, "big") + random16
        return base64.b64encode(signed + self._tag(signed)).decode("ascii")

    def check(self, text: str, now_ms: int) -> int:
        try:
            token = base64.b64decode(text, validate=True)
        except ValueError:
            token = b""
        if len(token) != 48 or base64.b64encode(token).decode() != text or self._tag(token[:24]) != token[24:]:
            raise Rejected(Reason.NONCE, "not ours")
        issued_ms = int.from_bytes(token[:8], "big")
        if not issued_ms <= now_ms < issued_ms + self._max_age_ms:
            raise Rejected(Reason.NONCE, "expired")
        return issued_ms + self._max_age_ms

    def _tag(self, signed: bytes) -> bytes:
        return hmac.new(self._key.reveal(), _DOMAIN + signed, hashlib.sha256).digest()[:24]
