"""The app operations: CPU against the floor, with a fetched and with the next nonce, in closed loops.

Node, trivial routes and primitives take turns in short rounds, so that whatever else the machine does meets all of
them; a ratio is the median of its rounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from appliance.devnet.progress import Step
from bench.load.callers import GET_KEY, VALUE_BYTES, Call, derive_call, get_call, put_call
from bench.load.cluster import LoadNode
from bench.load.findings import Findings, describe
from bench.load.floor import FloorServer, Sample, floor_s
from bench.load.identities import CallerKeys, NodeAddress
from bench.load.jobs import Job, Work
from bench.load.primitives import measure_primitives
from bench.load.processes import LineProcess, Run, run_job

CONNECTIONS: Final = 8
# The limits of the performance issue.
MAX_FLOOR_RATIO: Final = 1.6
MIN_NEXT_NONCE_RATIO: Final = 1.25
GROUP: Final = "app operations, closed loop"


@dataclass(frozen=True, slots=True)
class Kind:
    """One operation: how to sample it, how many plaintext bytes it encrypts or decrypts at rest."""

    work: Work
    calls: Sequence[Call]
    at_rest: int | None


KINDS: Final = {
    Work.DERIVE: Kind(Work.DERIVE, [derive_call()], None),
    Work.GET: Kind(Work.GET, [put_call(GET_KEY), get_call()], VALUE_BYTES),
    Work.PUT: Kind(Work.PUT, [put_call("bench-sample")], VALUE_BYTES),
}


@dataclass(slots=True)
class _Rounds:
    """CPU seconds per operation of each round."""

    fetched: list[Run] = field(default_factory=list)
    next_nonce: list[Run] = field(default_factory=list)
    nonce_route: list[Run] = field(default_factory=list)
    operation_route: list[Run] = field(default_factory=list)
    floors_s: list[float] = field(default_factory=list)
    # The same with routes that are one ASGI callable.
    bare_floors_s: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class OperationBench:
    """Measures operations on `node`, with the calls of `callers` made by `client`."""

    node: LoadNode
    callers: Sequence[CallerKeys]
    client: LineProcess
    findings: Findings
    duration_s: float
    rounds: int

    async def compare(self, work: Work, step: Step) -> None:
        """One operation against its floor and against itself with the next nonce. Raises `LoadError`."""
        kind = KINDS[work]
        sample = await Sample.take(self.callers[0], self.node.address, kind.calls, kind.at_rest)
        async with FloorServer() as server, FloorServer() as bare:
            await server.start([sample.nonce, sample.operation], bare=False)
            await bare.start([sample.nonce, sample.operation], bare=True)
            rounds = _Rounds()
            for number in range(self.rounds):
                step.say(f"round {number + 1} of {self.rounds}")
                await self._round(kind, sample, server, bare, rounds)
        self._report(kind, rounds)

    async def _round(self, kind: Kind, sample: Sample, server: FloorServer, bare: FloorServer, rounds: _Rounds) -> None:
        # By turns which one is first: what was before leaves the processor faster or slower.
        for next_nonce in (False, True) if len(rounds.fetched) % 2 == 0 else (True, False):
            runs = rounds.next_nonce if next_nonce else rounds.fetched
            runs.append(await run_job(self.client, self._job(kind.work, next_nonce=next_nonce), self.node.pid))
        rounds.nonce_route.append(await self._trivial(server, sample.nonce.request))
        rounds.operation_route.append(await self._trivial(server, sample.operation.request))
        bare_runs = [await self._trivial(bare, exchange.request) for exchange in (sample.nonce, sample.operation)]
        sizes = [size for size in (sample.sizes.request, sample.sizes.answer, sample.sizes.at_rest) if size is not None]
        primitives = measure_primitives(*sizes)
        for floors_s, route_runs in (
            (rounds.floors_s, (rounds.nonce_route[-1], rounds.operation_route[-1])),
            (rounds.bare_floors_s, bare_runs),
        ):
            nonce_s, operation_s = (run.server_s_per_operation for run in route_runs)
            floors_s.append(floor_s(sample.sizes, primitives, nonce_s, operation_s, derives=kind.work is Work.DERIVE))

    def _job(self, work: Work, *, next_nonce: bool) -> Job:
        return Job(
            work=work,
            node=self.node.address,
            callers=self.callers,
            duration_s=self.duration_s,
            connections=CONNECTIONS,
            next_nonce=next_nonce,
        )

    async def _trivial(self, server: FloorServer, request: bytes) -> Run:
        job = Job(
            work=Work.RAW,
            node=NodeAddress(server.port, self.node.address.wallet, self.node.address.tee_pubkey),
            callers=self.callers,
            duration_s=self.duration_s / 2,
            connections=CONNECTIONS,
            raw=[request.hex()],
        )
        return await run_job(self.client, job, server.pid)

    def _report(self, kind: Kind, rounds: _Rounds) -> None:
        name = kind.work.value
        for label, runs in (
            (f"nonce + {name}", rounds.fetched),
            (f"{name} with next nonce", rounds.next_nonce),
            (f"trivial nonce route of {name}", rounds.nonce_route),
            (f"trivial route of {name}", rounds.operation_route),
        ):
            typical = sorted(runs, key=lambda run: run.server_s_per_operation)[len(runs) // 2]
            self.findings.run(GROUP, typical, {"what": label, "connections": CONNECTIONS})
            self.findings.notes.append(f"{label}, closed loop of {CONNECTIONS} connections: {describe(typical)}.")
        self.findings.figure(GROUP, "floor", 1e6 * median(rounds.floors_s), "µs CPU", what=f"nonce + {name}")
        cost = [run.server_s_per_operation for run in rounds.fetched]
        ratios = [spent / floor for spent, floor in zip(cost, rounds.floors_s, strict=True)]
        bare = median(spent / floor for spent, floor in zip(cost, rounds.bare_floors_s, strict=True))
        self.findings.figure(
            GROUP, "CPU against the floor with bare callables for routes", bare, "×", what=f"nonce + {name}"
        )
        self.findings.notes.append(
            f"nonce + {name} against its floor, round by round: {', '.join(f'{ratio:.2f}' for ratio in ratios)}; with "
            f"routes that are one ASGI callable, without Starlette, {bare:.2f} (median)."
        )
        self.findings.at_most(
            f"nonce + {name}, CPU against the floor",
            median(ratios),
            MAX_FLOOR_RATIO,
            "×",
            f"server CPU of GET /nonce and {name}, divided by recover + sign + the operation's HKDFs and AES-GCMs + "
            "the same server's CPU for two trivial Starlette routes with the same bytes",
            same_run=True,
        )
        self.findings.at_least(
            f"{name}, gain of the next nonce",
            median(spent / run.server_s_per_operation for spent, run in zip(cost, rounds.next_nonce, strict=True)),
            MIN_NEXT_NONCE_RATIO,
            "×",
            f"server CPU of {name} with a fetched nonce, divided by that with the nonce of the answer before",
            same_run=True,
        )
