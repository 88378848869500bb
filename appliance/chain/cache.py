"""The registry as app requests see it: read through, for a bounded time, in bounded memory (node §1).

What was found is believed for the TTL, counted from before it was read; what was not found for at most ten seconds, in
a memory of its own, so that inventing wallets cannot push out real ones. Errors are not remembered, and nothing is
served beyond its TTL: if the chain cannot be read by then, the answer is the error. Reads for wallets that nobody has
seen are paid from one budget for all of them: anyone can invent wallets, and each would cost a read of the chain.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import anyio

from appliance.chain.types import App, AppFacts, ChainError, Instance, RegistryReads, Version
from appliance.clock import Clock
from kmscore.errors import Reason, Rejected

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

NOT_FOUND_TTL_S = 10.0

# An instance takes about 4 KiB with the longest URL that is kept: some 40 MiB at the very most.
MAX_FOUND = 10_000
MAX_NOT_FOUND = 10_000

# First sights of a wallet: enough for a fleet that restarts at once, and a stranger's share of the providers' limits.
UNKNOWN_READS_PER_S = 20.0
UNKNOWN_READS_BURST = 200.0


@dataclass(frozen=True, slots=True)
class _Entry(Generic[V]):
    value: V
    expires_ms: int


class _Bounded(Generic[K, V]):
    """Values that expire; when full, the one unused for longest makes room."""

    def __init__(self, ttl_ms: int, max_entries: int) -> None:
        self._ttl_ms = ttl_ms
        self._max_entries = max_entries
        self._entries: OrderedDict[K, _Entry[V]] = OrderedDict()

    def __contains__(self, key: K) -> bool:
        """Whether the key is remembered at all, expired or not."""
        return key in self._entries

    def get(self, key: K, now_ms: int) -> V | None:
        entry = self.entry(key, now_ms)
        return None if entry is None else entry.value

    def entry(self, key: K, now_ms: int) -> _Entry[V] | None:
        """What is remembered of this key and has not expired."""
        entry = self._entries.get(key)
        if entry is None or now_ms >= entry.expires_ms:
            return None
        self._entries.move_to_end(key)
        return entry

    def put(self, key: K, value: V, read_ms: int) -> None:
        self._entries[key] = _Entry(value, read_ms + self._ttl_ms)
        self._entries.move_to_end(key)
        if len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)

    def drop(self, key: K) -> None:
        self._entries.pop(key, None)


class _TokenBucket:
    """At most `burst` at once and `per_s` in the long run."""

    def __init__(self, clock: Clock, per_s: float, burst: float) -> None:
        self._clock = clock
        self._per_s = per_s
        self._burst = burst
        self._tokens = burst
        self._filled_ms = clock.monotonic_ms()

    def take(self) -> bool:
        now_ms = self._clock.monotonic_ms()
        self._tokens = min(self._burst, self._tokens + (now_ms - self._filled_ms) / 1000 * self._per_s)
        self._filled_ms = now_ms
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class _Flight(Generic[V]):
    """One read of the chain that others wait for: its result, or its error, or neither if its leader was cancelled."""

    def __init__(self) -> None:
        self.landed = anyio.Event()
        self.result: tuple[V] | None = None
        self.error: ChainError | None = None


class _SingleFlight(Generic[K, V]):
    """Lets concurrent callers with one key share one read."""

    def __init__(self) -> None:
        self._flights: dict[K, _Flight[V]] = {}

    def joinable(self, key: K) -> bool:
        return key in self._flights

    async def run(self, key: K, read: Callable[[], Awaitable[V]]) -> V:
        """What `read` returns or raises, read here or by whoever asks for the same key at this moment.

        The read belongs to the first caller's task. If that is cancelled, one of those who waited reads instead.
        """
        while (flight := self._flights.get(key)) is not None:
            await flight.landed.wait()
            if flight.error is not None:
                raise ChainError(str(flight.error), retry_after_s=flight.error.retry_after_s) from flight.error
            if flight.result is not None:
                return flight.result[0]
        flight = self._flights[key] = _Flight()
        try:
            flight.result = (await read(),)
        except ChainError as error:
            flight.error = error
            raise
        finally:
            del self._flights[key]
            flight.landed.set()
        return flight.result[0]


class _ReadThrough(Generic[K, V]):
    """One kind of record: found ones, not found ones, and the reads under way."""

    def __init__(self, clock: Clock, ttl_ms: int, not_found_ttl_ms: int) -> None:
        self._clock = clock
        self._found: _Bounded[K, V] = _Bounded(ttl_ms, MAX_FOUND)
        self._not_found: _Bounded[K, bool] = _Bounded(not_found_ttl_ms, MAX_NOT_FOUND)
        self._flights: _SingleFlight[K, V | None] = _SingleFlight()
        # What was found and is still believed, by key and the time now.
        self.found = self._found.entry

    def was_found(self, key: K) -> bool:
        """Whether the key has been found before, however long ago, and is still remembered."""
        return key in self._found

    def joinable(self, key: K) -> bool:
        """Whether a read of this key is under way."""
        return self._flights.joinable(key)

    def peek(self, key: K) -> tuple[V | None] | None:
        """What is remembered, in a tuple since not found is an answer; None if nothing valid is."""
        now_ms = self._clock.monotonic_ms()
        entry = self.found(key, now_ms)
        if entry is not None:
            return (entry.value,)
        return (None,) if self._not_found.get(key, now_ms) else None

    def remember(self, key: K, value: V | None, read_ms: int) -> None:
        """Takes over what a read that began at `read_ms` answered."""
        if value is None:
            self._found.drop(key)
            self._not_found.put(key, True, read_ms)
        else:
            self._not_found.drop(key)
            self._found.put(key, value, read_ms)

    async def get(self, key: K, read: Callable[[], Awaitable[V | None]]) -> V | None:
        remembered = self.peek(key)
        if remembered is not None:
            return remembered[0]

        async def read_and_remember() -> V | None:
            began_ms = self._clock.monotonic_ms()
            value = await read()
            self.remember(key, value, began_ms)
            return value

        return await self._flights.run(key, read_and_remember)


class CachedNovaRegistry:
    """`RegistryReads` over `registry`, remembering for `ttl_s` seconds of the monotonic clock (node §1).

    Every read raises ChainError when nothing valid is remembered and the chain cannot be read.
    """

    def __init__(
        self,
        registry: RegistryReads,
        clock: Clock,
        *,
        ttl_s: float,
        unknown_reads_per_s: float = UNKNOWN_READS_PER_S,
        unknown_reads_burst: float = UNKNOWN_READS_BURST,
    ) -> None:
        ttl_ms = int(ttl_s * 1000)
        not_found_ttl_ms = int(min(ttl_s, NOT_FOUND_TTL_S) * 1000)
        self._registry = registry
        self._clock = clock
        self._instances: _ReadThrough[str, Instance] = _ReadThrough(clock, ttl_ms, not_found_ttl_ms)
        self._apps: _ReadThrough[int, App] = _ReadThrough(clock, ttl_ms, not_found_ttl_ms)
        self._versions: _ReadThrough[tuple[int, int], Version] = _ReadThrough(clock, ttl_ms, not_found_ttl_ms)
        self._pairs: _SingleFlight[tuple[int, int], tuple[App | None, Version | None]] = _SingleFlight()
        # In the order in which they were collected, which is done anew for as long as a wallet calls.
        self._facts: dict[str, _Entry[AppFacts]] = {}
        self._budget = _TokenBucket(clock, unknown_reads_per_s, unknown_reads_burst)

    async def get_instance_by_wallet(self, wallet: str) -> Instance | None:
        """The instance registered for a canonical wallet.

        Raises Rejected(RATE) if that takes a read for a wallet never found, and too many such reads were made;
        ChainError.
        """
        remembered = self._instances.peek(wallet)
        if remembered is not None:
            return remembered[0]
        was_found = self._instances.was_found(wallet) or wallet in self._facts
        unpaid = not was_found and not self._instances.joinable(wallet)
        if unpaid and not self._budget.take():
            raise Rejected(Reason.RATE, "too many unknown wallets are asking; try again later")
        return await self._instances.get(wallet, lambda: self._registry.get_instance_by_wallet(wallet))

    def remembered_facts(self, wallet: str) -> AppFacts | None:
        """The wallet's instance with its app and version, when all three were found and are still believed."""
        now_ms = self._clock.monotonic_ms()
        known = self._facts.get(wallet)
        if known is None or now_ms >= known.expires_ms:
            known = self._collect(wallet, now_ms)
        return None if known is None else known.value

    def _collect(self, wallet: str, now_ms: int) -> _Entry[AppFacts] | None:
        """The three together, believed for as long as each of them."""
        instance = self._instances.found(wallet, now_ms)
        if instance is None:
            return None
        app = self._apps.found(instance.value.app_id, now_ms)
        version = self._versions.found((instance.value.app_id, instance.value.version_id), now_ms)
        if app is None or version is None:
            return None
        expires_ms = min(instance.expires_ms, app.expires_ms, version.expires_ms)
        known = _Entry((instance.value, app.value, version.value), expires_ms)
        self._facts.pop(wallet, None)
        self._facts[wallet] = known
        if len(self._facts) > MAX_FOUND:
            del self._facts[next(iter(self._facts))]
        return known

    async def get_app(self, app_id: int) -> App | None:
        """The app with this id. Raises ChainError."""
        return await self._apps.get(app_id, lambda: self._registry.get_app(app_id))

    async def get_version(self, app_id: int, version_id: int) -> Version | None:
        """The version with this id of this app. Raises ChainError."""
        return await self._versions.get((app_id, version_id), lambda: self._registry.get_version(app_id, version_id))

    async def get_app_and_version(self, app_id: int, version_id: int) -> tuple[App | None, Version | None]:
        """Both, in one read of the chain if neither is remembered. Raises ChainError."""
        key = (app_id, version_id)
        app, version = self._apps.peek(app_id), self._versions.peek(key)
        if app is not None and version is not None:
            return app[0], version[0]
        if app is None and version is None:
            return await self._pairs.run(key, lambda: self._read_pair(app_id, version_id))
        return await self.get_app(app_id), await self.get_version(app_id, version_id)

    async def _read_pair(self, app_id: int, version_id: int) -> tuple[App | None, Version | None]:
        began_ms = self._clock.monotonic_ms()
        app, version = await self._registry.get_app_and_version(app_id, version_id)
        self._apps.remember(app_id, app, began_ms)
        self._versions.remember((app_id, version_id), version, began_ms)
        return app, version
