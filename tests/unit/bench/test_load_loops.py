"""Closed and open loops: how often, how many at once, and from when a latency counts. Time is faked."""

import asyncio

import pytest

from bench.load import loops
from bench.load.loops import closed_loop, once_each, open_loop

pytestmark = pytest.mark.anyio


class Clock:
    """A monotonic clock that moves only when somebody sleeps; sleepers are woken in order."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(loops, "monotonic", lambda: self.now)

    async def work(self, seconds):
        self.now += seconds
        await asyncio.sleep(0)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


async def test_a_closed_loop_repeats_until_its_time_is_over(clock):
    measured = await closed_loop([lambda: clock.work(0.25)], 1.0)
    assert measured.latencies_us == [250_000] * 4
    assert measured.due_us[:2] == [100_000_000, 100_250_000]


async def test_a_closed_loop_ends_at_its_bound_of_operations(clock, monkeypatch):
    monkeypatch.setattr(loops, "MAX_OPERATIONS", 3)
    measured = await closed_loop([lambda: clock.work(0.001)], 100.0)
    assert len(measured.latencies_us) == 3


async def test_each_operation_runs_once_when_asked_for(clock):
    calls = []

    async def operation(name):
        calls.append(name)
        await clock.work(0.5)

    measured = await once_each([lambda: operation("a"), lambda: operation("b")])
    assert calls == ["a", "b"]
    assert measured.latencies_us == [500_000] * 2


async def test_waiting_for_a_free_connection_counts_as_latency(clock, monkeypatch):
    monkeypatch.setattr(loops, "arrivals", lambda *_: iter([0.0, 0.0, 0.0]))
    measured = await open_loop([lambda: clock.work(1.0)], 1.0, 10.0, seed=1)
    assert measured.latencies_us == [1_000_000, 2_000_000, 3_000_000]
    assert measured.overdue == 0


async def test_what_is_due_when_the_drain_is_over_is_counted_and_not_sent(clock, monkeypatch):
    monkeypatch.setattr(loops, "arrivals", lambda *_: iter([0.0, 0.5, 0.9]))
    measured = await open_loop([lambda: clock.work(50.0)], 1.0, 1.0, seed=1)
    assert len(measured.latencies_us) + measured.overdue == 3
    assert measured.overdue > 0
