"""The two ways to put load on: closed loops and an open loop (see `Job`). Time is counted in microseconds."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic

from bench.load.jobs import MAX_OPERATIONS
from bench.load.latency import arrivals

Operation = Callable[[], Awaitable[object]]

# An open loop whose server is overwhelmed ends its run with what is under way; this bounds how long that may take.
DRAIN_S = 10.0


@dataclass(slots=True)
class Measured:
    """When what was finished was due, and its latency; how many operations were due but never started."""

    due_us: list[int] = field(default_factory=list)
    latencies_us: list[int] = field(default_factory=list)
    overdue: int = 0

    def add(self, due: float, finished: float) -> None:
        """Both in seconds of the monotonic clock."""
        self.due_us.append(round(due * 1e6))
        self.latencies_us.append(round((finished - due) * 1e6))


async def closed_loop(operations: Sequence[Operation], duration_s: float) -> Measured:
    """Each of `operations` again and again until the time is over; what is under way then is finished and counted."""
    measured = Measured()
    deadline = monotonic() + duration_s

    async def repeat(operation: Operation) -> None:
        begun = monotonic()
        while begun < deadline and len(measured.latencies_us) < MAX_OPERATIONS:
            await operation()
            now = monotonic()
            measured.add(begun, now)
            begun = now

    async with asyncio.TaskGroup() as group:
        for operation in operations:
            group.create_task(repeat(operation))
    return measured


async def once_each(operations: Sequence[Operation]) -> Measured:
    """Each of `operations` once, one after the other."""
    measured = Measured()
    for operation in operations:
        begun = monotonic()
        await operation()
        measured.add(begun, monotonic())
    return measured


async def open_loop(operations: Sequence[Operation], rate_per_s: float, duration_s: float, seed: int) -> Measured:
    """Operations due at random times (`arrivals`), each run by the first of `operations` that is free.

    The latency of each counts from when it was due, so that waiting shows. What is still waiting when the last one is
    due gets `DRAIN_S` more.
    """
    measured = Measured()
    free: asyncio.Queue[Operation] = asyncio.Queue()
    for operation in operations:
        free.put_nowait(operation)
    start = monotonic()

    async def run(operation: Operation, due: float) -> None:
        await operation()
        measured.add(due, monotonic())
        free.put_nowait(operation)

    async with asyncio.TaskGroup() as group:
        for at_s in arrivals(rate_per_s, duration_s, random.Random(seed)):  # noqa: S311 - a schedule, no secret
            due = start + at_s
            wait_s = due - monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            if monotonic() > start + duration_s + DRAIN_S:
                measured.overdue += 1
                continue
            group.create_task(run(await free.get(), due))
    return measured
