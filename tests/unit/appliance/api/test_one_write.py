"""A connection's writes of one turn of the event loop go out together, and nothing of them is lost or reordered."""

import asyncio
import socket

import pytest

from appliance.api.http_protocol import OneWrite

pytestmark = pytest.mark.anyio


class CountingProtocol(asyncio.Protocol):
    """The other end: what came, and in how many pieces when each is read before the next is sent."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.ended.set()


@pytest.fixture
async def ends() -> tuple[OneWrite, CountingProtocol]:
    loop = asyncio.get_running_loop()
    here, there = socket.socketpair()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=here)
    _, protocol = await loop.create_connection(CountingProtocol, sock=there)
    return OneWrite(transport, loop), protocol


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_is_written_in_one_turn_is_one_piece(ends: tuple[OneWrite, CountingProtocol]) -> None:
    transport, other = ends
    transport.write(b"head ")
    transport.write(b"body")
    assert other.pieces == []
    await turns()
    transport.write(b"next")
    await turns()
    assert other.pieces == [b"head body", b"next"]
    transport.close()


async def test_closing_sends_first_what_was_written(ends: tuple[OneWrite, CountingProtocol]) -> None:
    transport, other = ends
    transport.write(b"last ")
    transport.write(b"words")
    assert not transport.is_closing()
    transport.close()
    assert transport.is_closing()
    await other.ended.wait()
    assert b"".join(other.pieces) == b"last words"


async def test_nothing_is_written_to_a_connection_that_is_gone(ends: tuple[OneWrite, CountingProtocol]) -> None:
    transport, other = ends
    transport.close()
    transport.write(b"too late")
    await other.ended.wait()
    await turns()
    assert other.pieces == []
