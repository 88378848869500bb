"""When the machine itself stood still: a beat of the highest priority on each core, and when it was late.

A hypervisor that stops a core does not always say so: a loop that does nothing but read clocks was seen to have
computed for 52 ms between two readings. Who measures how long his own code takes has to know of that. The beats run
under SCHED_FIFO, for which the kernel interrupts every other process. What keeps one waiting is the machine, an
interrupt, or work in the kernel that it does not interrupt, which can be the watched process's own: so figures are
given with and without the pauses.

Needs the right to use SCHED_FIFO. Costs each core about 2 %.
"""

import json
import os
import select
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Final, NamedTuple, Self

from bench.load.processes import LineProcess

BEAT_S: Final = 0.001
# Later than that is a pause: waking up takes 0.1 ms.
LATE_S: Final = 0.001
TIMEOUT_S: Final = 30.0
PRIORITY: Final = 50


class Pause(NamedTuple):
    """From when a beat was due to when it came, on the monotonic clock."""

    begun_s: float
    ended_s: float


Pauses = Mapping[int, Sequence[Pause]]  # by core


class PauseWatcher:
    """Beats on every core that this process may use, from the beginning of the block on."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._beats: dict[int, LineProcess] = {}

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for core in sorted(os.sched_getaffinity(0)):
                process = await stack.enter_async_context(LineProcess("bench.load.pauses"))
                await process.say(str(core))
                if json.loads(await process.hear(TIMEOUT_S)):
                    self._beats[core] = process
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def permitted(self) -> bool:
        return bool(self._beats)

    async def stop(self) -> Pauses:
        """The pauses of each core; once. Raises `LoadError`."""
        found: dict[int, list[Pause]] = {}
        for core, process in self._beats.items():
            await process.say("stop")
            found[core] = [Pause(*held) for held in json.loads(await process.hear(TIMEOUT_S))]
        return found


def lost_s(pauses: Sequence[Pause], begun_s: float, ended_s: float) -> float:
    """How much of the time between the two the machine stood still."""
    return sum(max(0.0, min(ended_s, pause.ended_s) - max(begun_s, pause.begun_s)) for pause in pauses)


def _beat(core: int) -> bool:
    """Whether this process now runs on that core before all others."""
    os.sched_setaffinity(0, {core})
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except PermissionError:
        return False
    return True


def _pauses_until_told_to_stop() -> list[Pause]:
    pauses: list[Pause] = []
    due_s = time.monotonic() + BEAT_S
    while not select.select([sys.stdin], [], [], BEAT_S)[0]:
        now_s = time.monotonic()
        if now_s - due_s > LATE_S:
            pauses.append(Pause(due_s, now_s))
        due_s = now_s + BEAT_S
    return pauses


def main() -> None:
    """Reads a core, says whether it may beat there, and at the next line what it found; both in a line of JSON."""
    permitted = _beat(int(sys.stdin.readline()))
    print(json.dumps(permitted), flush=True)
    print(json.dumps(_pauses_until_told_to_stop() if permitted else []), flush=True)


if __name__ == "__main__":
    main()
