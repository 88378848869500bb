"""The wires between parent and enclave over Unix sockets, and what tests put at their ends."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio.abc import SocketStream


class UnixWires:
    """`Wires` as sockets in a directory: `parent-<port>` for the parent's ports, `<cid>-<port>` for an enclave's."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def listen(self, port: int) -> socket.socket:
        return self._bound(f"parent-{port}")

    async def connect(self, cid: int, port: int) -> SocketStream:
        return await anyio.connect_unix(self._directory / f"{cid}-{port}")

    def listen_in_enclave(self, cid: int, port: int) -> socket.socket:
        """Where the enclave's own server listens."""
        return self._bound(f"{cid}-{port}")

    async def connect_from_enclave(self, port: int) -> SocketStream:
        """What the enclave does to reach a port of the parent."""
        return await anyio.connect_unix(self._directory / f"parent-{port}")

    def _bound(self, name: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self._directory / name))
        listener.listen()
        listener.setblocking(False)
        return listener


@asynccontextmanager
async def running(work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Something that runs until the block ends."""
    async with anyio.create_task_group() as group:
        group.start_soon(work)
        yield
        group.cancel_scope.cancel()


async def received(stream: SocketStream, timeout_s: float = 10.0) -> bytes:
    """Everything until the other side is done or gone."""
    data = b""
    with anyio.fail_after(timeout_s):
        try:
            while True:
                data += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return data
