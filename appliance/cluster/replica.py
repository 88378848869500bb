"""The node's copy of the data: the store, the ciphers around it, the lock under which answer and change agree.

A change is applied only after its answer is sealed (protocol §4). Everything that changes the store therefore runs
plan → seal → apply under the write lock; what has no await in between never contends for it.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import anyio

from appliance.clock import Clock
from appliance.cluster.keys import ClusterKeys
from kmscore.errors import Reason, Rejected, Unavailable
from kmscore.message import count_fitting
from kmscore.store import (
    MergeOutcome,
    Record,
    Store,
    StoreLimits,
    count_entries,
    count_outcomes,
    parse_records,
)

logger = logging.getLogger(__name__)

Entry = tuple[int, int, Record]  # app id, local sequence number, record

# What is done with records between two chances for other requests: at most about a millisecond of work.
RECORDS_PER_SLICE = 500
ENTRIES_OF_A_RECORD = 8  # so many more entries of clocks are merged in the time of a record with one
SLICE_BYTES = 256 * 1024
APP_BYTES = 2560  # deriving an app's key takes as long as decrypting so much
MAX_APP_ID = 2**256 - 1
# Each app in a message costs a key derivation when its first record is checked.
MAX_APPS_PER_MESSAGE = 20_000
# Longer than a call to a remote TEE provider takes, which is what a change waits for behind others.
WRITE_LOCK_DEADLINE_S = 15.0
REFUSED_UNDECRYPTABLE = "undecryptable"


@dataclass(slots=True)
class IncomingRecords:
    """Records of one delta or snapshot page that passed every check that needs no store, and why the rest did not.

    `accepted` holds them in parts, each of one app and checked in one step.
    """

    generation: int
    accepted: list[tuple[int, list[Record]]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return sum([len(records) for _, records in self.accepted]) + self.refused.total()

    def slices(self) -> Iterator["IncomingRecords"]:
        """The same in slices that are merged in about a millisecond, at least one; each leaves this object."""
        part = IncomingRecords(self.generation, refused=self.refused)
        self.refused = Counter()
        spent = 0
        self.accepted.reverse()
        while self.accepted:
            app_id, records = self.accepted.pop()
            cost = merge_cost(records)
            if spent and spent + cost > RECORDS_PER_SLICE:
                yield part
                part = IncomingRecords(self.generation)
                spent = 0
            part.accepted.append((app_id, records))
            spent += cost
        yield part

    def each(self) -> Iterator[tuple[int, Record]]:
        """The accepted records with their app ids, one by one."""
        return ((app_id, record) for app_id, records in self.accepted for record in records)


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a delta did, in the words of the protocol's answer."""

    total: int
    merged: int
    skipped: int
    rejected: int
    skip_reasons: dict[str, int]

    def as_answer(self) -> dict[str, object]:
        return {
            "status": "ok",
            "total": self.total,
            "merged": self.merged,
            "skipped": self.skipped,
            "rejected": self.rejected,
            "skip_reasons": self.skip_reasons,
        }


class Writing:
    """Holds the write lock."""

    __slots__ = ("_lock",)

    def __init__(self, lock: anyio.Semaphore) -> None:
        self._lock = lock

    async def __aenter__(self) -> None:
        try:
            self._lock.acquire_nowait()  # a deadline costs more than a small change does
        except anyio.WouldBlock:
            try:
                with anyio.fail_after(WRITE_LOCK_DEADLINE_S):
                    await self._lock.acquire()
            except TimeoutError as error:
                raise Unavailable("too many changes are waiting") from error

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()


class Replica:
    """Values in and out of the store, encrypted at rest under each app's own key."""

    def __init__(
        self,
        store: Store,
        keys: ClusterKeys,
        clock: Clock,
        limits: StoreLimits,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self.store = store
        # Not a Lock: that notes who holds it, for which Python asks the kernel for our process id, twice a change. What
        # asks for it twice is not told so, but waits until the deadline.
        self._write_lock = anyio.Semaphore(1, max_value=1)
        self._keys = keys
        self._clock = clock
        self._limits = limits
        self._random_bytes = random_bytes
        self._complete = False

    # --- the copy as a whole ---

    @property
    def complete(self) -> bool:
        """Whether this copy is the cluster's: begun here, or a snapshot was taken over to its end."""
        return self._complete

    def mark_complete(self) -> None:
        self._complete = True

    async def replace_secret(self, adopt: Callable[[], None]) -> int:
        """Forget every record, which the new secret cannot read, and adopt it; how many live ones there were.

        Under the write lock, so that no change made with the old secret is applied after it.
        """
        async with self.writing():
            dropped = self.store.stats(self._clock.now_ms()).total_keys
            self.store.clear()
            self._complete = False
            adopt()
            return dropped

    def writing(self) -> "Writing":
        """The write lock for an `async with` block, waited for a bounded time.

        Entering raises `Unavailable` when it cannot be had.
        """
        return Writing(self._write_lock)

    async def forget_unnamed(self, upto_seq: int, named: set[bytes], *, exclude_snapshot: bool) -> int:
        """Drop what is at or before `upto_seq` in the change log and not in `named`; returns how much that was.

        `named` holds `name_digest`s. With `exclude_snapshot` what came by snapshot stays.
        """
        seq = forgotten = 0
        done = False
        while not done and seq < upto_seq:
            async with self.writing():
                batch = self.store.since(
                    seq, limit_records=RECORDS_PER_SLICE, limit_bytes=2**62, exclude_snapshot=exclude_snapshot
                )
                for app_id, record_seq, record in batch.records:
                    if record_seq <= upto_seq and name_digest(app_id, record.key) not in named:
                        forgotten += self.store.forget(record_seq)
            seq, done = batch.next_seq, batch.done
            await anyio.lowlevel.checkpoint()
        return forgotten

    # --- an app's own values ---

    def get(self, app_id: int, key: str) -> tuple[bytes, int] | None:
        """Plaintext and updated_at_ms of a live value, None when there is none."""
        record = self.store.get(app_id, key, self._clock.now_ms())
        if record is None or record.value is None:
            return None
        return self._keys.data_cipher(app_id).open(record.value), record.updated_at_ms

    def keys(self, app_id: int) -> list[str]:
        return self.store.keys(app_id, self._clock.now_ms())

    def encrypt(self, app_id: int, value: bytes) -> bytes:
        """Ciphertext of a value for the store. Raises `Rejected(VALUE_TOO_LARGE)`."""
        if len(value) > self._limits.max_value_bytes:
            raise Rejected(Reason.VALUE_TOO_LARGE, f"the value is larger than {self._limits.max_value_bytes} bytes")
        return self._keys.data_cipher(app_id).seal(value, self._random_bytes(12))

    # --- records from peers ---

    async def check_incoming(self, data: object) -> IncomingRecords:
        """Check a peer's `data` member, {decimal app id: [records]}, record by record (store §2), and empty its lists.

        One bad record refuses itself only. Raises `Rejected(MALFORMED)` when the member itself has another shape.
        """
        if not isinstance(data, dict):
            raise Rejected(Reason.MALFORMED, "data is not an object of app ids")
        if len(data) > MAX_APPS_PER_MESSAGE:
            raise Rejected(Reason.MALFORMED, f"data holds more than {MAX_APPS_PER_MESSAGE} app ids")
        incoming = IncomingRecords(generation=self._keys.generation)
        left = SLICE_BYTES
        for app_text, items in data.items():
            app_id = parse_app_id(app_text)
            if not isinstance(items, list):
                raise Rejected(Reason.MALFORMED, "data holds something that is not a list of records")
            at = 0
            left -= APP_BYTES
            while at < len(items) or left <= 0:
                if left <= 0:
                    left = SLICE_BYTES
                    await anyio.lowlevel.checkpoint()
                if at < len(items):
                    at, left = self._check_records(app_id, items, at, left, incoming)
        return incoming

    def _check_records(
        self, app_id: int, items: list[object], first: int, slice_bytes: int, incoming: IncomingRecords
    ) -> tuple[int, int]:
        """As many as a slice has room for; the position to go on from, and what room is left."""
        cipher = self._keys.data_cipher(app_id)
        records, refusals, following, left = parse_records(items, first, self._limits, slice_bytes)
        readable = cipher.readable(records)
        if refusals:
            incoming.refused.update(refusals)
        if len(readable) < len(records):
            incoming.refused[REFUSED_UNDECRYPTABLE] += len(records) - len(readable)
        if readable:
            incoming.accepted.append((app_id, readable))
        return following, left

    async def evaluate(self, incoming: IncomingRecords) -> MergeReport:
        """What `take_in` would report now, and raise; changes nothing. To be called under the write lock."""
        self._keys.require_generation(incoming.generation)
        now_ms = self._clock.now_ms()
        outcomes: list[MergeOutcome] = []
        spent = 0
        for app_id, records in incoming.accepted:
            cost = merge_cost(records)
            if spent and spent + cost > RECORDS_PER_SLICE:
                spent = 0
                await anyio.lowlevel.checkpoint()
            spent += cost
            outcomes += self.store.evaluate_each(app_id, records, now_ms)
        return self._report(incoming.total, incoming.refused, outcomes)

    async def take_in(self, incoming: IncomingRecords, source: str) -> MergeReport:
        """`merge` in slices, between which others may read; nothing is left in `incoming` then.

        To be called under the write lock.
        """
        total, refused = incoming.total, incoming.refused
        outcomes: list[MergeOutcome] = []
        for part in incoming.slices():
            if outcomes:
                await anyio.lowlevel.checkpoint()
            outcomes += self.merge_each(part, source)
        return self._report(total, refused, outcomes)

    def merge(self, incoming: IncomingRecords, source: str, *, snapshot: bool = False) -> MergeReport:
        """Merge checked records of peer `source` into the store.

        Raises `Unavailable` when they were checked against a master secret that has been replaced since.
        """
        outcomes = self.merge_each(incoming, source, snapshot=snapshot)
        return self._report(incoming.total, incoming.refused, outcomes)

    def merge_each(self, incoming: IncomingRecords, source: str, *, snapshot: bool = False) -> list[MergeOutcome]:
        """`merge`, with what became of each of `incoming.each()`."""
        self._keys.require_generation(incoming.generation)
        now_ms = self._clock.now_ms()
        outcomes: list[MergeOutcome] = []
        for app_id, records in incoming.accepted:
            outcomes += self.store.merge_each(app_id, records, now_ms, source, snapshot)
        return outcomes

    def _report(self, total: int, refused: Counter[str], outcomes: list[MergeOutcome]) -> MergeReport:
        reasons = Counter(refused)
        merged = 0
        rejected = refused.total()
        for outcome, count in count_outcomes(outcomes).items():
            if outcome.accepted:
                merged += count
            else:
                reasons[outcome.value] += count
                rejected += count * outcome.refused
        return MergeReport(
            total=total,
            merged=merged,
            skipped=total - merged - rejected,
            rejected=rejected,
            skip_reasons=dict(sorted(reasons.items())),
        )


def parse_app_id(text: object) -> int:
    """A decimal app id of the wire. Raises `Rejected(MALFORMED)`."""
    if not isinstance(text, str) or not text.isascii() or not text.isdecimal() or len(text) > 78:
        raise Rejected(Reason.MALFORMED, "an app id is not a decimal number")
    app_id = int(text)
    if app_id > MAX_APP_ID or str(app_id) != text:
        raise Rejected(Reason.MALFORMED, "an app id is not a canonical 256-bit number")
    return app_id


def merge_cost(records: list[Record]) -> int:
    """How long they take to merge, in records of one clock entry each."""
    return len(records) + (count_entries(records) - len(records)) // ENTRIES_OF_A_RECORD


def by_app(entries: Sequence[Entry]) -> dict[int, list[Record]]:
    lists: dict[int, list[Record]] = {}
    for app_id, _, record in entries:
        lists.setdefault(app_id, []).append(record)
    return lists


def fitting(entries: Sequence[Entry], limit_bytes: int) -> Sequence[Entry]:
    """As many of the entries, from the first, as fit into an inner message of `limit_bytes`; at least one if any.

    Keys and clocks count as they are written: a record can be small in the store and large on the wire.
    """
    count = count_fitting(entries, limit_bytes)
    return entries if count == len(entries) else entries[:count]


def name_digest(app_id: int, key: str) -> bytes:
    """16 bytes that stand for a key of an app in a set of many."""
    return hashlib.blake2b(f"{app_id}:{key}".encode(), digest_size=16).digest()
