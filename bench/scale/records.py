"""How the cost of an operation grows with the records in the store."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from bench.results import Check, Curves, Figure, Results, Sense
from bench.scale.stores import SINCE_RECORDS, AgedStore
from bench.scale.timing import collector_off, cpu_ns, medians

BATCH: Final = 1_000
BATCH_SINCE: Final = 5
BATCH_DELETE: Final = 250
WARM_UP: Final = 1_000  # another store had the caches before: what every operation shares is to be back in them
# Measured in this order: `since` needs a log without gaps, and digests are kept from their turn on.
SINCE: Final = f"since(seq, {SINCE_RECORDS})"
OPERATIONS: Final = (SINCE, "get", "put", "merge", "delete", "digest update")
BOUNDED: Final = ("put", "get", "merge", SINCE)
SMALLEST, LARGE, LARGEST = 1_000, 100_000, 1_000_000
LIMIT_LARGE: Final = 2.0
LIMIT_SMALL: Final = 4.0

Costs = Mapping[str, Mapping[int, float]]  # operation → records → nanoseconds


def measure_records(sizes: Sequence[int], *, repeats: int, say: Callable[[str], None]) -> Results:
    """Nanoseconds per operation at each size, which includes 1e3, 1e5 and 1e6, and the ratios between the sizes."""
    stores = []
    for size in sizes:
        say(f"filling a store with {size:,} records")
        stores.append(AgedStore(size))
    costs: dict[str, dict[int, float]] = {}
    with collector_off():
        for name in OPERATIONS:
            say(f"{name}, {repeats} times at each of {len(sizes)} sizes")
            if name == "digest update":
                for aged in stores:
                    aged.track_digests()
            costs[name] = medians({aged.records: _measurement(name, aged) for aged in stores}, repeats)
        loop_ns = medians({0: lambda: cpu_ns(stores[0].nothing(BATCH)) / BATCH}, repeats)[0]
    return Results(
        part="records",
        figures=[
            Figure("records", name, value, "ns", {"records": size})
            for name, by_size in costs.items()
            for size, value in by_size.items()
        ],
        checks=growth_checks(costs),
        curves=[
            Curves(
                "Cost of an operation over the records in the store",
                "records",
                "ns per operation",
                {name: sorted(by_size.items()) for name, by_size in costs.items()},
                log_x=True,
                log_y=True,
            )
        ],
        notes=[
            (
                "Costs by records: processor time of the process, median of "
                f"{repeats} repeats that go round the sizes in turn, with keys from all over the store, after a "
                f"warm-up of {WARM_UP} other operations; the loop around them, {loop_ns:.0f} ns a turn, is part of "
                "each figure, garbage collection is not (it is off while measuring). Every store was written a second "
                "time in random order before, so that neighbours in the change log are not neighbours in memory."
            ),
        ],
    )


def growth_checks(costs: Costs) -> list[Check]:
    """That cost grows by memory latency only: at most 2 × from 1e5 to 1e6 records, 4 × from 1e3 to 1e6."""
    return [
        Check(
            f"{name}: {LARGEST:,} records against {below:,}",
            costs[name][LARGEST] / costs[name][below],
            Sense.AT_MOST,
            limit,
            "×",
            f"processor time of {name} on a store of {LARGEST:,} records divided by that on one of {below:,}",
            same_run=True,
        )
        for name in BOUNDED
        for below, limit in ((LARGE, LIMIT_LARGE), (SMALLEST, LIMIT_SMALL))
    ]


def _measurement(name: str, aged: AgedStore) -> Callable[[], float]:
    """One measurement of an operation, in nanoseconds per operation."""
    prepare, batch = {
        SINCE: (aged.sinces, BATCH_SINCE),
        "get": (aged.gets, BATCH),
        "put": (aged.puts, BATCH),
        "merge": (aged.merges, BATCH),
        "delete": (aged.deletes, BATCH_DELETE),
        "digest update": (aged.digest_updates, BATCH),
    }[name]

    def measure() -> float:
        if name == "delete":
            prepared = prepare(batch)
            cost = cpu_ns(prepared) / batch
            aged.restore()
            return cost
        prepare(min(batch, WARM_UP))()
        return cpu_ns(prepare(batch)) / batch

    return measure
