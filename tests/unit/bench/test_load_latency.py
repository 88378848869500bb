"""Percentiles and the arrivals of an open loop."""

import random
from itertools import pairwise
from statistics import mean

import pytest

from bench.load.latency import arrivals, percentile, summarize


def schedule(rate_per_s, duration_s, *, seed):
    return list(arrivals(rate_per_s, duration_s, random.Random(seed)))  # noqa: S311


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(1, 0.5, 1), (1, 0.999, 1), (2, 0.5, 1), (3, 0.5, 2), (100, 0.99, 99), (101, 0.99, 100), (1000, 0.999, 999)],
)
def test_a_percentile_is_the_least_value_that_the_share_does_not_exceed(count, share, expected):
    assert percentile(range(1, count + 1), share) == expected


def test_the_last_percentile_is_the_largest_value():
    assert percentile([3, 5, 9], 1.0) == 9


def test_there_is_no_percentile_of_nothing():
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 0.5)


def test_latencies_are_summarized_in_milliseconds_whatever_their_order():
    found = summarize([4000, 1000, 3000, 2000])
    assert (found.count, found.p50_ms, found.p99_ms, found.p999_ms, found.max_ms) == (4, 2.0, 4.0, 4.0, 4.0)


def test_arrivals_have_the_mean_rate_and_stay_within_the_run():
    due = schedule(200.0, 50.0, seed=7)
    assert 9_500 < len(due) < 10_500
    assert due == sorted(due)
    assert due[0] > 0
    assert due[-1] < 50.0
    assert mean(later - earlier for earlier, later in pairwise(due)) == pytest.approx(1 / 200, rel=0.05)


def test_the_same_seed_gives_the_same_arrivals():
    assert schedule(100.0, 1.0, seed=3) == schedule(100.0, 1.0, seed=3)
