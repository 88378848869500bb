"""What every part of the suite hands to the report: figures, checks against a limit, curves and sentences, as JSON.

A part writes one file, `build/bench/<part>.json`; the report reads all that are there.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, Self

RESULTS_DIRECTORY: Final = Path("build/bench")

Parameter = str | int | float


class Sense(StrEnum):
    """Which side of its limit a figure has to be on."""

    AT_MOST = "at most"
    AT_LEAST = "at least"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number: `name` within its `group`, `unit` as it is printed, `parameters` that say of what."""

    group: str
    name: str
    value: float
    unit: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Check:
    """A figure held to a limit. `meaning` says what was divided by what; `same_run` marks a ratio between two things
    measured in the same run, which holds on any machine and is all that the quick form fails on.
    """

    name: str
    value: float
    sense: Sense
    limit: float
    unit: str
    meaning: str
    same_run: bool

    @property
    def passed(self) -> bool:
        """Whether the figure is on the right side of its limit, the limit included."""
        return self.value <= self.limit if self.sense is Sense.AT_MOST else self.value >= self.limit


@dataclass(frozen=True, slots=True)
class Curves:
    """Lines of one plot: label to points. `log_x` and `log_y` choose the axes."""

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that one part of the suite found; `notes` are whole sentences for the reader of the report."""

    part: str
    figures: Sequence[Figure] = ()
    checks: Sequence[Check] = ()
    curves: Sequence[Curves] = ()
    notes: Sequence[str] = ()

    def save(self, directory: Path = RESULTS_DIRECTORY) -> Path:
        """Write `<part>.json` into the directory, made when missing, and return the file's path."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.part}.json"
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; ValueError, KeyError or TypeError for anything else."""
        held = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            part=held["part"],
            figures=[Figure(**figure) for figure in held["figures"]],
            checks=[Check(**{**check, "sense": Sense(check["sense"])}) for check in held["checks"]],
            curves=[
                Curves(**{**curves, "lines": {k: [(x, y) for x, y in v] for k, v in curves["lines"].items()}})
                for curves in held["curves"]
            ],
            notes=held["notes"],
        )
