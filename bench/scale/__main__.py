"""`python -m bench.scale`: how cost grows with records, apps and nodes, into `build/bench/scale.json`."""

import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import click
from rich.console import Console

from appliance.cli.errors import first_error
from bench.results import RESULTS_DIRECTORY, Figure, Results
from bench.scale.apps import measure_apps
from bench.scale.calibrate import measure_costs
from bench.scale.costs import GROUP as COSTS_GROUP
from bench.scale.costs import Costs
from bench.scale.instructions import measure_instructions
from bench.scale.memory import measure_memory
from bench.scale.nodes import measure_nodes
from bench.scale.predictions import predict
from bench.scale.records import measure_records
from kmscore.errors import KmsError

PART: Final = "scale"
PARTS: Final = ("records", "instructions", "memory", "apps", "nodes", "costs", "model")
# What compares things that are measured in the same run, and needs no cluster.
QUICK_PARTS: Final = ("records", "instructions", "apps")
RECORDS: Final = (1_000, 10_000, 100_000, 1_000_000)
QUICK_RECORDS: Final = (1_000, 100_000, 1_000_000)
COUNTED: Final = (1_000, 10_000, 100_000)
QUICK_COUNTED: Final = (1_000, 10_000)
APPS: Final = (1, 10, 100, 1_000, 10_000)
QUICK_APPS: Final = (1, 10_000)


def _node_counts(text: str) -> tuple[int, ...]:
    """Sizes of clusters, from 2 to 16 nodes, out of numbers with commas between."""
    counts = tuple(sorted({int(word) for word in text.split(",") if word.strip().isdecimal()}))
    if not counts or not all(2 <= count <= 16 for count in counts) or len(counts) != text.count(",") + 1:
        raise click.BadParameter("expected different numbers from 2 to 16 with commas between")
    return counts


@click.command()
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="What to run; without it, everything.")
@click.option("--quick", is_flag=True, help="Fewer sizes and repeats, no clusters, only ratios within the run.")
@click.option(
    "--nodes",
    "node_counts",
    default="2,4,8,16",
    show_default=True,
    callback=lambda _context, _option, text: _node_counts(text),
    help="Sizes of the clusters that are started on this machine.",
)
@click.option("--seed", default=1, show_default=True, help="Of the model's dice.")
@click.option(
    "--output",
    default=RESULTS_DIRECTORY,
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory of scale.json, which is written anew; figures of nodes and costs not measured now stay in it.",
)
def main(parts: Sequence[str], quick: bool, node_counts: Sequence[int], seed: int, output: Path) -> None:
    """Measure how the cost of this appliance grows, and predict it for clusters that do not fit here.

    \b
    records       cost of each store operation with 1e3 to 1e6 records
    instructions  the same in instructions, counted by valgrind: growth is memory latency, not work
    memory        bytes of a record beyond key and ciphertext
    apps          cost and memory with 1 to 1e4 apps
    nodes         real clusters on this machine: convergence, CPU, memory, bytes
    costs         what the model's steps cost on this machine
    model         clusters of 3 to 1,000 nodes, compared with the measured ones

    Ends with 1 when a ratio between two things measured in the same run misses its limit; limits in absolute numbers
    are reported only. Progress goes to standard error.

    \b
    Examples:
      python -m bench.scale                           everything, about six minutes
      python -m bench.scale --quick                   what fits a CI run, under 45 s
      python -m bench.scale --part records            one part; may be given several times
      python -m bench.scale --part costs --part model the model, against clusters measured earlier
    """
    console = Console(stderr=True, highlight=False)
    wanted = [part for part in PARTS if part in (parts or (QUICK_PARTS if quick else PARTS))]
    run = Run(console, quick=quick, node_counts=node_counts, seed=seed, earlier=earlier_figures(output, wanted))
    try:
        for part in wanted:
            run.measure(part)
            # After each part: what has been measured is not lost to what comes after it.
            path = run.results().save(output)
    except KmsError as error:
        raise click.ClickException(str(error)) from error
    except ExceptionGroup as group:
        raise first_error(group) from group
    checks = run.results().checks
    for check in checks:
        verdict = "ok  " if check.passed else "MISS"
        click.echo(f"{verdict} {check.name}: {check.value:.2f} {check.unit}, {check.sense} {check.limit:g}")
    click.echo(f"written to {path}")
    if not all(check.passed for check in checks if check.same_run):
        sys.exit(1)


def earlier_figures(directory: Path, wanted: Sequence[str]) -> list[Figure]:
    """What a former run found of clusters and costs, where this one does not measure it. Raises `ConfigError`."""
    groups = {"nodes": "nodes", "costs": COSTS_GROUP}
    try:
        former = Results.load(directory / f"{PART}.json")
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise click.ClickException(f"{directory / PART}.json is not a file of this suite: remove it") from error
    kept = {group for part, group in groups.items() if part not in wanted}
    return [figure for figure in former.figures if figure.group in kept]


class Run:
    """One run: which parts have been measured so far, and what each has found."""

    def __init__(
        self, console: Console, *, quick: bool, node_counts: Sequence[int], seed: int, earlier: Sequence[Figure]
    ) -> None:
        self._console = console
        self._quick = quick
        self._node_counts = node_counts
        self._seed = seed
        self._earlier = list(earlier)
        self._found: list[Results] = []

    def results(self) -> Results:
        """Everything found so far as one."""
        return Results(
            part=PART,
            figures=self._figures(),
            checks=[check for found in self._found for check in found.checks],
            curves=[curves for found in self._found for curves in found.curves],
            notes=[note for found in self._found for note in found.notes],
        )

    def measure(self, part: str) -> None:
        """Run one part. Raises `KmsError`, or a group of them."""
        self._console.print(f"[bold]{part}[/bold]")
        self._found.append(self._measure(part))

    def _figures(self) -> list[Figure]:
        return [*self._earlier, *(figure for found in self._found for figure in found.figures)]

    def _say(self, line: str) -> None:
        self._console.print(f"  {line}")

    def _measure(self, part: str) -> Results:
        quick, say = self._quick, self._say
        match part:
            case "records":
                sizes = QUICK_RECORDS if quick else RECORDS
                return measure_records(sizes, repeats=5 if quick else 15, say=say)
            case "instructions":
                return measure_instructions(QUICK_COUNTED if quick else COUNTED, say=say)
            case "memory":
                return measure_memory(100_000, say=say)
            case "apps":
                if quick:
                    return measure_apps(QUICK_APPS, records=40_000, repeats=5, say=say)
                return measure_apps(APPS, records=200_000, repeats=15, say=say)
            case "nodes":
                return anyio.run(_stopped_by_signals, partial(measure_nodes, self._node_counts, console=self._console))
            case "costs":
                costs = anyio.run(partial(measure_costs, repeats=7, say=say), backend_options={"use_uvloop": True})
                return Results(part="costs", figures=costs.figures())
            case _:
                figures = self._figures()
                return predict(
                    Costs.from_figures(figures), figures, cores=os.cpu_count() or 1, seed=self._seed, say=say
                )


async def _stopped_by_signals(work: Callable[[], Awaitable[Results]]) -> Results:
    """The result of `work`; Ctrl-C and SIGTERM cancel it, wait for its clean end, and raise `click.Abort`."""
    result: Results | None = None
    async with anyio.create_task_group() as group:

        async def cancel_on_signal() -> None:
            with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for _ in signals:
                    group.cancel_scope.cancel()

        group.start_soon(cancel_on_signal)
        result = await work()
        group.cancel_scope.cancel()
    if result is None:
        raise click.Abort
    return result


main()
