"""How cost grows with the nodes of a cluster: real node processes, a private chain, one app, on this machine."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import httpx
from rich.console import Console

from appliance.client.client import KmsClient
from appliance.client.discovery import NodeFacts, StaticDirectory
from appliance.devnet.cluster import Devnet
from appliance.devnet.nodes import NodeProcess
from appliance.devnet.progress import Progress
from appliance.http import new_http_client
from appliance.tee.local import LocalTee
from bench.results import Check, Curves, Figure, Results, Sense
from bench.scale.timing import process_cpu_s, resident_bytes, sent_bytes
from kmscore.envelope import parse_tee_pubkey
from kmscore.errors import Unavailable

# Short, so that a run takes minutes; the model has the same intervals when it is compared with what is measured here.
SYNC_INTERVAL_S: Final = 1.0
NODE_TICK_S: Final = 3.0
ANTI_ENTROPY_S: Final = 10.0
VALUE_BYTES: Final = 1024
POLL_S: Final = 0.1
CONVERGENCE_TIMEOUT_S: Final = 30.0
WRITES: Final = 7
IDLE_S: Final = 9.0  # three node ticks
BUSY_WRITES: Final = 5
# Longer than a push and the passing on after it: each write travels alone, which is when it costs most.
BUSY_PAUSE_S: Final = 2.3 * SYNC_INTERVAL_S
SETTINGS: Final = {
    "DATA_SYNC_INTERVAL_SECONDS": str(SYNC_INTERVAL_S),
    "KMS_NODE_TICK_SECONDS": str(NODE_TICK_S),
    "ANTI_ENTROPY_INTERVAL_SECONDS": str(ANTI_ENTROPY_S),
}


@dataclass(frozen=True, slots=True)
class ClusterFigures:
    """What one cluster showed; processor time and bytes are means over its nodes."""

    nodes: int
    start_s: float
    convergence_s: Sequence[float]
    idle_cpu: float
    idle_bytes_per_s: float
    cpu_s_per_write: float
    bytes_per_write: float
    resident_mib: float

    def figures(self) -> list[Figure]:
        of = {"nodes": self.nodes}
        return [
            Figure("nodes", "start of the cluster", self.start_s, "s", of),
            Figure("nodes", "convergence, mean", statistics.mean(self.convergence_s), "s", of),
            Figure("nodes", "convergence, longest", max(self.convergence_s), "s", of),
            Figure("nodes", "idle CPU per node", 100 * self.idle_cpu, "% of a core", of),
            Figure("nodes", "idle bytes sent per node", self.idle_bytes_per_s * SYNC_INTERVAL_S, "B/interval", of),
            Figure("nodes", "CPU of a write, all nodes", 1000 * self.cpu_s_per_write, "ms", of),
            Figure("nodes", "bytes sent for a write, all nodes", self.bytes_per_write, "B", of),
            Figure("nodes", "resident memory per node", self.resident_mib, "MiB", of),
        ]


@dataclass(frozen=True, slots=True)
class Usage:
    """What the nodes' processes had used at a moment."""

    at_s: float
    cpu_s: float
    sent_bytes: int

    @classmethod
    def of(cls, pids: Sequence[int]) -> "Usage":
        return cls(time.monotonic(), sum(map(process_cpu_s, pids)), sum(map(sent_bytes, pids)))


async def measure_nodes(node_counts: Sequence[int], *, console: Console) -> Results:
    """One cluster after the other, each stopped before the next; cancelling stops what runs."""
    found = [await measure_cluster(count, console=console) for count in node_counts]
    return nodes_results(found)


def nodes_results(found: Sequence[ClusterFigures]) -> Results:
    """Figures, curves and what the machine's cores limit."""
    cores = os.cpu_count() or 1
    lines: Mapping[str, Callable[[ClusterFigures], float]] = {
        "convergence, mean (s)": lambda cluster: statistics.mean(cluster.convergence_s),
        "idle CPU per node (% of a core)": lambda cluster: 100 * cluster.idle_cpu,
        "CPU of a write, all nodes (ms)": lambda cluster: 1000 * cluster.cpu_s_per_write,
        "resident memory per node (MiB)": lambda cluster: cluster.resident_mib,
    }
    return Results(
        part="nodes",
        figures=[figure for cluster in found for figure in cluster.figures()],
        checks=[
            Check(
                f"convergence of {cluster.nodes} nodes",
                max(cluster.convergence_s) / SYNC_INTERVAL_S,
                Sense.AT_MOST,
                3.0,
                "intervals",
                "longest time from a write on one node to its being readable on all, in intervals of the push",
                same_run=False,
            )
            for cluster in found
        ],
        curves=[
            Curves(
                "A cluster on this machine over its nodes",
                "nodes",
                "as the label says",
                {label: [(cluster.nodes, value(cluster)) for cluster in found] for label, value in lines.items()},
                log_x=True,
                log_y=True,
            )
        ],
        notes=[
            (
                f"Nodes on this machine run with DATA_SYNC_INTERVAL_SECONDS {SYNC_INTERVAL_S:g}, KMS_NODE_TICK_SECONDS "
                f"{NODE_TICK_S:g} and ANTI_ENTROPY_INTERVAL_SECONDS {ANTI_ENTROPY_S:g} instead of 10, 60 and 60, so "
                "their idle CPU is what the shorter intervals make of it. Convergence is seen through /status every "
                f"{POLL_S:g} s. Bytes sent are what the processes wrote, by /proc/PID/io: sockets, and a few log lines."
            ),
            _core_limit(found, cores),
        ],
    )


def _core_limit(found: Sequence[ClusterFigures], cores: int) -> str:
    """From how many nodes the processor is the limit: a write is delivered (n - 1)² times."""
    largest = max(found, key=lambda cluster: cluster.nodes)
    delivery_s = largest.cpu_s_per_write / max(1, (largest.nodes - 1) ** 2)
    nodes = next(
        n for n in range(2, 10_000) if (n - 1) ** 2 * delivery_s / SYNC_INTERVAL_S + n * largest.idle_cpu > cores
    )
    return (
        f"With {cores} cores, one write an interval of {SYNC_INTERVAL_S:g} s and the {1000 * delivery_s:.1f} ms that a "
        f"delivery to one node costs both sides together, the cores are full from {nodes} nodes on; below that "
        "convergence is the interval's doing, and measured times do not depend on the cores."
    )


async def measure_cluster(count: int, *, console: Console) -> ClusterFigures:
    """Start a cluster, measure it idle, its convergence, and what writes cost; stop it."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nova-kms-bench-")))
        progress = Progress(console)
        started = time.monotonic()
        devnet = await stack.enter_async_context(
            Devnet(directory, node_count=count, progress=progress, settings=SETTINGS)
        )
        start_s = time.monotonic() - started
        http = await stack.enter_async_context(new_http_client())
        keys = devnet.app_keys
        identity = LocalTee(keys.wallet_key(), keys.agreement_key(), os.urandom)
        clients = []
        for node in devnet.nodes:
            facts = NodeFacts(node.process.url, node.status.wallet, parse_tee_pubkey(node.status.tee_pubkey))
            clients.append(await stack.enter_async_context(KmsClient(identity, StaticDirectory([facts]), http=http)))
        urls = [node.process.url for node in devnet.nodes]
        pids = [node.process.pid for node in devnet.nodes if isinstance(node.process, NodeProcess)]
        with progress.step(f"{count} nodes: first requests"):
            # Registry caches, key agreements and connections are made once, and not by what is measured.
            for number, client in enumerate(clients):
                await client.put(f"first-{number}", os.urandom(VALUE_BYTES))
            await _everywhere(http, urls, len(clients))
            await anyio.sleep(2 * SYNC_INTERVAL_S)
        with progress.step(f"{count} nodes: idle for {IDLE_S:g} s"):
            idle = await _idle(pids)
        with progress.step(f"{count} nodes: convergence of {WRITES} writes"):
            convergence_s = [
                await _converge(http, urls, clients[number % count], number, len(clients) + number + 1)
                for number in range(WRITES)
            ]
        with progress.step(f"{count} nodes: processor time of {BUSY_WRITES} writes"):
            await anyio.sleep(2 * SYNC_INTERVAL_S)
            cpu_s, sent_bytes = await _busy(pids, clients, idle)
        return ClusterFigures(
            nodes=count,
            start_s=start_s,
            convergence_s=convergence_s,
            idle_cpu=idle[0] / count,
            idle_bytes_per_s=idle[1] / count,
            cpu_s_per_write=cpu_s / BUSY_WRITES,
            bytes_per_write=sent_bytes / BUSY_WRITES,
            resident_mib=statistics.mean(resident_bytes(pid) for pid in pids) / 2**20,
        )


async def _idle(pids: Sequence[int]) -> tuple[float, float]:
    """Processor time and bytes sent per second, of all nodes."""
    before = Usage.of(pids)
    await anyio.sleep(IDLE_S)
    after = Usage.of(pids)
    elapsed_s = after.at_s - before.at_s
    return (after.cpu_s - before.cpu_s) / elapsed_s, (after.sent_bytes - before.sent_bytes) / elapsed_s


async def _busy(pids: Sequence[int], clients: Sequence[KmsClient], idle: tuple[float, float]) -> tuple[float, float]:
    """What the writes cost beyond what idling would have, of all nodes: seconds and bytes."""
    before = Usage.of(pids)
    for number in range(BUSY_WRITES):
        await clients[number % len(clients)].put(f"busy-{number}", os.urandom(VALUE_BYTES))
        await anyio.sleep(BUSY_PAUSE_S)
    await anyio.sleep(3 * SYNC_INTERVAL_S)
    after = Usage.of(pids)
    elapsed_s = after.at_s - before.at_s
    return (
        max(0.0, after.cpu_s - before.cpu_s - idle[0] * elapsed_s),
        max(0.0, after.sent_bytes - before.sent_bytes - idle[1] * elapsed_s),
    )


async def _converge(
    http: httpx.AsyncClient, urls: Sequence[str], writer: KmsClient, number: int, expected: int
) -> float:
    """Seconds from the answer to a write until every node has it."""
    # Not in step with the ticks of the node that is written to.
    await anyio.sleep(SYNC_INTERVAL_S * number / WRITES)
    await writer.put(f"converge-{number}", os.urandom(VALUE_BYTES))
    started = time.monotonic()
    await _everywhere(http, urls, expected)
    return time.monotonic() - started


async def _everywhere(http: httpx.AsyncClient, urls: Sequence[str], expected: int) -> None:
    """Return when every node holds that many keys. Raises `Unavailable` after the time for it."""
    missing = list(urls)
    with anyio.move_on_after(CONVERGENCE_TIMEOUT_S):
        while missing:
            missing = [url for url in missing if await _total_keys(http, url) < expected]
            if missing:
                await anyio.sleep(POLL_S)
        return
    raise Unavailable("a write did not reach every node in time")


async def _total_keys(http: httpx.AsyncClient, url: str) -> int:
    response = await http.get(f"{url}/status")
    return int(response.json()["data_store"]["total_keys"])
