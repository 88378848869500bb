"""Rate limits: whose bucket it is (protocol §7)."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.api.limits import MAX_FORWARDED_CHARS, client_key

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
