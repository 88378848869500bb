"""What the guest prints: kept, bounded, waited for, and shown on a terminal without letting it drive the terminal."""

import threading
from collections.abc import Callable
from typing import Final

MAX_LOG_BYTES: Final = 4 << 20
# Line feeds and tabs, and what prints; a guest must not send a terminal its control sequences.
_HARMLESS: Final = bytes([0x09, 0x0A, *range(0x20, 0x7F)])
_CONTROL: Final = bytes(set(range(256)) - set(_HARMLESS))


class Console:
    """The console log: its first 4 MiB. `show` gets every piece that comes, without control characters.

    `news` is notified of every change.
    """

    def __init__(self, news: threading.Condition, show: Callable[[bytes], None] | None = None) -> None:
        self._news = news
        self._show = show
        self._log = bytearray()

    def feed(self, data: bytes) -> None:
        """Add what the guest printed."""
        printable = data.translate(None, _CONTROL)
        with self._news:
            self._log += printable[: MAX_LOG_BYTES - len(self._log)]
            self._news.notify_all()
        if self._show is not None:
            self._show(printable)

    def text(self) -> str:
        """Everything that was kept so far."""
        with self._news:
            return self._log.decode("ascii")
