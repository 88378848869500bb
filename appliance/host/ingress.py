"""Clients' connections into the enclave: TCP in front, vsock behind, the client's address ahead of the first byte.

Nothing is read of what passes: the node speaks HTTP itself, and limits by the address that the PROXY header names.
"""

import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
from anyio.abc import SocketAttribute, SocketStream

from appliance.host.streams import STREAM_FAILURES, relay, serve_connections
from appliance.proxy_protocol import Endpoint, encode_proxy_header

logger = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 2048
CONNECT_TIMEOUT_S: Final = 5.0
# Longer than any request may take and than the node keeps an idle connection.
IDLE_S: Final = 120.0
# A node that has closed its side answers nothing more. Its client gets time to take the answer, not to keep its place.
LINGER_S: Final = 5.0

Connect = Callable[[], Awaitable[SocketStream]]


class Ingress:
    """Forwards connections of a TCP listener to what `connect` opens, which is the node's port."""

    def __init__(
        self,
        connect: Connect,
        *,
        max_connections: int = MAX_CONNECTIONS,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        idle_s: float = IDLE_S,
        linger_s: float = LINGER_S,
    ) -> None:
        self._connect = connect
        self._max_connections = max_connections
        self._connect_timeout_s = connect_timeout_s
        self._idle_s = idle_s
        self._linger_s = linger_s

    async def serve(self, listener: socket.socket) -> None:
        """Until cancelled; the listener is closed then."""
        await serve_connections(listener, self._forward, limit=self._max_connections)

    async def _forward(self, client: SocketStream) -> None:
        try:
            header = _header_of(client)
        except (OSError, anyio.TypedAttributeLookupError):
            return  # gone again before it was looked at
        try:
            with anyio.fail_after(self._connect_timeout_s):
                enclave = await self._connect()
        except (*STREAM_FAILURES, TimeoutError) as error:
            logger.warning("the enclave does not take a connection", extra={"kind": type(error).__name__})
            return
        async with enclave:
            try:
                with anyio.fail_after(self._connect_timeout_s):
                    await enclave.send(header)
            except (*STREAM_FAILURES, TimeoutError) as error:
                logger.warning("the enclave does not take a connection", extra={"kind": type(error).__name__})
                return
            await relay(client, enclave, idle_s=self._idle_s, linger_s=self._linger_s)


def _header_of(client: SocketStream) -> bytes:
    return encode_proxy_header(
        _endpoint(client.extra(SocketAttribute.remote_address)),  # noqa: S610 - anyio's, no database's
        _endpoint(client.extra(SocketAttribute.local_address)),  # noqa: S610
    )


def _endpoint(address: object) -> Endpoint:
    if not isinstance(address, tuple):
        raise OSError("the connection has no internet address")
    return Endpoint(str(address[0]), int(address[1]))
