"""Our child processes: the clients and the floor's server, and one run with CPU time taken on both sides."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Final, Self

import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream

from bench.load.http import LoadError
from bench.load.jobs import Job, Outcome
from bench.load.latency import Latencies, summarize
from bench.load.procfs import CpuTime, cpu_time, machine_cpu_s

MAX_LINE_BYTES: Final = 64 << 20
PREPARE_TIMEOUT_S: Final = 60.0
OVERTIME_S: Final = 60.0
STOP_TIMEOUT_S: Final = 5.0
BUSY_SHARE: Final = 0.9


class Bottleneck(StrEnum):
    """Which side had no CPU time left."""

    SERVER = "server"
    CLIENT = "client"
    NEITHER = "neither"


def bottleneck(server_share: float, client_share: float) -> Bottleneck:
    """From both sides' CPU seconds per second: each runs on one thread, so 1 is all it can have.

    When both are busy the busier one is named, the client for equal ones: no figure may hide behind a slow client.
    """
    if max(server_share, client_share) < BUSY_SHARE:
        return Bottleneck.NEITHER
    return Bottleneck.SERVER if server_share > client_share else Bottleneck.CLIENT


@dataclass(frozen=True, slots=True)
class Run:
    """One job with what it cost on both sides, and what everybody else on the machine took meanwhile.

    `window_s` is how long the server and the others were watched: with several jobs at once until the last has ended.
    Shares are CPU seconds per second of one core.
    """

    window_s: float
    server_cpu: CpuTime
    others_cpu_s: float
    outcome: Outcome
    latencies: Latencies

    @classmethod
    def of(cls, window_s: float, server_cpu: CpuTime, others_cpu_s: float, outcome: Outcome) -> Self:
        """ValueError when nothing was done."""
        return cls(window_s, server_cpu, others_cpu_s, outcome, summarize(outcome.latencies_us))

    def latencies_between(self, begin_s: float, end_s: float) -> Latencies:
        """Of what was due in this part of the run, on the monotonic clock. ValueError when that is nothing."""
        times = zip(self.outcome.due_us, self.outcome.latencies_us, strict=True)
        return summarize([latency for due, latency in times if begin_s * 1e6 <= due <= end_s * 1e6])

    @property
    def operations(self) -> int:
        return self.latencies.count

    @property
    def rate_per_s(self) -> float:
        return self.operations / self.outcome.elapsed_s

    @property
    def server_s_per_operation(self) -> float:
        return self.server_cpu.total_s / self.operations

    @property
    def server_share(self) -> float:
        return self.server_cpu.total_s / self.window_s

    @property
    def client_share(self) -> float:
        return self.outcome.cpu_s / self.outcome.elapsed_s

    @property
    def others_share(self) -> float:
        """Of all other processes: what kept server and client from being busy, when neither was."""
        return self.others_cpu_s / self.window_s

    @property
    def bottleneck(self) -> Bottleneck:
        return bottleneck(self.server_share, self.client_share)


class LineProcess:
    """A child that is spoken to in lines; stopped when the block ends."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._process: anyio.abc.Process | None = None
        self._lines: BufferedByteReceiveStream | None = None

    async def __aenter__(self) -> Self:
        self._process = await anyio.open_process(
            [sys.executable, "-m", self._module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None
        )
        assert self._process.stdout is not None
        self._lines = BufferedByteReceiveStream(self._process.stdout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        with anyio.CancelScope(shield=True):
            if self._process.returncode is None:
                self._process.terminate()
            with anyio.move_on_after(STOP_TIMEOUT_S):
                await self._process.wait()
            if self._process.returncode is None:
                self._process.kill()
            await self._process.aclose()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def say(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        await self._process.stdin.send(line.encode() + b"\n")

    async def hear(self, timeout_s: float) -> str:
        """The next line. Raises `LoadError` when the child ended, is late, or says that it failed."""
        assert self._lines is not None
        try:
            with anyio.fail_after(timeout_s):
                line = (await self._lines.receive_until(b"\n", MAX_LINE_BYTES)).decode()
        except TimeoutError as error:
            raise LoadError(f"{self._module} does not answer in {timeout_s:.0f} s") from error
        except (anyio.EndOfStream, anyio.IncompleteRead) as error:
            raise LoadError(f"{self._module} ended; its last words are above") from error
        if line.startswith('{"error"'):
            raise LoadError(json.loads(line)["error"])
        return line


async def run_jobs(clients: Sequence[LineProcess], jobs: Sequence[Job], server_pid: int) -> list[Run]:
    """Each job in the client of the same position, all at the same time.

    The server's CPU time is that of all jobs together, in each of the runs. Raises `LoadError`.
    """
    for client, job in zip(clients, jobs, strict=True):
        await client.say(job.to_line())
    for client in clients:
        await client.hear(PREPARE_TIMEOUT_S)
    begun_s, before, machine_before_s = time.monotonic(), cpu_time(server_pid), machine_cpu_s()
    for client in clients:
        await client.say("go")
    outcomes = [
        Outcome.from_line(await client.hear(job.duration_s + OVERTIME_S))
        for client, job in zip(clients, jobs, strict=True)
    ]
    server_cpu, machine_s = cpu_time(server_pid) - before, machine_cpu_s() - machine_before_s
    window_s = time.monotonic() - begun_s
    # Rounding of the kernel's ticks can make it less than nothing on a quiet machine.
    others_s = max(machine_s - server_cpu.total_s - sum(outcome.cpu_s for outcome in outcomes), 0.0)
    if not all(outcome.latencies_us for outcome in outcomes):
        raise LoadError("a run ended without a single operation")
    return [Run.of(window_s, server_cpu, others_s, outcome) for outcome in outcomes]


async def run_job(client: LineProcess, job: Job, server_pid: int) -> Run:
    """`run_jobs` with one client."""
    (run,) = await run_jobs([client], [job], server_pid)
    return run
