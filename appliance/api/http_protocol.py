"""uvicorn's HTTP/1.1 protocol with the bounds that it leaves open.

A connection gets so many bytes and seconds to complete a request's headers, so many bytes between two pieces of a body
and behind it, seconds to end a body that nobody waits for any more, and there are only so many connections, in all and
from one address. Without these a stranger who drips bytes holds memory and descriptors for ever.

Behind an ingress that speaks the PROXY protocol every connection starts with a header that names its client.
"""

from asyncio import AbstractEventLoop, BaseTransport, TimerHandle, Transport
from collections import Counter
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from appliance.api.bodies import BODY_ROOM, CLIENT_GONE, WHOLE_BODY
from appliance.api.limits import IngressNetworks, client_key, is_ingress
from appliance.proxy_protocol import parse_proxy_header
from kmscore.errors import Rejected

MAX_HEAD_BYTES = 64 * 1024
HEAD_DEADLINE_S = 15.0
BODY_PIECE_BYTES = 512 * 1024
# How long the rest of a body may still come after its request has been answered: closing at once would lose the answer.
LINGER_S = 5.0
# And how long what has been written may take to leave.
FLUSH_DEADLINE_S = 60.0
MAX_CONNECTIONS = 4096
MAX_CONNECTIONS_PER_ADDRESS = 512

_BAD_REQUEST_BODY = b'{"code":"bad_request","message":"not a valid HTTP/1.1 request within the limits"}'
_BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s"
    % (len(_BAD_REQUEST_BODY), _BAD_REQUEST_BODY)
)


class OneWrite:
    """A connection's transport that writes what one turn of the event loop has for it in one piece: the head and the
    body of an answer are then one system call and one packet, not two.
    """

    __slots__ = ("_abort_timer", "_loop", "_parts", "_transport", "is_closing")

    def __init__(self, transport: Transport, loop: AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []
        self._abort_timer: TimerHandle | None = None
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        """After what has been written, which whoever does not read it cannot put off for ever."""
        self._flush()
        self._transport.close()
        if self._abort_timer is None:
            self._abort_timer = self._loop.call_later(FLUSH_DEADLINE_S, self._transport.abort)

    def lost(self) -> None:
        """The connection is no more."""
        if self._abort_timer is not None:
            self._abort_timer.cancel()

    def _flush(self) -> None:
        parts, self._parts = self._parts, []
        if parts and not self.is_closing():
            self._transport.write(b"".join(parts))


class ConnectionCounter:
    """Connections by client: an IPv4 address, the /64 of an IPv6 one. An ingress has as many as there are."""

    def __init__(self, trusted_ingress: IngressNetworks = ()) -> None:
        self._trusted_ingress = trusted_ingress
        self._open: Counter[str] = Counter()

    def enter(self, host: str) -> bool:
        """Count a connection; whether it is within the limit."""
        key = client_key(host, "", ())
        self._open[key] += 1
        return self._open[key] <= MAX_CONNECTIONS_PER_ADDRESS or is_ingress(host, self._trusted_ingress)

    def leave(self, host: str) -> None:
        key = client_key(host, "", ())
        self._open[key] -= 1
        if not self._open[key]:
            del self._open[key]


def bounded_http_protocol(*, proxy_v2: bool = False, trusted_ingress: IngressNetworks = ()) -> type[HttpToolsProtocol]:
    """The protocol class of one server; its connections share a counter.

    With `proxy_v2` a connection must start with a PROXY header of version 2, whose source is then its client: none for
    the ingress's own connections. One that does not is closed without an answer.
    """
    counter = ConnectionCounter(trusted_ingress)

    class BoundedHttpProtocol(HttpToolsProtocol):
        """One connection. What exceeds a bound is answered 400, or closed when it is merely slow."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._in_head = True
            self._head_bytes = 0
            self._reads = 0
            self._head_ended_in_read = 0
            self._bytes_since_body = 0
            self._timer: TimerHandle | None = None
            self._proxy_header: bytes | None = b"" if proxy_v2 else None

        def connection_made(self, transport: BaseTransport) -> None:
            super().connection_made(transport)  # type: ignore[arg-type]
            self.transport = OneWrite(self.transport, self.loop)  # type: ignore[assignment]
            if proxy_v2:
                self.client = None  # the ingress's own address counts for nobody
            allowed = counter.enter(self._host())
            if not allowed or len(self.connections) > MAX_CONNECTIONS:
                self.transport.close()
            else:
                self._close_after(HEAD_DEADLINE_S)

        def connection_lost(self, exc: Exception | None) -> None:
            counter.leave(self._host())
            self._stop_timer()
            self.transport.lost()  # type: ignore[attr-defined]
            if self.cycle is not None:  # the newest request's: of those before, uvicorn keeps none
                self.cycle.scope[CLIENT_GONE] = True  # type: ignore[literal-required]
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._proxy_header is not None:
                data = self._after_proxy_header(self._proxy_header + data)
                if not data:
                    return
            self._reads += 1
            if self._in_head:
                self._head_bytes += len(data)
            else:
                self._bytes_since_body += len(data)
            super().data_received(data)
            if self._bytes_since_body > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("")
            elif self._in_head and self._head_bytes and not self.transport.is_closing():
                # The parser keeps an unfinished header to itself, so what it was fed is counted, too.
                if self._head_bytes > MAX_HEAD_BYTES:
                    self.send_400_response("")
                elif self._timer is None:
                    self._close_after(HEAD_DEADLINE_S)

        def on_header(self, name: bytes, value: bytes) -> None:
            """Like uvicorn's, but what comes behind a body is no part of the head, and of no use (RFC 9110 §6.5.1)."""
            if not self._in_head:
                return
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))

        def on_body(self, body: bytes) -> None:
            """Like uvicorn's, but who waits for a body is woken for all of it, a large piece or more than he takes, and
            reading pauses for a large piece only.
            """
            self._bytes_since_body = 0
            if self.cycle.response_complete:
                return
            self.cycle.body += body
            held = len(self.cycle.body)
            if held >= BODY_PIECE_BYTES:
                self.flow.pause_reading()
            room: int = self.cycle.scope.get(BODY_ROOM, 0)  # type: ignore[assignment]
            if held >= BODY_PIECE_BYTES or held > room:
                self.cycle.message_event.set()

        def on_headers_complete(self) -> None:
            self._in_head = False
            self._bytes_since_body = 0
            self._head_ended_in_read = self._reads
            self._stop_timer()
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            super().on_message_complete()
            self._in_head = True
            self._head_bytes = 0
            if self._head_ended_in_read == self._reads:  # so nobody can have begun to read it
                self.scope[WHOLE_BODY] = bytes(self.cycle.body)  # type: ignore[literal-required]
                self.cycle.body = bytearray()
            if self.cycle.response_complete:
                # The keep-alive timer that the answer started is gone: every byte of the body's rest unset it.
                self._stop_timer()
                self._close_after(HEAD_DEADLINE_S)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.cycle.response_complete:
                # What nobody read would stay for as long as the connection is idle.
                self.cycle.scope.pop(WHOLE_BODY, None)  # type: ignore[misc]
                self.cycle.body = bytearray()
            if not self._in_head and not self.transport.is_closing():
                self._close_after(LINGER_S)

        def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the parser's words, which could echo input
            self.transport.write(_BAD_REQUEST)
            self.transport.close()

        def _after_proxy_header(self, data: bytes) -> bytes:
            """What follows the header, once there is all of it; the deadline for a request's head covers it, too."""
            try:
                header = parse_proxy_header(data)
            except Rejected:
                self.transport.close()
                return b""
            if header is None:
                self._proxy_header = data
                return b""
            self._proxy_header = None
            counter.leave(self._host())
            self.client = (header.source.host, header.source.port) if header.source else None
            if not counter.enter(self._host()):
                self.transport.close()
                return b""
            return data[header.size_bytes :]

        def _host(self) -> str:
            return self.client[0] if self.client else ""

        def _close_after(self, delay_s: float) -> None:
            self._timer = self.loop.call_later(delay_s, self._overdue)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _overdue(self) -> None:
            self._timer = None
            if not self.transport.is_closing():
                self.transport.close()

    return BoundedHttpProtocol
