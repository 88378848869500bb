"""Put the parts' results together: `python -m bench.report`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from bench.reporting.baseline import compare
from bench.reporting.baseline import save_baseline as write_baseline
from bench.reporting.machine import Machine, read_machine
from bench.reporting.markdown import render_markdown
from bench.reporting.page import render_page
from bench.reporting.report import Report, load_parts
from bench.results import RESULTS_DIRECTORY

OUTPUT: Final = Path("bench/report")
# Beside the parts' results, not among them.
BEGINNING: Final = Path("build/bench-machine.json")


@click.command()
@click.option("--begin", is_flag=True, help="Before the parts: forget earlier results, note the machine and its load.")
@click.option("--save-baseline", is_flag=True, help="Make this run the baseline of this kind of machine.")
@click.option("--fail-on-ratios", is_flag=True, help="Exit with 1 when a check of two things of the same run failed.")
def main(begin: bool, save_baseline: bool, fail_on_ratios: bool) -> None:
    """Write bench/report/index.html and report.md from the results in build/bench.

    \b
    Examples:
      python -m bench.report --begin           # before the parts are run
      python -m bench.micro --quick            # one of the parts
      python -m bench.report                   # what was found, and what got slower
      python -m bench.report --save-baseline   # commit the file it names
    """
    if begin:
        begin_run()
        return
    parts = load_parts()
    if not parts:
        sys.exit(f"there are no results in {RESULTS_DIRECTORY}: run python -m bench.micro, bench.load or bench.scale")
    machine = machine_of_run()
    if save_baseline:
        click.echo(f"baseline of this kind of machine: {write_baseline(machine, parts)}")
    report = Report(machine, parts, compare(machine, parts))
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / "index.html").write_text(render_page(report), encoding="utf-8")
    (OUTPUT / "report.md").write_text(render_markdown(report), encoding="utf-8")
    for sentence in report.sentences():
        click.echo(sentence)
    click.echo(f"report: {OUTPUT / 'index.html'} and {OUTPUT / 'report.md'}")
    if fail_on_ratios and report.failed_ratios:
        sys.exit(f"beyond their limits in one run: {'; '.join(row.check.name for row in report.failed_ratios)}")


def begin_run() -> None:
    """Remove earlier results, so that a report never mixes runs, and keep the machine as it is before the load."""
    for path in RESULTS_DIRECTORY.glob("*.json"):
        path.unlink()
    BEGINNING.parent.mkdir(parents=True, exist_ok=True)
    BEGINNING.write_text(json.dumps(asdict(read_machine())) + "\n", encoding="utf-8")


def machine_of_run() -> Machine:
    """The machine as the run began, or as it is now when nobody noted it."""
    if not BEGINNING.exists():
        return read_machine()
    return Machine(**json.loads(BEGINNING.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
