"""How cost grows with the number of apps, for the same records in all."""

from collections.abc import Callable, Sequence
from typing import Final

from bench.results import Check, Curves, Figure, Results, Sense
from bench.scale.memory import namespace_bytes
from bench.scale.stores import NOW_MS, OWN, UNLIMITED, AgedStore, key_of, value_of
from bench.scale.timing import collector_off, cpu_ns, medians
from kmscore.store import Store

BATCH: Final = 1_000
WARM_UP: Final = 250
TTL_MS: Final = 1_000
SWEEP_BUDGET: Final = 500
OPERATIONS: Final = ("get", "put", "merge")
SWEEP: Final = "sweep of an expired record"
LIMIT: Final = 2.0


def measure_apps(app_counts: Sequence[int], *, records: int, repeats: int, say: Callable[[str], None]) -> Results:
    """Nanoseconds per operation, bytes per namespace and the sweep, for each number of apps; each divides `records`."""
    stores = []
    for apps in app_counts:
        say(f"filling {apps:,} namespaces with {records:,} records")
        stores.append(AgedStore(records, apps=apps))
    costs: dict[str, dict[int, float]] = {}
    with collector_off():
        for name in OPERATIONS:
            say(f"{name}, {repeats} times at each of {len(app_counts)} numbers of apps")
            costs[name] = medians({aged.apps: _measurement(name, aged) for aged in stores}, repeats)
        say("sweeps")
        costs[SWEEP] = {apps: sweep_ns(records, apps) for apps in app_counts}
    say("memory of a namespace")
    fewest, most = min(app_counts), max(app_counts)
    return Results(
        part="apps",
        figures=[
            *(
                Figure("apps", name, value, "ns", {"apps": apps, "records": records})
                for name, by_count in costs.items()
                for apps, value in by_count.items()
            ),
            Figure("apps", "memory of a namespace", namespace_bytes(most), "B", {"apps": most}),
        ],
        checks=[
            Check(
                f"{name}: {most:,} apps against {fewest:,}",
                by_count[most] / by_count[fewest],
                Sense.AT_MOST,
                LIMIT,
                "×",
                (
                    f"processor time of {name} with {records:,} records in {most:,} namespaces divided by that in "
                    f"{fewest:,}"
                ),
                same_run=True,
            )
            for name, by_count in costs.items()
        ],
        curves=[
            Curves(
                f"Cost of an operation over the number of apps, {records:,} records in all",
                "apps",
                "ns per operation",
                {name: sorted(by_count.items()) for name, by_count in costs.items()},
                log_x=True,
                log_y=True,
            )
        ],
        notes=[
            (
                "Memory of a namespace: resident memory of a process with one record in each, less that of one with "
                "the same records in a single namespace. The sweep frees every record after all of them have expired, "
                f"in steps of {SWEEP_BUDGET} as the node does."
            )
        ],
    )


def sweep_ns(records: int, apps: int) -> float:
    """Processor time of noticing that a record has expired and freeing it, over a store in which all have."""
    store = Store(OWN, UNLIMITED, seed=bytes(16))
    for number in range(records):
        store.put(1 + number % apps, key_of(number), value_of(number), TTL_MS, NOW_MS)

    def sweep() -> None:
        freed = 0
        while freed < records:
            freed += store.sweep(NOW_MS + 2 * TTL_MS, store.last_seq, SWEEP_BUDGET)

    return cpu_ns(sweep) / records


def _measurement(name: str, aged: AgedStore) -> Callable[[], float]:
    prepare = {"get": aged.gets, "put": aged.puts, "merge": aged.merges}[name]

    def measure() -> float:
        prepare(WARM_UP)()
        return cpu_ns(prepare(BATCH)) / BATCH

    return measure
