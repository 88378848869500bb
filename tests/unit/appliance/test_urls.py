"""URLs from settings and from the registry: what is taken, in which form, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.urls import is_loopback_url, parse_host, parse_node_url, parse_service_url, url_origin
from kmscore.errors import Reason, Rejected

TAKEN = {
    "a plain name": ("https://node.example", "https://node.example"),
    "a trailing slash": ("https://node.example/", "https://node.example"),
    "upper case": ("HTTPS://Node.EXAMPLE/Path", "https://node.example/Path"),
    "the scheme's own port": ("https://node.example:443", "https://node.example"),
    "a port of its own": ("https://node.example:8443/", "https://node.example:8443"),
    "a port with a leading zero": ("https://node.example:08443", "https://node.example:8443"),
    "a path": ("https://node.example/a/b%20c/", "https://node.example/a/b%20c"),
    "an IPv4 address": ("https://192.0.2.1:1", "https://192.0.2.1:1"),
    "an IPv6 address": ("https://[2001:DB8:0::1]:65535", "https://[2001:db8::1]:65535"),
    "an underscore in the name": ("https://kms_1:443", "https://kms_1"),
    "punycode": ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
}

REFUSED = {
    "nothing": "",
    "no scheme": "node.example",
    "a relative reference": "//node.example",
    "another scheme": "ftp://node.example",
    "a script": "javascript:alert(1)",
    "no host": "https:///path",
    "only a port": "https://:443",
    "a user": "https://user@node.example",
    "a user and password": "https://user:secret@node.example",
    "an empty user": "https://@node.example",
    "a fragment": "https://node.example/#top",
    "an empty fragment": "https://node.example#",
    "a query": "https://node.example/?x=1",
    "an empty query": "https://node.example?",
    "port zero": "https://node.example:0",
    "a port too large": "https://node.example:65536",
    "an empty port": "https://node.example:",
    "a port in words": "https://node.example:https",
    "a signed port": "https://node.example:+443",
    "a port in other digits": "https://node.example:٤٤٣",
    "a space before": " https://node.example",
    "a newline after": "https://node.example\n",
    "a tab inside": "https://node.ex\tample",
    "a NUL": "https://node.example\x00",
    "a backslash": "https:\\\\node.example",
    "a backslash before another host": "https://node.example\\@other.example",
    "a name that is not ASCII": "https://bücher.example",
    "a letter that folds to ASCII": "httpſ://node.example",
    "a full stop of another script": "https://node。example",
    "percent-encoding in the host": "https://node%2eexample",
    "a broken percent-encoding": "https://node.example/%zz",
    "an empty label": "https://node..example",
    "a dot at the end of the name": "https://node.example.",
    "a label that starts with a hyphen": "https://-node.example",
    "a label of 64 characters": f"https://{'a' * 64}.example",
    "a name of 254 characters": "https://" + ".".join(["a" * 50] * 5),
    "an IPv4 address in short": "https://127.1",
    "an IPv4 address as a number": "https://2130706433",
    "an IPv4 address in hex": "https://0x7f000001",
    "an IPv4 address with an octal part": "https://0177.0.0.1",
    "an IPv4 part too large": "https://256.0.0.1",
    "an IPv6 address without brackets": "https://2001:db8::1",
    "an IPv6 address with a zone": "https://[fe80::1%eth0]",
    "a broken IPv6 address": "https://[:::1]",
    "text after the brackets": "https://[::1]x",
    "more than 2048 characters": "https://node.example/" + "a" * 2028,
}


@pytest.mark.parametrize(("text", "expected"), TAKEN.values(), ids=TAKEN)
def test_a_node_url_is_normalised(text: str, expected: str) -> None:
    assert parse_node_url(text, https_only=True) == expected
    assert parse_node_url(expected, https_only=True) == expected


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_a_url_with_a_flaw_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(Rejected) as refusal:
        parse_node_url(text, https_only=False)

    assert refusal.value.reason is Reason.BAD_FIELD
    assert "secret" not in str(refusal.value)


def test_http_is_taken_only_where_it_is_allowed() -> None:
    assert parse_node_url("http://node.example:80/", https_only=False) == "http://node.example"
    with pytest.raises(Rejected):
        parse_node_url("http://node.example", https_only=True)


def test_2048_characters_are_still_taken() -> None:
    text = "https://node.example/" + "a" * 2027

    assert parse_node_url(text, https_only=True) == text


@given(st.text(max_size=60) | st.from_regex(r"https?://[ -~]{0,40}", fullmatch=True))
def test_any_text_is_normalised_for_good_or_refused(text: str) -> None:
    try:
        url = parse_node_url(text, https_only=False)
    except Rejected:
        return
    assert parse_node_url(url, https_only=False) == url


def test_a_service_url_may_have_a_query_but_no_fragment_or_credentials() -> None:
    assert parse_service_url("https://rpc.example/v2/?key=a%20b&x") == "https://rpc.example/v2?key=a%20b&x"
    for text in ("https://rpc.example/?a#b", "https://u@rpc.example/?a", "https://rpc.example/?a b"):
        with pytest.raises(Rejected):
            parse_service_url(text)


def test_the_origin_of_a_url_names_its_port_even_when_it_is_the_default() -> None:
    assert url_origin("https://rpc.example/key") == ("https", "rpc.example", 443)
    assert url_origin("http://[::1]:8545") == ("http", "[::1]", 8545)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:18545", True),
        ("http://127.255.0.1", True),
        ("http://[::1]", True),
        ("http://localhost:1", True),
        ("http://localhost.example", False),
        ("http://0.0.0.0", False),
        ("http://10.0.0.1", False),
        ("http://[::]", False),
        ("https://127.0.0.1.example", False),
    ],
)
def test_only_loopback_hosts_count_as_loopback(url: str, expected: bool) -> None:
    assert is_loopback_url(parse_service_url(url)) is expected


def test_a_host_alone_is_checked_like_the_host_of_a_url() -> None:
    assert parse_host("Example.ORG") == "example.org"
    assert parse_host("[::0001]") == "[::1]"
    for text in ("", "a b", "[::1", "1.2.3", "a/b"):
        with pytest.raises(Rejected):
            parse_host(text)
