"""The words of the replicated store: limits, outcomes and answers (store §1 to §4). Plain data, no behaviour."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from kmscore.errors import Reason, Rejected

if TYPE_CHECKING:
    from kmscore._record import Record


class QuotaPolicy(StrEnum):
    """What happens to a write that would exceed a limit (store §1)."""

    REJECT = "reject"
    EVICT = "evict"


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """What a store holds and accepts. Sizes in bytes, durations in milliseconds (protocol §7, store §1 and §2)."""

    max_key_bytes: int = 1024
    max_peer_key_bytes: int = 65_536
    max_value_bytes: int = 1 << 20
    max_app_bytes: int = 10 << 20
    max_store_bytes: int = 1 << 30
    max_tombstones_per_app: int = 10_000
    tombstone_retention_ms: int = 86_400_000
    max_clock_skew_ms: int = 5_000
    quota_policy: QuotaPolicy = QuotaPolicy.REJECT


class SkipReason(StrEnum):
    """Why a record from a peer was refused: the words of `skip_reasons` in a sync answer (store §2, protocol §5)."""

    MALFORMED = "malformed"
    VALUE_TOO_LARGE = "value_too_large"
    KEY_TOO_LARGE = "key_too_large"
    FUTURE_TIMESTAMP = "future_timestamp"
    UNDECRYPTABLE = "undecryptable"
    STORE_FULL = "store_full"
    BELOW_EVICTION_FLOOR = "below_eviction_floor"


class RecordRefused(Rejected):
    """A record from a peer that cannot be taken in; `skip_reason` is the word for the answer."""

    def __init__(self, skip_reason: SkipReason, message: str) -> None:
        reason = Reason.VALUE_TOO_LARGE if skip_reason is SkipReason.VALUE_TOO_LARGE else Reason.MALFORMED
        super().__init__(reason, message)
        self.skip_reason = skip_reason


class MergeOutcome(StrEnum):
    """What became of a record from a peer (store §3)."""

    INSERTED = "inserted"
    REPLACED_BY_VERSION = "replaced_by_version"
    REPLACED_BY_CONCURRENT_LWW = "replaced_by_concurrent_lww"
    IGNORED_EXISTING_NEWER_VERSION = "ignored_existing_newer_version"
    IGNORED_EQUAL_VERSION = "ignored_equal_version"
    IGNORED_CONCURRENT_TIE_BREAK = "ignored_concurrent_tie_break"
    IGNORED_EXPIRED = "ignored_expired"
    REFUSED_FUTURE = "future_timestamp"
    REFUSED_CAPACITY = "store_full"
    REFUSED_EVICTED = "below_eviction_floor"
    REFUSED_CLOCK = "malformed"

    @property
    def accepted(self) -> bool:
        """Their payload is the stored one now."""
        return self in (self.INSERTED, self.REPLACED_BY_VERSION, self.REPLACED_BY_CONCURRENT_LWW)

    @property
    def refused(self) -> bool:
        """Nothing of the record was taken in, and the sender should count it as rejected."""
        return self in (self.REFUSED_FUTURE, self.REFUSED_CAPACITY, self.REFUSED_EVICTED, self.REFUSED_CLOCK)


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of the change log in order (store §4).

    `records` holds (app id, sequence number, record). The next call goes on from `next_seq`; `done` says that the end
    of the log was reached, where `next_seq` is the last sequence number the store has given out.
    """

    records: list[tuple[int, int, "Record"]]
    next_seq: int
    done: bool


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Namespaces with live records, live records, their size in bytes (key, ciphertext and 128 each), tombstones."""

    namespaces: int
    total_keys: int
    total_bytes: int
    tombstones: int
