"""Cold registry misses: apps that a node has never seen, each of which costs it two reads of the chain."""

from typing import Final

from bench.load.cluster import LoadCluster, LoadNode
from bench.load.findings import Findings, describe
from bench.load.jobs import Job, Work
from bench.load.processes import LineProcess, run_job

# Below the burst of first sights that a node allows (`UNKNOWN_READS_BURST`), so that none is refused.
COLD_APPS: Final = 100
TIMEOUT_S: Final = 60.0
GROUP: Final = "cold registry misses"


async def measure_cold_misses(cluster: LoadCluster, node: LoadNode, client: LineProcess, findings: Findings) -> None:
    """nonce + derive by apps that were registered a moment ago, one after the other. Raises `LoadError`."""
    callers = await cluster.add_apps(COLD_APPS)
    job = Job(work=Work.DERIVE, node=node.address, callers=callers, duration_s=TIMEOUT_S, connections=1, once=True)
    run = await run_job(client, job, node.pid)
    findings.run(GROUP, run, {"what": "first nonce + derive of an app", "apps": COLD_APPS})
    findings.notes.append(
        f"First nonce + derive of {COLD_APPS} apps, one after the other, chain on the same machine: {describe(run)}."
    )
