"""Just enough HTTP/1.1 for a client that must cost less than the server: one answer at a time on a kept connection.

Refuses whatever our nodes do not send (no length, more than one answer): a load run that meets it must stop.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Final, cast

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_BODY_BYTES: Final = 256 << 20
_HEAD_END: Final = b"\r\n\r\n"
_STATUS: Final = slice(9, 12)


class LoadError(Exception):
    """A load run cannot go on, or what it measured would not be what it says; one sentence."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One complete answer; `head` is everything before the body, as it came."""

    status: int
    head: bytes
    body: bytes = field(repr=False)

    def header(self, name: bytes) -> bytes | None:
        """The value of the first header of this name (lower case), None when there is none."""
        lowered = self.head.lower()
        at = lowered.find(b"\r\n" + name + b":")
        if at < 0:
            return None
        start = at + len(name) + 3
        return self.head[start : self.head.index(b"\r\n", start)].strip()

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Names in lower case and values, in their order."""
        lines = self.head[: -len(_HEAD_END)].split(b"\r\n")[1:]
        pairs = (line.partition(b":") for line in lines)
        return [(name.lower(), value.strip()) for name, _, value in pairs]


class AnswerParser:
    """Collects the bytes of one answer after the other."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head_bytes = 0
        self._total_bytes = 0

    def feed(self, data: bytes) -> Answer | None:
        """The answer when its last byte has come, else None.

        Raises `LoadError` for a head that is too long or no HTTP/1.1, a missing or unacceptable content-length, and
        bytes after the end of the answer.
        """
        self._buffer += data
        if not self._head_bytes and not self._parse_head():
            return None
        if len(self._buffer) < self._total_bytes:
            return None
        if len(self._buffer) > self._total_bytes:
            raise LoadError("the server sent more than the answer that was asked for")
        head, body = bytes(self._buffer[: self._head_bytes]), bytes(self._buffer[self._head_bytes :])
        self._buffer.clear()
        self._head_bytes = self._total_bytes = 0
        return Answer(int(head[_STATUS]), head, body)

    def _parse_head(self) -> bool:
        end = self._buffer.find(_HEAD_END, 0, MAX_HEAD_BYTES)
        if end < 0:
            if len(self._buffer) >= MAX_HEAD_BYTES:
                raise LoadError("the head of an answer does not end")
            return False
        head = bytes(self._buffer[: end + len(_HEAD_END)])
        if not head.startswith(b"HTTP/1.1 ") or not head[_STATUS].isdigit():
            raise LoadError("an answer is not HTTP/1.1")
        length = Answer(0, head, b"").header(b"content-length")
        if length is None or not length.isdigit() or int(length) > MAX_BODY_BYTES:
            raise LoadError("an answer has no acceptable content-length")
        self._head_bytes = len(head)
        self._total_bytes = len(head) + int(length)
        return True


class Connection(asyncio.Protocol):
    """A kept connection with at most one request under way."""

    def __init__(self) -> None:
        self._parser = AnswerParser()
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Answer] | None = None

    @classmethod
    async def open(cls, host: str, port: int) -> "Connection":
        """Raises OSError when nobody listens."""
        _, protocol = await asyncio.get_running_loop().create_connection(cls, host, port)
        return protocol

    def request(self, data: bytes) -> "asyncio.Future[Answer]":
        """Send one complete request; the future's error is a `LoadError`."""
        if self._transport is None or self._waiting is not None:
            raise LoadError("a request on a connection that is closed or busy")
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        return self._waiting

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            answer = self._parser.feed(data)
        except LoadError as error:
            self._settle(error)
            self.close()
            return
        if answer is not None:
            self._settle(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        error = LoadError("the server closed the connection before a complete answer")
        error.__cause__ = exc
        self._settle(error)

    def _settle(self, outcome: Answer | LoadError) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is None or waiting.done():
            return
        if isinstance(outcome, Answer):
            waiting.set_result(outcome)
        else:
            waiting.set_exception(outcome)
