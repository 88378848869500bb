"""The two clocks a node uses, behind one port so that tests own time."""

from typing import Protocol

from kmscore.clock import SystemClock

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """Wall time for what travels between machines, monotonic time for ages and deadlines here."""

    def now_ms(self) -> int:
        """Unix time in milliseconds."""
        ...

    def monotonic_ms(self) -> int:
        """Milliseconds since an arbitrary start, never going backwards."""
        ...
