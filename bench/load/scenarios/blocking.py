"""How long the event loop stands still under each load, and why: on watched nodes, apart from all that is timed."""

import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import anyio

from appliance.devnet.progress import Step
from bench.load.cluster import SHORT_TICKS, LoadCluster, LoadNode
from bench.load.findings import Findings
from bench.load.http import Connection
from bench.load.identities import CallerKeys
from bench.load.jobs import Job, Work
from bench.load.node import FILE_VARIABLE
from bench.load.pauses import Pauses, PauseWatcher, lost_s
from bench.load.peers import RECORDS_PER_DELTA, PeerUser
from bench.load.processes import LineProcess, run_job
from bench.load.stalls import LIMIT_S, NOTED_S, Cause, Stall, place_of
from bench.results import Figure, Parameter

CONNECTIONS: Final = 8
LAUNCHER: Final = ("-m", "bench.load.node")
OURS: Final = (Cause.OWN_CODE, Cause.OTHER_THREAD)
COLD_TIMEOUT_S: Final = 60.0
# A node that has just begun to listen still loads the chain's libraries, in a thread: before it serves anybody.
LOADED_S: Final = 5.0
PLACES_SHOWN: Final = 6
GROUP: Final = "event loop"


@dataclass(frozen=True, slots=True)
class Phase:
    """One load on a node, from when to when on the monotonic clock; no name is that of the node of all the others."""

    name: str
    begun_s: float
    ended_s: float
    node: str = ""

    def of(self, stalls: Sequence[Stall]) -> list[Stall]:
        return [stall for stall in stalls if self.begun_s <= stall.at_s <= self.ended_s]


class BlockingBench:
    """Goes through the loads on one watched node; `report` stops it and says what was found.

    `pauses` watches the machine meanwhile: when it stood still is taken off.
    """

    def __init__(
        self,
        cluster: LoadCluster,
        directory: Path,
        client: LineProcess,
        pauses: PauseWatcher,
        findings: Findings,
    ) -> None:
        self._cluster = cluster
        self._directory = directory
        self._client = client
        self._pauses = pauses
        self._findings = findings
        self._phases: list[Phase] = []
        self._records = 0

    async def watched_node(self, name: str, *, available: bool) -> LoadNode:
        """A node on the watched loop. Raises `LoadError`."""
        environ = {**SHORT_TICKS, FILE_VARIABLE: str(self._file(name))}
        start = self._cluster.add_node if available else self._cluster.start_node
        return await start(name, environ, arguments=LAUNCHER)

    async def load(self, node: LoadNode, work: Work, callers: Sequence[CallerKeys], duration_s: float) -> None:
        """One load in a closed loop."""
        connections = 1 if len(callers) == 1 else CONNECTIONS
        job = Job(
            work=work,
            node=node.address,
            callers=callers,
            duration_s=duration_s,
            connections=connections,
            records=self._records,
        )
        async with self._phase(work.value):
            await run_job(self._client, job, node.pid)

    async def cold_misses(self, node: LoadNode, callers: Sequence[CallerKeys]) -> None:
        """The first derive of each of these apps."""
        job = Job(
            work=Work.DERIVE, node=node.address, callers=callers, duration_s=COLD_TIMEOUT_S, connections=1, once=True
        )
        async with self._phase("cold registry misses"):
            await run_job(self._client, job, node.pid)

    async def fill(self, node: LoadNode, peer: CallerKeys, records: int) -> None:
        """So many records from the peer."""
        connection = await Connection.open("127.0.0.1", node.address.port)
        user = PeerUser(peer, node.address, connection)
        await user.join()
        for first in range(0, records, RECORDS_PER_DELTA):
            await user.push(range(first, first + RECORDS_PER_DELTA))
        connection.close()
        self._records = records

    async def join(self, step: Step) -> None:
        """A watched node joins: what it and the giving node do meanwhile."""
        joiner = await self.watched_node("joiner", available=False)
        await anyio.sleep(LOADED_S)
        step.say("a node joins")
        async with self._phase("join, the node that gives"):
            instance_id = await self._cluster.register_node(joiner)
            await self._cluster.wait_until_available(joiner)
        given = self._phases[-1]
        await self._cluster.retire_node(joiner, instance_id)
        self._phases.append(replace(given, name="join, the new node", node=joiner.process.name))

    async def report(self, node: LoadNode) -> None:
        """Stop the node that `load` and the others were called with, and say what was found. Raises `LoadError`."""
        await node.process.stop()
        pauses = await self._pauses.stop()
        lengths_s = [pause.ended_s - pause.begun_s for found in pauses.values() for pause in found]
        self._findings.figure(GROUP, "longest pause of the machine", 1000 * max(lengths_s, default=0.0), "ms")
        self._findings.notes.append(
            f"The machine stood still {sum(length > NOTED_S for length in lengths_s)} times for more than "
            f"{1000 * NOTED_S:.0f} ms, at most {1000 * max(lengths_s, default=0.0):.0f} ms. That is taken off the "
            "event loop's blocks."
            if self._pauses.permitted
            else "The event loop's blocks hold pauses of the machine, which only SCHED_FIFO could tell apart."
        )
        for phase in self._phases:
            stalls = phase.of(self._found(phase.node or node.process.name))
            longest_s = max((stall.blocked_s for stall in stalls if stall.cause is not Cause.MACHINE), default=NOTED_S)
            of: dict[str, Parameter] = {"what": phase.name}
            self._findings.figures.append(
                Figure(GROUP, "longest block, pauses of the machine included", 1000 * longest_s, "ms", of)
            )
            left = without_pauses(stalls, pauses)
            excused = _too_long(stalls) - _too_long(left)
            if excused:
                self._findings.notes.append(
                    f"Event loop, {phase.name}: {excused} blocks were longer than {1000 * LIMIT_S:.0f} ms with the "
                    "pauses of the machine, and are not without them."
                )
            self._report_phase(phase, left)

    def _report_phase(self, phase: Phase, found: Sequence[Stall]) -> None:
        stalls = sorted(found, key=lambda stall: stall.blocked_s, reverse=True)
        ours = [stall for stall in stalls if stall.cause in OURS]
        collections = [stall for stall in stalls if stall.cause is Cause.GARBAGE_COLLECTION]
        for cause in Cause:
            longest = max((stall.blocked_s for stall in stalls if stall.cause is cause), default=0.0)
            over = sum(stall.blocked_s > LIMIT_S for stall in stalls if stall.cause is cause)
            of: dict[str, Parameter] = {"what": phase.name, "cause": cause.value, "over the limit": over}
            self._findings.figures.append(Figure(GROUP, "longest stretch", 1000 * longest, "ms", of))
        for name, group in (("our own code", ours), ("garbage collection", collections)):
            self._findings.at_most(
                f"event loop, {phase.name}: longest block by {name}",
                1000 * max((stall.blocked_s for stall in group), default=NOTED_S),
                1000 * LIMIT_S,
                "ms",
                f"longest single step of the loop; {1000 * NOTED_S:.0f} stands for anything shorter",
                same_run=False,
            )
        self._findings.notes.extend(_places(phase.name, [stall for stall in ours if stall.blocked_s > LIMIT_S]))

    @asynccontextmanager
    async def _phase(self, name: str) -> AsyncIterator[None]:
        begun_s = time.monotonic()
        yield
        self._phases.append(Phase(name, begun_s, time.monotonic()))

    def _file(self, name: str) -> Path:
        return self._directory / f"{name}.stalls.json"

    def _found(self, name: str) -> list[Stall]:
        return [Stall(**held) for held in json.loads(self._file(name).read_text(encoding="utf-8"))]


def _too_long(stalls: Sequence[Stall]) -> int:
    return sum(stall.blocked_s > LIMIT_S for stall in stalls if stall.cause is not Cause.MACHINE)


def without_pauses(stalls: Sequence[Stall], pauses: Pauses) -> list[Stall]:
    """Those that are long enough still when the pauses of the core they ran on are taken off.

    One that has changed cores was on either of them in a pause: whoever is interrupted by the late beat may be moved.
    """
    left = [
        stall.without(max(lost_s(pauses.get(core, ()), stall.at_s - stall.wall_s, stall.at_s) for core in stall.cores))
        for stall in stalls
    ]
    return [stall for stall in left if stall.wall_s > NOTED_S]


def _places(load: str, stalls: Sequence[Stall]) -> list[str]:
    """Where the longest blocks were, a place once each."""
    by_place: dict[str, list[Stall]] = {}
    for stall in stalls:
        by_place.setdefault(place_of(stall), []).append(stall)
    told: list[tuple[float, str]] = []
    for place, found in by_place.items():
        longest = max(found, key=lambda stall: stall.blocked_s)
        sentence = (
            f"Event loop, {load}: {len(found)} blocks of more than {1000 * LIMIT_S:.0f} ms, the longest "
            f"{1000 * longest.blocked_s:.1f} ms by {longest.cause}, in {place}; step: {longest.step}; stack: "
            f"{longest.stack or 'not seen'}."
        )
        told.append((longest.blocked_s, sentence))
    return [sentence for _, sentence in sorted(told, reverse=True)[:PLACES_SHOWN]]
