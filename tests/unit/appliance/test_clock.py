"""The machine's clocks, against the standard library's view of them."""

import time

import pytest

from appliance.clock import Clock, SystemClock

CLOCK: Clock = SystemClock()


@pytest.mark.parametrize(
    ("read", "time_ns"),
    [(CLOCK.now_ms, time.time_ns), (CLOCK.monotonic_ms, time.monotonic_ns)],
    ids=["wall time", "monotonic time"],
)
def test_a_clock_is_the_standard_library_s_in_whole_milliseconds(read, time_ns):
    for _ in range(1_000):
        before_ms, now_ms, after_ms = time_ns() // 1_000_000, read(), time_ns() // 1_000_000
        assert type(now_ms) is int
        assert before_ms <= now_ms <= after_ms
