"""From pytest-benchmark's report to the suite's form: figures, how far each is from its floor, curves."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from bench.micro.racing import Role
from bench.results import Curves, Figure, Parameter

MICROSECONDS: Final = 1e6
TURN: Final = "_turn"
# A line needs so many points, and a plot is unreadable with the twin's times on it.
MIN_POINTS: Final = 3
DRAWN: Final = (Role.OURS, Role.FLOOR, Role.RIVAL, Role.OTHER)


@dataclass(frozen=True, slots=True)
class Measurement:
    """The time of one operation in µs, the median of each turn."""

    group: str
    name: str
    role: Role
    parameters: Mapping[str, Parameter]
    turns: tuple[float, ...]

    @property
    def microseconds(self) -> float:
        """The median of the turns."""
        return median(self.turns)

    def over(self, other: "Measurement") -> float:
        """How many times as long as `other` this takes: the median of the turns' ratios.

        What takes its turn together meets the machine in the same state, busy or not, so the ratio holds still where
        the times do not. ValueError when the two did not take as many turns.
        """
        return median(mine / theirs for mine, theirs in zip(self.turns, other.turns, strict=True))


def read_measurements(report: Mapping[str, Any]) -> list[Measurement]:
    """What a `--benchmark-json` report holds, the turns of each put together, in the order of their first turn."""
    runs: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for run in report["benchmarks"]:
        about = run["extra_info"]
        runs.setdefault((run["group"], about["name"], str(about["parameters"])), []).append(run)
    return [_measurement(turns) for turns in runs.values()]


def _measurement(turns: list[Mapping[str, Any]]) -> Measurement:
    about = turns[0]["extra_info"]
    return Measurement(
        group=turns[0]["group"],
        name=about["name"],
        role=Role(about["role"]),
        parameters=about["parameters"],
        turns=tuple(
            run["stats"]["median"] / about["operations"] * MICROSECONDS
            for run in sorted(turns, key=lambda run: run["params"][TURN])
        ),
    )


def figures_of(measurements: Iterable[Measurement]) -> list[Figure]:
    """A figure in µs for each measurement, and for ours beside a floor how many times the floor it takes."""
    measurements = list(measurements)
    figures = [Figure(m.group, m.name, m.microseconds, "µs", dict(m.parameters)) for m in measurements]
    for ours in measurements:
        ratios = [
            ours.over(m)
            for m in measurements
            if (m.role, m.group, m.parameters) == (Role.FLOOR, ours.group, ours.parameters)
        ]
        if ours.role is Role.OURS and ratios:
            figures.append(Figure(ours.group, "kmscore ÷ floor", max(ratios), "×", dict(ours.parameters)))
    return figures


def curves_of(measurements: Iterable[Measurement]) -> list[Curves]:
    """A plot for each group that was measured at three sizes or more, and one for all groups where kmscore is alone."""
    groups: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        if measurement.role in DRAWN and len(measurement.parameters) == 1:
            groups.setdefault(measurement.group, []).append(measurement)
    curves, alone = [], dict[str, dict[str, list[tuple[float, float]]]]()
    for group, members in groups.items():
        (size,) = members[0].parameters
        lines: dict[str, list[tuple[float, float]]] = {}
        for member in members:
            lines.setdefault(member.name, []).append((float(member.parameters[size]), member.microseconds))
        lines = {name: sorted(points) for name, points in lines.items() if len(points) >= MIN_POINTS}
        if len(lines) > 1:
            curves.append(Curves(group, size.replace("_", " "), "µs", lines, log_x=True, log_y=True))
        elif lines:
            alone.setdefault(size.replace("_", " "), {})[group] = next(iter(lines.values()))
    return curves + [Curves(f"kmscore by {size}", size, "µs", lines, log_x=True) for size, lines in alone.items()]
