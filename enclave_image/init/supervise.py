"""Runs the service until it ends, reaps whatever else ends, and keeps the clock from falling behind."""

import os
import signal
from collections.abc import Callable

from .boot import Service, step_clock
from .platform import Platform

CLOCK_INTERVAL_S = 300.0
MAX_DRIFT_NS = 60 * 10**9  # a running clock that is a minute off did not drift: something lies


def describe_end(status: int) -> str:
    """A wait status in words."""
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"status {os.waitstatus_to_exitcode(status)}"


def supervise(platform: Platform, service: Service, say: Callable[[str], None]) -> int:
    """Start the service and return its wait status when it has ended; orphans that end meanwhile are reaped.

    Every few minutes the clock is stepped forward to the hypervisor's. Errors: `BootError` when that clock cannot be
    believed.
    """
    process = platform.spawn(service.command, service.environment, service.user, service.group)
    say(f"service started as process {process}")
    while True:
        ended = platform.wait(CLOCK_INTERVAL_S)
        if ended is None:
            step_clock(platform, MAX_DRIFT_NS)
        elif ended[0] == process:
            return ended[1]
