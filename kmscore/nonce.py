"""Single use: of proof-of-possession nonces and of envelope nonces (protocol §2-§3).

Refuses to remember anything on behalf of a stranger: issuing a nonce costs no memory, and what is remembered is bounded
per authenticated caller. Clocks and randomness come from the caller; every time is in milliseconds on one monotonic
clock. The classes are for one thread.
"""

import base64
import binascii
from array import array
from collections import Counter, OrderedDict
from typing import Final, final

from kmscore.errors import InvariantBroken, Reason, Rejected
from kmscore.mac import hmac_sha256
from kmscore.secret import SecretBytes, constant_time_equal

# A token is time ‖ random ‖ tag. 48 bytes are 64 base64 characters without padding, so every text stands for a
# different token and every token has one text. 24 bytes of tag are more than the half that RFC 2104 §5 asks for.
_TIME_BYTES: Final = 8
_RANDOM_BYTES: Final = 16
_TAG_BYTES: Final = 24
_SIGNED_BYTES: Final = _TIME_BYTES + _RANDOM_BYTES
NONCE_CHARS: Final = 64

# Separates these MACs from whatever else the key might be used for one day.
_DOMAIN: Final = b"nova-kms:pop-nonce:v1:"

ENVELOPE_NONCE_BYTES: Final = 12


@final
class NonceIssuer:
    """Issues PoP nonces that authenticate themselves, so that none has to be kept (protocol §2).

    `key` has 32 bytes and is made at boot: nonces of an earlier boot are worth nothing. A nonce shows its issue time on
    the monotonic clock, hence roughly how long the machine has been up; that is public.
    """

    def __init__(self, key: SecretBytes, max_age_ms: int) -> None:
        self._key = key
        self._max_age_ms = max_age_ms

    def issue(self, now_ms: int, random16: bytes) -> str:
        """A fresh nonce: 64 characters of base64. InvariantBroken unless `random16` has 16 bytes."""
        if len(random16) != _RANDOM_BYTES:
            raise InvariantBroken("a nonce is issued with randomness of a wrong length")
        signed = now_ms.to_bytes(_TIME_BYTES, "big") + random16
        return base64.b64encode(signed + self._tag(signed)).decode("ascii")

    def check(self, text: str, now_ms: int) -> int:
        """When the nonce `text` expires, if this issuer made it and it has not expired at `now_ms`.

        Says nothing about single use: that is `UsedNonces`. The tag is compared in constant time (CRYPTO_memcmp).
        Raises `Rejected(NONCE)` for any other text, for a nonce that has expired, and for one issued after `now_ms`.
        """
        token = _decode_nonce(text)
        if token is None or not constant_time_equal(self._tag(token[:_SIGNED_BYTES]), token[_SIGNED_BYTES:]):
            raise Rejected(Reason.NONCE, "the nonce was not issued by this node since it started")
        issued_ms = int.from_bytes(token[:_TIME_BYTES], "big")
        expires_ms = issued_ms + self._max_age_ms
        if not issued_ms <= now_ms < expires_ms:
            raise Rejected(Reason.NONCE, "the nonce has expired")
        return expires_ms

    def _tag(self, signed: bytes) -> bytes:
        return hmac_sha256(self._key, _DOMAIN + signed)[:_TAG_BYTES]

    def __repr__(self) -> str:
        return f"NonceIssuer(max_age_ms={self._max_age_ms})"


def _decode_nonce(text: str) -> bytes | None:
    """The 48 bytes of a nonce text, None for any text that `issue` cannot have written."""
    if len(text) != NONCE_CHARS:
        return None
    try:
        token = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):  # ValueError itself for characters outside ASCII
        return None
    # One text for each token, however forgiving the decoder of some Python version may be.
    return token if base64.b64encode(token).decode("ascii") == text else None


class _Generation:
    """The nonces used in one stretch of time."""

    __slots__ = ("latest_expiry_ms", "per_owner", "texts")

    def __init__(self) -> None:
        self.texts: set[str] = set()
        self.per_owner: Counter[str] = Counter()
        self.latest_expiry_ms = 0


@final
class UsedNonces:
    """Remembers the PoP nonces that authorised callers have used, until they expire (protocol §2).

    Two generations: the newer one takes what is used, the older one goes as a whole once everything in it has expired,
    and the newer one takes its place. Forgetting therefore never takes an unexpired nonce, is amortised over what it
    forgets, and while nonces are being used it comes within two lifetimes of a nonce's use. About 160 bytes a nonce.
    """

    def __init__(self, *, max_per_owner: int = 65_536) -> None:
        self._max_per_owner = max_per_owner
        self._newer = _Generation()
        self._older = _Generation()

    def consume(self, text: str, expires_ms: int, now_ms: int, owner: str) -> None:
        """Use up the nonce `text` of an authorised caller; `expires_ms` is what `NonceIssuer.check` returned.

        `owner` is the caller's wallet. Raises `Rejected(NONCE)` when the nonce has expired since it was checked, for
        then it may be forgotten already and would pass as unused; `Rejected(REPLAY)` when it was used before;
        `Rejected(RATE)` when `max_per_owner` nonces of this owner are remembered already. All change nothing.
        """
        if now_ms >= expires_ms:
            raise Rejected(Reason.NONCE, "the nonce has expired")
        if now_ms >= self._older.latest_expiry_ms:
            self._older, self._newer = self._newer, _Generation()
        self.require_unused(text)
        if self._newer.per_owner[owner] + self._older.per_owner[owner] >= self._max_per_owner:
            raise Rejected(Reason.RATE, "too many nonces used in a short time")
        self._newer.texts.add(text)
        self._newer.per_owner[owner] += 1
        self._newer.latest_expiry_ms = max(self._newer.latest_expiry_ms, expires_ms)

    def require_unused(self, text: str) -> None:
        """Raises `Rejected(REPLAY)` when the nonce `text` was used before; changes nothing."""
        if text in self._newer.texts or text in self._older.texts:
            raise Rejected(Reason.REPLAY, "the nonce has been used")

    def __len__(self) -> int:
        """How many nonces are remembered."""
        return len(self._newer.texts) + len(self._older.texts)

    def __repr__(self) -> str:
        return f"UsedNonces({len(self)} remembered)"


class _NonceFifo:
    """The last `capacity` nonces of one key.

    A nonce lies in the bucket of its hash, buckets keep their nonces in order of arrival, and the order of all is kept
    as bucket numbers: the oldest nonce of all is the first one of the bucket that comes first. 15 to 16 bytes a nonce
    when full (12, the spare room of a bytearray, 2 for the order), where a set and a deque of `bytes` take 90 and more.
    Nothing is ever rebuilt, so every call takes about as long. Python's hash of bytes is keyed: nobody can choose a
    bucket.
    """

    __slots__ = ("_buckets", "_capacity", "_next", "_order")

    _BUCKETS: Final = 512  # 128 nonces a bucket at the default capacity: 1.5 KB to search

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._buckets: dict[int, bytearray] = {}
        self._order = array("H")
        self._next = 0

    def __contains__(self, nonce: bytes) -> bool:
        bucket = self._buckets.get(hash(nonce) % self._BUCKETS)
        if bucket is None:
            return False
        at = bucket.find(nonce)
        while at % ENVELOPE_NONCE_BYTES and at >= 0:  # the end of one nonce and the start of the next
            at = bucket.find(nonce, at + 1)
        return at >= 0

    def add(self, nonce: bytes) -> None:
        """Remember a nonce that is not there, in place of the oldest one when all places are taken."""
        number = hash(nonce) % self._BUCKETS
        if len(self._order) < self._capacity:
            self._order.append(number)
        else:
            del self._buckets[self._order[self._next]][:ENVELOPE_NONCE_BYTES]
            self._order[self._next] = number
            self._next = (self._next + 1) % self._capacity
        self._buckets.setdefault(number, bytearray()).extend(nonce)


@final
class EnvelopeNonces:
    """The envelope nonces used between us and each key, in either direction (protocol §3).

    Remembers the last `per_sender` nonces of each of the `max_senders` keys met last: exactly so many, first in, first
    out. A full key takes about 1 MB (16 bytes a nonce).
    """

    def __init__(self, *, per_sender: int = 65_536, max_senders: int = 1_024) -> None:
        self._per_sender = per_sender
        self._max_senders = max_senders
        self._memories: OrderedDict[bytes, _NonceFifo] = OrderedDict()

    def seen(self, sender: bytes, nonce: bytes) -> bool:
        """Whether `remember` would refuse; for a look before the envelope is opened. Changes nothing."""
        memory = self._memories.get(sender)
        return memory is not None and nonce in memory

    def remember(self, sender: bytes, nonce: bytes) -> None:
        """Note that `nonce` (12 bytes) was used between us and the key `sender` (its DER).

        Raises InvariantBroken for a nonce of another length, `Rejected(REPLAY)` when it is remembered already.
        """
        if len(nonce) != ENVELOPE_NONCE_BYTES:
            raise InvariantBroken("an envelope nonce is not 12 bytes long")
        memory = self._memories.get(sender)
        if memory is None:
            memory = self._memories[sender] = _NonceFifo(self._per_sender)
            if len(self._memories) > self._max_senders:
                self._memories.popitem(last=False)
        else:
            self._memories.move_to_end(sender)
        if nonce in memory:
            raise Rejected(Reason.REPLAY, "an envelope with this nonce was accepted before")
        memory.add(nonce)

    def __repr__(self) -> str:
        return f"EnvelopeNonces({len(self._memories)} of {self._max_senders} senders)"
