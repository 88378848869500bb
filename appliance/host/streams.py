"""Connections of the parent: accepted within a bound, relayed with half close and an idle limit.

`Wires` is the port through which the enclave is reached. `Vsock` is the real one; tests put Unix sockets behind it.
"""

import asyncio
import errno
import logging
import math
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
# These say that the listener itself is of no use. All else is trouble of this machine or of the one connection that was
# to be accepted, whose network's errors accept(2) reports too, and will pass.
_LISTENER_GONE: Final = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK})

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
        try:
            return await SocketStream.from_socket(connection)
        except ValueError as error:  # reset as soon as it was there
            connection.close()
            raise ConnectionResetError("the enclave ended the connection at once") from error


def listen_tcp(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises `ConfigError`."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"{host} is no address to listen on") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return _listening(listener, where, f"{host}:{port}")


async def accept(listener: socket.socket) -> socket.socket:
    """The next connection of a non-blocking listener, however long it takes. Raises `OSError` when there is none any
    more.
    """
    while True:
        try:
            # anyio's own listener sets TCP options, which a vsock connection does not have.
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
        except OSError as error:
            if error.errno in _LISTENER_GONE:
                raise
            await anyio.sleep(_PAUSE_S)
        else:
            return connection


async def serve_connections(listener: socket.socket, handle: Handler, *, limit: int) -> None:
    """Accept for ever and handle each connection in a task of its own; the listener is closed at the end.

    Beyond `limit` at once a connection is closed as soon as it is accepted. `handle` must let no failure of a
    connection escape; the stream is closed for it.
    """
    listener.setblocking(False)
    open_now = 0

    async def run(connection: socket.socket) -> None:
        nonlocal open_now
        try:
            try:
                stream = await SocketStream.from_socket(connection)
            except ValueError:  # the other side reset it while it waited: there is nobody to serve
                connection.close()
                return
            async with stream:
                await handle(stream)
        finally:
            open_now -= 1

    with listener:
        async with anyio.create_task_group() as group:
            while True:
                connection = await accept(listener)
                if open_now >= limit:
                    logger.warning("connection refused: too many", extra={"limit": limit})
                    connection.close()
                    continue
                open_now += 1
                group.start_soon(run, connection)


async def relay(one: SocketStream, other: SocketStream, *, idle_s: float, linger_s: float = math.inf) -> None:
    """Carry bytes both ways until both ends are done, either fails, or nothing moved for `idle_s` in either direction.

    The end of one direction is passed on while the other still flows: once `other` is done, for at most `linger_s`.
    """
    last_moment = math.inf

    def postpone() -> None:
        scope.deadline = min(anyio.current_time() + idle_s, last_moment)

    async def carry(source: SocketStream, sink: SocketStream) -> None:
        nonlocal last_moment
        try:
            async for piece in source:
                postpone()
                await sink.send(piece)
                postpone()
            await sink.send_eof()
        except STREAM_FAILURES:
            scope.cancel()
        if source is other:
            last_moment = anyio.current_time() + linger_s
            postpone()

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
