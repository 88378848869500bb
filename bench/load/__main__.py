"""`python -m bench.load`: put load on a real node and write down what it did."""

import sys
from dataclasses import replace
from pathlib import Path

import anyio
import click
from rich.console import Console

from appliance.devnet.progress import Progress
from bench.load.findings import table
from bench.load.http import LoadError
from bench.load.suite import FULL, QUICK, Scenario, run_suite
from bench.results import RESULTS_DIRECTORY
from kmscore.errors import KmsError


@click.command()
@click.option("--quick", is_flag=True, help="Under a minute: nonce + derive against its floor, gain of the next nonce.")
@click.option(
    "--scenario",
    "scenarios",
    type=click.Choice([scenario.value for scenario in Scenario]),
    multiple=True,
    help="Only this one; may be given several times.",
)
@click.option("--duration", "duration_s", type=click.FloatRange(0.5, 60), help="Seconds of one closed-loop run.")
@click.option("--rounds", type=click.IntRange(1, 50), help="How often node and floor take turns.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=RESULTS_DIRECTORY,
    show_default=True,
    help="Directory that receives load.json.",
)
def main(quick: bool, scenarios: tuple[str, ...], duration_s: float | None, rounds: int | None, output: Path) -> None:
    """Drive a real node over loopback from separate client processes.

    Starts a private chain, its contracts and node processes, puts load on them, compares with the floor measured in
    the same run, writes OUTPUT/load.json and prints every check. Ends with 1 when a ratio between two things measured
    in the same run misses its limit; limits in absolute numbers are reported only. Progress goes to standard error.

    \b
    Examples:
      python -m bench.load --quick
      python -m bench.load --scenario operations --duration 5
    """
    plan = QUICK if quick else FULL
    if scenarios:
        plan = replace(plan, scenarios=frozenset(map(Scenario, scenarios)))
    plan = replace(
        plan,
        duration_s=duration_s or plan.duration_s,
        round_s=duration_s or plan.round_s,
        rounds=rounds or plan.rounds,
    )
    try:
        findings = anyio.run(run_suite, plan, Progress(Console(stderr=True)))
    except (LoadError, KmsError) as error:
        raise click.ClickException(str(error)) from error
    path = findings.results().save(output)
    click.echo(table(findings.checks))
    click.echo(f"written to {path}")
    if not all(check.passed for check in findings.checks if check.same_run):
        sys.exit(1)


main()
