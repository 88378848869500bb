"""The enclave's way out: HTTP CONNECT over vsock to the hosts of an allow-list, nothing else.

TLS ends in the enclave, which has a list of its own; this one protects the parent's network from an enclave. A host
that only a pattern admits must have a public address: a name is no way to the parent's own or its neighbours' services.
"""

import contextlib
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import anyio
from anyio.abc import SocketStream

from appliance.host.streams import PIECE_BYTES, STREAM_FAILURES, relay, serve_connections
from appliance.urls import parse_host
from kmscore.errors import ConfigError, Reason, Rejected

logger = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 512
MAX_HEAD_BYTES: Final = 8192
HEAD_TIMEOUT_S: Final = 10.0
CONNECT_TIMEOUT_S: Final = 10.0
# A family that leads nowhere must leave the other one its time: the enclave waits five seconds for a tunnel.
FIRST_FAMILY_S: Final = 2.0
IDLE_S: Final = 300.0

# Addresses of IPv6 that lead to one of IPv4: through a translator that the network may have (RFC 6052), or by
# tunnels that nobody offers any more and that are therefore no way to a public host.
_TRANSLATED: Final = ipaddress.IPv6Network("64:ff9b::/96")
_TUNNELLED: Final = tuple(ipaddress.IPv6Network(text) for text in ("::/96", "2001::/32", "2002::/16"))

ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
_END: Final = b"\r\n\r\n"
_REASONS: Final = {
    400: "Bad Request",
    403: "Forbidden",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    502: "Bad Gateway",
    504: "Gateway Timeout",
}

Dial = Callable[[str, int], Awaitable[SocketStream]]


class Refused(Exception):
    """The tunnel is not made; `status` is the HTTP status that says why."""

    def __init__(self, status: int) -> None:
        super().__init__(_REASONS[status])
        self.status = status


@dataclass(frozen=True, slots=True)
class Allowed:
    """One entry of the list: exactly a host, every name below a domain (`domain`), or any host (`host` empty)."""

    host: str
    port: int
    domain: bool = False

    def admits(self, host: str, port: int) -> bool:
        if port != self.port:
            return False
        if self.domain:
            return host.endswith("." + self.host)
        return self.host in ("", host)

    @property
    def is_pattern(self) -> bool:
        return self.domain or not self.host


def parse_allowed(text: str) -> Allowed:
    """`host:port`, `*.domain:port` or `*:port`. Raises `ConfigError`."""
    host, _, port = text.rpartition(":")
    try:
        number = _parse_port(port)
        if host == "*":
            return Allowed("", number)
        if host.startswith("*."):
            return Allowed(parse_host(host[2:]), number, domain=True)
        return Allowed(parse_host(host), number)
    except Rejected as error:
        raise ConfigError(f"{text[:80]!r} is not accepted: expected host:port, *.domain:port or *:port") from error


def parse_connect(head: bytes) -> tuple[str, int]:
    """Host and port of a CONNECT request's head, without its last empty line. Raises `Refused` with 400 or 405."""
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if len(words) != 3 or words[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise Refused(400)
    if words[0] != b"CONNECT":
        raise Refused(405)
    host, _, port = words[1].decode("latin-1").rpartition(":")
    try:
        return parse_host(host), _parse_port(port)
    except Rejected:
        raise Refused(400) from None


async def dial_anywhere(host: str, port: int) -> SocketStream:
    """A TCP connection, for hosts that the list names."""
    return await anyio.connect_tcp(host.strip("[]"), port)


async def dial_public(host: str, port: int) -> SocketStream:
    """A TCP connection to a public address of a host, the first of each family in turn.

    Raises `Refused(403)` when it has none.
    """
    found = await anyio.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    public: dict[int, str] = {}
    for family, _, _, _, where in found:
        if _is_public(where[0]):
            public.setdefault(family, where[0])
    if not public:
        raise Refused(403)
    *others, last = public.values()
    for address in others:
        with contextlib.suppress(OSError), anyio.move_on_after(FIRST_FAMILY_S):
            return await anyio.connect_tcp(address, port)
    return await anyio.connect_tcp(last, port)


class Egress:
    """A CONNECT proxy for the enclave. `dial` and `dial_pattern` make the connections; tests give their own."""

    def __init__(
        self,
        allowed: Sequence[Allowed],
        *,
        dial: Dial = dial_anywhere,
        dial_pattern: Dial = dial_public,
        max_connections: int = MAX_CONNECTIONS,
        head_timeout_s: float = HEAD_TIMEOUT_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        idle_s: float = IDLE_S,
    ) -> None:
        self._allowed = tuple(allowed)
        self._dial = dial
        self._dial_pattern = dial_pattern
        self._max_connections = max_connections
        self._head_timeout_s = head_timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._idle_s = idle_s

    async def serve(self, listener: socket.socket) -> None:
        """Until cancelled; the listener is closed then."""
        await serve_connections(listener, self._tunnel, limit=self._max_connections)

    async def _tunnel(self, enclave: SocketStream) -> None:
        try:
            try:
                host, port, early = await self._request(enclave)
                outside = await self._open(host, port)
            except Refused as refusal:
                logger.warning("egress refused", extra={"status": refusal.status})
                with anyio.fail_after(self._head_timeout_s):
                    await enclave.send(_refusal(refusal.status))
                return
            async with outside:
                with anyio.fail_after(self._head_timeout_s):
                    await enclave.send(ESTABLISHED)
                    if early:
                        await outside.send(early)
                await relay(enclave, outside, idle_s=self._idle_s)
        except (*STREAM_FAILURES, TimeoutError) as error:
            logger.info("a tunnel ended early", extra={"kind": type(error).__name__})

    async def _request(self, enclave: SocketStream) -> tuple[str, int, bytes]:
        head = b""
        try:
            with anyio.fail_after(self._head_timeout_s):
                while _END not in head and len(head) <= MAX_HEAD_BYTES:
                    head += await enclave.receive(PIECE_BYTES)
        except TimeoutError:
            raise Refused(408) from None
        head, _, early = head.partition(_END)
        if len(head) > MAX_HEAD_BYTES:
            raise Refused(431)
        return *parse_connect(head), early

    async def _open(self, host: str, port: int) -> SocketStream:
        entries = [entry for entry in self._allowed if entry.admits(host, port)]
        if not entries:
            raise Refused(403)
        dial = self._dial_pattern if all(entry.is_pattern for entry in entries) else self._dial
        try:
            with anyio.fail_after(self._connect_timeout_s):
                return await dial(host, port)
        except TimeoutError:
            raise Refused(504) from None
        except OSError:
            raise Refused(502) from None


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if any(address in network for network in _TUNNELLED):
            return False
        translated = ipaddress.IPv4Address(address.packed[-4:]) if address in _TRANSLATED else None
        address = address.ipv4_mapped or translated or address
    return address.is_global and not address.is_multicast


def _parse_port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 5 or not 1 <= int(text) <= 65535:
        raise Rejected(Reason.BAD_FIELD, "the port is not a number from 1 to 65535")
    return int(text)


def _refusal(status: int) -> bytes:
    return f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
