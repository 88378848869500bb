"""What the kernel says of a process: CPU time, memory, threads. The parsers are apart from the reading."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
# proc(5): fields 14 and 15 of stat, counted from 1; the second one is the name in parentheses, which can hold anything.
_FIELDS_BEFORE_STATE: Final = 2
_UTIME, _STIME = 14, 15


@dataclass(frozen=True, slots=True)
class CpuTime:
    """CPU seconds of all threads of a process, those that ended included."""

    user_s: float
    system_s: float

    @property
    def total_s(self) -> float:
        return self.user_s + self.system_s

    def __sub__(self, earlier: "CpuTime") -> "CpuTime":
        return CpuTime(self.user_s - earlier.user_s, self.system_s - earlier.system_s)


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes now and at most so far, and threads."""

    rss_bytes: int
    peak_rss_bytes: int
    threads: int


def parse_stat(text: str, ticks_per_s: int) -> CpuTime:
    """The CPU times of `/proc/<pid>/stat`. ValueError or IndexError for anything else."""
    fields = text[text.rindex(")") + 1 :].split()
    user, system = (int(fields[number - _FIELDS_BEFORE_STATE - 1]) for number in (_UTIME, _STIME))
    return CpuTime(user / ticks_per_s, system / ticks_per_s)


def parse_status(text: str) -> Memory:
    """The memory of `/proc/<pid>/status`. KeyError for anything else."""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    def kib(name: str) -> int:
        return int(fields[name].split()[0]) * 1024

    return Memory(kib("VmRSS"), kib("VmHWM"), int(fields["Threads"]))


def parse_machine_stat(text: str, ticks_per_s: int) -> float:
    """CPU seconds that the whole machine has worked, from `/proc/stat`; waiting and what a hypervisor took count not.

    ValueError for anything else.
    """
    name, *fields = text.splitlines()[0].split()
    if name != "cpu":
        raise ValueError("the first line of /proc/stat is not the sum of all CPUs")
    user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, fields)
    return (user + nice + system + irq + softirq) / ticks_per_s


def machine_cpu_s() -> float:
    return parse_machine_stat(Path("/proc/stat").read_text(encoding="utf-8"), _TICKS_PER_S)


def cpu_time(pid: int) -> CpuTime:
    """OSError when there is no such process."""
    return parse_stat(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace"), _TICKS_PER_S)


def memory(pid: int) -> Memory:
    """OSError when there is no such process."""
    return parse_status(Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace"))
