"""What got slower since the committed baseline of the same kind of machine.

Checks that are ratios within a run come first: they hold on any machine. Absolute figures depend on how busy the
machine was, so they are only pointed out, and only when they are far off.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bench.reporting.machine import Machine
from bench.results import Check, Figure, Results, Sense

BASELINE_DIRECTORY: Final = Path("bench/baseline")
# Ratios move by a few hundredths from run to run, absolute figures by a quarter.
RATIO_TOLERANCE: Final = 0.10
ABSOLUTE_TOLERANCE: Final = 0.25
RATIO_UNITS: Final = ("×", "x")


@dataclass(frozen=True, slots=True)
class Change:
    """How a value differs from the baseline's: it is `worse` times as bad, below 1 when it is better."""

    name: str
    before: float
    now: float
    unit: str
    worse: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs by more than its tolerance, the worst first. `path` is the baseline's file."""

    path: Path
    revision: str
    slower: Sequence[Change]
    faster: Sequence[Change]
    absolute_slower: Sequence[Change]
    absolute_faster: Sequence[Change]
    compared: int


def baseline_path(machine: Machine, directory: Path = BASELINE_DIRECTORY) -> Path:
    """Where the baseline of this kind of machine is kept."""
    return directory / f"{machine.kind}.json"


def save_baseline(machine: Machine, parts: Iterable[Results], directory: Path = BASELINE_DIRECTORY) -> Path:
    """Write checks and figures of all parts as the baseline of this kind of machine."""
    parts = list(parts)
    held = {
        "machine": asdict(machine),
        "checks": {_check_id(part, check): check.value for part in parts for check in part.checks},
        "figures": {_figure_id(part, figure): figure.value for part in parts for figure in part.figures},
    }
    path = baseline_path(machine, directory)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(held, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def compare(machine: Machine, parts: Iterable[Results], directory: Path = BASELINE_DIRECTORY) -> Comparison | None:
    """What differs from the baseline of this kind of machine; None when there is none.

    What only one of the two has is left out. KeyError, TypeError or ValueError for a file that is not a baseline.
    """
    path = baseline_path(machine, directory)
    if not path.exists():
        return None
    parts = list(parts)
    held: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    checks, figures = held["checks"], held["figures"]
    ratios: list[Change] = []
    absolutes: list[Change] = []
    for part in parts:
        for check in part.checks:
            name = _check_id(part, check)
            if name in checks:
                change = _change(name, checks[name], check.value, check.unit, check.sense is Sense.AT_LEAST)
                (ratios if check.same_run else absolutes).append(change)
        for figure in part.figures:
            name = _figure_id(part, figure)
            if name in figures:
                change = _change(name, figures[name], figure.value, figure.unit, figure.unit.endswith("/s"))
                (ratios if figure.unit in RATIO_UNITS else absolutes).append(change)
    return Comparison(
        path=path,
        revision=str(held["machine"]["revision"]),
        slower=_beyond(ratios, RATIO_TOLERANCE, worse=True),
        faster=_beyond(ratios, RATIO_TOLERANCE, worse=False),
        absolute_slower=_beyond(absolutes, ABSOLUTE_TOLERANCE, worse=True),
        absolute_faster=_beyond(absolutes, ABSOLUTE_TOLERANCE, worse=False),
        compared=len(ratios) + len(absolutes),
    )


def _change(name: str, before: float, now: float, unit: str, more_is_better: bool) -> Change:
    better, worse = (now, before) if more_is_better else (before, now)
    if better <= 0:
        return Change(name, before, now, unit, 1.0 if worse <= 0 else float("inf"))
    return Change(name, before, now, unit, worse / better)


def _beyond(changes: Iterable[Change], tolerance: float, *, worse: bool) -> list[Change]:
    if worse:
        return sorted((c for c in changes if c.worse > 1 + tolerance), key=lambda c: -c.worse)
    return sorted((c for c in changes if c.worse < 1 / (1 + tolerance)), key=lambda c: c.worse)


def _check_id(part: Results, check: Check) -> str:
    return f"{part.part}: {check.name}"


def _figure_id(part: Results, figure: Figure) -> str:
    parameters = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in sorted(figure.parameters.items()))
    return f"{part.part}: {figure.group}: {figure.name}" + (f" ({parameters})" if parameters else "")
