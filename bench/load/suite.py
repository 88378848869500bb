"""Which scenarios there are, and how one run of the suite goes through them. Each has a chain and a node of its own."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from appliance.devnet.progress import Progress
from bench.load.cluster import LoadCluster, LoadNode, log_directory
from bench.load.findings import Findings
from bench.load.identities import CallerKeys
from bench.load.jobs import Work
from bench.load.pauses import PauseWatcher
from bench.load.processes import LineProcess
from bench.load.scenarios.arrivals import ArrivalsBench
from bench.load.scenarios.blocking import BlockingBench
from bench.load.scenarios.cold import measure_cold_misses
from bench.load.scenarios.idle import measure_idle
from bench.load.scenarios.operations import OperationBench
from bench.load.scenarios.replication import Clients, ReplicationBench

CLIENT: Final = "bench.load.client"


class Scenario(StrEnum):
    """What can be asked for by name."""

    OPERATIONS = "operations"
    OPEN_LOOP = "open-loop"
    COLD = "cold"
    REPLICATION = "replication"
    MEMORY = "memory"
    IDLE = "idle"
    EVENT_LOOP = "event-loop"


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run of the suite does: `works` are held to their floors in so many `rounds` of `round_s`, every other
    closed or open loop takes `duration_s`, the store is filled to each of `store_sizes` records.

    Many short rounds, because the machine may change its speed from one second to the next.
    """

    scenarios: frozenset[Scenario]
    works: tuple[Work, ...] = (Work.DERIVE, Work.GET, Work.PUT)
    duration_s: float = 3.0
    rounds: int = 20
    round_s: float = 0.7
    apps: int = 8
    store_sizes: tuple[int, ...] = (10_000, 100_000)
    cold_apps: int = 100


QUICK: Final = Plan(frozenset({Scenario.OPERATIONS}), (Work.DERIVE,), round_s=0.4, apps=4)
FULL: Final = Plan(frozenset(Scenario))


@dataclass(frozen=True, slots=True)
class Stage:
    """A chain, one available node, apps and a client process."""

    cluster: LoadCluster
    node: LoadNode
    callers: list[CallerKeys]
    client: LineProcess
    stack: AsyncExitStack = field(repr=False)


async def run_suite(plan: Plan, progress: Progress) -> Findings:
    """Raises `LoadError`, `KmsError` when a scenario cannot be carried out."""
    findings = Findings()
    if plan.scenarios & {Scenario.OPERATIONS, Scenario.OPEN_LOOP, Scenario.COLD}:
        async with _stage(plan, progress) as stage:
            await _app_scenarios(plan, stage, findings, progress)
    if Scenario.REPLICATION in plan.scenarios:
        async with _stage(plan, progress) as stage:
            await _replication(plan, stage, findings, progress)
    if Scenario.MEMORY in plan.scenarios:
        async with _stage(plan, progress) as stage:
            bench = await _replication_bench(stage, findings)
            with progress.step("Memory of a record") as step:
                await bench.measure_memory(plan.store_sizes, step)
    if Scenario.IDLE in plan.scenarios:
        with progress.step("An idle node") as step:
            async with LoadCluster(log_directory()) as cluster:
                await measure_idle(cluster, findings, step)
    if Scenario.EVENT_LOOP in plan.scenarios:
        await _event_loop(plan, findings, progress)
    return findings


async def _app_scenarios(plan: Plan, stage: Stage, findings: Findings, progress: Progress) -> None:
    if Scenario.OPERATIONS in plan.scenarios:
        operations = OperationBench(stage.node, stage.callers, stage.client, findings, plan.round_s, plan.rounds)
        for work in plan.works:
            with progress.step(f"nonce + {work} against its floor") as step:
                await operations.compare(work, step)
    if Scenario.OPEN_LOOP in plan.scenarios:
        arrivals = ArrivalsBench(stage.node, stage.callers, stage.client, findings, plan.duration_s)
        for next_nonce in (False, True):
            with progress.step("nonce + derive at rates up to saturation") as step:
                await arrivals.sweep(step, next_nonce=next_nonce)
    if Scenario.COLD in plan.scenarios:
        with progress.step("Cold registry misses"):
            callers = await stage.cluster.add_apps(plan.cold_apps)
            await measure_cold_misses(stage.node, callers, stage.client, findings)


async def _replication(plan: Plan, stage: Stage, findings: Findings, progress: Progress) -> None:
    bench = await _replication_bench(stage, findings)
    with progress.step("Deltas") as step:
        await bench.measure_delta(step, plan.duration_s)
    for size in plan.store_sizes:
        with progress.step(f"Filling the store to {size} records") as step:
            await bench.fill(size, step)
        with progress.step("Snapshots") as step:
            await bench.measure_snapshots(step, plan.duration_s)
        with progress.step("A node joins") as step:
            await bench.measure_join(step)


async def _replication_bench(stage: Stage, findings: Findings) -> ReplicationBench:
    peer = await stage.cluster.add_peer()
    await stage.cluster.wait_until_members(stage.node, 2)
    clients = Clients(stage.client, await stage.stack.enter_async_context(LineProcess(CLIENT)))
    return ReplicationBench(stage.cluster, stage.node, stage.callers, peer, clients, findings)


async def _event_loop(plan: Plan, findings: Findings, progress: Progress) -> None:
    async with AsyncExitStack() as stack:
        with progress.step("Starting a chain and a watched node"):
            cluster = await stack.enter_async_context(LoadCluster(log_directory()))
            client = await stack.enter_async_context(LineProcess(CLIENT))
            pauses = await stack.enter_async_context(PauseWatcher())
            bench = BlockingBench(cluster, cluster.directory, client, pauses, findings)
            node = await bench.watched_node("watched", available=True)
            callers = await cluster.add_apps(plan.apps)
        with progress.step("Blocks of the event loop") as step:
            for work in (Work.DERIVE, Work.GET, Work.PUT):
                step.say(work)
                await bench.load(node, work, callers, plan.duration_s)
            step.say("cold registry misses")
            await bench.cold_misses(node, await cluster.add_apps(plan.cold_apps))
            peer = await cluster.add_peer()
            await cluster.wait_until_members(node, 2)
            step.say("filling the store")
            await bench.fill(node, peer, plan.store_sizes[-1])
            for work in (Work.SNAPSHOT_PAGES, Work.SNAPSHOT_WHOLE, Work.DELTA):
                step.say(work)
                await bench.load(node, work, [peer], plan.duration_s)
            await bench.join(step)
            await bench.report(node)


@asynccontextmanager
async def _stage(plan: Plan, progress: Progress) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        with progress.step("Starting a chain and a node"):
            cluster = await stack.enter_async_context(LoadCluster(log_directory()))
            node = await cluster.add_node("node-1")
            callers = await cluster.add_apps(plan.apps)
            client = await stack.enter_async_context(LineProcess(CLIENT))
        yield Stage(cluster, node, callers, client, stack)
