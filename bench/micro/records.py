"""Records to measure with: 256-byte values sealed, one to twenty writers."""

import hashlib
from typing import Any

from kmscore.store import Record, Store, StoreLimits, encode_record

NOW_MS = 1_700_000_000_000
APP_ID = 7
WRITER = "0x" + "aa" * 20
WRITERS = [f"0x{number:02x}" + "bb" * 19 for number in range(20)]
LIMITS = StoreLimits(max_app_bytes=1 << 40, max_store_bytes=1 << 40)
VALUE_BYTES = 256
SEALED_BYTES = VALUE_BYTES + 28  # with nonce and tag
VALUE = hashlib.shake_128(b"value").digest(SEALED_BYTES)


def record(number: int, counter: int, entries: int = 3, kind: Any = Record) -> Any:
    """The version `counter` of record `number`, with so many clock entries."""
    return kind(f"key-{number}", VALUE, dict.fromkeys(WRITERS[:entries], counter), NOW_MS)


def delta(records: int) -> dict[str, Any]:
    """A delta as peers exchange it, before it is sealed (protocol §5)."""
    data = {str(APP_ID): [encode_record(record(number, 1)) for number in range(records)]}
    return {"type": "delta", "sender_wallet": WRITER, "data": data}


def fill(store: Any, size: int, entries: int = 3, kind: Any = Record) -> Any:
    """The store with its first `size` records merged."""
    for number in range(size):
        store.merge(APP_ID, record(number, 1, entries, kind), NOW_MS)
    return store


def new_store() -> Store:
    return Store(WRITER, LIMITS, seed=bytes(16))
