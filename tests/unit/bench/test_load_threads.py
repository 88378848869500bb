"""What the experiment with worker threads concludes from its runs."""

import pytest

from bench.load.jobs import Outcome
from bench.load.processes import Run
from bench.load.procfs import CpuTime
from bench.load.threads import LOADS, PLACEMENTS, gain_bound, report


def run_of(operations: int, latency_us: int) -> Run:
    due = list(range(operations))
    return Run.of(1.0, CpuTime(0.5, 0.0), 0.0, Outcome(1.0, 0.1, due, [latency_us] * operations))


@pytest.mark.parametrize(("outside_s", "bound"), [(0.0, 1.0), (0.25, 4 / 3), (0.5, 2.0), (0.75, 4.0)])
def test_what_holds_the_lock_bounds_the_gain(outside_s: float, bound: float) -> None:
    assert gain_bound(1.0, outside_s) == pytest.approx(bound)


@pytest.mark.parametrize("outside_s", [-0.1, 1.0, 2.0])
def test_more_than_all_cannot_run_outside_the_lock(outside_s: float) -> None:
    with pytest.raises(ValueError, match="part of the whole"):
        gain_bound(1.0, outside_s)


def test_each_load_names_who_did_most_and_who_kept_the_others_waiting_least() -> None:
    runs = {}
    for load in LOADS:
        for place, placement in enumerate(PLACEMENTS):
            runs[load.name, placement] = [run_of(100 * (place + 1), 1000 * (3 - place)) for _ in range(3)]
    results = report(runs, 0.00001)
    best = list(PLACEMENTS)[-1]
    for load, note in zip(LOADS, results.notes, strict=False):
        assert note.startswith(f"{load.name}: most operations with {best} (")
        assert f"lowest p99 with {best} (" in note
    of_one_kind = [load for load in LOADS if load.beside is None]
    assert len(results.figures) == (2 * len(LOADS) + len(of_one_kind)) * len(PLACEMENTS)
    assert "8 processes" in results.notes[-1]
