"""The way out of an enclave that has no network: HTTP CONNECT to a proxy of the parent over vsock, or of the platform
on loopback, for the hosts of an allow-list that is enforced in here.

The parent carries the bytes and has a list of its own, which an enclave cannot rely on. Names are resolved by the
parent, too; that a host is who it claims to be is for TLS to show, which ends in here. Loopback is not outside.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import anyio
import httpcore
import httpx
from anyio.abc import SocketStream
from httpcore._backends.anyio import AnyIOStream  # what `httpcore.AnyIOBackend` returns; it has no public name

from appliance.urls import parse_host, url_origin
from appliance.variables import ProxyAddress, VsockPeer
from kmscore.errors import Rejected

MAX_ANSWER_BYTES: Final = 4096
_ESTABLISHED: Final = (b"HTTP/1.1 200 ", b"HTTP/1.0 200 ")
_PIECE_BYTES: Final = 1024

Connect = Callable[[], Awaitable[socket.socket]]  # a connected, non-blocking socket to the parent's proxy
Admits = Callable[[str, int], bool]  # host as `parse_host` returns it, port


def connect_to(proxy: ProxyAddress) -> Connect:
    """Connections to the proxy. Needs asyncio's own event loop: uvloop knows no vsock."""
    family, where = (
        (socket.AF_VSOCK, (proxy.cid, proxy.port))
        if isinstance(proxy, VsockPeer)
        else (socket.AF_INET, (proxy.host, proxy.port))
    )

    async def connect() -> socket.socket:
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, where)
        except BaseException:
            connection.close()
            raise
        return connection

    return connect


def admits_origins(urls: Callable[[], Iterable[str]]) -> Admits:
    """An allow-list: host and port of the URLs, parsed ones, as they are at the time of each connection."""
    return lambda host, port: any(url_origin(url)[1:] == (host, port) for url in urls())


class Tunnels:
    """Opens connections to hosts that `admits` accepts."""

    def __init__(self, connect: Connect, admits: Admits) -> None:
        self._connect = connect
        self._admits = admits

    async def open(self, host: str, port: int) -> socket.socket:
        """A connected, non-blocking socket to a host, IPv6 with or without brackets; the deadline is the caller's.

        Raises `PermissionError` for a host that is not on the list, another `OSError` when the proxy cannot be reached,
        refuses, or answers something else than a proxy does.
        """
        try:
            name = parse_host(f"[{host}]" if ":" in host and not host.startswith("[") else host)
        except Rejected as error:
            raise PermissionError("the host is no name or address") from error
        if not self._admits(name, port):
            raise PermissionError("the host is not on the enclave's allow-list")
        connection = await self._connect()
        try:
            await _ask(connection, f"{name}:{port}".encode())
        except BaseException:
            connection.close()
            raise
        return connection


class TunnelBackend(httpcore.AsyncNetworkBackend):
    """httpcore's connections through tunnels; those to loopback directly."""

    def __init__(self, tunnels: Tunnels) -> None:
        self._tunnels = tunnels
        self._direct = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        if is_loopback(host):
            return await self._direct.connect_tcp(host, port, timeout, local_address, socket_options)
        try:
            with anyio.fail_after(timeout):
                connection = await self._tunnels.open(host, port)
                try:
                    return AnyIOStream(await SocketStream.from_socket(connection))
                except BaseException:
                    connection.close()
                    raise
        except TimeoutError as error:
            raise httpcore.ConnectTimeout("the way out did not open in time") from error
        except (OSError, ValueError) as error:
            raise httpcore.ConnectError("the way out is closed") from error

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


class TunnelTransport(httpx.AsyncHTTPTransport):
    """httpx over tunnels; `ssl_context` None means the usual authorities."""

    def __init__(self, tunnels: Tunnels, limits: httpx.Limits, ssl_context: ssl.SSLContext | None = None) -> None:
        super().__init__(trust_env=False)
        # httpx lets nobody choose the backend; its transport only talks to its pool.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context or httpx.create_ssl_context(trust_env=False),
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=TunnelBackend(tunnels),
        )


def is_loopback(host: str) -> bool:
    """Whether a host, IPv6 without brackets, never leaves this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _ask(connection: socket.socket, target: bytes) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, b"CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (target, target))
    answer = b""
    while b"\r\n\r\n" not in answer:
        piece = await loop.sock_recv(connection, _PIECE_BYTES)
        answer += piece
        if not piece or len(answer) > MAX_ANSWER_BYTES:
            raise ConnectionResetError("the parent's proxy does not answer like one")
    if not answer.startswith(_ESTABLISHED):
        raise ConnectionRefusedError("the parent's proxy refuses the host")
    if not answer.endswith(b"\r\n\r\n") or answer.count(b"\r\n\r\n") > 1:
        # Nobody speaks before we do, with TLS or with HTTP.
        raise ConnectionResetError("the parent's proxy says more than its answer")
