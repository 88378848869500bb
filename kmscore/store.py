"""The replicated store: what callers import (store §1 to §5)."""

from kmscore._record import (
    Record,
    count_entries,
    encode_record,
    encoded_bytes,
    merge_records,
    parse_record,
    parse_records,
)
from kmscore._store import Store, count_outcomes
from kmscore.store_types import (
    Batch,
    MergeOutcome,
    QuotaPolicy,
    RecordRefused,
    SkipReason,
    StoreLimits,
    StoreStats,
)

__all__ = [
    "Batch",
    "MergeOutcome",
    "QuotaPolicy",
    "Record",
    "RecordRefused",
    "SkipReason",
    "Store",
    "StoreLimits",
    "StoreStats",
    "count_entries",
    "count_outcomes",
    "encode_record",
    "encoded_bytes",
    "merge_records",
    "parse_record",
    "parse_records",
]
