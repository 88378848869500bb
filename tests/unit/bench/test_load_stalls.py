"""What kept the event loop: the verdict on one long stretch, and the words for where it was."""

import asyncio
import json
import os
import sys
from types import SimpleNamespace

import pytest

from bench.load.pauses import LATE_S, Pause, PauseWatcher, lost_s
from bench.load.scenarios.blocking import without_pauses
from bench.load.stalls import Cause, Stall, describe_busy_thread, describe_stack, describe_step, place_of


def stall(wall_ms, loop_ms, other_ms=0.0, gc_ms=0.0, stack="", step="step"):
    return Stall(1.0, wall_ms / 1000, loop_ms / 1000, other_ms / 1000, gc_ms / 1000, step, stack, (0, 1))


@pytest.mark.parametrize(
    ("found", "cause", "blocked_ms"),
    [
        pytest.param(stall(9, 8.9), Cause.OWN_CODE, 8.9, id="computed all the time"),
        pytest.param(stall(30, 6), Cause.OWN_CODE, 6, id="computed for more than the limit, then lost the core"),
        pytest.param(stall(3, 2.5), Cause.OWN_CODE, 2.5, id="short, but computed for most of it"),
        pytest.param(stall(9, 8.9, gc_ms=8), Cause.GARBAGE_COLLECTION, 8.9, id="mostly collected garbage"),
        pytest.param(stall(9, 8.9, gc_ms=2), Cause.OWN_CODE, 8.9, id="collected a little garbage"),
        pytest.param(stall(40, 1, other_ms=39), Cause.OTHER_THREAD, 40, id="waited for a thread of ours"),
        pytest.param(stall(40, 1, other_ms=5), Cause.MACHINE, 40, id="our other threads hardly ran"),
        pytest.param(stall(12, 0.1), Cause.MACHINE, 12, id="nobody of ours ran"),
    ],
)
def test_a_stall_is_put_down_to_whoever_had_the_cpu_time(found, cause, blocked_ms):
    assert found.cause is cause
    assert found.blocked_s * 1000 == pytest.approx(blocked_ms)


@pytest.mark.parametrize(
    ("found", "lost_ms", "cause", "blocked_ms"),
    [
        pytest.param(stall(9, 8.9), 7, Cause.OWN_CODE, 2, id="the kernel charged us for the pause"),
        pytest.param(stall(9, 2), 7, Cause.OWN_CODE, 2, id="the kernel did not"),
        pytest.param(stall(9, 8.9), 0, Cause.OWN_CODE, 8.9, id="no pause"),
        pytest.param(stall(9, 8.9, gc_ms=8), 7, Cause.GARBAGE_COLLECTION, 2, id="paused while it collected"),
        pytest.param(stall(40, 1, other_ms=39), 30, Cause.OTHER_THREAD, 10, id="paused while another thread ran"),
        pytest.param(stall(40, 6), 30, Cause.OWN_CODE, 6, id="was not ours anyway"),
    ],
)
def test_a_pause_of_the_machine_is_nobodys(found, lost_ms, cause, blocked_ms):
    left = found.without(lost_ms / 1000)
    assert left.cause is cause
    assert left.blocked_s * 1000 == pytest.approx(blocked_ms)


def test_only_the_part_of_a_pause_that_lies_in_the_stretch_is_lost():
    pauses = [Pause(0.0, 1.0), Pause(1.5, 3.0), Pause(4.5, 4.75), Pause(6.0, 9.0), Pause(12.0, 13.0)]
    assert lost_s(pauses, 2.0, 8.0) == pytest.approx(1.0 + 0.25 + 2.0)
    assert lost_s([], 2.0, 8.0) == 0


@pytest.mark.parametrize(
    ("pauses", "left_ms"),
    [
        pytest.param({}, [9], id="none watched"),
        pytest.param({0: [Pause(0.0, 0.996)]}, [4], id="where it began"),
        pytest.param({1: [Pause(0.993, 0.999)]}, [3], id="where it ended"),
        pytest.param({0: [Pause(0.99, 0.995)], 1: [Pause(0.992, 0.995)]}, [5], id="the longer one"),
        pytest.param({2: [Pause(0.99, 1.0)]}, [9], id="elsewhere"),
        pytest.param({0: [Pause(0.99, 0.999)]}, [], id="hardly anything is left"),
    ],
)
def test_pauses_are_taken_off_the_stretches_of_their_cores(pauses, left_ms):
    left = without_pauses([stall(9, 9)], pauses)
    assert [each.blocked_s * 1000 for each in left] == pytest.approx(left_ms)


@pytest.mark.anyio
async def test_every_core_is_watched_until_the_watcher_is_stopped():
    async with PauseWatcher() as watcher:
        pauses = await watcher.stop()
    assert set(pauses) == (os.sched_getaffinity(0) if watcher.permitted else set())
    assert all(pause.ended_s - pause.begun_s > LATE_S for found in pauses.values() for pause in found)


@pytest.mark.parametrize(
    ("stack", "place"),
    [
        pytest.param(
            "json/a.py:1 f < appliance/b.py:2 g < kmscore/c.py:3 h", "appliance/b.py:2 g", id="innermost ours"
        ),
        pytest.param("json/a.py:1 f < x.py:2 g | kmscore/c.py:3 h", "kmscore/c.py:3 h", id="of another thread"),
        pytest.param("json/a.py:1 f < x.py:2 g", "json/a.py:1 f", id="nothing of ours"),
        pytest.param("", "step", id="not seen"),
    ],
)
def test_the_place_of_a_stall_is_the_innermost_function_of_our_own(stack, place):
    assert place_of(stall(9, 9, stack=stack)) == place


def test_a_stack_is_told_from_the_inside_without_the_places_of_this_machine():
    told: list[str] = []

    class Spy:
        def __str__(self):
            told.append(describe_stack(sys._getframe()))
            return ""

    json.dumps({}, default=str, sort_keys=bool(str(Spy())))
    assert told[0].startswith("tests/unit/bench/test_load_stalls.py:")
    assert told[0].split(" < ")[0].endswith(" __str__")
    assert "test_a_stack_is_told_from_the_inside" in told[0].split(" < ")[1]


def test_a_thread_that_waits_for_work_is_not_described():
    waiting = SimpleNamespace(f_code=SimpleNamespace(co_filename="/lib/threading.py", co_name="wait"), f_lineno=1)
    assert describe_busy_thread(waiting) == ""
    assert describe_busy_thread(sys._getframe()) != ""


@pytest.mark.anyio
async def test_a_step_is_named_by_its_coroutine_or_callback():
    loop = asyncio.get_running_loop()

    async def work():
        return None

    task = loop.create_task(work())
    step = next(handle for handle in loop._ready if getattr(handle._callback, "__self__", None) is task)
    assert describe_step(step).endswith("work")
    assert describe_step(loop.call_soon(len, "")) == "len"
    assert describe_step(None) == "waiting for events"
    await task
