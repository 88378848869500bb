"""Connections of the parent: accepted within a bound, relayed with half close and an idle limit.

`Wires` is the port through which the enclave is reached. `Vsock` is the real one; tests put Unix sockets behind it.
"""

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import anyio
from anyio.abc import SocketStream

from kmscore.errors import ConfigError

logger = logging.getLogger(__name__)

PIECE_BYTES: Final = 64 * 1024
BACKLOG: Final = 128
# Descriptors are back soon; trying again at once would keep a processor busy for nothing.
_PAUSE_S: Final = 0.1
_TRANSIENT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED})

# Whatever a connection ends with besides its proper end.
STREAM_FAILURES = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)

Handler = Callable[[SocketStream], Awaitable[None]]


class Wires(Protocol):
    """What connects parent and enclave."""

    def listen(self, port: int) -> socket.socket:
        """A listening socket for connections of the enclave to a port of the parent. Raises `ConfigError`."""

    async def connect(self, cid: int, port: int) -> SocketStream:
        """A connection to a port of an enclave. Raises `OSError`; the deadline is the caller's."""


class Vsock:
    """Wires over AF_VSOCK."""

    def listen(self, port: int) -> socket.socket:
        try:
            listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        except OSError as error:
            raise ConfigError("this machine has no vsock") from error
        return _listening(listener, (socket.VMADDR_CID_ANY, port), f"vsock port {port}")

    async def connect(self, cid: int, port: int) -> SocketStream:
        connection = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, (cid, port))
        except BaseException:
            connection.close()
            raise
        return await SocketStream.from_socket(connection)


def listen_tcp(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises `ConfigError`."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"{host} is no address to listen on") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return _listening(listener, where, f"{host}:{port}")


async def serve_connections(listener: socket.socket, handle: Handler, *, limit: int) -> None:
    """Accept for ever and handle each connection in a task of its own; the listener is closed at the end.

    Beyond `limit` at once a connection is closed as soon as it is accepted. `handle` must let no failure of a
    connection escape; the stream is closed for it.
    """
    loop = asyncio.get_running_loop()
    listener.setblocking(False)
    open_now = 0

    async def run(connection: socket.socket) -> None:
        nonlocal open_now
        try:
            stream = await SocketStream.from_socket(connection)
            async with stream:
                await handle(stream)
        except ValueError:  # the other side reset it while it waited: there is nobody to serve
            connection.close()
        finally:
            open_now -= 1

    with listener:
        async with anyio.create_task_group() as group:
            while True:
                try:
                    # anyio's own listener sets TCP options, which a vsock connection does not have.
                    connection, _ = await loop.sock_accept(listener)
                except OSError as error:
                    if error.errno not in _TRANSIENT:
                        raise
                    await anyio.sleep(_PAUSE_S)
                    continue
                if open_now >= limit:
                    logger.warning("connection refused: too many", extra={"limit": limit})
                    connection.close()
                    continue
                open_now += 1
                group.start_soon(run, connection)


async def relay(one: SocketStream, other: SocketStream, *, idle_s: float) -> None:
    """Carry bytes both ways until both ends are done, either fails, or nothing moved for `idle_s` in either direction.

    The end of one direction is passed on while the other still flows.
    """

    async def carry(source: SocketStream, sink: SocketStream) -> None:
        try:
            async for piece in source:
                scope.deadline = anyio.current_time() + idle_s
                await sink.send(piece)
                scope.deadline = anyio.current_time() + idle_s
            await sink.send_eof()
        except STREAM_FAILURES:
            scope.cancel()

    with anyio.CancelScope(deadline=anyio.current_time() + idle_s) as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(carry, one, other)
            group.start_soon(carry, other, one)


def _listening(listener: socket.socket, where: object, name: str) -> socket.socket:
    try:
        listener.bind(where)  # type: ignore[arg-type]
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"{name} cannot be bound: {os.strerror(error.errno or 0)}") from error
    return listener
