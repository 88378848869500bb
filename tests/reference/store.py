"""The replicated store, slow and obvious (dictionaries, sorting, scans): the oracle of kmscore.store (store §1-§5)."""

import copy
import json
from dataclasses import dataclass, field, replace

from kmscore._store import siphash24
from kmscore.blake3 import blake3_keyed
from kmscore.errors import Reason, Rejected
from kmscore.secret import SecretBytes
from kmscore.store_types import (
    Batch,
    MergeOutcome,
    QuotaPolicy,
    RecordRefused,
    SkipReason,
    StoreLimits,
    StoreStats,
)

MAX_NUMBER = 1 << 62
MAX_ENTRIES = 1024
DIGEST_BYTES = 16
LEAF_ITEMS = 32
DEPTH = 16
LARGE_VALUE = 512
NEVER_EVICTS = (-1, b"")  # the turn of a tombstone: it pushes nothing out


def utf8(text: object) -> bytes:
    if type(text) is not str:
        raise RecordRefused(SkipReason.MALFORMED, "not text")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise RecordRefused(SkipReason.MALFORMED, "not encodable") from None


def number(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_NUMBER:
        raise RecordRefused(SkipReason.MALFORMED, "not a number from 0 to 2^62")
    return value


def check_key(key: object, limit_bytes: int) -> None:
    size = len(utf8(key))
    if size == 0:
        raise RecordRefused(SkipReason.MALFORMED, "empty key")
    if size > limit_bytes:
        raise RecordRefused(SkipReason.KEY_TOO_LARGE, "key too long")


@dataclass(frozen=True)
class Record:
    key: str
    value: bytes | None = field(repr=False)
    version: dict[str, int]
    updated_at_ms: int
    ttl_ms: int = 0

    def __post_init__(self) -> None:
        check_key(self.key, 65_536)
        if self.value is not None and type(self.value) is not bytes:
            raise RecordRefused(SkipReason.MALFORMED, "value is not bytes")
        number(self.updated_at_ms)
        number(self.ttl_ms)
        if type(self.version) is not dict:
            raise RecordRefused(SkipReason.MALFORMED, "version is not an object")
        for name, counter in self.version.items():
            if len(utf8(name)) > 128:
                raise RecordRefused(SkipReason.MALFORMED, "long writer")
            number(counter)
        positive = {name: counter for name, counter in self.version.items() if counter > 0}
        if not 1 <= len(positive) <= MAX_ENTRIES:
            raise RecordRefused(SkipReason.MALFORMED, "no or too many counters")
        object.__setattr__(self, "version", dict(sorted(positive.items(), key=lambda entry: entry[0].encode())))

    def __hash__(self) -> int:
        return hash((self.key, self.updated_at_ms))

    @property
    def tombstone(self) -> bool:
        return self.value is None


def parse_record(obj: object, limits: StoreLimits) -> Record:
    if type(obj) is not dict or not {"key", "value", "version", "updated_at_ms", "tombstone"} <= obj.keys():
        raise RecordRefused(SkipReason.MALFORMED, "not a record")
    check_key(obj["key"], limits.max_peer_key_bytes)
    text = obj["value"]
    if type(obj["tombstone"]) is not bool or obj["tombstone"] != (text is None):
        raise RecordRefused(SkipReason.MALFORMED, "tombstone and value disagree")
    value = None
    if text is not None:
        digits = utf8(text).decode()
        digits = digits[2:] if digits[:2] in ("0x", "0X") else digits
        if len(digits.encode()) % 2:
            raise RecordRefused(SkipReason.MALFORMED, "odd hex")
        if len(digits.encode()) // 2 > limits.max_value_bytes + 28:
            raise RecordRefused(SkipReason.VALUE_TOO_LARGE, "too large")
        if set(digits) - set("0123456789abcdefABCDEF") or len(digits) < 56:
            raise RecordRefused(SkipReason.MALFORMED, "bad hex")
        value = bytes.fromhex(digits)
    return Record(obj["key"], value, obj["version"], obj["updated_at_ms"], obj.get("ttl_ms", 0))


def encode_record(record: Record) -> dict[str, object]:
    return {
        "key": record.key,
        "value": None if record.value is None else record.value.hex(),
        "version": record.version,
        "updated_at_ms": record.updated_at_ms,
        "tombstone": record.tombstone,
        "ttl_ms": record.ttl_ms,
    }


def encoded_bytes(record: Record) -> int:
    return len(json.dumps(encode_record(record), separators=(",", ":"), ensure_ascii=False).encode())


def payload(record: Record) -> tuple[int, bytes, int, bool]:
    return record.updated_at_ms, record.value or b"", record.ttl_ms, record.tombstone


def covers(a: dict[str, int], b: dict[str, int]) -> bool:
    return all(a.get(name, 0) >= counter for name, counter in b.items())


def join(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    return {name: max(a.get(name, 0), b.get(name, 0)) for name in a.keys() | b.keys()}


def merge_records(ours: Record | None, theirs: Record) -> tuple[MergeOutcome, Record]:
    if ours is None:
        return MergeOutcome.INSERTED, theirs
    if ours.version == theirs.version and payload(ours) == payload(theirs):
        return MergeOutcome.IGNORED_EQUAL_VERSION, ours
    if ours.version != theirs.version:
        if covers(theirs.version, ours.version):
            return MergeOutcome.REPLACED_BY_VERSION, theirs
        if covers(ours.version, theirs.version):
            return MergeOutcome.IGNORED_EXISTING_NEWER_VERSION, ours
    version = join(ours.version, theirs.version)
    if len(version) > MAX_ENTRIES:
        return MergeOutcome.REFUSED_CLOCK, ours
    if payload(theirs) > payload(ours):
        return MergeOutcome.REPLACED_BY_CONCURRENT_LWW, replace(theirs, version=version)
    return MergeOutcome.IGNORED_CONCURRENT_TIE_BREAK, replace(ours, version=version)


class Digests:
    """The digests of some records, computed afresh for every question (store §5)."""

    def __init__(self, key: bytes, records: dict[int, dict[str, Record]]) -> None:
        self.key = key
        self.apps = {app_id: app for app_id, app in records.items() if app}
        self.positions: dict[tuple[int, str | None], str] = {}

    def children(self, app_id: int | None, prefix: str) -> list[bytes]:
        return [self.range(app_id, prefix + digit) for digit in "0123456789abcdef"]

    def items(self, app_id: int | None, prefix: str) -> list[tuple[int | str, bytes]] | None:
        inside = self._inside(app_id, prefix)
        return None if len(inside) > LEAF_ITEMS else [(name, self._item(app_id, name)) for name in inside]

    def range(self, app_id: int | None, prefix: str) -> bytes:
        inside = self._inside(app_id, prefix)
        if not inside:
            return bytes(DIGEST_BYTES)
        if len(inside) > LEAF_ITEMS and len(prefix) < DEPTH:
            return self._hash(4, *self.children(app_id, prefix))
        return self._hash(3, *sorted(self._item(app_id, name) for name in inside))

    def record(self, app_id: int, record: Record) -> bytes:
        key, value = record.key.encode(), record.value or b""
        clock = sorted((name.encode(), counter) for name, counter in record.version.items())
        return self._hash(
            2,
            app_id.to_bytes(32, "big"),
            len(key).to_bytes(4, "big") + key,
            record.updated_at_ms.to_bytes(8, "big") + record.ttl_ms.to_bytes(8, "big"),
            len(clock).to_bytes(4, "big"),
            *(bytes([len(name)]) + name + counter.to_bytes(8, "big") for name, counter in clock),
            b"\1" + value if len(value) <= LARGE_VALUE else b"\2" + self._hash(5, value),
        )

    def position(self, app_id: int, key: str | None) -> str:
        if (app_id, key) not in self.positions:
            self.positions[app_id, key] = self._position(app_id, key)
        return self.positions[app_id, key]

    def _position(self, app_id: int, key: str | None) -> str:
        derived = self._hash(1, app_id.to_bytes(32, "big"), length=24)
        if key is None:
            return f"{int.from_bytes(derived[16:], 'little'):016x}"
        return f"{siphash24(derived[:16], key.encode()):016x}"

    def _inside(self, app_id: int | None, prefix: str) -> list[int | str]:
        if app_id is None:
            return [app for app in self.apps if self.position(app, None).startswith(prefix)]
        return [key for key in self.apps.get(app_id, {}) if self.position(app_id, key).startswith(prefix)]

    def _item(self, app_id: int | None, name: int | str) -> bytes:
        return self.range(name, "") if app_id is None else self.record(app_id, self.apps[app_id][name])

    def _hash(self, tag: int, *parts: bytes, length: int = DIGEST_BYTES) -> bytes:
        return blake3_keyed(self.key, bytes([tag]) + b"".join(parts), length)


@dataclass
class Entry:
    record: Record
    seq: int
    received_at_ms: int
    source: str | None
    snapshot: bool
    noticed: int = 0  # the order in which it was noticed to be expired; 0: not yet

    @property
    def size(self) -> int:
        return len(self.record.key.encode()) + len(self.record.value or b"") + 128

    @property
    def turn(self) -> tuple[int, bytes]:
        return self.record.updated_at_ms, self.record.key.encode()

    @property
    def expires_at_ms(self) -> float:
        return self.record.updated_at_ms + self.record.ttl_ms if self.record.ttl_ms else float("inf")

    @property
    def live(self) -> bool:
        return not self.record.tombstone and not self.noticed


class Store:
    def __init__(self, writer: str, limits: StoreLimits, *, seed: bytes) -> None:
        if len(writer.encode()) > 128 or len(seed) != 16:
            raise Rejected(Reason.BAD_FIELD, "writer or seed")
        self.writer = writer
        self.limits = limits
        self.apps: dict[int, dict[str, Entry]] = {}
        self.floors: dict[int, tuple[int, bytes]] = {}
        self.newest_ms: dict[int, int] = {}
        self.last_seq = 0
        self.notices = 0
        self.digests = Digests(bytes(32), {})

    # --- own writes ---

    def plan_put(self, app_id: int, key: str, ciphertext_size: int, ttl_ms: int, now_ms: int) -> int:
        return copy.deepcopy(self).put(app_id, key, bytes(ciphertext_size), ttl_ms, now_ms)

    def put(self, app_id: int, key: str, ciphertext: bytes, ttl_ms: int, now_ms: int) -> int:
        self._check_app_id(app_id)
        self._check_key(key)
        if type(ttl_ms) is not int or not 0 <= ttl_ms <= MAX_NUMBER:
            raise Rejected(Reason.BAD_FIELD, "ttl")
        if len(ciphertext) > self.limits.max_value_bytes + 28:
            raise Rejected(Reason.VALUE_TOO_LARGE, "value")
        self._notice(now_ms)
        known = self.apps.get(app_id, {}).get(key)
        size = len(key.encode()) + len(ciphertext) + 128
        verdict, reclaimed, evicted = self._room(app_id, known, (MAX_NUMBER + 1, b""), size, limit_app=True)
        updated_at_ms = max(now_ms, known.record.updated_at_ms + 1 if known else 0)
        if app_id in self.floors:
            updated_at_ms = max(updated_at_ms, self.floors[app_id][0] + 1)
        if evicted:
            updated_at_ms = max(updated_at_ms, self.newest_ms[app_id] + 1)
        version = self._own_version(known, now_ms)
        if updated_at_ms > MAX_NUMBER:
            raise Rejected(Reason.BAD_FIELD, "time")
        if verdict is not None:
            raise Rejected(Reason.QUOTA, "full")
        self._reclaim(reclaimed)
        self._evict(app_id, evicted)
        self._enter(app_id, Record(key, ciphertext, version, updated_at_ms, ttl_ms), now_ms)
        return updated_at_ms

    def plan_delete(self, app_id: int, key: str, now_ms: int) -> int:
        return copy.deepcopy(self).delete(app_id, key, now_ms)

    def delete(self, app_id: int, key: str, now_ms: int) -> int:
        self._check_key(key, known=True)
        self._notice(now_ms)
        known = self.apps.get(app_id, {}).get(key)
        if known is None or not known.live:
            raise Rejected(Reason.NOT_FOUND, "no such key")
        tombstones = sum(entry.record.tombstone for entry in self.apps[app_id].values())
        if tombstones >= self.limits.max_tombstones_per_app:
            raise Rejected(Reason.QUOTA, "tombstones")
        updated_at_ms = max(now_ms, known.record.updated_at_ms + 1)
        if updated_at_ms > MAX_NUMBER:
            raise Rejected(Reason.BAD_FIELD, "time")
        self._enter(app_id, Record(key, None, self._own_version(known, now_ms), updated_at_ms), now_ms)
        return updated_at_ms

    # --- reads ---

    def get(self, app_id: int, key: str, now_ms: int) -> Record | None:
        self._check_key(key, known=True)
        self._notice(now_ms)
        entry = self.apps.get(app_id, {}).get(key)
        return entry.record if entry is not None and entry.live else None

    def keys(self, app_id: int, now_ms: int) -> list[str]:
        self._notice(now_ms)
        return sorted(key for key, entry in self.apps.get(app_id, {}).items() if entry.live)

    def stats(self, now_ms: int) -> StoreStats:
        self._notice(now_ms)
        live = [(app_id, entry) for app_id, entry in self._entries() if entry.live]
        return StoreStats(
            namespaces=len({app_id for app_id, _ in live}),
            total_keys=len(live),
            total_bytes=sum(entry.size for _, entry in live),
            tombstones=sum(entry.record.tombstone for _, entry in self._entries()),
        )

    # --- records of peers ---

    def evaluate(self, app_id: int, record: Record, now_ms: int) -> MergeOutcome:
        return copy.deepcopy(self).merge(app_id, record, now_ms)

    def merge(
        self, app_id: int, record: Record, now_ms: int, source: str | None = None, snapshot: bool = False
    ) -> MergeOutcome:
        self._check_app_id(app_id)
        self._notice(now_ms)
        known = self.apps.get(app_id, {}).get(record.key)
        if record.updated_at_ms > now_ms + self.limits.max_clock_skew_ms:
            return MergeOutcome.REFUSED_FUTURE
        outcome, result = merge_records(known.record if known else None, record)
        forgotten_ms = record.updated_at_ms + record.ttl_ms + self.limits.tombstone_retention_ms
        if known is None and not record.tombstone and record.ttl_ms and forgotten_ms < now_ms:
            return MergeOutcome.IGNORED_EXPIRED
        if outcome is MergeOutcome.REFUSED_CLOCK:
            return outcome
        if known is not None and known.record.version == record.version and payload(known.record) != payload(record):
            try:
                result = replace(result, version=self._own_version(known, now_ms))
            except Rejected:
                return MergeOutcome.REFUSED_CLOCK
        if outcome.accepted:
            refusal = self._make_room(app_id, known, record)
            if refusal is not None:
                return refusal
        if known is None or result != known.record:
            exact = outcome in (MergeOutcome.INSERTED, MergeOutcome.REPLACED_BY_VERSION)
            self._enter(app_id, result, now_ms, source if exact else None, snapshot and exact)
        return outcome

    def since(
        self,
        seq: int,
        *,
        limit_records: int,
        limit_bytes: int,
        exclude_source: str | None = None,
        exclude_snapshot: bool = False,
    ) -> Batch:
        records: list[tuple[int, int, Record]] = []
        for app_id, entry in sorted(self._entries(), key=lambda pair: pair[1].seq):
            if entry.seq <= seq:
                continue
            if len(records) == limit_records:
                return Batch(records, seq, done=False)
            skipped = (exclude_source is not None and entry.source == exclude_source) or (
                exclude_snapshot and entry.snapshot and not entry.record.tombstone
            )
            if not skipped:
                limit_bytes -= entry.size
                if limit_bytes < 0 and records:
                    return Batch(records, seq, done=False)
                records.append((app_id, entry.seq, entry.record))
            seq = entry.seq
        return Batch(records, self.last_seq, done=True)

    # --- digests ---

    def find(self, app_id: int, key: str) -> Record | None:
        entry = self.apps.get(app_id, {}).get(key)
        return entry.record if entry is not None else None

    def track_digests(self, key: SecretBytes) -> None:
        self.digests = Digests(key.reveal(), {})

    def refresh_digests(self, now_ms: int, budget: int = 2000) -> bool:
        del budget
        self._notice(now_ms)
        live = {
            app_id: {key: entry.record for key, entry in entries.items() if entry.live}
            for app_id, entries in self.apps.items()
        }
        self.digests = Digests(self.digests.key, live)
        return True

    def digest_children(self, app_id: int | None, prefix: str) -> list[bytes]:
        self._check_prefix(prefix, DEPTH - 1)
        return self.digests.children(app_id, prefix)

    def digest_items(self, app_id: int | None, prefix: str) -> list[tuple[int | str, bytes]] | None:
        self._check_prefix(prefix, DEPTH)
        return self.digests.items(app_id, prefix)

    # --- upkeep ---

    def sweep(self, now_ms: int, acked_seq: int, budget: int = 1000) -> int:
        self._notice(now_ms)
        horizon_ms = now_ms - self.limits.tombstone_retention_ms
        entries = self._entries()
        retained = [(app_id, entry) for app_id, entry in entries if entry.noticed]
        tombstones = [(app_id, entry) for app_id, entry in entries if entry.record.tombstone]
        acked = [pair for pair in retained if pair[1].seq <= acked_seq]
        acked.sort(key=lambda pair: pair[1].seq)
        stale = [pair for pair in retained if pair[1].seq > acked_seq and pair[1].expires_at_ms < horizon_ms]
        stale.sort(key=lambda pair: (pair[1].expires_at_ms, pair[1].record.key.encode(), pair[1].seq))
        buried = [pair for pair in tombstones if pair[1].seq <= acked_seq and pair[1].received_at_ms <= horizon_ms]
        buried.sort(key=lambda pair: pair[1].seq)
        swept = (acked + stale + buried)[:budget]
        for app_id, entry in swept:
            self._drop(app_id, [entry])
            if not self.apps[app_id] and app_id not in self.floors:
                del self.apps[app_id]
                self.newest_ms.pop(app_id, None)
        return len(swept)

    def forget(self, seq: int) -> bool:
        for app_id, entry in self._entries():
            if entry.seq == seq:
                self._drop(app_id, [entry])
                if not self.apps[app_id] and app_id not in self.floors:
                    del self.apps[app_id]
                    self.newest_ms.pop(app_id, None)
                return True
        return False

    def clear(self) -> None:
        self.apps.clear()
        self.floors.clear()
        self.newest_ms.clear()

    # --- helpers ---

    def _entries(self) -> list[tuple[int, Entry]]:
        return [(app_id, entry) for app_id, entries in self.apps.items() for entry in entries.values()]

    def _check_app_id(self, app_id: object) -> None:
        if type(app_id) is not int or not 0 <= app_id < 1 << 256:
            raise Rejected(Reason.BAD_FIELD, "app id")

    def _check_key(self, key: object, *, known: bool = False) -> None:
        try:
            check_key(key, max(self.limits.max_key_bytes, self.limits.max_peer_key_bytes if known else 0))
        except RecordRefused:
            raise Rejected(Reason.BAD_FIELD, "key") from None

    def _check_prefix(self, prefix: str, longest: int) -> None:
        if len(prefix) > longest or set(prefix) - set("0123456789abcdef"):
            raise Rejected(Reason.BAD_FIELD, "prefix")

    def _own_version(self, known: Entry | None, now_ms: int) -> dict[str, int]:
        version = dict(known.record.version) if known else {}
        version[self.writer] = max(version.get(self.writer, 0) + 1, now_ms)
        if version[self.writer] > MAX_NUMBER or len(version) > MAX_ENTRIES:
            raise Rejected(Reason.BAD_FIELD, "counters")
        return version

    def _notice(self, now_ms: int) -> None:
        over = [entry for _, entry in self._entries() if entry.live and entry.expires_at_ms < now_ms]
        for entry in sorted(over, key=lambda e: (e.expires_at_ms, e.record.key.encode(), e.seq)):
            self.notices += 1
            entry.noticed = self.notices

    def _room(
        self, app_id: int, known: Entry | None, turn: tuple[int, bytes], size: int, *, limit_app: bool
    ) -> tuple[MergeOutcome | None, list[tuple[int, Entry]], list[Entry]]:
        """(None or why there is no room, expired entries to reclaim, live entries to evict)."""
        others = [entry for entry in self.apps.get(app_id, {}).values() if entry is not known]
        everything = sum(entry.size for _, entry in self._entries())
        grows = known is None or size > known.size
        over_store = everything - (known.size if known else 0) + size - self.limits.max_store_bytes if grows else 0
        over_app = 0
        if limit_app:
            used = sum(entry.size for entry in others if not entry.record.tombstone)
            over_app = used + size - self.limits.max_app_bytes
            if size > self.limits.max_app_bytes:
                return MergeOutcome.REFUSED_CAPACITY, [], []
        reclaimed: list[tuple[int, Entry]] = []
        evicted: list[Entry] = []
        for entry in sorted((entry for entry in others if entry.noticed), key=lambda entry: entry.noticed):
            if over_app > 0 or over_store > 0:
                over_app -= entry.size
                over_store -= entry.size
                reclaimed.append((app_id, entry))
        elsewhere = [pair for pair in self._entries() if pair[0] != app_id and pair[1].noticed]
        elsewhere.sort(key=lambda pair: (pair[1].expires_at_ms, pair[1].record.key.encode(), pair[1].seq))
        for pair in elsewhere:
            if over_store > 0:
                over_store -= pair[1].size
                reclaimed.append(pair)
        if self.limits.quota_policy is QuotaPolicy.EVICT and turn != NEVER_EVICTS:
            for entry in sorted((entry for entry in others if entry.live), key=lambda entry: entry.turn):
                if over_app > 0 or over_store > 0:
                    if entry.turn > turn:
                        break
                    over_app -= entry.size
                    over_store -= entry.size
                    evicted.append(entry)
            if over_app > 0:
                return MergeOutcome.REFUSED_EVICTED, reclaimed, evicted
        if over_app > 0 or over_store > 0:
            return MergeOutcome.REFUSED_CAPACITY, [], []
        return None, reclaimed, evicted

    def _make_room(self, app_id: int, known: Entry | None, record: Record) -> MergeOutcome | None:
        turn = (record.updated_at_ms, record.key.encode())
        size = len(record.key.encode()) + len(record.value or b"") + 128
        if record.tombstone:
            verdict, reclaimed, evicted = self._room(app_id, known, NEVER_EVICTS, size, limit_app=False)
        else:
            if app_id in self.floors and turn <= self.floors[app_id]:
                return MergeOutcome.REFUSED_EVICTED
            limit_app = self.limits.quota_policy is QuotaPolicy.EVICT
            verdict, reclaimed, evicted = self._room(app_id, known, turn, size, limit_app=limit_app)
        self._reclaim(reclaimed)
        self._evict(app_id, evicted)
        if verdict is MergeOutcome.REFUSED_EVICTED:
            if known is not None:
                self._drop(app_id, [known])
            self.floors[app_id] = max(self.floors.get(app_id, turn), turn)
        return verdict

    def _reclaim(self, pairs: list[tuple[int, Entry]]) -> None:
        for app_id, entry in pairs:
            self._drop(app_id, [entry])
            if not self.apps[app_id] and app_id not in self.floors:
                del self.apps[app_id]
                self.newest_ms.pop(app_id, None)

    def _evict(self, app_id: int, entries: list[Entry]) -> None:
        for entry in entries:
            self.floors[app_id] = max(self.floors.get(app_id, entry.turn), entry.turn)
        self._drop(app_id, entries)

    def _drop(self, app_id: int, entries: list[Entry]) -> None:
        for entry in entries:
            del self.apps[app_id][entry.record.key]

    def _enter(
        self, app_id: int, record: Record, now_ms: int, source: str | None = None, snapshot: bool = False
    ) -> None:
        self.last_seq += 1
        self.apps.setdefault(app_id, {})[record.key] = Entry(record, self.last_seq, now_ms, source, snapshot)
        if not record.tombstone:
            self.newest_ms[app_id] = max(self.newest_ms.get(app_id, 0), record.updated_at_ms)
