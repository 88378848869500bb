"""nonce + derive at many rates: closed loops of more and more connections, and an open loop up to saturation.

The open loop's rates are shares of what one core can do by the CPU time that an operation took in the closed loops:
that depends less on whoever else is on the machine than the rate they reached.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from appliance.devnet.progress import Step
from bench.load.cluster import LoadNode
from bench.load.findings import Findings, describe
from bench.load.identities import CallerKeys
from bench.load.jobs import Job, Work
from bench.load.processes import LineProcess, run_job
from bench.results import Curves, Parameter

CONNECTIONS: Final = 64
CLOSED_CONNECTIONS: Final = (1, 2, 4, 8, 16, 32)
SHARES: Final = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1)
GROUP: Final = "nonce + derive, open loop"
CLOSED_GROUP: Final = "nonce + derive, closed loop"


@dataclass(frozen=True, slots=True)
class ArrivalsBench:
    """Measures `node` with the calls of `callers` made by `client`."""

    node: LoadNode
    callers: Sequence[CallerKeys]
    client: LineProcess
    findings: Findings
    duration_s: float

    async def sweep(self, step: Step, *, next_nonce: bool) -> None:
        """Two curves, latency over rate in closed loops and in the open loop. Raises `LoadError`."""
        label = "with next nonce" if next_nonce else "with a fetched nonce"
        capacity_per_s = 1 / await self._ladder(step, label, next_nonce=next_nonce)
        lines: dict[str, list[tuple[float, float]]] = {"p50": [], "p99": [], "p99.9": []}
        for share in SHARES:
            rate_per_s = share * capacity_per_s
            step.say(f"{rate_per_s:.0f}/s {label}")
            run = await run_job(self.client, self._job(CONNECTIONS, rate_per_s, next_nonce), self.node.pid)
            for name, value_ms in (
                ("p50", run.latencies.p50_ms),
                ("p99", run.latencies.p99_ms),
                ("p99.9", run.latencies.p999_ms),
            ):
                lines[name].append((rate_per_s, value_ms))
            of: dict[str, Parameter] = {"what": label, "offered per s": round(rate_per_s), "share of one core": share}
            self.findings.run(GROUP, run, of)
            self.findings.notes.append(f"Open loop, derive {label}, {rate_per_s:.0f}/s offered: {describe(run)}.")
        self.findings.curves.append(
            Curves(
                f"Latency of nonce + derive {label} over the rate of arrivals",
                "arrivals per second",
                "milliseconds from when a request was due",
                lines,
                log_y=True,
            )
        )

    async def _ladder(self, step: Step, label: str, *, next_nonce: bool) -> float:
        """Closed loops; the server's CPU seconds of one operation in the cheapest of them."""
        lines: dict[str, list[tuple[float, float]]] = {"p50": [], "p99": []}
        cost_s = []
        for connections in CLOSED_CONNECTIONS:
            step.say(f"{connections} connections {label}")
            run = await run_job(self.client, self._job(connections, None, next_nonce), self.node.pid)
            cost_s.append(run.server_s_per_operation)
            lines["p50"].append((run.rate_per_s, run.latencies.p50_ms))
            lines["p99"].append((run.rate_per_s, run.latencies.p99_ms))
            self.findings.run(CLOSED_GROUP, run, {"what": label, "connections": connections})
            self.findings.notes.append(f"Closed loop, derive {label}, {connections} connections: {describe(run)}.")
        self.findings.curves.append(
            Curves(
                f"Latency of nonce + derive {label} in closed loops of {CLOSED_CONNECTIONS[0]} to "
                f"{CLOSED_CONNECTIONS[-1]} connections",
                "operations per second",
                "milliseconds",
                lines,
                log_y=True,
            )
        )
        return min(cost_s)

    def _job(self, connections: int, rate_per_s: float | None, next_nonce: bool) -> Job:
        return Job(
            work=Work.DERIVE,
            node=self.node.address,
            callers=self.callers,
            duration_s=self.duration_s,
            connections=connections,
            rate_per_s=rate_per_s,
            next_nonce=next_nonce,
        )
