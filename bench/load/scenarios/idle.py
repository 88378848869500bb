"""A node that nobody calls: CPU and memory with the default intervals, beside a peer."""

from typing import Final

import anyio

from appliance.devnet.progress import Step
from bench.load.cluster import LoadCluster
from bench.load.findings import Findings
from bench.load.procfs import cpu_time, memory

MAX_CPU_PERCENT: Final = 0.5
MAX_RSS_MB: Final = 120.0
# Longer than the longest default interval with its jitter: every periodic task runs at least once.
WATCHED_S: Final = 70.0
SETTLE_S: Final = 5.0
# The first node of a cluster becomes available with its third tick: four minutes of waiting with the default.
PEER_TICKS: Final = {"KMS_NODE_TICK_SECONDS": "15"}
GROUP: Final = "idle node"


async def measure_idle(cluster: LoadCluster, findings: Findings, step: Step) -> None:
    """A node with the default intervals joins one that ticks almost as rarely and is left alone. Raises `LoadError`."""
    step.say("starting a peer")
    await cluster.add_node("peer", PEER_TICKS)
    node = await cluster.start_node("idle", {})
    await cluster.register_node(node)
    step.say("waiting for its next tick")
    await cluster.wait_until_available(node)
    await anyio.sleep(SETTLE_S)
    step.say(f"watching it for {WATCHED_S:.0f} s")
    before = cpu_time(node.pid)
    await anyio.sleep(WATCHED_S)
    percent = 100 * (cpu_time(node.pid) - before).total_s / WATCHED_S
    held = memory(node.pid)
    findings.figure(GROUP, "CPU", percent, "% of a core")
    findings.figure(GROUP, "resident", held.rss_bytes / 1e6, "MB")
    findings.figure(GROUP, "threads", held.threads, "")
    findings.at_most(
        "idle node, CPU",
        percent,
        MAX_CPU_PERCENT,
        "% of a core",
        f"CPU time over {WATCHED_S:.0f} s with the default intervals and one peer, divided by that time",
        same_run=False,
    )
    findings.at_most(
        "idle node, resident memory",
        held.rss_bytes / 1e6,
        MAX_RSS_MB,
        "MB",
        "VmRSS of a node with the default settings, one peer and no records",
        same_run=False,
    )
