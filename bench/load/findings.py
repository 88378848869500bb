"""What the scenarios found so far, and the words for it."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final

from bench.load.processes import Run
from bench.results import Check, Curves, Figure, Parameter, Results, Sense

PART: Final = "load"
# What a chain, the clients' parent and a quiet system take, generously.
QUIET_SHARE: Final = 0.3


class Findings:
    """Collects figures, checks, curves and notes; `say` is where progress goes."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []
        self.checks: list[Check] = []
        self.curves: list[Curves] = []
        self.notes: list[str] = []
        self._others_shares: list[float] = []

    def figure(self, group: str, name: str, value: float, unit: str, **parameters: Parameter) -> None:
        self.figures.append(Figure(group, name, value, unit, parameters))

    def at_most(self, name: str, value: float, limit: float, unit: str, meaning: str, *, same_run: bool) -> None:
        self.checks.append(Check(name, value, Sense.AT_MOST, limit, unit, meaning, same_run))

    def at_least(self, name: str, value: float, limit: float, unit: str, meaning: str, *, same_run: bool) -> None:
        self.checks.append(Check(name, value, Sense.AT_LEAST, limit, unit, meaning, same_run))

    def run(self, group: str, run: Run, parameters: Mapping[str, Parameter]) -> None:
        """The figures of one run, and who was the bottleneck."""
        self._others_shares.append(run.others_share)
        of = {**parameters, "bottleneck": run.bottleneck.value}
        for name, value, unit in (
            *_latency_figures(run),
            ("server CPU per 1000 operations", 1000 * run.server_s_per_operation, "s"),
            ("server CPU", 100 * run.server_share, "% of a core"),
            ("client CPU", 100 * run.client_share, "% of a core"),
            ("CPU of all other processes", 100 * run.others_share, "% of a core"),
        ):
            self.figures.append(Figure(group, name, value, unit, of))

    def latencies(self, group: str, run: Run, parameters: Mapping[str, Parameter]) -> None:
        """The figures of a run beside another one: the server's CPU time is that of both and belongs to neither."""
        self.figures.extend(Figure(group, name, value, unit, parameters) for name, value, unit in _latency_figures(run))

    def results(self) -> Results:
        """Everything, with a warning where the machine was not ours alone."""
        notes = list(self.notes)
        if self._others_shares and max(self._others_shares) > QUIET_SHARE:
            notes.append(
                f"Other processes took {100 * median(self._others_shares):.0f} % of a core in the middle run and "
                f"{100 * max(self._others_shares):.0f} % at most: latencies and CPU times would be lower on a quiet "
                "machine; ratios within this run hold."
            )
        return Results(PART, self.figures, self.checks, self.curves, notes)


def _latency_figures(run: Run) -> tuple[tuple[str, float, str], ...]:
    return (
        ("operations", run.rate_per_s, "1/s"),
        ("p50", run.latencies.p50_ms, "ms"),
        ("p99", run.latencies.p99_ms, "ms"),
        ("p99.9", run.latencies.p999_ms, "ms"),
    )


def describe_latencies(run: Run) -> str:
    """Rate and percentiles, for a run beside another one."""
    of = run.latencies
    return f"{run.rate_per_s:.0f}/s, p50 {of.p50_ms:.2f} p99 {of.p99_ms:.2f} p99.9 {of.p999_ms:.2f} ms"


def describe(run: Run) -> str:
    """One run in one line, for people who wait."""
    return (
        f"{describe_latencies(run)}, {1e6 * run.server_s_per_operation:.0f} µs CPU each, "
        f"server {100 * run.server_share:.0f} %, "
        f"client {100 * run.client_share:.0f} %, others {100 * run.others_share:.0f} % of a core, bottleneck: "
        f"{run.bottleneck}"
    )


def table(checks: Sequence[Check]) -> str:
    """The checks as lines, failures first."""
    ordered = sorted(checks, key=lambda check: check.passed)
    return "\n".join(
        f"{'ok  ' if check.passed else 'FAIL'} {check.name}: {check.value:.3g} {check.unit} "
        f"({check.sense} {check.limit:g})"
        for check in ordered
    )
