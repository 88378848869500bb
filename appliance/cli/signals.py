"""What Ctrl-C does to a command that runs until it is told to stop."""

import signal
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager

import anyio


@asynccontextmanager
async def stopped_by_signals() -> AsyncIterator[None]:
    """The body is cancelled by the first SIGINT or SIGTERM; more of them do not disturb its cleaning up."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as group:
            group.start_soon(_cancel_at_first, signals, group.cancel_scope)
            yield
            group.cancel_scope.cancel()


async def _cancel_at_first(signals: AsyncIterable[signal.Signals], scope: anyio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()
