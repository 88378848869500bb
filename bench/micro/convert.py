"""From pytest-benchmark's report to the suite's form: figures, how far each is from its floor, curves."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from bench.micro.racing import Role
from bench.results import Curves, Figure, Parameter

MICROSECONDS: Final = 1e6
# A curve needs so many points, and a plot is unreadable with the twin's times on it.
MIN_POINTS: Final = 3
DRAWN: Final = (Role.OURS, Role.FLOOR, Role.RIVAL, Role.OTHER)


@dataclass(frozen=True, slots=True)
class Measurement:
    """The time of one operation, in µs: the least of all rounds of all turns."""

    group: str
    name: str
    role: Role
    parameters: Mapping[str, Parameter]
    microseconds: float


def read_measurements(report: Mapping[str, Any]) -> list[Measurement]:
    """What a `--benchmark-json` report holds, the turns of each put together, in the order of their first turn.

    What is measured does the same work every time, so the least is what it costs, and the rest is what neighbours on
    the machine cost: on a busy one medians differ by half from one minute to the next, and minima by a few hundredths.
    """
    best: dict[tuple[str, str, str], Measurement] = {}
    for run in report["benchmarks"]:
        about = run["extra_info"]
        found = Measurement(
            group=run["group"],
            name=about["name"],
            role=Role(about["role"]),
            parameters=about["parameters"],
            microseconds=run["stats"]["min"] / about["operations"] * MICROSECONDS,
        )
        key = (found.group, found.name, str(found.parameters))
        if key not in best or found.microseconds < best[key].microseconds:
            best[key] = found
    return list(best.values())


def figures_of(measurements: Iterable[Measurement]) -> list[Figure]:
    """A figure in µs for each measurement, and for ours beside a floor how many times the floor it takes."""
    measurements = list(measurements)
    figures = [Figure(m.group, m.name, m.microseconds, "µs", dict(m.parameters)) for m in measurements]
    for ours in measurements:
        floors = [
            m.microseconds
            for m in measurements
            if (m.role, m.group, m.parameters) == (Role.FLOOR, ours.group, ours.parameters)
        ]
        if ours.role is Role.OURS and floors:
            ratio = ours.microseconds / min(floors)
            figures.append(Figure(ours.group, "kmscore ÷ floor", ratio, "×", dict(ours.parameters)))
    return figures


def curves_of(measurements: Iterable[Measurement]) -> list[Curves]:
    """A plot for each group that was measured at three sizes or more; other parameters tell the lines apart."""
    groups: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        if measurement.role in DRAWN:
            groups.setdefault(measurement.group, []).append(measurement)
    return [curve for group, members in groups.items() if (curve := _curve(group, members)) is not None]


def _curve(group: str, members: list[Measurement]) -> Curves | None:
    values: dict[str, set[Parameter]] = {}
    for member in members:
        for name, value in member.parameters.items():
            values.setdefault(name, set()).add(value)
    size = max(values, key=lambda name: len(values[name]), default=None)
    if size is None or len(values[size]) < MIN_POINTS or len(values) > 1:
        return None
    lines: dict[str, list[tuple[float, float]]] = {}
    for member in members:
        lines.setdefault(member.name, []).append((float(member.parameters[size]), member.microseconds))
    return Curves(
        title=group,
        x_label=size.replace("_", " "),
        y_label="µs",
        lines={name: sorted(points) for name, points in lines.items() if len(points) > 1},
        log_x=True,
        log_y=True,
    )
