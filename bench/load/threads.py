"""Envelopes in the event loop or in worker threads: which is better at which load, and what eight cores would need.

Three nodes that differ in one limit, each under the same loads in turn: small requests alone, deltas alone, and small
requests beside deltas and snapshot pages, where what one caller is given must not keep the others waiting.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import anyio
import click
from rich.console import Console

from appliance.devnet.progress import Progress, Step
from appliance.tee.local import INLINE_BYTES
from bench.load.cluster import SHORT_TICKS, LoadCluster, LoadNode, log_directory
from bench.load.http import Connection, LoadError
from bench.load.identities import CallerKeys
from bench.load.jobs import Job, Work
from bench.load.peers import RECORDS_PER_DELTA, PeerUser
from bench.load.primitives import measure_primitives
from bench.load.processes import LineProcess, Run, run_jobs
from bench.load.threads_node import INLINE_VARIABLE
from bench.results import RESULTS_DIRECTORY, Figure, Results
from kmscore.errors import KmsError

PART: Final = "threads"
GROUP: Final = "worker threads"
CLIENT: Final = "bench.load.client"
LAUNCHER: Final = ("-m", "bench.load.threads_node")
CONNECTIONS: Final = 8
APPS: Final = 8
RECORDS: Final = 10_000
CORES: Final = 8
# The nodes are members of one cluster, but what one is given must not become the others' load.
APART: Final = {"DATA_SYNC_INTERVAL_SECONDS": "3600", "ANTI_ENTROPY_INTERVAL_SECONDS": "0"}
# Where envelopes are sealed and opened: name to the size up to which the event loop does it itself.
PLACEMENTS: Final = {
    "all in the loop": 1 << 40,
    "large in threads": INLINE_BYTES,
    "all in threads": 0,
}


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked at once: `beside` goes on as long as the derives do."""

    name: str
    alone: Work
    beside: Work | None = None


LOADS: Final = (
    Load("derive", Work.DERIVE),
    Load("delta", Work.DELTA),
    Load("derive beside deltas", Work.DERIVE, Work.DELTA),
    Load("derive beside snapshot pages", Work.DERIVE, Work.SNAPSHOT_PAGES),
)
# Where the server's CPU time is that of two kinds of operations together.
SHARED: Final = frozenset(load.name for load in LOADS if load.beside is not None)


def gain_bound(cpu_s: float, outside_s: float) -> float:
    """How many times more requests one interpreter can serve when `outside_s` of each one's `cpu_s` need no GIL and run
    on other cores: the rest still takes turns.

    ValueError unless 0 <= outside_s < cpu_s.
    """
    if not 0 <= outside_s < cpu_s:
        raise ValueError("what runs outside the GIL is a part of the whole")
    return cpu_s / (cpu_s - outside_s)


@dataclass(slots=True)
class ThreadsBench:
    """Puts the loads on nodes of every placement, in turns."""

    cluster: LoadCluster
    nodes: dict[str, LoadNode]
    callers: list[CallerKeys]
    peer: CallerKeys
    clients: tuple[LineProcess, LineProcess]
    duration_s: float

    async def fill(self) -> None:
        for node in self.nodes.values():
            connection = await Connection.open("127.0.0.1", node.address.port)
            user = PeerUser(self.peer, node.address, connection)
            await user.join()
            for first in range(0, RECORDS, RECORDS_PER_DELTA):
                await user.push(range(first, first + RECORDS_PER_DELTA))
            connection.close()

    async def run(self, load: Load, node: LoadNode) -> Run:
        """The run of what is alone, or of the derives."""
        works = [load.alone] if load.beside is None else [load.alone, load.beside]
        jobs = [self._job(work, node) for work in works]
        return (await run_jobs(self.clients[: len(jobs)], jobs, node.pid))[0]

    def _job(self, work: Work, node: LoadNode) -> Job:
        of_peer = work is not Work.DERIVE
        return Job(
            work=work,
            node=node.address,
            callers=[self.peer] if of_peer else self.callers,
            duration_s=self.duration_s,
            connections=1 if of_peer else CONNECTIONS,
            next_nonce=True,
            records=RECORDS if work is Work.SNAPSHOT_PAGES else 0,
        )


async def measure(duration_s: float, rounds: int, progress: Progress) -> Results:
    """Raises `LoadError`, `KmsError` when it cannot be carried out."""
    async with LoadCluster(log_directory()) as cluster, LineProcess(CLIENT) as first, LineProcess(CLIENT) as second:
        with progress.step("Starting a chain and three nodes"):
            nodes = {}
            for name, inline_bytes in PLACEMENTS.items():
                environ = {**SHORT_TICKS, **APART, INLINE_VARIABLE: str(inline_bytes)}
                label = name.replace(" ", "-")
                nodes[name] = await cluster.add_node(label, environ, arguments=LAUNCHER)
            callers = await cluster.add_apps(APPS)
            peer = await cluster.add_peer()
            for node in nodes.values():
                await cluster.wait_until_members(node, len(nodes) + 1)
            bench = ThreadsBench(cluster, nodes, callers, peer, (first, second), duration_s)
            await bench.fill()
        runs: dict[tuple[str, str], list[Run]] = {}
        with progress.step("Loads in turns") as step:
            for number in range(rounds):
                await _round(bench, runs, step, f"round {number + 1} of {rounds}")
    return report(runs, measure_primitives(64).recover_s)


async def _round(bench: ThreadsBench, runs: dict[tuple[str, str], list[Run]], step: Step, name: str) -> None:
    for load in LOADS:
        for placement, node in bench.nodes.items():
            step.say(f"{name}: {load.name}, {placement}")
            runs.setdefault((load.name, placement), []).append(await bench.run(load, node))


def report(runs: dict[tuple[str, str], list[Run]], recover_s: float) -> Results:
    """Figures of every load and placement, and what follows from them; the median of the rounds each."""
    figures = []
    rates: dict[str, dict[str, float]] = {}
    tails: dict[str, dict[str, float]] = {}
    costs_s: dict[str, dict[str, float]] = {}
    for (load, placement), of in runs.items():
        rate = median(run.rate_per_s for run in of)
        p99_ms = median(run.latencies.p99_ms for run in of)
        cost_s = median(run.server_s_per_operation for run in of)
        rates.setdefault(load, {})[placement] = rate
        tails.setdefault(load, {})[placement] = p99_ms
        costs_s.setdefault(load, {})[placement] = cost_s
        where = {"load": load, "envelopes": placement}
        figures += [
            Figure(GROUP, "operations", rate, "1/s", where),
            Figure(GROUP, "p99", p99_ms, "ms", where),
        ]
        if load not in SHARED:
            figures.append(Figure(GROUP, "server CPU per operation", 1e6 * cost_s, "µs", where))
    notes = [
        f"{load}: most operations with {_best(rates[load], largest=True)}, lowest p99 with "
        f"{_best(tails[load], largest=False)}."
        for load in rates
    ]
    derive_s = min(costs_s["derive"].values())
    bound = gain_bound(derive_s, min(recover_s, derive_s / 2))
    notes.append(
        f"Of the {1e6 * derive_s:.0f} µs of a derive {1e6 * recover_s:.0f} µs are the recovery of the signer, which "
        f"runs without the GIL. However many cores there are, one interpreter that did it elsewhere would serve "
        f"{bound:.2f} times as much: {CORES} cores need {CORES} processes that share the listening socket, one of "
        "which holds the store and the used nonces for all."
    )
    return Results(PART, figures=figures, notes=notes)


def _best(of: dict[str, float], *, largest: bool) -> str:
    name = max(of, key=lambda placement: of[placement] if largest else -of[placement])
    others = ", ".join(f"{placement} {value:.3g}" for placement, value in of.items())
    return f"{name} ({others})"


@click.command()
@click.option("--duration", "duration_s", type=click.FloatRange(0.5, 60), default=2.0, show_default=True)
@click.option("--rounds", type=click.IntRange(1, 50), default=3, show_default=True)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=RESULTS_DIRECTORY,
    show_default=True,
    help="Directory that receives threads.json.",
)
def main(duration_s: float, rounds: int, output: Path) -> None:
    """Measure nodes that seal and open envelopes in the event loop, in worker threads, or large ones only.

    \b
    Example:
      python -m bench.load.threads --duration 1 --rounds 1
    """
    try:
        results = anyio.run(measure, duration_s, rounds, Progress(Console(stderr=True)))
    except (LoadError, KmsError) as error:
        raise click.ClickException(str(error)) from error
    for note in results.notes:
        click.echo(note)
    click.echo(f"written to {results.save(output)}")


if __name__ == "__main__":
    main()
