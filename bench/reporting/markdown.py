"""The report as Markdown: the same tables, without plots."""

from collections.abc import Iterator, Sequence

from bench.reporting.report import Report
from bench.reporting.tables import Table, figure_tables


def render_markdown(report: Report) -> str:
    """The whole report, for a terminal, a commit or an issue."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield "# Nova KMS: what was measured"
    yield ""
    yield from (f"- {_plain(sentence)}" for sentence in report.sentences())
    yield from ("", "## Checks", "")
    rows = [
        (
            "pass" if row.check.passed else "**FAIL**",
            row.part,
            row.check.name,
            row.value,
            row.limit,
            "same run" if row.check.same_run else "this machine",
            row.check.meaning,
        )
        for row in report.checks
    ]
    yield from _grid(("", "part", "check", "figure", "limit", "holds for", "what it is"), rows)
    changes = report.changes()
    if changes:
        yield from ("", "## Since the baseline")
        for table in changes:
            yield from _titled(table)
    for part in report.parts:
        yield from ("", f"## {_plain(part.part)}", "")
        yield from (f"- {_plain(note)}" for note in part.notes)
        for table in figure_tables(part.figures):
            yield from _titled(table)
    yield from ("", "## Machine", "")
    yield from (f"- {_plain(name)}: {_plain(value)}" for name, value in report.fingerprint())


def _titled(table: Table) -> Iterator[str]:
    yield from ("", f"### {_plain(table.title)}", "")
    yield from _grid(table.headers, table.rows, table.words)


def _grid(headers: Sequence[str], rows: Sequence[Sequence[str]], words: int | None = None) -> Iterator[str]:
    aligned = len(headers) if words is None else words
    yield _row(headers)
    yield _row(["---"] * aligned + ["---:"] * (len(headers) - aligned))
    yield from map(_row, rows)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in cells) + " |"


def _plain(text: str) -> str:
    """Text that Markdown takes as it is: on one line, no tags."""
    return " ".join(text.split()).replace("<", "&lt;")
