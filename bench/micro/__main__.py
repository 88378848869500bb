"""Run the micro benchmarks: `python -m bench.micro`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import click

from bench.micro.checks import checks_of
from bench.micro.convert import curves_of, figures_of, read_measurements
from bench.results import RESULTS_DIRECTORY, Results

HERE: Final = Path(__file__).parent
RAW_REPORT: Final = Path("build/bench-micro-raw.json")

# Turns, seconds a turn, and whether the largest sizes are measured.
QUICK: Final = ("--turns=9", "--benchmark-max-time=0.008", "-m", "not full")
WHOLE: Final = ("--turns=21", "--benchmark-max-time=0.01")

NOTES: Final = tuple(
    """
Times are CPU times of the measuring thread, medians. What is compared takes turns, many times over, and a ratio is the
 median of the turns' ratios: what takes its turn together meets the machine in the same state.
Every time includes one call from Python: about 0.05 µs of loop and call for each side.
Raw recover and sign are libsecp256k1 through cffi with buffers prepared before: nothing is parsed, allocated or written
 out. Two builds take part, the one kmscore links and the newer one inside coincurve.
SHA3-256 of hashlib is OpenSSL's Keccak permutation with another padding: the floor of Keccak-256. For long inputs
 pycryptodome is as fast as kmscore; nothing in a node hashes long inputs with Keccak.
The blake3 wheel uses SIMD and is several times faster from a kilobyte on. kmscore's BLAKE3 is portable and is there to
 be called from inside the store, where a record's digest needs no Python object.
The twin of the store looks at everything it holds in every operation: it is there to be obviously right. What a dict
 and the twin's decision cost in Python is measured besides.
""".replace("\n ", " ")
    .strip()
    .splitlines()
)


@click.command()
@click.option("--quick", is_flag=True, help="Fewer sizes and shorter turns, for CI: half a minute instead of minutes.")
def main(quick: bool) -> None:
    """Time every hot path of kmscore beside its floor and its rivals; writes build/bench/micro.json.

    Ends with 1 when a ratio between two things measured in the same run misses its limit; limits in absolute numbers
    are reported only.

    \b
    Examples:
      python -m bench.micro
      python -m bench.micro --quick
    """
    click.echo(f"micro: timing the hot paths ({'under a minute' if quick else 'some minutes'})")
    measure(QUICK if quick else WHOLE)
    measurements = read_measurements(json.loads(RAW_REPORT.read_text(encoding="utf-8")))
    results = Results("micro", figures_of(measurements), checks_of(measurements), curves_of(measurements), NOTES)
    path = results.save(RESULTS_DIRECTORY)
    for check in results.checks:
        verdict = "ok  " if check.passed else "FAIL"
        click.echo(f"  {verdict} {check.name}: {check.value:.2f} {check.unit} ({check.sense} {check.limit:g})")
    click.echo(f"micro: {len(measurements)} figures in {path}")
    if not all(check.passed for check in results.checks if check.same_run):
        sys.exit(1)


def measure(options: tuple[str, ...]) -> None:
    """Run the tests of this directory under pytest-benchmark into RAW_REPORT; SystemExit when one of them fails."""
    RAW_REPORT.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "pytest", str(HERE), "-q", "-p", "no:xdist", "-p", "no:cacheprovider"),
        *("--benchmark-enable", "--benchmark-only", "--benchmark-quiet", "--benchmark-min-rounds=3"),
        *("--benchmark-timer=time.thread_time", "--benchmark-min-time=0.0005", f"--benchmark-json={RAW_REPORT}"),
        *options,
    ]
    finished = subprocess.run(command, check=False)
    if finished.returncode != 0:
        sys.exit(f"the micro benchmarks ended with {finished.returncode}")


if __name__ == "__main__":
    main()
