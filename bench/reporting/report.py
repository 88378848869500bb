"""What a report says, before it is HTML or Markdown."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from bench.reporting.baseline import (
    ABSOLUTE_TOLERANCE,
    RATIO_TOLERANCE,
    Comparison,
    baseline_path,
)
from bench.reporting.machine import Machine
from bench.reporting.tables import CheckRow, Table, change_table, check_rows
from bench.results import RESULTS_DIRECTORY, Results

PARTS: Final = ("micro", "load", "scale")
NAMED: Final = 5  # of what got worse, in the sentence; the table has all


@dataclass(frozen=True, slots=True)
class Report:
    """Everything in the order it is read. `comparison` is None when this kind of machine has no baseline."""

    machine: Machine
    parts: Sequence[Results]
    comparison: Comparison | None

    @property
    def checks(self) -> list[CheckRow]:
        """All checks, those that failed first."""
        return check_rows(self.parts)

    @property
    def failed_ratios(self) -> list[CheckRow]:
        """Failed checks that hold on any machine, because both sides were measured in one run."""
        return [row for row in self.checks if row.check.same_run and not row.check.passed]

    def verdict(self) -> str:
        """One sentence on the checks."""
        rows = self.checks
        failed = [row.check.name for row in rows if not row.check.passed]
        if not rows:
            return "No part has checked anything."
        if not failed:
            return f"All {len(rows)} checks are within their limits."
        return f"{len(failed)} of {len(rows)} checks are beyond their limits: {'; '.join(failed)}."

    def missing_parts(self) -> str:
        """One sentence on the parts that are not there, empty when all are."""
        missing = [name for name in PARTS if name not in {part.part for part in self.parts}]
        return f"Not measured in this run: {', '.join(missing)}." if missing else ""

    def trend(self) -> str:
        """One or two sentences on what differs from the baseline, ratios first."""
        if self.comparison is None:
            return (
                f"There is no baseline of this kind of machine ({baseline_path(self.machine)}). To make this run the "
                "baseline: python -m bench.report --save-baseline, and commit the file."
            )
        found = self.comparison
        against = f"Beside the baseline of revision {found.revision} ({found.compared} figures in common)"
        if not found.slower:
            return f"{against} no ratio got worse by more than {RATIO_TOLERANCE:.0%}."
        named = [f"{change.name} by {change.worse - 1:.0%}" for change in found.slower[:NAMED]]
        more = f", and {len(found.slower) - NAMED} more" if len(found.slower) > NAMED else ""
        return f"{against} these ratios got worse: {'; '.join(named)}{more}."

    def sentences(self) -> list[str]:
        """What the report says in short."""
        return [sentence for sentence in (self.verdict(), self.missing_parts(), self.trend()) if sentence]

    def changes(self) -> list[Table]:
        """What differs from the baseline by more than its tolerance; a table without rows is left out."""
        if self.comparison is None:
            return []
        found, off = self.comparison, f"more than {ABSOLUTE_TOLERANCE:.0%}"
        tables = [
            change_table("Ratios that got worse", found.slower, "worse by"),
            change_table("Ratios that got better", found.faster, "better by"),
            change_table(f"For information: absolute figures {off} worse", found.absolute_slower, "worse by"),
            change_table(f"For information: absolute figures {off} better", found.absolute_faster, "better by"),
        ]
        return [table for table in tables if table.rows]

    def fingerprint(self) -> list[tuple[str, str]]:
        """What is known of the machine, as name and value."""
        named = [(field.name.replace("_", " "), str(getattr(self.machine, field.name))) for field in fields(Machine)]
        return [("kind", self.machine.kind), *named]


def load_parts(directory: Path = RESULTS_DIRECTORY) -> list[Results]:
    """Every part's results in the directory, in the order of `PARTS`, others after them by name.

    ValueError, KeyError or TypeError for a file that no part wrote.
    """
    return in_order(Results.load(path) for path in directory.glob("*.json"))


def in_order(parts: Iterable[Results]) -> list[Results]:
    """Micro, load, scale, then others by name."""
    return sorted(parts, key=lambda part: (PARTS.index(part.part) if part.part in PARTS else len(PARTS), part.part))
