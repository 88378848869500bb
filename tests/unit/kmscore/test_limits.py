"""Token buckets: what one holds, and which are forgotten (protocol §7)."""

import contextlib
import copy
import gc
import pickle
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmscore.errors import InvariantBroken, Reason, Rejected
from kmscore.limits import MAX_TRACKED, RateLimiter
from tests.reference import limits as twin
from tests.support.fake_node import FakeClock

MINUTE_MS = 60_000


@pytest.fixture(params=[RateLimiter, twin.RateLimiter], ids=["cython", "twin"])
def limiter_of(request):
    return request.param


def allowed(limiter, key: str, tries: int) -> int:
    """How many of so many requests are let through."""
    through = 0
    for _ in range(tries):
        with contextlib.suppress(Rejected):
            limiter.take(key)
            through += 1
    return through


def test_a_minute_s_worth_at_once_and_no_more(limiter_of):
    limiter = limiter_of(5, FakeClock())
    assert allowed(limiter, "a", 20) == 5
    assert allowed(limiter, "b", 20) == 5
    with pytest.raises(Rejected) as error:
        limiter.take("a")
    assert error.value.reason is Reason.RATE


def test_zero_turns_it_off(limiter_of):
    limiter = limiter_of(0, FakeClock())
    assert allowed(limiter, "a", 1000) == 1000
    limiter.give_back("a")


def test_what_was_used_comes_back_evenly(limiter_of):
    clock = FakeClock()
    limiter = limiter_of(6, clock)
    allowed(limiter, "a", 6)
    clock.elapsed_ms += MINUTE_MS // 6 - 1
    assert allowed(limiter, "a", 1) == 0
    clock.elapsed_ms += 1
    assert allowed(limiter, "a", 5) == 1


def test_no_more_is_saved_than_a_minute_s_worth(limiter_of):
    clock = FakeClock()
    limiter = limiter_of(6, clock)
    allowed(limiter, "a", 6)
    clock.elapsed_ms += 100 * MINUTE_MS
    assert allowed(limiter, "a", 20) == 6


def test_refused_requests_cost_nothing(limiter_of):
    clock = FakeClock()
    limiter = limiter_of(6, clock)
    allowed(limiter, "a", 1000)
    clock.elapsed_ms += MINUTE_MS // 6
    assert allowed(limiter, "a", 1) == 1


def test_a_request_given_back_can_be_made_again(limiter_of):
    limiter = limiter_of(2, FakeClock())
    for _ in range(100):
        limiter.take("a")
        limiter.give_back("a")
    assert allowed(limiter, "a", 5) == 2


def test_giving_back_makes_no_capacity(limiter_of):
    limiter = limiter_of(2, FakeClock())
    for _ in range(10):
        limiter.give_back("never seen")
    limiter.take("a")
    for _ in range(10):
        limiter.give_back("a")
    assert allowed(limiter, "a", 5) == allowed(limiter, "never seen", 5) == 2


def test_memory_is_bounded_and_the_longest_unused_is_forgotten(limiter_of):
    limiter = limiter_of(2, FakeClock())
    allowed(limiter, "old", 2)
    allowed(limiter, "busy", 1)
    for number in range(MAX_TRACKED - 2):
        limiter.take(str(number))
    allowed(limiter, "busy", 1)
    limiter.take("one more")
    assert allowed(limiter, "busy", 1) == 0
    assert allowed(limiter, "old", 5) == 2


@settings(deadline=None)
@given(
    st.integers(0, 8),
    st.lists(st.tuples(st.integers(0, MINUTE_MS // 2), st.sampled_from("abc"), st.booleans()), max_size=100),
)
def test_ours_and_the_twin_let_the_same_through(per_minute, steps):
    clock = FakeClock()
    ours, theirs = RateLimiter(per_minute, clock), twin.RateLimiter(per_minute, clock)
    for pause_ms, key, gives_back in steps:
        clock.elapsed_ms += pause_ms
        if gives_back:
            ours.give_back(key)
            theirs.give_back(key)
        else:
            assert allowed(ours, key, 2) == allowed(theirs, key, 2)


def test_only_use_that_is_let_through_keeps_a_key_from_being_forgotten(limiter_of):
    clock = FakeClock()
    limiter = limiter_of(1, clock)
    for number in range(MAX_TRACKED):
        limiter.take(str(number))
    assert allowed(limiter, "0", 1) == 0
    limiter.give_back("1")
    limiter.take("one more")  # forgets 0, which was refused since
    limiter.take("1")
    assert allowed(limiter, "0", 1) == 1  # forgets 2
    assert [allowed(limiter, key, 1) for key in ("1", "3", "2")] == [0, 0, 1]


def test_a_bucket_takes_at_most_250_bytes_and_is_given_back():
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        limiter = RateLimiter(2, FakeClock())
        for number in range(2 * MAX_TRACKED):
            limiter.take(str(number))
        held, _ = tracemalloc.get_traced_memory()
        del limiter
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held - before < 250 * MAX_TRACKED
    assert after - before < 2_000


def test_the_repr_names_no_key():
    limiter = RateLimiter(2, FakeClock())
    limiter.take("192.0.2.1")
    assert repr(limiter) == "RateLimiter(2 a minute, 1 keys)"


def test_a_negative_limit_is_a_bug():
    with pytest.raises(InvariantBroken):
        RateLimiter(-1, FakeClock())


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, pickle.dumps], ids=lambda f: f.__name__)
def test_a_limiter_cannot_be_copied(copier):
    with pytest.raises(TypeError):
        copier(RateLimiter(1, FakeClock()))


class BrokenClock(FakeClock):
    def monotonic_ms(self):
        raise LookupError


def test_a_limiter_passes_on_what_its_clock_raises():
    limiter = RateLimiter(1, BrokenClock())
    for use in (limiter.take, limiter.give_back):
        with pytest.raises(LookupError):
            use("a")


def test_a_limiter_is_collected_with_its_clock():
    clock = FakeClock()
    clock.limiter = RateLimiter(1, clock)
    clock.limiter.take("a")
    del clock
    assert gc.collect() > 0
