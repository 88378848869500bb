"""Figures and checks arranged as tables, for HTML and Markdown alike."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from bench.reporting.baseline import Change
from bench.reporting.numbers import three_digits
from bench.results import Check, Figure, Parameter, Results

MISSING: Final = "–"
MAX_COLUMNS: Final = 6


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text; the first `words` columns are words, the others numbers."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int


@dataclass(frozen=True, slots=True)
class CheckRow:
    """A check as it is shown; `value` and `limit` with their unit."""

    part: str
    check: Check
    value: str
    limit: str


def check_rows(parts: Iterable[Results]) -> list[CheckRow]:
    """All checks, those that failed first, else in the order of the parts."""
    rows = [
        CheckRow(
            part.part,
            check,
            f"{three_digits(check.value)} {check.unit}".strip(),
            f"{check.sense.value} {check.limit:g} {check.unit}".strip(),
        )
        for part in parts
        for check in part.checks
    ]
    return sorted(rows, key=lambda row: row.check.passed)


def change_table(title: str, changes: Sequence[Change], factor: str) -> Table:
    """Changes since the baseline; `factor` heads the column that says by how much."""
    rows = [
        (
            change.name,
            f"{three_digits(change.before)} {change.unit}",
            f"{three_digits(change.now)} {change.unit}",
            f"{max(change.worse, 1 / change.worse) if change.worse else float('inf'):.2f} ×",
        )
        for change in changes
    ]
    return Table(title, ("what", "baseline", "now", factor), rows, words=1)


def figure_tables(figures: Iterable[Figure]) -> list[Table]:
    """A table for each group: names across when several share their parameters, else one figure a row."""
    groups: dict[str, list[Figure]] = {}
    for figure in figures:
        groups.setdefault(figure.group, []).append(figure)
    return [_table(group, members) for group, members in groups.items()]


def _table(group: str, figures: Sequence[Figure]) -> Table:
    columns = list(dict.fromkeys((figure.name, figure.unit) for figure in figures))
    names = list(dict.fromkeys(name for figure in figures for name in figure.parameters))
    cells: dict[tuple[Parameter | None, ...], dict[tuple[str, str], float]] = {}
    for figure in figures:
        place = tuple(figure.parameters.get(name) for name in names)
        cells.setdefault(place, {})[figure.name, figure.unit] = figure.value
    if names and len(columns) <= MAX_COLUMNS and len(cells) > 1:
        rows = [
            (*map(_parameter, place), *(_cell(held, column) for column in columns)) for place, held in cells.items()
        ]
        headers = (*map(_heading, names), *(f"{name}, {unit}" if unit else name for name, unit in columns))
        return Table(group, headers, rows, words=len(names))
    rows = [
        (figure.name, *(_parameter(figure.parameters.get(name)) for name in names), _value(figure))
        for figure in figures
    ]
    return Table(group, ("", *map(_heading, names), "value"), rows, words=1 + len(names))


def _heading(name: str) -> str:
    return name.replace("_", " ")


def _parameter(value: Parameter | None) -> str:
    if value is None:
        return MISSING
    return value if isinstance(value, str) else f"{value:,}"


def _cell(held: dict[tuple[str, str], float], column: tuple[str, str]) -> str:
    return three_digits(held[column]) if column in held else MISSING


def _value(figure: Figure) -> str:
    return f"{three_digits(figure.value)} {figure.unit}".strip()
