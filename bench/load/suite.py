"""Which scenarios there are, and how one run of the suite goes through them."""

from contextlib import AsyncExitStack
from dataclasses import dataclass
from enum import StrEnum

from appliance.devnet.progress import Progress
from bench.load.cluster import LoadCluster, log_directory
from bench.load.findings import Findings
from bench.load.jobs import Work
from bench.load.processes import LineProcess
from bench.load.scenarios.operations import OperationBench


class Scenario(StrEnum):
    """What can be asked for by name."""

    OPERATIONS = "operations"


@dataclass(frozen=True, slots=True)
class Plan:
    """`duration_s` of one run of a closed loop, `rounds` of it."""

    scenarios: frozenset[Scenario]
    works: tuple[Work, ...]
    duration_s: float
    rounds: int
    apps: int


QUICK = Plan(frozenset({Scenario.OPERATIONS}), (Work.DERIVE,), 1.5, 5, 4)
FULL = Plan(frozenset(Scenario), (Work.DERIVE, Work.GET, Work.PUT), 3.0, 5, 8)


async def run_suite(plan: Plan, progress: Progress) -> Findings:
    """Raises `LoadError`, `KmsError` when a scenario cannot be carried out."""
    findings = Findings()
    async with AsyncExitStack() as stack:
        with progress.step("Starting a chain and a node"):
            cluster = await stack.enter_async_context(LoadCluster(log_directory()))
            node = await cluster.add_node("node-1")
            callers = await cluster.add_apps(plan.apps)
            client = await stack.enter_async_context(LineProcess("bench.load.client"))
        if Scenario.OPERATIONS in plan.scenarios:
            bench = OperationBench(node, callers, client, findings, plan.duration_s, plan.rounds)
            for work in plan.works:
                with progress.step(f"nonce + {work} against its floor") as step:
                    await bench.compare(work, step)
    return findings
