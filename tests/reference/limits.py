"""Token buckets with the standard library, in an ordered dictionary."""

from collections import OrderedDict

from appliance.clock import Clock
from kmscore.errors import Reason, Rejected
from kmscore.limits import MAX_TRACKED


class RateLimiter:
    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._capacity = float(per_minute)
        self._per_ms = per_minute / 60_000
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def take(self, key: str) -> None:
        """Use one request of `key`. Raises `Rejected(RATE)` when there is none left."""
        if not self._capacity:
            return
        now_ms = self._clock.monotonic_ms()
        tokens = self._tokens(key, now_ms)
        if tokens < 1:
            raise Rejected(Reason.RATE, "too many requests")
        self._put(key, tokens - 1, now_ms)

    def give_back(self, key: str) -> None:
        """Return one request: it turned out to be authenticated, and its wallet is limited instead."""
        if self._capacity and key in self._buckets:
            now_ms = self._clock.monotonic_ms()
            self._put(key, min(self._capacity, self._tokens(key, now_ms) + 1), now_ms)

    def _tokens(self, key: str, now_ms: int) -> float:
        tokens, at_ms = self._buckets.get(key, (self._capacity, 0))
        return min(self._capacity, tokens + (now_ms - at_ms) * self._per_ms)

    def _put(self, key: str, tokens: float, now_ms: int) -> None:
        self._buckets[key] = (tokens, now_ms)
        self._buckets.move_to_end(key)
        if len(self._buckets) > MAX_TRACKED:
            self._buckets.popitem(last=False)
