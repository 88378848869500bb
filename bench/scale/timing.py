"""Processor time of short runs: medians over interleaved repeats, the garbage collector kept out."""

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from kmscore.errors import Unavailable

KeyT = TypeVar("KeyT")


@contextmanager
def collector_off() -> Iterator[None]:
    """No collections inside: one walks every object of the process, which belongs to no single operation."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def cpu_ns(run: Callable[[], None]) -> int:
    """Processor time of this process in a run: what others on the machine take does not count."""
    started = time.process_time_ns()
    run()
    return time.process_time_ns() - started


def medians(subjects: Mapping[KeyT, Callable[[], float]], repeats: int) -> dict[KeyT, float]:
    """The median of each subject's measurements, one of each in turn, so that a slow moment meets all of them."""
    measured: dict[KeyT, list[float]] = {key: [] for key in subjects}
    for _ in range(repeats):
        for key, measure in subjects.items():
            measured[key].append(measure())
    return {key: statistics.median(values) for key, values in measured.items()}


def resident_bytes(pid: int | None = None) -> int:
    """Resident memory of a process, this one by default."""
    pages = Path(f"/proc/{pid or os.getpid()}/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def process_cpu_s(pid: int) -> float:
    """Time that all threads which a process has now have spent on processors, to the nanosecond."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def sent_bytes(pid: int) -> int:
    """Bytes that a process has passed to write calls: to sockets, for one that writes few files."""
    for line in Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(": ")
        if name == "wchar":
            return int(value)
    raise Unavailable("/proc/PID/io names no wchar")
