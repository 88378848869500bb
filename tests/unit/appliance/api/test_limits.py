"""Rate limits: what a bucket holds, and whose bucket it is (protocol §7)."""

import contextlib
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.api.limits import MAX_FORWARDED_CHARS, MAX_TRACKED, RateLimiter, client_key
from kmscore.errors import Reason, Rejected
from tests.support.fake_node import FakeClock

MINUTE_MS = 60_000


def allowed(limiter: RateLimiter, key: str, tries: int) -> int:
    """How many of so many requests are let through."""
    through = 0
    for _ in range(tries):
        with contextlib.suppress(Rejected):
            limiter.take(key)
            through += 1
    return through


class TestRateLimiter:
    def test_a_minute_s_worth_at_once_and_no_more(self) -> None:
        limiter = RateLimiter(5, FakeClock())
        assert allowed(limiter, "a", 20) == 5
        assert allowed(limiter, "b", 20) == 5
        with pytest.raises(Rejected) as error:
            limiter.take("a")
        assert error.value.reason is Reason.RATE

    def test_zero_turns_it_off(self) -> None:
        limiter = RateLimiter(0, FakeClock())
        assert allowed(limiter, "a", 1000) == 1000
        limiter.give_back("a")

    def test_what_was_used_comes_back_evenly(self) -> None:
        clock = FakeClock()
        limiter = RateLimiter(6, clock)
        allowed(limiter, "a", 6)
        clock.elapsed_ms += MINUTE_MS // 6 - 1
        assert allowed(limiter, "a", 1) == 0
        clock.elapsed_ms += 1
        assert allowed(limiter, "a", 5) == 1

    def test_no_more_is_saved_than_a_minute_s_worth(self) -> None:
        clock = FakeClock()
        limiter = RateLimiter(6, clock)
        allowed(limiter, "a", 6)
        clock.elapsed_ms += 100 * MINUTE_MS
        assert allowed(limiter, "a", 20) == 6

    def test_refused_requests_cost_nothing(self) -> None:
        clock = FakeClock()
        limiter = RateLimiter(6, clock)
        allowed(limiter, "a", 1000)
        clock.elapsed_ms += MINUTE_MS // 6
        assert allowed(limiter, "a", 1) == 1

    def test_a_request_given_back_can_be_made_again(self) -> None:
        limiter = RateLimiter(2, FakeClock())
        for _ in range(100):
            limiter.take("a")
            limiter.give_back("a")
        assert allowed(limiter, "a", 5) == 2

    def test_giving_back_makes_no_capacity(self) -> None:
        limiter = RateLimiter(2, FakeClock())
        for _ in range(10):
            limiter.give_back("never seen")
        limiter.take("a")
        for _ in range(10):
            limiter.give_back("a")
        assert allowed(limiter, "a", 5) == allowed(limiter, "never seen", 5) == 2

    def test_memory_is_bounded_and_the_longest_unused_is_forgotten(self) -> None:
        limiter = RateLimiter(2, FakeClock())
        allowed(limiter, "old", 2)
        allowed(limiter, "busy", 1)
        for number in range(MAX_TRACKED - 2):
            limiter.take(str(number))
        allowed(limiter, "busy", 1)
        limiter.take("one more")
        assert allowed(limiter, "busy", 1) == 0
        assert allowed(limiter, "old", 5) == 2


TRUSTED = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")]

KEYS = {
    "a stranger": ("192.0.2.1", "", "192.0.2.1"),
    "a stranger with a claim": ("192.0.2.1", "198.51.100.1", "192.0.2.1"),
    "an ingress without the header": ("10.0.0.1", "", "10.0.0.1"),
    "an ingress with it": ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
    "an ingress with a claim in front": ("10.0.0.1", "192.0.2.9, 198.51.100.1", "198.51.100.1"),
    "two ingresses": ("10.0.0.1", "198.51.100.1, 10.0.0.2", "198.51.100.1"),
    "a claim in front of two ingresses": ("10.0.0.1", "192.0.2.9,198.51.100.1,10.0.0.2", "198.51.100.1"),
    "ingresses only": ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
    "no address": ("10.0.0.1", "unknown", "10.0.0.1"),
    "no address behind an ingress": ("10.0.0.1", "unknown, 10.0.0.2", "10.0.0.2"),
    "white space": ("10.0.0.1", "  198.51.100.1\t", "198.51.100.1"),
    "IPv4 in IPv6": ("::ffff:192.0.2.1", "", "192.0.2.1"),
    "an ingress as IPv4 in IPv6": ("::ffff:10.0.0.1", "198.51.100.1", "198.51.100.1"),
    "IPv6 on one link": ("fe80::1%eth0", "", "fe80::/64"),
    "IPv6 by its network": ("2001:db8:1:2:3:4:5:6", "", "2001:db8:1:2::/64"),
    "an ingress over IPv6": ("fd00::1", "2001:DB8:1:2::9", "2001:db8:1:2::/64"),
    "a header that is too long": ("10.0.0.1", "1.1.1.1," * MAX_FORWARDED_CHARS, "10.0.0.1"),
    "an unnamed socket": (None, "", "local"),
}


class TestClientKey:
    @pytest.mark.parametrize(("host", "forwarded", "key"), KEYS.values(), ids=KEYS)
    def test_rows(self, host: str | None, forwarded: str, key: str) -> None:
        assert client_key(host, forwarded, TRUSTED) == key

    @given(st.text(max_size=60))
    def test_without_trust_no_header_matters(self, forwarded: str) -> None:
        assert client_key("192.0.2.1", forwarded, TRUSTED) == "192.0.2.1"
        assert client_key("10.0.0.1", forwarded, []) == "10.0.0.1"

    @given(st.text(st.sampled_from("0123456789abcdef.:,[] %/"), max_size=60))
    def test_no_header_is_a_bug_and_every_key_is_an_address(self, forwarded: str) -> None:
        ipaddress.ip_network(client_key("10.0.0.1", forwarded, TRUSTED))

    @given(st.text(st.sampled_from("0123456789abcdef.:, "), max_size=40))
    def test_what_stands_before_a_stranger_s_address_is_ignored(self, claim: str) -> None:
        assert client_key("10.0.0.1", f"{claim}, 198.51.100.1", TRUSTED) == "198.51.100.1"
