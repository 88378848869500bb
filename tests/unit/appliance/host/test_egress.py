"""The enclave's way out: what it may reach, and what it is told when it may not."""

import socket
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketStream

from appliance.host.egress import (
    ESTABLISHED,
    MAX_HEAD_BYTES,
    Allowed,
    Egress,
    Refused,
    dial_public,
    parse_allowed,
    parse_connect,
)
from appliance.host.streams import listen_tcp, serve_connections
from kmscore.errors import ConfigError
from tests.support.unix_wires import UnixWires, received, running

pytestmark = pytest.mark.anyio

PORT = 8001


async def echo(stream: SocketStream) -> None:
    await stream.send(await received(stream))


def egress(*allowed: str, **options: Any) -> Egress:
    return Egress([parse_allowed(text) for text in allowed], **options)


async def answer(wires: UnixWires, proxy: Egress, request: bytes) -> bytes:
    """All that the proxy says to a connection that sends this and is done."""
    listener = wires.listen(PORT)
    async with running(lambda: proxy.serve(listener)), await wires.connect_from_enclave(PORT) as stream:
        await stream.send(request)
        return await received(stream)


async def test_a_tunnel_carries_bytes_both_ways_with_half_close(wires: UnixWires) -> None:
    outside = listen_tcp("127.0.0.1", 0)
    listener = wires.listen(PORT)
    port = outside.getsockname()[1]
    async with (
        running(lambda: serve_connections(outside, echo, limit=8)),
        running(lambda: egress(f"127.0.0.1:{port}").serve(listener)),
        await wires.connect_from_enclave(PORT) as stream,
    ):
        await stream.send(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nearly ".encode())
        assert await stream.receive() == ESTABLISHED
        await stream.send(b"and " + b"x" * 300_000)
        await stream.send_eof()
        assert await received(stream) == b"early and " + b"x" * 300_000


REFUSALS = {
    "another host": (b"CONNECT b.example:443 HTTP/1.1\r\n\r\n", 403),
    "another port": (b"CONNECT a.example:80 HTTP/1.1\r\n\r\n", 403),
    "a host that ends alike": (b"CONNECT evil-a.example:443 HTTP/1.1\r\n\r\n", 403),
    "a part of the host": (b"CONNECT example:443 HTTP/1.1\r\n\r\n", 403),
    "another method": (b"GET http://a.example/ HTTP/1.1\r\n\r\n", 405),
    "no request": (b"\x16\x03\x01\r\n\r\n", 400),
    "another version": (b"CONNECT a.example:443 HTTP/2\r\n\r\n", 400),
    "no port": (b"CONNECT a.example HTTP/1.1\r\n\r\n", 400),
    "a port that is none": (b"CONNECT a.example:99999 HTTP/1.1\r\n\r\n", 400),
    "a host that is none": (b"CONNECT a..example:443 HTTP/1.1\r\n\r\n", 400),
    "credentials": (b"CONNECT u:p@a.example:443 HTTP/1.1\r\n\r\n", 400),
    "no ASCII": (b"CONNECT \xc3\xa4.example:443 HTTP/1.1\r\n\r\n", 400),
    "a head that is too long and comes at once": (
        b"CONNECT a.example:443 HTTP/1.1\r\nX: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
        431,
    ),
    "a head that does not end": (b"CONNECT a.example:443 HTTP/1.1\r\nX: " + b"x" * (2 * MAX_HEAD_BYTES), 431),
}


@pytest.mark.parametrize(("request_bytes", "status"), REFUSALS.values(), ids=REFUSALS)
async def test_refused_with_a_status(wires: UnixWires, request_bytes: bytes, status: int) -> None:
    async def dial(host: str, port: int) -> SocketStream:
        raise AssertionError("nothing may be dialled")

    said = await answer(wires, egress("a.example:443", dial=dial, dial_pattern=dial), request_bytes)
    assert said.startswith(b"HTTP/1.1 %d " % status)
    assert said.endswith(b"\r\n\r\n")


async def test_hosts_are_compared_in_lower_case(wires: UnixWires) -> None:
    async def dial(host: str, port: int) -> SocketStream:
        assert (host, port) == ("a.example", 443)
        raise ConnectionRefusedError

    said = await answer(wires, egress("A.Example:443", dial=dial), b"CONNECT a.EXAMPLE:443 HTTP/1.1\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 502 ")


async def test_a_host_that_does_not_answer_is_a_gateway_timeout(wires: UnixWires) -> None:
    async def dial(host: str, port: int) -> SocketStream:
        await anyio.sleep_forever()
        raise AssertionError

    proxy = egress("a.example:443", dial=dial, connect_timeout_s=0.05)
    assert (await answer(wires, proxy, b"CONNECT a.example:443 HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 504 ")


async def test_a_request_that_does_not_come_is_a_request_timeout(wires: UnixWires) -> None:
    assert (await answer(wires, egress(head_timeout_s=0.05), b"CONN")).startswith(b"HTTP/1.1 408 ")


async def test_a_tunnel_on_which_nothing_moves_is_closed(wires: UnixWires) -> None:
    outside = listen_tcp("127.0.0.1", 0)
    port = outside.getsockname()[1]
    async with running(lambda: serve_connections(outside, echo, limit=8)):
        proxy = egress(f"127.0.0.1:{port}", idle_s=0.1)
        assert await answer(wires, proxy, f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n".encode()) == ESTABLISHED


async def test_an_exact_entry_may_be_private_and_a_pattern_s_host_may_not(wires: UnixWires) -> None:
    outside = listen_tcp("127.0.0.1", 0)
    port = outside.getsockname()[1]
    request = f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n".encode()
    async with running(lambda: serve_connections(outside, echo, limit=8)):
        said = await answer(wires, egress(f"*:{port}"), request)
    assert said.startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "169.254.169.254",
        "10.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:10.0.0.1]",
        "[fe80::1]",
        "[64:ff9b::10.0.0.1]",
        "[64:ff9b::169.254.169.254]",
        "[::10.0.0.1]",
        "[2002:a00:1::1]",
        "[fd00:ec2::254]",
        "224.0.0.1",
        "[ff02::1]",
        "0.0.0.0",
        "[::]",
        "100.64.0.1",
    ],
)
async def test_no_private_address_is_dialled_for_a_pattern(host: str) -> None:
    with pytest.raises(Refused) as refusal:
        await dial_public(host, 443)
    assert refusal.value.status == 403


@pytest.mark.parametrize("hangs", [False, True], ids=["refused", "silent"])
async def test_a_host_that_cannot_be_reached_in_one_family_is_tried_in_the_other(
    monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    tried: list[str] = []
    reached = object()

    async def resolve(_host: str, port: int, **_: object) -> list[Any]:
        sixes = [(socket.AF_INET6, 1, 6, "", (f"2606:4700::{number}", port, 0, 0)) for number in range(1, 9)]
        return [*sixes, (socket.AF_INET, 1, 6, "", ("10.0.0.1", port)), (socket.AF_INET, 1, 6, "", ("8.8.8.8", port))]

    async def connect(host: str, _port: int) -> object:
        tried.append(host)
        if host == "8.8.8.8":
            return reached
        if hangs:
            await anyio.sleep_forever()
        raise ConnectionRefusedError

    monkeypatch.setattr("appliance.host.egress.anyio.getaddrinfo", resolve)
    monkeypatch.setattr("appliance.host.egress.anyio.connect_tcp", connect)
    monkeypatch.setattr("appliance.host.egress.FIRST_FAMILY_S", 0.05, raising=False)
    with anyio.fail_after(5):
        assert await dial_public("peer.example", 443) is reached
    assert tried == ["2606:4700::1", "8.8.8.8"]


ENTRIES = {
    "a.example:443": Allowed("a.example", 443),
    "A.example:1": Allowed("a.example", 1),
    "[2001:DB8::1]:443": Allowed("[2001:db8::1]", 443),
    "*.example:443": Allowed("example", 443, domain=True),
    "*:443": Allowed("", 443),
}


@pytest.mark.parametrize(("text", "entry"), ENTRIES.items())
def test_entries_of_the_list(text: str, entry: Allowed) -> None:
    assert parse_allowed(text) == entry


@pytest.mark.parametrize(
    "text", ["", "a.example", ":443", "a.example:0", "a.example:65536", "*", "a.*:1", "*.:1", "a:١"]
)
def test_what_is_no_entry_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="expected host:port"):
        parse_allowed(text)


def test_a_domain_admits_what_is_below_it_only() -> None:
    entry = parse_allowed("*.example:443")
    assert entry.admits("a.b.example", 443)
    assert not entry.admits("example", 443)
    assert not entry.admits("badexample", 443)
    assert not entry.admits("a.example", 444)


def test_the_target_of_a_request() -> None:
    assert parse_connect(b"CONNECT [2001:DB8::1]:8443 HTTP/1.1\r\nHost: x") == ("[2001:db8::1]", 8443)


async def test_the_listener_is_closed_with_the_proxy(wires: UnixWires) -> None:
    listener = wires.listen(PORT)
    async with running(lambda: egress().serve(listener)):
        await anyio.lowlevel.checkpoint()
    assert listener.fileno() == -1
    with pytest.raises(OSError, match="refused"), socket.socket(socket.AF_UNIX) as late:
        late.connect(str(wires._directory / f"parent-{PORT}"))
