"""Who serves a port of the host when the guest connects to it: a queue to accept from, or a Unix socket elsewhere."""

import contextlib
import queue
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from appliance.devnet.emulator.vsock import HostPort

BACKLOG: Final = 64


class GuestListener:
    """Connections of the guest to one port, accepted by whichever thread asks; usable as a context manager."""

    def __init__(self, backlog: int = BACKLOG) -> None:
        # One place more than the backlog, for the word that nothing comes any more.
        self._waiting: queue.Queue[socket.socket | None] = queue.Queue(backlog + 1)
        self._backlog = backlog
        self._closed = False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self) -> socket.socket:
        """The device's side: the near end of a connection whose far end waits to be accepted."""
        with self._lock:
            if self._closed or self._waiting.qsize() >= self._backlog:
                raise ConnectionRefusedError("nobody accepts on this port")
            near_end, far_end = socket.socketpair()
            self._waiting.put_nowait(far_end)
            return near_end

    def accept(self, timeout_s: float | None = None) -> socket.socket:
        """The next connection, blocking.

        Raises `TimeoutError` when none comes in time, `ConnectionAbortedError` when the listener is closed.
        """
        try:
            connection = self._waiting.get(timeout=timeout_s)
        except queue.Empty as error:
            raise TimeoutError(f"the guest does not connect within {timeout_s} s") from error
        if connection is None:
            self._waiting.put(None)  # for whoever else waits
            raise ConnectionAbortedError("the listener is closed")
        return connection

    def close(self) -> None:
        """Refuse what comes and reset what waits."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            # Others may still be taking connections while these are closed.
            with contextlib.suppress(queue.Empty):
                while (connection := self._waiting.get_nowait()) is not None:
                    connection.close()
            self._waiting.put_nowait(None)


def unix_port(path: Path) -> HostPort:
    """Hand every connection to whoever listens on a Unix socket; refuse it while nobody does."""

    def connect() -> socket.socket:
        near_end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            near_end.setblocking(False)
            near_end.connect(str(path))
        except OSError:
            near_end.close()
            raise
        return near_end

    return connect
