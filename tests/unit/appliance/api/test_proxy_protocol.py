"""PROXY headers of version 2: what is sent, what is accepted, and what a server makes of them."""

import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import uvicorn
from anyio.abc import SocketStream
from hypothesis import given
from hypothesis import strategies as st

from appliance.api.http_protocol import MAX_CONNECTIONS_PER_ADDRESS, bounded_http_protocol
from appliance.proxy_protocol import (
    HEAD_BYTES,
    MAX_REST_BYTES,
    SIGNATURE,
    Endpoint,
    ProxyHeader,
    encode_proxy_header,
    parse_proxy_header,
)
from kmscore.errors import Reason, Rejected

HERE = Endpoint("198.51.100.1", 443)
CLIENT = Endpoint("192.0.2.7", 50123)
# Written out from the specification of the protocol, section 2.2.
TCP4 = bytes.fromhex("0d0a0d0a000d0a515549540a2111000cc0000207c6336401c3cb01bb")
TCP6 = bytes.fromhex(
    "0d0a0d0a000d0a515549540a21210024"
    "20010db800000000000000000000000720010db8000000000000000000000001c3cb01bb"
)  # fmt: skip
LOCAL = bytes.fromhex("0d0a0d0a000d0a515549540a20000000")


def header(command: int, family: int, rest: bytes) -> bytes:
    return SIGNATURE + bytes((command, family)) + len(rest).to_bytes(2, "big") + rest


class TestEncoding:
    def test_ipv4(self) -> None:
        assert encode_proxy_header(CLIENT, HERE) == TCP4

    def test_ipv6(self) -> None:
        assert encode_proxy_header(Endpoint("2001:db8::7", 50123), Endpoint("2001:db8::1", 443)) == TCP6

    def test_both_families_are_carried_as_ipv6_and_come_out_as_they_were(self) -> None:
        assert parse_proxy_header(encode_proxy_header(CLIENT, Endpoint("2001:db8::1", 443))) == ProxyHeader(CLIENT, 52)

    def test_ipv4_clients_of_a_listener_for_both_families(self) -> None:
        mapped = Endpoint("::ffff:192.0.2.7", CLIENT.port), Endpoint("::ffff:198.51.100.1", HERE.port)
        assert encode_proxy_header(*mapped) == TCP4

    def test_an_interface_is_left_out(self) -> None:
        parsed = parse_proxy_header(encode_proxy_header(Endpoint("fe80::1%eth0", 1), Endpoint("fe80::2%eth0", 2)))
        assert parsed == ProxyHeader(Endpoint("fe80::1", 1), 52)


ACCEPTED = {
    "TCP over IPv4": (TCP4, CLIENT),
    "TCP over IPv6": (TCP6, Endpoint("2001:db8::7", 50123)),
    "the ingress's own": (LOCAL, None),
    "the ingress's own, with addresses": (header(0x20, 0x11, TCP4[HEAD_BYTES:]), None),
    "with an extension": (header(0x21, 0x11, TCP4[HEAD_BYTES:] + b"\x04\x00\x01x"), CLIENT),
    "as long as it may be": (header(0x21, 0x11, TCP4[HEAD_BYTES:].ljust(MAX_REST_BYTES, b"\0")), CLIENT),
}

REFUSED = {
    "a request": b"GET / HTTP/1.1\r\n",
    "the first version": b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n",
    "a signature with one wrong byte": TCP4[:11] + b"\x0b" + TCP4[12:],
    "another version": header(0x11, 0x11, TCP4[HEAD_BYTES:]),
    "another command": header(0x22, 0x11, TCP4[HEAD_BYTES:]),
    "an unspecified family": header(0x21, 0x00, b""),
    "UDP": header(0x21, 0x12, TCP4[HEAD_BYTES:]),
    "a Unix socket": header(0x21, 0x31, bytes(216)),
    "addresses cut short": header(0x21, 0x11, TCP4[HEAD_BYTES:-1]),
    "addresses of the other family": header(0x21, 0x21, TCP4[HEAD_BYTES:]),
    "one byte too long": header(0x21, 0x11, bytes(MAX_REST_BYTES + 1)),
    "too long, not there yet": SIGNATURE + b"\x21\x11\xff\xff",
}


class TestParsing:
    @pytest.mark.parametrize(("data", "source"), ACCEPTED.values(), ids=ACCEPTED)
    def test_accepted_whole_and_with_a_request_behind_it(self, data: bytes, source: Endpoint | None) -> None:
        assert parse_proxy_header(data) == ProxyHeader(source, len(data))
        assert parse_proxy_header(data + b"GET /") == ProxyHeader(source, len(data))

    @pytest.mark.parametrize("data", [data for data, _ in ACCEPTED.values()], ids=ACCEPTED)
    def test_every_beginning_waits_for_more(self, data: bytes) -> None:
        assert all(parse_proxy_header(data[:length]) is None for length in range(len(data)))

    @pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
    def test_refused(self, data: bytes) -> None:
        with pytest.raises(Rejected) as refusal:
            parse_proxy_header(data)
        assert refusal.value.reason is Reason.MALFORMED

    @given(st.binary(max_size=300))
    def test_no_bytes_are_a_bug(self, rest: bytes) -> None:
        for data in (rest, SIGNATURE + rest):
            try:
                parsed = parse_proxy_header(data)
            except Rejected:
                continue
            assert parsed is None or parsed.size_bytes <= len(data)


async def tell_client(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers with the address that it takes its client for."""
    body = repr(scope["client"]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(path: Path, trusted: str | None = None) -> AsyncIterator[str]:
    """A server on a Unix socket that demands PROXY headers; a network that is `trusted` is its ingress."""
    config = uvicorn.Config(
        tell_client,
        http=bounded_http_protocol(proxy_v2=True, trusted_ingress=[ipaddress.ip_network(trusted)] if trusted else ()),
        ws="none",
        lifespan="off",
        log_config=None,
        proxy_headers=False,
    )
    server = uvicorn.Server(config)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        async with anyio.create_task_group() as group:
            group.start_soon(server.serve, [listener])
            yield str(path)
            server.should_exit = True


REQUEST = b"GET / HTTP/1.1\r\nHost: node\r\n\r\n"


async def answer_of(stream: SocketStream) -> bytes:
    """Everything up to the end of one answer, b"" when the connection is closed without one."""
    received = b""
    with anyio.fail_after(10):
        try:
            while b"\r\n\r\n" not in received or not received.endswith((b")", b"None")):
                received += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return received
    return received


@pytest.mark.anyio
class TestServer:
    @pytest.mark.parametrize(
        ("data", "client"),
        [(TCP4, b"('192.0.2.7', 50123)"), (TCP6, b"('2001:db8::7', 50123)"), (LOCAL, b"None")],
        ids=["IPv4", "IPv6", "the ingress's own"],
    )
    async def test_the_client_is_whom_the_header_names(self, tmp_path: Path, data: bytes, client: bytes) -> None:
        async with serving(tmp_path / "s") as path, await anyio.connect_unix(path) as stream:
            await stream.send(data + REQUEST)
            assert (await answer_of(stream)).endswith(b"\r\n\r\n" + client)
            await stream.send(REQUEST)  # one header per connection, not per request
            assert (await answer_of(stream)).endswith(client)

    async def test_a_header_may_come_byte_by_byte(self, tmp_path: Path) -> None:
        async with serving(tmp_path / "s") as path, await anyio.connect_unix(path) as stream:
            for byte in TCP4 + REQUEST:
                await stream.send(bytes((byte,)))
            assert (await answer_of(stream)).endswith(b"('192.0.2.7', 50123)")

    @pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
    async def test_a_connection_without_a_valid_header_is_closed_without_a_word(
        self, tmp_path: Path, data: bytes
    ) -> None:
        async with serving(tmp_path / "s") as path, await anyio.connect_unix(path) as stream:
            await stream.send(data + REQUEST)
            assert await answer_of(stream) == b""

    @pytest.mark.parametrize(
        ("first", "last", "trusted", "admitted"),
        [
            ("192.0.2.7", "192.0.2.7", None, False),
            ("192.0.2.7", "192.0.2.8", None, True),
            ("2001:db8::1", "2001:db8::2", None, False),
            ("2001:db8::1", "2001:db8:0:1::1", None, True),
            ("10.1.2.3", "10.1.2.3", None, False),
            ("10.1.2.3", "10.1.2.3", "10.0.0.0/8", True),
            ("127.0.0.1", "127.0.0.1", None, True),
            ("::1", "::1", None, True),
        ],
        ids=[
            "one address", "another address", "another of the same /64", "another /64",
            "a stranger's balancer", "a trusted balancer", "this machine", "this machine over IPv6",
        ],
    )  # fmt: skip
    async def test_connections_are_counted_by_the_client_in_the_header(
        self, tmp_path: Path, first: str, last: str, trusted: str | None, admitted: bool
    ) -> None:
        async with serving(tmp_path / "s", trusted) as path:
            streams = [await anyio.connect_unix(path) for _ in range(MAX_CONNECTIONS_PER_ADDRESS + 1)]
            for stream in streams[:-1]:
                await stream.send(encode_proxy_header(Endpoint(first, 1), HERE))
            # Answered only once the server has read the headers before it.
            await streams[-2].send(REQUEST)
            assert await answer_of(streams[-2])
            await streams[-1].send(encode_proxy_header(Endpoint(last, 1), HERE) + REQUEST)
            assert bool(await answer_of(streams[-1])) is admitted
            for stream in streams:
                await stream.aclose()
