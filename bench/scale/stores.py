"""The stores that are measured: how they are filled, and single operations on keys from all over them.

Records with `number % 4` of 0 and 2 are an app's own writes (one clock entry), the others came from a peer and have
three entries, so that repeating an operation changes neither what the next one meets nor what it costs. Filled in order
and then written once more in random order: the neighbours of a record in the change log lie anywhere in memory, as in a
store that has run for a while.
"""

import random
from collections.abc import Callable, Sequence
from typing import Final

from kmscore.secret import SecretBytes
from kmscore.store import Record, Store, StoreLimits

NOW_MS: Final = 1_700_000_000_000
OWN: Final = "0x" + "11" * 20
WRITERS: Final = ("0x" + "aa" * 20, "0x" + "bb" * 20, "0x" + "cc" * 20)
UNLIMITED: Final = StoreLimits(max_app_bytes=1 << 50, max_store_bytes=1 << 50, max_tombstones_per_app=1 << 40)
KEY_BYTES: Final = 20
VALUE_BYTES: Final = 256
SEAL_BYTES: Final = 28  # nonce and tag of AES-GCM
SINCE_RECORDS: Final = 500

_OWN_WRITES: Final = 0
_FROM_PEER: Final = 1
_TO_DELETE: Final = 2
_KINDS: Final = 4


def key_of(number: int) -> str:
    """The key of a record, 20 bytes."""
    return f"key-{number:016d}"


def value_of(number: int) -> bytes:
    """As many bytes as a sealed value has, an object of its own for each record."""
    return number.to_bytes(VALUE_BYTES + SEAL_BYTES, "big")


def peer_record(number: int, counter: int, writers: Sequence[str] = WRITERS, ttl_ms: int = 0) -> Record:
    """A prepared record from a peer; a larger counter is a newer version."""
    return Record(key_of(number), value_of(number), dict.fromkeys(writers, counter), NOW_MS + counter, ttl_ms)


class AgedStore:
    """A store of `records` records over `apps` namespaces, and operations that leave its size as it is.

    `records` is a multiple of four and at least 1000, `apps` divides it.
    """

    def __init__(self, records: int, *, apps: int = 1, seed: int = 1) -> None:
        self.records = records
        self.apps = apps
        self.store = Store(OWN, UNLIMITED, seed=bytes(16))
        self._rng = random.Random(seed)  # noqa: S311 - which keys are tried
        self._counter = 0
        self._fill(range(records))
        order = list(range(records))
        self._rng.shuffle(order)
        self._fill(order)
        # Every record has been changed since then: the sequence numbers after this one have no gaps.
        self._first_seq = self.store.last_seq - records

    def app_of(self, number: int) -> int:
        return 1 + number // _KINDS % self.apps

    def _fill(self, order: Sequence[int]) -> None:
        self._counter += 1
        for number in order:
            if number % 2 == _OWN_WRITES:
                self.store.put(self.app_of(number), key_of(number), value_of(number), 0, NOW_MS)
            else:
                self.store.merge(self.app_of(number), peer_record(number, self._counter), NOW_MS)

    def _some(self, kind: int, count: int) -> list[int]:
        return [self._rng.randrange(self.records // _KINDS) * _KINDS + kind for _ in range(count)]

    # Each of these prepares `count` operations, which are run by calling what it returns.

    def nothing(self, count: int) -> Callable[[], None]:
        """The loop and a call that does nothing: what measuring costs."""
        numbers = list(range(count))

        def run() -> None:
            call = int
            for number in numbers:
                call(number)

        return run

    def gets(self, count: int) -> Callable[[], None]:
        names = [(self.app_of(number), key_of(number)) for number in self._some(self._rng.randrange(_KINDS), count)]

        def run() -> None:
            get = self.store.get
            for app_id, key in names:
                get(app_id, key, NOW_MS)

        return run

    def puts(self, count: int) -> Callable[[], None]:
        writes = [(self.app_of(n), key_of(n), value_of(n)) for n in self._some(_OWN_WRITES, count)]

        def run() -> None:
            put = self.store.put
            for app_id, key, value in writes:
                put(app_id, key, value, 0, NOW_MS)

        return run

    def merges(self, count: int) -> Callable[[], None]:
        records = []
        for number in self._some(_FROM_PEER, count):
            self._counter += 1
            records.append((self.app_of(number), peer_record(number, self._counter)))
        # Counters are also times: a clock that is ahead of all of them.
        now_ms = NOW_MS + self._counter

        def run() -> None:
            merge = self.store.merge
            for app_id, record in records:
                merge(app_id, record, now_ms)

        return run

    def deletes(self, count: int) -> Callable[[], None]:
        """At most a quarter of the records; `restore` is due before the next time."""
        numbers = self._rng.sample(range(self.records // _KINDS), count)
        names = [(self.app_of(n), key_of(n)) for n in (number * _KINDS + _TO_DELETE for number in numbers)]
        self._deleted = names

        def run() -> None:
            delete = self.store.delete
            for app_id, key in names:
                delete(app_id, key, NOW_MS)

        return run

    def restore(self) -> None:
        """Write again what `deletes` has taken out."""
        for app_id, key in self._deleted:
            self.store.put(app_id, key, value_of(0), 0, NOW_MS)
        self._deleted = []

    def sinces(self, count: int) -> Callable[[], None]:
        """Batches of 500 from anywhere in the log. To be measured before anything else, which leaves gaps in it."""
        starts = [self._first_seq + self._rng.randrange(self.records - SINCE_RECORDS) for _ in range(count)]

        def run() -> None:
            for start in starts:
                self.store.since(start, limit_records=SINCE_RECORDS, limit_bytes=1 << 40)

        return run

    def track_digests(self) -> None:
        """Make the digests of everything; from then on updates have something to update."""
        self.store.track_digests(SecretBytes(bytes(32)))
        while not self.store.refresh_digests(NOW_MS + self._counter):
            pass

    def digest_updates(self, count: int) -> Callable[[], None]:
        """Bring the digests up to date after `count` merges, which happen now."""
        self.merges(count)()
        now_ms = NOW_MS + self._counter

        def run() -> None:
            while not self.store.refresh_digests(now_ms):
                pass

        return run
