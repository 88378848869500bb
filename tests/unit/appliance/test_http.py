"""What leaves this process: a body that is not kept once it is sent."""

from collections.abc import AsyncIterator

import anyio
import pytest

from appliance.http import SentOnce, new_http_client

pytestmark = pytest.mark.anyio

BODY = b"plaintext" * 10_000
HEAD_END = b"\r\n\r\n"


@pytest.fixture
async def requests() -> AsyncIterator[list[bytes]]:
    """What a server got; it answers each connection once and hears of lengths only, not of chunks."""
    heard: list[bytes] = []

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            data = b""
            while HEAD_END not in data or len(data.partition(HEAD_END)[2]) < len(BODY):
                data += await stream.receive()
            heard.append(data)
            await stream.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - not Django's
        heard.append(str(port).encode())
        yield heard
        group.cancel_scope.cancel()


async def test_a_body_is_sent_with_its_length_and_not_kept(requests: list[bytes]) -> None:
    url = f"http://127.0.0.1:{int(requests.pop())}/"
    content = SentOnce(bytes(BODY))
    async with new_http_client() as client:
        async with client.stream("POST", url, content=content, headers=content.headers) as response:
            assert await response.aread() == b"{}"
        head, _, sent = requests[0].partition(HEAD_END)
        assert sent == BODY
        assert b"\r\ncontent-length: %d" % len(BODY) in head.lower()
        assert b"transfer-encoding" not in head.lower()
        assert [piece async for piece in content] == []
