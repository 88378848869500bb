"""Cold registry misses: apps that a node has never seen, each of which costs it two reads of the chain."""

from collections.abc import Sequence
from typing import Final

from bench.load.cluster import LoadNode
from bench.load.findings import Findings, describe
from bench.load.identities import CallerKeys
from bench.load.jobs import Job, Work
from bench.load.processes import LineProcess, run_job

TIMEOUT_S: Final = 60.0
GROUP: Final = "cold registry misses"


async def measure_cold_misses(
    node: LoadNode, callers: Sequence[CallerKeys], client: LineProcess, findings: Findings
) -> None:
    """nonce + derive by apps that the node has not seen, one after the other. Raises `LoadError`.

    As many as a node reads at once (`UNKNOWN_READS_BURST`): what comes beyond that would be refused for its rate.
    """
    job = Job(work=Work.DERIVE, node=node.address, callers=callers, duration_s=TIMEOUT_S, connections=1, once=True)
    run = await run_job(client, job, node.pid)
    findings.run(GROUP, run, {"what": "first nonce + derive of an app", "apps": len(callers)})
    findings.notes.append(
        f"First nonce + derive of {len(callers)} apps, one after the other, chain on the same machine: {describe(run)}."
    )
