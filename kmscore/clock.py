"""The machine's clocks. Everything else in `kmscore` is handed the time by its caller, and does not import this."""

from kmscore._clock import SystemClock

__all__ = ["SystemClock"]
