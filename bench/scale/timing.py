"""Processor time of short runs: medians over interleaved repeats, the garbage collector kept out."""

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

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
    with open(f"/proc/{pid or os.getpid()}/statm", encoding="ascii") as file:  # noqa: PTH123 - not a file on disk
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def process_cpu_s(pid: int) -> float:
    """User and system time that a process has used so far."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:  # noqa: PTH123 - not a file on disk
        # The name in brackets may hold anything, blanks and brackets included; numbers follow the last bracket.
        numbers: Sequence[str] = file.read().rpartition(")")[2].split()
    return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")
