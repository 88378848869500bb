"""Single use: of proof-of-possession nonces and of envelope nonces (protocol §2-§3).

Refuses to remember anything on behalf of a stranger: issuing a nonce costs no memory, and what is remembered is bounded
per authenticated caller. Clocks and randomness come from the caller; every time is in milliseconds on one monotonic
clock. The classes are for one thread.
"""

from array import array
from collections import Counter, OrderedDict
from typing import Final, final

from kmscore._nonce import NonceIssuer
from kmscore.errors import InvariantBroken, Reason, Rejected

__all__ = ["ENVELOPE_NONCE_BYTES", "EnvelopeNonces", "NonceIssuer", "UsedNonces"]

ENVELOPE_NONCE_BYTES: Final = 12


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
        return bucket is not None and _holds(bucket, nonce)

    def add(self, nonce: bytes) -> bool:
        """Remember a nonce, in place of the oldest one when all places are taken; False when it is there already."""
        number = hash(nonce) % self._BUCKETS
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = bytearray()
        elif _holds(bucket, nonce):
            return False
        if len(self._order) < self._capacity:
            self._order.append(number)
        else:
            del self._buckets[self._order[self._next]][:ENVELOPE_NONCE_BYTES]
            self._order[self._next] = number
            self._next = (self._next + 1) % self._capacity
        bucket += nonce
        return True


def _holds(bucket: bytearray, nonce: bytes) -> bool:
    at = bucket.find(nonce)
    while at % ENVELOPE_NONCE_BYTES and at >= 0:  # the end of one nonce and the start of the next
        at = bucket.find(nonce, at + 1)
    return at >= 0


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
        if not memory.add(nonce):
            raise Rejected(Reason.REPLAY, "an envelope with this nonce was accepted before")

    def __repr__(self) -> str:
        return f"EnvelopeNonces({len(self._memories)} of {self._max_senders} senders)"
