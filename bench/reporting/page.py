"""The report as one HTML file: style and plots inside, no script, light and dark, wide and narrow."""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Final

from bench.reporting.plot import draw
from bench.reporting.report import Report
from bench.reporting.tables import CheckRow, Table, figure_tables
from bench.results import Results

STYLE: Final = Path(__file__).with_name("style.css")


def render_page(report: Report) -> str:
    """The whole page. Every text of the results is escaped."""
    return "".join(_page(report))


def _page(report: Report) -> Iterator[str]:
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield "<title>Nova KMS: what was measured</title>"
    yield f"<style>{STYLE.read_text(encoding='utf-8')}</style></head><body><main>"
    yield f'<h1>Nova KMS <span class="soft">what was measured at {escape(report.machine.revision)}</span></h1>'
    yield from _summary(report)
    yield from _checks(report)
    yield from _changes(report)
    for part in report.parts:
        yield from _part(part)
    yield '<section><h2 id="machine">Machine</h2><dl>'
    yield from (f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in report.fingerprint())
    yield "</dl></section></main></body></html>\n"


def _summary(report: Report) -> Iterator[str]:
    failed = any(not row.check.passed for row in report.checks)
    yield f'<p class="verdict {"bad" if failed else "good"}">{escape(report.verdict())}</p>'
    if report.missing_parts():
        yield f"<p>{escape(report.missing_parts())}</p>"
    yield f"<p>{escape(report.trend())}</p><nav>"
    sections = ["checks", *(["changes"] if report.changes() else []), *(part.part for part in report.parts), "machine"]
    yield from (f'<a href="#{escape(name)}">{escape(name)}</a>' for name in sections)
    yield "</nav>"


def _checks(report: Report) -> Iterator[str]:
    yield '<section><h2 id="checks">Checks</h2>'
    yield '<p class="soft">A figure held to a limit. Those of the same run divide two things measured together and '
    yield 'hold on any machine; the others are of this machine alone.</p><ul class="checks">'
    yield from map(_check, report.checks)
    yield "</ul></section>"


def _check(row: CheckRow) -> str:
    passed = row.check.passed
    return (
        f'<li class="{"good" if passed else "bad"}"><b class="mark">{"pass" if passed else "fail"}</b>'
        f'<div><div class="name">{escape(row.check.name)} <span class="tag">{escape(row.part)}</span>'
        f'<span class="tag">{"same run" if row.check.same_run else "this machine"}</span></div>'
        f'<div class="soft">{escape(row.check.meaning)}</div></div>'
        f'<div class="figure">{escape(row.value)}<span class="soft">{escape(row.limit)}</span></div></li>'
    )


def _changes(report: Report) -> Iterator[str]:
    changes = report.changes()
    if changes:
        yield '<section><h2 id="changes">Since the baseline</h2>'
        yield from map(_table, changes)
        yield "</section>"


def _part(part: Results) -> Iterator[str]:
    yield f'<section><h2 id="{escape(part.part)}">{escape(part.part)}</h2>'
    if part.notes:
        yield '<ul class="notes">'
        yield from (f"<li>{escape(note)}</li>" for note in part.notes)
        yield "</ul>"
    if part.curves:
        yield '<div class="plots">'
        for curves in part.curves:
            yield f"<figure><figcaption>{escape(curves.title)}</figcaption>{draw(curves)}</figure>"
        yield "</div>"
    if part.figures:
        yield '<div class="tables">'
        yield from map(_table, figure_tables(part.figures))
        yield "</div>"
    yield "</section>"


def _table(table: Table) -> str:
    cells = [("".join(_cell("th", table, at, text) for at, text in enumerate(table.headers)))]
    cells += ["".join(_cell("td", table, at, text) for at, text in enumerate(row)) for row in table.rows]
    rows = "".join(f"<tr>{row}</tr>" for row in cells)
    return f'<div class="table"><h3>{escape(table.title)}</h3><div class="scroll"><table>{rows}</table></div></div>'


def _cell(tag: str, table: Table, at: int, text: str) -> str:
    kind = "" if at < table.words else ' class="n"'
    return f"<{tag}{kind}>{escape(text)}</{tag}>"
