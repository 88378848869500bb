"""nonce + derive in an open loop: what callers wait when requests come at a rate of their own, up to saturation.

The rates are shares of what a closed loop reached just before, in the same run.
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
SATURATING_CONNECTIONS: Final = 16
SHARES: Final = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1)
GROUP: Final = "nonce + derive, open loop"


@dataclass(frozen=True, slots=True)
class ArrivalsBench:
    """Measures `node` with the calls of `callers` made by `client`."""

    node: LoadNode
    callers: Sequence[CallerKeys]
    client: LineProcess
    findings: Findings
    duration_s: float

    async def sweep(self, step: Step, *, next_nonce: bool) -> None:
        """One curve: latency over rate. Raises `LoadError`."""
        saturated = await run_job(self.client, self._job(SATURATING_CONNECTIONS, None, next_nonce), self.node.pid)
        label = "with next nonce" if next_nonce else "with a fetched nonce"
        lines: dict[str, list[tuple[float, float]]] = {"p50": [], "p99": [], "p99.9": []}
        for share in SHARES:
            rate_per_s = share * saturated.rate_per_s
            step.say(f"{rate_per_s:.0f}/s {label}")
            run = await run_job(self.client, self._job(CONNECTIONS, rate_per_s, next_nonce), self.node.pid)
            for name, value_ms in (
                ("p50", run.latencies.p50_ms),
                ("p99", run.latencies.p99_ms),
                ("p99.9", run.latencies.p999_ms),
            ):
                lines[name].append((rate_per_s, value_ms))
            of: dict[str, Parameter] = {"what": label, "offered per s": round(rate_per_s), "share of saturation": share}
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
