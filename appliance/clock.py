"""The two clocks a node uses, behind one port so that tests own time."""

import time
from typing import Protocol


class Clock(Protocol):
    """Wall time for what travels between machines, monotonic time for ages and deadlines here."""

    def now_ms(self) -> int:
        """Unix time in milliseconds."""
        ...

    def monotonic_ms(self) -> int:
        """Milliseconds since an arbitrary start, never going backwards."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000
