"""Between nodes: deltas, snapshots, a new node's join, and the memory of a record; with apps calling meanwhile."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from types import TracebackType
from typing import Final, Self

import anyio

from appliance.devnet.progress import Step
from bench.load.cluster import LoadCluster, LoadNode
from bench.load.findings import Findings, describe, describe_latencies
from bench.load.http import Connection, LoadError
from bench.load.identities import CallerKeys
from bench.load.jobs import Job, Work
from bench.load.peers import RECORD_BYTES, RECORDS_PER_DELTA, PeerUser, record_key
from bench.load.processes import LineProcess, Run, run_job, run_jobs
from bench.load.procfs import CpuTime, Memory, cpu_time, memory
from kmscore.kdf import NONCE_BYTES, TAG_BYTES

MAX_DELTA_MS: Final = 3.5
MAX_DERIVE_P99_MS: Final = 20.0
MAX_RECORD_OVERHEAD_BYTES: Final = 250.0
# What a joining node may need for a moment beyond what it then keeps, whatever the size of the store: a page or two in
# the several forms it passes through.
MAX_JOIN_EXCESS_MB: Final = 64.0
DELTA_ROUNDS: Final = 5
# While one waits for its answer the next one is on its way: a node that is busy is measured, not one that wakes up.
DELTA_CONNECTIONS: Final = 2
DERIVES_PER_S: Final = 100.0
DERIVE_CONNECTIONS: Final = 8
SETTLE_S: Final = 2.0
IDLE_S: Final = 4.0
LOOK_S: Final = 0.05
CIPHERTEXT_BYTES: Final = RECORD_BYTES + NONCE_BYTES + TAG_BYTES
GROUP: Final = "between nodes"


@dataclass(frozen=True, slots=True)
class Clients:
    """Two client processes: apps that call all the time, and the peer."""

    apps: LineProcess
    peer: LineProcess


class PeakMemory:
    """The most resident memory that was seen while the block ran; the kernel's own mark never falls."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._group = anyio.create_task_group()
        self.rss_bytes = 0

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._group.start_soon(self._look)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._group.cancel_scope.cancel()
        return await self._group.__aexit__(kind, error, trace)

    async def _look(self) -> None:
        while True:
            self.rss_bytes = max(self.rss_bytes, memory(self._pid).rss_bytes)
            await anyio.sleep(LOOK_S)


class ReplicationBench:
    """Measures `node`, in whose cluster the bench holds a peer's keys; `records` counts what its store was given."""

    def __init__(
        self,
        cluster: LoadCluster,
        node: LoadNode,
        callers: Sequence[CallerKeys],
        peer: CallerKeys,
        clients: Clients,
        findings: Findings,
    ) -> None:
        self._cluster = cluster
        self._node = node
        self._callers = callers
        self._peer = peer
        self._clients = clients
        self._findings = findings
        self._records = 0

    async def measure_delta(self, step: Step, duration_s: float) -> None:
        """Deltas of 500 records that are all newer. Raises `LoadError`.

        What the node spends when nobody calls is taken off: its ticks come every second here, not every 10 or 60.
        """
        idle = await self._idle_share()
        runs = []
        for number in range(DELTA_ROUNDS):
            step.say(f"round {number + 1} of {DELTA_ROUNDS}")
            job = self._job(Work.DELTA, duration_s, connections=DELTA_CONNECTIONS)
            runs.append(await run_job(self._clients.peer, job, self._node.pid))
        self._records += DELTA_CONNECTIONS * RECORDS_PER_DELTA
        typical = sorted(runs, key=lambda run: run.server_s_per_operation)[len(runs) // 2]
        what = f"delta of {RECORDS_PER_DELTA} × {RECORD_BYTES} B"
        self._findings.run(GROUP, typical, {"what": what, "connections": DELTA_CONNECTIONS})
        self._findings.notes.append(f"{what}, each newer than the one before: {describe(typical)}.")
        self._findings.at_most(
            what,
            1000 * median(run.server_s_per_operation - idle * run.window_s / run.operations for run in runs),
            MAX_DELTA_MS,
            "ms CPU",
            f"server CPU of one POST /sync with the next nonce, on {DELTA_CONNECTIONS} connections, less an idle "
            "node's: every record decrypted, its tag verified, merged",
            same_run=False,
        )

    async def measure_memory(self, sizes: Sequence[int], step: Step) -> None:
        """What a record takes, from the growth between two fillings: the first one pays for buffers and code.

        For a node whose memory nothing else has stirred up: what a large answer leaves behind hides the growth.
        """
        held = []
        for size in sizes:
            await self.fill(size, step)
            held.append((await self._settled_memory()).rss_bytes)
        overhead = (held[-1] - held[0]) / (sizes[-1] - sizes[0]) - len(record_key(0)) - CIPHERTEXT_BYTES
        self._findings.figure(GROUP, "resident", held[-1] / 1e6, "MB", records=sizes[-1])
        self._findings.at_most(
            f"memory of a record, from {sizes[0]} to {sizes[-1]}",
            overhead,
            MAX_RECORD_OVERHEAD_BYTES,
            "B",
            "growth of VmRSS divided by the records, less key and ciphertext; the digests of anti-entropy included",
            same_run=False,
        )

    async def fill(self, records: int, step: Step) -> None:
        """Bring the store to so many records, and have the node make the digests of them. Raises `LoadError`."""
        connection = await Connection.open("127.0.0.1", self._node.address.port)
        user = PeerUser(self._peer, self._node.address, connection)
        await user.join()
        while self._records < records:
            count = min(RECORDS_PER_DELTA, records - self._records)
            await user.push(range(self._records, self._records + count))
            self._records += count
            step.say(f"{self._records} of {records} records")
        await user.compare()
        connection.close()

    async def measure_snapshots(self, step: Step, duration_s: float) -> None:
        """Snapshots served to the peer, in pages and in one answer, alone and while apps derive. Raises `LoadError`."""
        for work in (Work.SNAPSHOT_PAGES, Work.SNAPSHOT_WHOLE):
            step.say(work)
            before = await self._settled_memory()
            async with PeakMemory(self._node.pid) as peak:
                alone = await run_job(self._clients.peer, self._job(work, 0.1), self._node.pid)
            what = f"{work} of {self._records} records"
            self._findings.run(GROUP, alone, {"what": what})
            excess_mb = (peak.rss_bytes - before.rss_bytes) / 1e6
            self._findings.figure(GROUP, "peak memory above that before", excess_mb, "MB", what=what)
            derives, _ = await run_jobs(
                [self._clients.apps, self._clients.peer],
                [self._derives(duration_s), self._job(work, duration_s)],
                self._node.pid,
            )
            self._findings.notes.append(
                f"{what}: {alone.latencies.p50_ms:.0f} ms, {1000 * alone.server_s_per_operation:.0f} ms server CPU, at "
                f"most {excess_mb:.0f} MB more memory; derives meanwhile: "
                f"{describe_latencies(derives)}; server {100 * derives.server_share:.0f} % of a core."
            )
            self._judge_derives(f"derives while a {what} is served", derives, derives.latencies.p99_ms)

    async def measure_join(self, step: Step) -> None:
        """A new node joins and takes everything over, while apps derive on the one that gives. Raises `LoadError`."""
        joiner = await self._cluster.start_node(f"joiner-{self._records}")
        derives: list[Run] = []
        # Long enough for the join; what is due after it does not count.
        job = self._derives(5.0 + self._records / 5_000)
        begun_s = ended_s = 0.0
        before, given = cpu_time(joiner.pid), CpuTime(0.0, 0.0)
        async with anyio.create_task_group() as group:

            async def derive() -> None:
                derives.append(await run_job(self._clients.apps, job, self._node.pid))

            group.start_soon(derive)
            await anyio.sleep(SETTLE_S)
            step.say("registering the node")
            instance_id = await self._cluster.register_node(joiner)
            begun_s, giver_before = time.monotonic(), cpu_time(self._node.pid)
            await self._cluster.wait_until_available(joiner)
            ended_s, given = time.monotonic(), cpu_time(self._node.pid) - giver_before
        spent = cpu_time(joiner.pid) - before
        status = await joiner.process.status()
        if status is None or status.total_keys < self._records:
            raise LoadError("the joined node does not hold every record")
        held = memory(joiner.pid)
        await self._cluster.retire_node(joiner, instance_id)
        self._report_join(ended_s - begun_s, spent.total_s, given.total_s, held)
        between = derives[0].latencies_between(begun_s, ended_s)
        self._judge_derives(f"derives while a node joins with {self._records} records", derives[0], between.p99_ms)

    def _report_join(self, wall_s: float, cpu_s: float, given_s: float, held: Memory) -> None:
        excess_mb = (held.peak_rss_bytes - held.rss_bytes) / 1e6
        for name, value, unit in (
            ("from registration to available", wall_s, "s"),
            ("CPU to available", cpu_s, "s"),
            ("CPU of the giving node meanwhile, derives included", given_s, "s"),
            ("resident once available", held.rss_bytes / 1e6, "MB"),
            ("peak above that", excess_mb, "MB"),
        ):
            self._findings.figure(GROUP, name, value, unit, what="join of a new node", records=self._records)
        self._findings.notes.append(
            f"Join with {self._records} records: {wall_s:.1f} s from registration to available (up to a second of it "
            f"waiting for the tick), {cpu_s:.1f} s CPU ({given_s:.1f} s of the giving node), "
            f"{held.rss_bytes / 1e6:.0f} MB resident, peak {excess_mb:.0f} MB above that."
        )
        self._findings.at_most(
            f"join with {self._records} records, memory beyond what it keeps",
            excess_mb,
            MAX_JOIN_EXCESS_MB,
            "MB",
            "VmHWM less VmRSS of the joined node",
            same_run=False,
        )

    def _judge_derives(self, name: str, run: Run, p99_ms: float) -> None:
        self._findings.latencies(GROUP, run, {"what": name})
        self._findings.at_most(
            f"{name}, p99",
            p99_ms,
            MAX_DERIVE_P99_MS,
            "ms",
            f"latency of nonce + derive from when it was due, {DERIVES_PER_S:.0f} arrivals per second, p99",
            same_run=False,
        )

    async def _idle_share(self) -> float:
        """CPU seconds per second of the node while nobody calls."""
        await anyio.sleep(SETTLE_S)
        before, begun_s = cpu_time(self._node.pid), time.monotonic()
        await anyio.sleep(IDLE_S)
        return (cpu_time(self._node.pid) - before).total_s / (time.monotonic() - begun_s)

    async def _settled_memory(self) -> Memory:
        await anyio.sleep(SETTLE_S)
        return memory(self._node.pid)

    def _job(self, work: Work, duration_s: float, *, connections: int = 1) -> Job:
        return Job(
            work=work,
            node=self._node.address,
            callers=[self._peer],
            duration_s=duration_s,
            connections=connections,
            records=self._records,
        )

    def _derives(self, duration_s: float) -> Job:
        return Job(
            work=Work.DERIVE,
            node=self._node.address,
            callers=self._callers,
            duration_s=duration_s,
            connections=DERIVE_CONNECTIONS,
            rate_per_s=DERIVES_PER_S,
        )
