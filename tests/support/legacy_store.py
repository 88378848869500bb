"""The key-value store of an older peer: what store.md §1-§3 say other implementations do differently, done that way.

Differences from the node under test, all on purpose: a concurrent merge keeps only the winner's version, equal versions
are ignored whatever their payload, a full namespace drops its oldest records, and a write's time is the clock's alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tests.support.wire import WireError, parse_hex

MAX_COUNTER = 2**62


@dataclass(frozen=True)
class LegacyRecord:
    """One record; `value` is the ciphertext at rest, None for a tombstone."""

    key: str
    value: bytes | None
    version: dict[str, int]
    updated_at_ms: int
    tombstone: bool
    ttl_ms: int

    def expired(self, now_ms: int) -> bool:
        return self.ttl_ms > 0 and now_ms > self.updated_at_ms + self.ttl_ms

    def size(self) -> int:
        return len(self.key.encode()) + len(self.value or b"")

    def encode(self, hex_of: Callable[[bytes], str] = bytes.hex) -> dict[str, object]:
        """The wire form; `hex_of` writes the ciphertext in the dialect of this peer."""
        return {
            "key": self.key,
            "value": None if self.value is None else hex_of(self.value),
            "version": dict(self.version),
            "updated_at_ms": self.updated_at_ms,
            "tombstone": self.tombstone,
            "ttl_ms": self.ttl_ms,
        }


def parse_record(wire: object) -> LegacyRecord:
    """The record of a wire object; WireError when a member is missing or has the wrong form."""
    if not isinstance(wire, dict):
        raise WireError("a record is an object")
    key, value, version = wire.get("key"), wire.get("value"), wire.get("version")
    tombstone, ttl_ms, updated_at_ms = wire.get("tombstone", False), wire.get("ttl_ms", 0), wire.get("updated_at_ms")
    if not isinstance(key, str) or not key or not isinstance(tombstone, bool):
        raise WireError("key or tombstone")
    if not isinstance(version, dict) or not all(_is_counter(counter) for counter in version.values()):
        raise WireError("version")
    if not _is_counter(ttl_ms) or not _is_counter(updated_at_ms):
        raise WireError("times")
    if tombstone != (value is None):
        raise WireError("a tombstone has no value, a live record has one")
    return LegacyRecord(
        key, None if value is None else parse_hex(value), dict(version), updated_at_ms, tombstone, ttl_ms
    )


def _is_counter(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_COUNTER


def dominates(ours: dict[str, int], theirs: dict[str, int]) -> bool:
    """Whether every counter of `theirs` is reached by `ours`; a missing counter is zero."""
    return all(ours.get(name, 0) >= counter for name, counter in theirs.items())


def merge(ours: LegacyRecord | None, theirs: LegacyRecord) -> tuple[LegacyRecord, str]:
    """The record that survives, exactly as one side wrote it, and the outcome's name."""
    if ours is None:
        return theirs, "inserted"
    older, newer = dominates(ours.version, theirs.version), dominates(theirs.version, ours.version)
    if older and newer:
        return ours, "ignored_equal_version"
    if newer:
        return theirs, "replaced_by_version"
    if older:
        return ours, "ignored_existing_newer_version"
    if (theirs.updated_at_ms, theirs.value or b"") > (ours.updated_at_ms, ours.value or b""):
        return theirs, "replaced_by_concurrent_lww"
    return ours, "ignored_concurrent_tie_break"


class LegacyStore:
    """Namespaces of records in plain dicts; every operation scans, as a small peer may."""

    def __init__(self, writer: str, max_app_bytes: int) -> None:
        self._writer = writer
        self._max_app_bytes = max_app_bytes
        self._apps: dict[int, dict[str, LegacyRecord]] = {}

    def put(self, app_id: int, key: str, value: bytes, ttl_ms: int, now_ms: int) -> LegacyRecord:
        record = LegacyRecord(key, value, self._next_version(app_id, key), now_ms, False, ttl_ms)
        self._apps.setdefault(app_id, {})[key] = record
        self._evict_oldest(app_id, keep=key)
        return record

    def delete(self, app_id: int, key: str, now_ms: int) -> LegacyRecord | None:
        """The tombstone, or None when there is nothing to delete."""
        if self.get(app_id, key, now_ms) is None:
            return None
        record = LegacyRecord(key, None, self._next_version(app_id, key), now_ms, True, 0)
        self._apps[app_id][key] = record
        return record

    def get(self, app_id: int, key: str, now_ms: int) -> LegacyRecord | None:
        record = self._apps.get(app_id, {}).get(key)
        return None if record is None or record.tombstone or record.expired(now_ms) else record

    def keys(self, app_id: int, now_ms: int) -> list[str]:
        return sorted(key for key in self._apps.get(app_id, {}) if self.get(app_id, key, now_ms) is not None)

    def merge(self, app_id: int, record: LegacyRecord) -> str:
        namespace = self._apps.setdefault(app_id, {})
        namespace[record.key], outcome = merge(namespace.get(record.key), record)
        self._evict_oldest(app_id, keep=record.key)
        return outcome

    def records(self, since_ms: int = 0) -> dict[int, list[LegacyRecord]]:
        """Every record, tombstones included, whose own time is `since_ms` or later."""
        found = {
            app_id: [record for record in namespace.values() if record.updated_at_ms >= since_ms]
            for app_id, namespace in self._apps.items()
        }
        return {app_id: records for app_id, records in found.items() if records}

    def stats(self, now_ms: int) -> dict[str, int]:
        live = [
            record
            for namespace in self._apps.values()
            for record in namespace.values()
            if not record.tombstone and not record.expired(now_ms)
        ]
        return {
            "namespaces": len(self._apps),
            "total_keys": len(live),
            "total_bytes": sum(record.size() for record in live),
        }

    def clear(self) -> None:
        self._apps.clear()

    def _next_version(self, app_id: int, key: str) -> dict[str, int]:
        known = self._apps.get(app_id, {}).get(key)
        version = {} if known is None else dict(known.version)
        version[self._writer] = version.get(self._writer, 0) + 1
        return version

    def _evict_oldest(self, app_id: int, keep: str) -> None:
        namespace = self._apps[app_id]
        size = sum(record.size() for record in namespace.values())
        for record in sorted(namespace.values(), key=lambda record: (record.updated_at_ms, record.key)):
            if size <= self._max_app_bytes:
                return
            if not record.tombstone and record.key != keep:
                del namespace[record.key]
                size -= record.size()
