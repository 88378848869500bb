"""Periodic work beside the server: never overlapping, jittered, ending the process on the unexpected (node §3)."""

import logging
import random
from collections.abc import Awaitable, Callable

import anyio

from kmscore.errors import Unavailable

logger = logging.getLogger(__name__)

JITTER = 0.1


async def run_periodically(
    name: str, work: Callable[[], Awaitable[None]], *, interval_s: float, rng: random.Random
) -> None:
    """Run `work` now and then every `interval_s` ± 10 %, until cancelled.

    `Unavailable` is logged and the next interval tried. Anything else is a bug: it propagates and ends the task group.
    """
    while True:
        try:
            await work()
        except Unavailable as error:
            logger.warning("tick failed", extra={"kind": name, "reason": str(error)})
        await anyio.sleep(interval_s * rng.uniform(1 - JITTER, 1 + JITTER))
