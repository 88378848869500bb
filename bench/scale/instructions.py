"""Instructions per operation at each size, counted by callgrind: what grows with the store is waiting, not work.

Run as a program it is the process that callgrind watches: it fills a store, and then runs what standard input asks for.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench.results import Check, Curves, Figure, Results, Sense
from bench.scale.stores import SINCE_RECORDS, AgedStore
from kmscore.errors import Unavailable

OPERATIONS: Final = 250  # a quarter of the smallest store, which is what can be deleted at once
OPERATIONS_SINCE: Final = 4
SINCE: Final = f"since(seq, {SINCE_RECORDS})"
PHASES: Final = (SINCE, "get", "put", "merge", "delete")
NOTHING: Final = "nothing"
INSTALL: Final = "apt-get install valgrind"
# What grows by the logarithm only: skip list and tables are a little deeper, nothing else is more work.
LIMIT: Final = 1.25
CONTROL_TIMEOUT_S: Final = 60.0
FILL_TIMEOUT_S: Final = 600.0


def measure_instructions(sizes: Sequence[int], *, say: Callable[[str], None]) -> Results:
    """Instructions per operation for each size; a note instead when valgrind is not installed."""
    if shutil.which("valgrind") is None or shutil.which("callgrind_control") is None:
        return Results(
            part="instructions",
            notes=[f"Instructions were not counted: valgrind is not installed ({INSTALL})."],
        )
    counts: dict[str, dict[int, float]] = {name: {} for name in PHASES}
    for size in sizes:
        say(f"counting instructions on {size:,} records (valgrind, slow)")
        for name, count in count_instructions(size).items():
            counts[name][size] = count
    smallest, largest = min(sizes), max(sizes)
    return Results(
        part="instructions",
        figures=[
            Figure("instructions", name, count, "instructions", {"records": size})
            for name, by_size in counts.items()
            for size, count in by_size.items()
        ],
        checks=[
            Check(
                f"{name}: instructions at {largest:,} records against {smallest:,}",
                by_size[largest] / by_size[smallest],
                Sense.AT_MOST,
                LIMIT,
                "×",
                f"instructions of one {name} on {largest:,} records divided by those on {smallest:,}",
                same_run=True,
            )
            for name, by_size in counts.items()
        ],
        curves=[
            Curves(
                "Instructions per operation over the records in the store",
                "records",
                "instructions per operation",
                {name: sorted(by_size.items()) for name, by_size in counts.items()},
                log_x=True,
                log_y=True,
            )
        ],
        notes=[
            (
                f"Instructions are counted by callgrind over {OPERATIONS} operations ({OPERATIONS_SINCE} of {SINCE}) "
                "on keys from all over the store, less those of the same loop around a call that does nothing; filling "
                "is not counted. Where time grows with the records and instructions do not, the growth is memory "
                "latency."
            )
        ],
    )


def count_instructions(size: int) -> dict[str, float]:
    """Instructions of one operation each on a store of that size. Raises `Unavailable` when callgrind does not run."""
    with ExitStack() as cleanup:
        directory = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="nova-kms-bench-")))
        out = directory / "callgrind"
        log = cleanup.enter_context((directory / "valgrind.log").open("wb"))
        watched = cleanup.enter_context(
            subprocess.Popen(
                [
                    "valgrind",
                    "--tool=callgrind",
                    "--instr-atstart=no",
                    f"--callgrind-out-file={out}",
                    sys.executable,
                    "-m",
                    "bench.scale.instructions",
                    str(size),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
            )
        )
        cleanup.callback(watched.kill)
        _expect(watched, "filled")
        _control(watched.pid, "--instr=on")
        counts = {}
        for number, name in enumerate((NOTHING, *PHASES), start=1):
            _ask(watched, f"prepare {name}")
            _control(watched.pid, "--zero")
            _ask(watched, "run")
            _control(watched.pid, "--dump")
            counts[name] = _total(out.with_name(f"{out.name}.{number}"))
    # `nothing` is run as often as a fast operation; what the loop adds to `since` is lost in its thousands.
    base = counts.pop(NOTHING)
    return {
        name: total / OPERATIONS_SINCE if name == SINCE else (total - base) / OPERATIONS
        for name, total in counts.items()
    }


def _ask(watched: "subprocess.Popen[str]", words: str) -> None:
    assert watched.stdin is not None
    try:
        watched.stdin.write(f"{words}\n")
    except BrokenPipeError as error:
        raise Unavailable("the process under valgrind has ended") from error
    _expect(watched, "done")


def _expect(watched: "subprocess.Popen[str]", word: str) -> None:
    assert watched.stdout is not None
    if watched.stdout.readline().strip() != word:
        raise Unavailable("the process under valgrind has ended")


def _control(pid: int, command: str) -> None:
    done = subprocess.run(
        ["callgrind_control", command, str(pid)], capture_output=True, text=True, timeout=CONTROL_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        raise Unavailable(f"callgrind_control {command} failed")


def _total(dump: Path) -> int:
    """The instructions in one dump of callgrind."""
    for line in dump.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("totals:"):
            return int(line.split()[1])
    raise Unavailable("callgrind left no total")


def _watched(size: int) -> None:
    """What runs under callgrind."""
    aged = AgedStore(size)
    phases = {
        NOTHING: aged.nothing,
        SINCE: aged.sinces,
        "get": aged.gets,
        "put": aged.puts,
        "merge": aged.merges,
        "delete": aged.deletes,
    }
    prepared: Callable[[], None] = aged.nothing(0)
    print("filled", flush=True)
    for line in sys.stdin:
        command, _, name = line.strip().partition(" ")
        if command == "prepare":
            prepared = phases[name](OPERATIONS_SINCE if name == SINCE else OPERATIONS)
        else:
            prepared()
        print("done", flush=True)


if __name__ == "__main__":
    _watched(int(sys.argv[1]))
