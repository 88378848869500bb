"""What a record takes in memory beyond its key and ciphertext, measured in fresh processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bench.results import Check, Figure, Results, Sense
from bench.scale.stores import (
    KEY_BYTES,
    NOW_MS,
    OWN,
    SEAL_BYTES,
    UNLIMITED,
    VALUE_BYTES,
    WRITERS,
    key_of,
)
from bench.scale.timing import resident_bytes
from kmscore.secret import SecretBytes
from kmscore.store import Record, Store

LIMIT_BYTES: Final = 250
PAYLOAD_BYTES: Final = KEY_BYTES + VALUE_BYTES + SEAL_BYTES
DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class Shape:
    """What kind of record is counted."""

    clock_entries: int
    ttl: bool

    @property
    def title(self) -> str:
        entries = "1 clock entry" if self.clock_entries == 1 else f"{self.clock_entries} clock entries"
        return f"{entries}, {'with' if self.ttl else 'no'} ttl"


SHAPES: Final = (Shape(1, ttl=False), Shape(3, ttl=False), Shape(3, ttl=True))
# The bound is on the ordinary record; a ttl adds its place in the heap of what expires next.
BOUNDED: Final = SHAPES[:2]


def measure_memory(records: int, *, say: Callable[[str], None]) -> Results:
    """Overhead per record of each shape, digests included, with that many records in a process."""
    overheads = {}
    for shape in SHAPES:
        say(f"memory of {records:,} records, {shape.title}")
        overheads[shape] = overhead_bytes(shape, records)
    return Results(
        part="memory",
        figures=[
            Figure(
                "memory",
                "overhead of a record",
                value,
                "B",
                {"records": records, "clock_entries": shape.clock_entries, "ttl": str(shape.ttl).lower()},
            )
            for shape, value in overheads.items()
        ],
        checks=[
            Check(
                f"overhead of a record, {shape.title}",
                overheads[shape],
                Sense.AT_MOST,
                LIMIT_BYTES,
                "B",
                "growth of a fresh process's resident memory divided by the records, less key and ciphertext",
                same_run=False,
            )
            for shape in BOUNDED
        ],
        notes=[
            (
                f"Overhead of a record: keys of {KEY_BYTES} bytes, values of {VALUE_BYTES} + {SEAL_BYTES} bytes, each "
                "an object of its own, one namespace, digests of anti-entropy included; malloc's headers and rounding "
                "are in it."
            )
        ],
    )


def overhead_bytes(shape: Shape, records: int) -> float:
    """Bytes per record beyond key and ciphertext."""
    return _grown_bytes(records, 1, shape) / records - PAYLOAD_BYTES


def namespace_bytes(namespaces: int) -> float:
    """What a namespace takes itself: as many records in as many namespaces, less the same records in one."""
    shape = SHAPES[0]
    return (_grown_bytes(namespaces, namespaces, shape) - _grown_bytes(namespaces, 1, shape)) / namespaces


def _grown_bytes(records: int, namespaces: int, shape: Shape) -> int:
    """Measured in a process of its own, where nothing that was freed before can be used again."""
    numbers = (records, namespaces, shape.clock_entries, int(shape.ttl))
    done = subprocess.run(
        [sys.executable, "-m", "bench.scale.memory", *(str(number) for number in numbers)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def _grow(records: int, namespaces: int, shape: Shape) -> int:
    store = Store(OWN, UNLIMITED, seed=bytes(16))
    store.track_digests(SecretBytes(bytes(32)))
    version = dict.fromkeys(WRITERS[: shape.clock_entries], NOW_MS)
    before = resident_bytes()
    for number in range(records):
        value = os.urandom(VALUE_BYTES + SEAL_BYTES)
        record = Record(key_of(number), value, version, NOW_MS, DAY_MS if shape.ttl else 0)
        store.merge(1 + number % namespaces, record, NOW_MS, source=WRITERS[0])
    while not store.refresh_digests(NOW_MS):
        pass
    return resident_bytes() - before


if __name__ == "__main__":
    print(_grow(int(sys.argv[1]), int(sys.argv[2]), Shape(int(sys.argv[3]), ttl=sys.argv[4] == "1")))
