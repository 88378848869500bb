"""What a client process is told to do and what it brings back: one line of JSON each."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Self

from bench.load.identities import CallerKeys, NodeAddress

MAX_DURATION_S = 120.0
MAX_OPERATIONS = 1_000_000


class Work(StrEnum):
    """What one operation is."""

    DERIVE = "derive"
    GET = "get"
    PUT = "put"
    RAW = "raw"
    DELTA = "delta"
    SNAPSHOT_PAGES = "snapshot in pages"
    SNAPSHOT_WHOLE = "snapshot in one answer"


@dataclass(frozen=True, slots=True)
class Job:
    """One run of one client process.

    Closed loop with `rate_per_s` None: each of `connections` sends its next operation when it has the answer to the
    last. Open loop: operations are due at random times with that mean rate, wait for a free connection, and their
    latency counts from when they were due. `raw` holds the requests of one RAW operation in hex, sent one after the
    other. `next_nonce` as in `AppUser`. With `once` every caller makes exactly one operation and nothing warms it up.
    DELTA and the snapshots speak as the peer whose keys are the first caller's; a snapshot must hold `records` or more.
    """

    work: Work
    node: NodeAddress
    callers: Sequence[CallerKeys]
    duration_s: float
    connections: int
    rate_per_s: float | None = None
    next_nonce: bool = False
    once: bool = False
    raw: Sequence[str] = ()
    records: int = 0
    seed: int = 1

    def to_line(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> Self:
        """ValueError, KeyError or TypeError for anything but what `to_line` wrote, or a run without bounds."""
        held = json.loads(line)
        job = cls(
            **{
                **held,
                "work": Work(held["work"]),
                "node": NodeAddress(**held["node"]),
                "callers": [CallerKeys(**keys) for keys in held["callers"]],
            }
        )
        if not 0 < job.duration_s <= MAX_DURATION_S or job.connections < 1:
            raise ValueError("a job has no acceptable duration or no connection")
        return job


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a client process did: `cpu_s` its own CPU time meanwhile, `overdue` the open loop's operations that were due
    but never started within the run. `due_us` is when each operation was due, on the monotonic clock of the machine.
    """

    elapsed_s: float
    cpu_s: float
    due_us: Sequence[int] = field(repr=False)
    latencies_us: Sequence[int] = field(repr=False)
    overdue: int = 0

    def to_line(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> Self:
        """ValueError or TypeError for anything but what `to_line` wrote."""
        return cls(**json.loads(line))
