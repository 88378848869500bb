"""What the server hands to the application, over real connections: bodies that came whole, bounds of what follows."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from appliance.api.bodies import BODY_ROOM, CLIENT_GONE, WHOLE_BODY
from appliance.api.http_protocol import BODY_PIECE_BYTES, MAX_HEAD_BYTES
from appliance.main import uvicorn_config
from appliance.variables import TrustedIngress

pytestmark = pytest.mark.anyio

POST = b"POST / HTTP/1.1\r\nhost: x\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"


class Recorder:
    """Answers every request with how its body came; keeps the scopes."""

    def __init__(self) -> None:
        self.room: int | None = None
        self.scopes: list[Scope] = []
        self.pieces: list[int] = []
        self.answered = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        whole = scope.get(WHOLE_BODY)
        how, body = "whole", whole
        if whole is None:
            how, body, more = "received", b"", True
            while more:
                if self.room is not None:
                    scope[BODY_ROOM] = self.room - len(body)
                message = await receive()
                if self.room is not None and len(body) + len(message["body"]) > self.room:
                    how, message = "too much after", {}
                self.pieces.append(len(message.get("body", b"")))
                body += message.get("body", b"")
                more = message.get("more_body", False)
        answer = f"{how} {body.decode()}".encode()
        headers = [(b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})
        self.answered.set()


class Connection:
    """A client that sends bytes as they are."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0.05)  # so that each is read for itself

    async def answer(self) -> tuple[bytes, bytes]:
        """Status line and body of the next answer."""
        head = await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 10)
        lines = head.lower().split(b"\r\n")
        size = next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length"))
        return lines[0], b"" if b" 100 " in lines[0] else await self._reader.readexactly(size)

    async def body(self) -> str:
        return (await self.answer())[1].decode()

    async def line(self) -> bytes:
        return await asyncio.wait_for(self._reader.readline(), 10)


@pytest.fixture
def app() -> Recorder:
    return Recorder()


@pytest.fixture
async def connection(app: Recorder) -> AsyncIterator[Connection]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    server = uvicorn.Server(uvicorn_config(app, TrustedIngress()))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    made = Connection(*await asyncio.open_connection(*listener.getsockname()))
    yield made
    made.writer.transport.abort()
    server.should_exit = True
    await serving


async def test_a_body_that_came_with_its_head_is_whole(connection: Connection) -> None:
    await connection.send(POST + b"content-length: 3\r\n\r\nabc")
    assert await connection.body() == "whole abc"
    await connection.send(CHUNKED + b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n")
    assert await connection.body() == "whole abc"


async def test_a_body_that_comes_later_is_received(connection: Connection) -> None:
    await connection.send(POST + b"content-length: 6\r\n\r\n", b"abc", b"def")
    assert await connection.body() == "received abcdef"
    await connection.send(POST + b"content-length: 6\r\n\r\nabc", b"def")
    assert await connection.body() == "received abcdef"
    await connection.send(CHUNKED + b"1\r\na\r\n", b"2\r\nbc\r\n0\r\n\r\n")
    assert await connection.body() == "received abc"


async def test_a_long_body_comes_in_large_pieces(connection: Connection, app: Recorder) -> None:
    size = app.room = 3 * BODY_PIECE_BYTES
    sending = asyncio.create_task(connection.send(POST + b"content-length: %d\r\n\r\n" % size, b"a" * size))
    assert await connection.body() == "received " + "a" * size
    await sending
    assert len(app.pieces) <= 5
    assert max(app.pieces) < 2 * BODY_PIECE_BYTES


@pytest.mark.parametrize("pieces", [[b"abcdef"], [b"abc", b"def"]], ids=["at once", "later"])
async def test_a_handler_is_woken_by_more_than_it_takes(
    connection: Connection, app: Recorder, pieces: list[bytes]
) -> None:
    app.room = 5
    await connection.send(POST + b"content-length: 1000000\r\n\r\n", *pieces)
    assert (await connection.body()).startswith("too much after")


async def test_a_handler_can_see_that_its_client_has_gone(connection: Connection, app: Recorder) -> None:
    await connection.send(POST + b"content-length: 6\r\n\r\nabc")
    assert CLIENT_GONE not in app.scopes[0]
    connection.writer.transport.abort()
    await asyncio.wait_for(app.answered.wait(), 10)
    assert CLIENT_GONE in app.scopes[0]


async def test_requests_in_one_piece_keep_their_bodies(connection: Connection) -> None:
    await connection.send(b"".join(POST + b"content-length: 1\r\n\r\n%d" % number for number in range(5)))
    assert [await connection.body() for _ in range(5)] == [f"whole {number}" for number in range(5)]


async def test_a_client_that_waits_for_leave_gets_it(connection: Connection) -> None:
    await connection.send(POST + b"content-length: 3\r\nexpect: 100-continue\r\n\r\n")
    assert b" 100 " in await connection.line()
    assert await connection.line() == b"\r\n"
    await connection.send(b"abc")
    assert await connection.body() == "received abc"


async def test_a_request_of_http_1_0_is_answered(connection: Connection) -> None:
    await connection.send(b"POST / HTTP/1.0\r\ncontent-length: 3\r\n\r\nabc")
    assert await connection.body() == "whole abc"


async def test_nothing_of_a_body_stays_once_it_is_answered(connection: Connection, app: Recorder) -> None:
    await connection.send(POST + b"content-length: 3\r\n\r\nabc")
    await connection.answer()
    assert WHOLE_BODY not in app.scopes[0]


async def test_what_comes_behind_a_body_is_no_header(connection: Connection, app: Recorder) -> None:
    trailer = b"0\r\nx-app-nonce: late\r\n\r\n"
    for pieces in ([CHUNKED + b"1\r\na\r\n" + trailer], [CHUNKED, b"1\r\na\r\n", trailer]):
        await connection.send(*pieces)
        await connection.answer()
        assert (b"x-app-nonce", b"late") not in app.scopes[-1]["headers"]


@pytest.mark.parametrize("line", [b"a: b\r\n", b"a"], ids=["many lines", "one line"])
async def test_what_comes_behind_a_body_is_bounded(connection: Connection, line: bytes) -> None:
    await connection.send(CHUNKED + b"1\r\na\r\n", b"0\r\n")
    answer = asyncio.create_task(connection.answer())
    sent = 0
    while sent < 4 * MAX_HEAD_BYTES and not answer.done():
        connection.writer.write(line * (4096 // len(line)))
        sent += 4096
        await asyncio.sleep(0.002)
    assert b" 400 " in (await answer)[0]
    assert sent < 4 * MAX_HEAD_BYTES
