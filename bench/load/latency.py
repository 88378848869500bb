"""From single latencies to the figures that are shown, and when the requests of an open loop are due."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Latencies:
    """Nearest-rank percentiles in milliseconds of `count` measurements."""

    count: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


def percentile(ordered: Sequence[int], share: float) -> int:
    """The nearest-rank percentile: the least of `ordered` (ascending) that a `share` (0 < share ≤ 1) does not exceed.

    ValueError for no values.
    """
    if not ordered:
        raise ValueError("there is no percentile of nothing")
    # In whole thousandths of a percent: 0.999 * 1000 is 999.0000000000001 of a float and would round up a rank.
    thousandths = round(share * 100_000)
    rank = -(-len(ordered) * thousandths // 100_000)
    return ordered[max(rank, 1) - 1]


def summarize(latencies_us: Sequence[int]) -> Latencies:
    """ValueError for no values."""
    ordered = sorted(latencies_us)
    p50, p99, p999 = (percentile(ordered, share) / 1000 for share in (0.5, 0.99, 0.999))
    return Latencies(len(ordered), p50, p99, p999, ordered[-1] / 1000)


def arrivals(rate_per_s: float, duration_s: float, rng: random.Random) -> Iterator[float]:
    """When the requests of an open loop are due, in seconds from its start.

    The gaps are exponential, as between the requests of many apps that do not know of each other, with a mean of
    1 / `rate_per_s`; whether the server keeps up changes nothing about them.
    """
    at_s = rng.expovariate(rate_per_s)
    while at_s < duration_s:
        yield at_s
        at_s += rng.expovariate(rate_per_s)
