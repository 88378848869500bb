"""Single use of nonces with the standard library: tokens that authenticate themselves, and lists of what was used."""

import base64
import hashlib
import hmac

from kmscore.errors import InvariantBroken, Reason, Rejected
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


class UsedNonces:
    """Two generations of texts and their owners, as lists."""

    def __init__(self, *, max_per_owner: int = 65_536) -> None:
        self._max_per_owner = max_per_owner
        self._older: list[tuple[str, int, str]] = []
        self._newer: list[tuple[str, int, str]] = []

    def consume(self, text: str, expires_ms: int, now_ms: int, owner: str) -> None:
        if now_ms >= expires_ms:
            raise Rejected(Reason.NONCE, "expired")
        if all(expiry_ms <= now_ms for _, expiry_ms, _ in self._older):
            self._older, self._newer = self._newer, []
        self.require_unused(text)
        if [by for _, _, by in self._older + self._newer].count(owner) >= self._max_per_owner:
            raise Rejected(Reason.RATE, "too many")
        self._newer.append((text, expires_ms, owner))

    def require_unused(self, text: str) -> None:
        if text in [used for used, _, _ in self._older + self._newer]:
            raise Rejected(Reason.REPLAY, "used")

    def __len__(self) -> int:
        return len(self._older) + len(self._newer)


class EnvelopeNonces:
    """A list of senders in order of use, each with a list of nonces."""

    def __init__(self, *, per_sender: int = 65_536, max_senders: int = 1_024) -> None:
        self._per_sender = per_sender
        self._max_senders = max_senders
        self._senders: list[tuple[bytes, list[bytes]]] = []

    def seen(self, sender: bytes, nonce: bytes) -> bool:
        return nonce in dict(self._senders).get(sender, [])

    def remember(self, sender: bytes, nonce: bytes) -> None:
        if len(nonce) != 12:
            raise InvariantBroken("not 12 bytes")
        nonces = dict(self._senders).get(sender, [])
        others = [(key, theirs) for key, theirs in self._senders if key != sender]
        self._senders = [*others, (sender, nonces)][-self._max_senders :]
        if nonce in nonces:
            raise Rejected(Reason.REPLAY, "used")
        nonces.append(nonce)
        del nonces[: -self._per_sender]
