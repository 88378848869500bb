"""Clients' connections into the enclave."""

import functools
import socket

import anyio
import pytest
from anyio.abc import SocketStream

from appliance.host.ingress import Ingress
from appliance.host.streams import listen_tcp, serve_connections
from appliance.proxy_protocol import Endpoint, encode_proxy_header
from tests.support.unix_wires import UnixWires, received, running

pytestmark = pytest.mark.anyio

CID = 16
PORT = 8000


async def echo(stream: SocketStream) -> None:
    """What came, PROXY header and all, once the client is done."""
    await stream.send(await received(stream))


def enclave(wires: UnixWires) -> functools.partial:  # type: ignore[type-arg]
    return functools.partial(wires.connect, CID, PORT)


async def client_of(listener: socket.socket) -> SocketStream:
    return await anyio.connect_tcp(*listener.getsockname()[:2])


def header_of(client: SocketStream) -> bytes:
    raw = client.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610 - anyio's, no database's
    return encode_proxy_header(Endpoint(*raw.getsockname()), Endpoint(*raw.getpeername()))


async def test_the_client_is_named_before_its_first_byte_and_half_close_is_passed_on(wires: UnixWires) -> None:
    listener = listen_tcp("127.0.0.1", 0)
    in_enclave = wires.listen_in_enclave(CID, PORT)
    async with (
        running(lambda: serve_connections(in_enclave, echo, limit=8)),
        running(lambda: Ingress(enclave(wires)).serve(listener)),
        await client_of(listener) as client,
    ):
        header = header_of(client)
        await client.send(b"x" * 300_000)
        await client.send_eof()
        assert await received(client) == header + b"x" * 300_000


async def test_an_enclave_that_does_not_listen_costs_the_client_its_connection_only(wires: UnixWires) -> None:
    listener = listen_tcp("127.0.0.1", 0)
    async with running(lambda: Ingress(enclave(wires)).serve(listener)):
        async with await client_of(listener) as client:
            assert await received(client) == b""
        in_enclave = wires.listen_in_enclave(CID, PORT)
        async with running(lambda: serve_connections(in_enclave, echo, limit=8)), await client_of(listener) as client:
            header = header_of(client)
            await client.send_eof()
            assert await received(client) == header


async def test_an_enclave_that_does_not_answer_is_given_up() -> None:
    listener = listen_tcp("127.0.0.1", 0)

    async def never() -> SocketStream:
        await anyio.sleep_forever()
        raise AssertionError

    async with (
        running(lambda: Ingress(never, connect_timeout_s=0.05).serve(listener)),
        await client_of(listener) as client,
    ):
        assert await received(client) == b""


async def test_connections_beyond_the_limit_are_closed_and_places_come_back(wires: UnixWires) -> None:
    listener = listen_tcp("127.0.0.1", 0)
    in_enclave = wires.listen_in_enclave(CID, PORT)
    async with (
        running(lambda: serve_connections(in_enclave, echo, limit=8)),
        running(lambda: Ingress(enclave(wires), max_connections=1).serve(listener)),
    ):
        async with await client_of(listener) as first:
            async with await client_of(listener) as second:
                assert await received(second) == b""
            await first.send_eof()
            assert await received(first)
        with anyio.fail_after(10):
            while True:
                async with await client_of(listener) as third:
                    await third.send_eof()
                    if await received(third):
                        break


async def test_a_connection_on_which_nothing_moves_is_closed(wires: UnixWires) -> None:
    listener = listen_tcp("127.0.0.1", 0)
    in_enclave = wires.listen_in_enclave(CID, PORT)
    async with (
        running(lambda: serve_connections(in_enclave, echo, limit=8)),
        running(lambda: Ingress(enclave(wires), idle_s=0.1).serve(listener)),
        await client_of(listener) as client,
    ):
        await client.send(b"half a request")
        assert await received(client) == b""


async def test_the_end_of_the_enclave_s_side_ends_the_client_s(wires: UnixWires) -> None:
    listener = listen_tcp("127.0.0.1", 0)
    in_enclave = wires.listen_in_enclave(CID, PORT)

    async def answer_and_close(stream: SocketStream) -> None:
        await stream.receive()
        await stream.send(b"answer")

    async with (
        running(lambda: serve_connections(in_enclave, answer_and_close, limit=8)),
        running(lambda: Ingress(enclave(wires)).serve(listener)),
        await client_of(listener) as client,
    ):
        assert await received(client) == b"answer"


async def test_a_client_that_stays_when_the_enclave_is_done_keeps_its_place_for_a_moment_only(wires: UnixWires) -> None:
    listener = listen_tcp("127.0.0.1", 0)
    in_enclave = wires.listen_in_enclave(CID, PORT)

    async def answer_and_close(stream: SocketStream) -> None:
        await stream.receive()
        await stream.send(b"answer")

    async with (
        running(lambda: serve_connections(in_enclave, answer_and_close, limit=8)),
        running(lambda: Ingress(enclave(wires), max_connections=1, linger_s=0.05).serve(listener)),
        await client_of(listener) as stays,
    ):
        assert await received(stays) == b"answer"
        with anyio.fail_after(10):
            while True:
                async with await client_of(listener) as other:
                    if await received(other):
                        break
