"""Makes a careless log line of ours fail the test that causes it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from appliance.log import FieldFilter


class _CheckingHandler(logging.Handler):
    """Writes nothing; its filter raises, and filters run outside the handlers' own error handling."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.addFilter(FieldFilter(strict=True))

    def emit(self, record: logging.LogRecord) -> None:
        del record


@contextmanager
def strict_logging() -> Iterator[None]:
    """While it lasts, every line of `appliance`, at any level, must be a constant message and listed, plain fields."""
    handler = _CheckingHandler()
    root, ours = logging.getLogger(), logging.getLogger("appliance")
    level = ours.level
    root.addHandler(handler)
    ours.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        ours.setLevel(level)
        root.removeHandler(handler)
