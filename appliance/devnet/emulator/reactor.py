"""One thread's event loop over file descriptors, small enough to be stepped by hand in a test.

Devices run in it alone, so they need no locks; other threads hand work in with `post`.
"""

import os
import selectors
import threading
from collections import deque
from collections.abc import Callable
from selectors import EVENT_READ, EVENT_WRITE
from typing import Final

READ: Final = EVENT_READ
WRITE: Final = EVENT_WRITE


class Reactor:
    """Calls back when descriptors are ready. Only `post` and `stop` may be called from other threads.

    A callback that may have a lot to do does some of it and posts the rest, so that others get their turn.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._posted: deque[Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._running = False
        self._closed = False
        self._lock = threading.Lock()
        self.watch(self._wake, READ, self._run_posted)

    def watch(self, descriptor: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(ready events)` whenever one of `events` is ready, instead of what was watched for before."""
        known = descriptor in self._callbacks
        if not events:
            self.unwatch(descriptor)
            return
        self._callbacks[descriptor] = callback
        if known:
            self._selector.modify(descriptor, events)
        else:
            self._selector.register(descriptor, events)

    def unwatch(self, descriptor: int) -> None:
        """Stop watching, before the descriptor is closed; nothing happens when it was not watched."""
        if self._callbacks.pop(descriptor, None) is not None:
            self._selector.unregister(descriptor)

    def post(self, call: Callable[[], None]) -> bool:
        """Have `call` run in the loop's thread, soon; False when the loop is closed and it never will."""
        with self._lock:
            if self._closed:
                return False
            self._posted.append(call)
            os.eventfd_write(self._wake, 1)
            return True

    def step(self, timeout_s: float | None = 0.0) -> bool:
        """Wait at most this long (None: without end) and serve what is ready; returns whether anything was."""
        ready = self._selector.select(timeout_s)
        for key, events in ready:
            # A callback before this one may have ended the watch.
            callback = self._callbacks.get(key.fd)
            if callback is not None:
                callback(events)
        return bool(ready)

    def run(self) -> None:
        """Serve until `stop`; then everything that was posted before has run."""
        self._running = True
        while self._running:
            self.step(None)

    def stop(self) -> None:
        """Make `run` return."""
        self.post(self._leave)

    def close(self) -> None:
        """Free the loop's own descriptors. Not while another thread runs it."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._selector.close()
        self._callbacks.clear()
        os.close(self._wake)

    def _leave(self) -> None:
        self._running = False

    def _run_posted(self, _events: int) -> None:
        os.eventfd_read(self._wake)
        # Not what these post in turn: descriptors come first again.
        for _ in range(len(self._posted)):
            self._posted.popleft()()
