"""Log lines that cannot carry a secret by accident.

A line is a constant message and fields whose names are on `FIELDS`, given as `logger.info("peer pushed", extra={"peer":
short(wallet), "records": 3})`. %-arguments are never put into a message: what a library wanted to interpolate may be a
request. An exception is written as its type and code locations; only the errors we raise ourselves (KmsError, whose
sentences never repeat input) keep their message. Locals are never written.
"""

import json
import logging
import math
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from appliance.settings import LogFormat, LogLevel
from kmscore.errors import InvariantBroken, KmsError

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

# The only names under which data reaches the log. A name is added here with a reason why its values are public.
FIELDS = frozenset(
    {
        # who and what, as numbers of the registry or identifiers cut by short()
        "app_id", "instance_id", "version_id", "chain_id", "wallet", "peer", "source", "operator", "boot_id",
        # decisions and outcomes, as words of our own enumerations; error and reason also as the sentence of a KmsError
        "check", "reason", "error", "outcome", "state", "previous_state", "kind", "provider", "label", "policy",
        "setting",
        # requests, without anything the caller wrote: route is the template, never the path
        "route", "method", "status", "request_id",
        # sizes, counts, times
        "count", "total", "records", "merged", "skipped", "rejected", "found", "peers", "keys", "bytes", "limit",
        "limit_bytes", "seq",
        "attempt", "attempts", "retry_after_s", "timeout_s", "interval_s", "age_s", "duration_ms", "skew_ms",
        # the chain and the network, public by nature
        "block", "confirmations", "quorum", "rpc_index", "rpc_host", "address", "port", "version", "signal", "errno",
    }
)  # fmt: skip

MAX_MESSAGE_CHARS = 200
MAX_VALUE_CHARS = 128
MAX_ITEMS = 16
MAX_FRAMES = 12
MAX_ERRORS = 8

_SHORT_HEX_DIGITS = 8
_LONG_HEX = re.compile(r"(?:0x)?([0-9a-fA-F]{8})[0-9a-fA-F]{24,}")
_OWN_LOGGERS = ("appliance", "kmscore")
_CHATTY_LOGGERS = ("asyncio", "httpcore", "httpx", "urllib3", "web3", "websockets")
_RECORD_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def short(identifier: str) -> str:
    """The first 8 hex digits of a wallet, hash or key: enough to tell two apart in a log."""
    return identifier.removeprefix("0x")[:_SHORT_HEX_DIGITS]


class FieldFilter(logging.Filter):
    """Keeps a record's fields to the allow-list.

    In production a field that is not listed is dropped. With `strict`, which tests use, our own loggers get
    InvariantBroken for one, as for %-arguments, a value that is not a plain one, or an identifier that was not cut.
    """

    def __init__(self, *, strict: bool = False) -> None:
        super().__init__()
        self._strict = strict

    def filter(self, record: logging.LogRecord) -> bool:
        given = {name: value for name, value in vars(record).items() if name not in _RECORD_ATTRIBUTES}
        if self._strict and record.name.partition(".")[0] in _OWN_LOGGERS:
            _check_strictly(record, given)
        record.fields = {name: _plain(value) for name, value in given.items() if name in FIELDS}
        return True


def _check_strictly(record: logging.LogRecord, given: dict[str, object]) -> None:
    if record.args:
        raise InvariantBroken("a log message must be constant: data goes into fields")
    for name, value in given.items():
        if name == "fields":  # an earlier handler's filter has been here
            continue
        if name not in FIELDS:
            raise InvariantBroken(f"log field {name} is not on the allow-list")
        if _plain(value) != (list(value) if isinstance(value, tuple) else value):
            raise InvariantBroken(f"log field {name} is too long, not a plain value, or an identifier that was not cut")


def _plain(value: object) -> Any:
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, str):
        cut = _LONG_HEX.sub(r"\1…", str(value))
        return cut if len(cut) <= MAX_VALUE_CHARS else cut[:MAX_VALUE_CHARS] + "…"
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value[:MAX_ITEMS]]
    return f"<{type(value).__name__}>"


class _Formatter(logging.Formatter):
    """What both forms share: the parts of a line, each bounded and free of data that is not on the allow-list."""

    def parts(self, record: logging.LogRecord) -> dict[str, Any]:
        parts: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": _LONG_HEX.sub(r"\1…", str(record.msg).partition("\n")[0][:MAX_MESSAGE_CHARS]),
        }
        parts.update(getattr(record, "fields", {}))
        if record.exc_info and record.exc_info[1] is not None:
            parts["exception"] = list(describe_error(record.exc_info[1]))
        return parts


class JsonFormatter(_Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(self.parts(record), ensure_ascii=True, separators=(",", ":"))


class TextFormatter(_Formatter):
    """`time LEVEL logger: message name=value …`, for people."""

    def format(self, record: logging.LogRecord) -> str:
        parts = self.parts(record)
        line = f"{parts.pop('time')} {parts.pop('level'):<7} {parts.pop('logger')}: {_printable(parts.pop('message'))}"
        errors = parts.pop("exception", [])
        line += "".join(f" {name}={_text(value)}" for name, value in parts.items())
        return line + "".join(f"\n    {_error_text(error)}" for error in errors)


def _text(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[!-~…]+", value) and '"' not in value:
        return value
    return json.dumps(value)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def _error_text(error: dict[str, Any]) -> str:
    message = f": {_printable(error['message'])}" if "message" in error else ""
    return f"{error['type']}{message} at {' < '.join(error['at']) or 'no frame'}"


def describe_error(error: BaseException) -> Iterator[dict[str, Any]]:
    """`error`, its causes and the members of groups, at most 8 of them: `type`, `at` (innermost frame first, `file:line
    function`) and, for KmsError only, `message`."""
    queue = [error]
    seen: set[int] = set()
    while queue and len(seen) < MAX_ERRORS:
        current = queue.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        described: dict[str, Any] = {"type": f"{type(current).__module__}.{type(current).__qualname__}"}
        if isinstance(current, KmsError):
            described["message"] = _plain(str(current).partition("\n")[0])
        described["at"] = _locations(current.__traceback__)
        yield described
        if isinstance(current, BaseExceptionGroup):
            queue.extend(current.exceptions)
        cause = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
        if cause is not None:
            queue.append(cause)


def _locations(trace: TracebackType | None) -> list[str]:
    frames = traceback.StackSummary.extract(traceback.walk_tb(trace), lookup_lines=False, capture_locals=False)
    return [f"{_from_package(frame.filename)}:{frame.lineno} {frame.name}" for frame in reversed(frames[-MAX_FRAMES:])]


def _from_package(filename: str) -> str:
    """A file's last three components: they tell the module, and the machine's directories stay out of the log."""
    return "/".join(filename.split("/")[-3:])


class _Handler(logging.StreamHandler[IO[str]]):
    """A stream handler that does not print a record it failed to write, as the standard one does, arguments and all."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        del record
        try:
            self.stream.write("a log line could not be written\n")
        except (OSError, ValueError):
            return  # the stream is gone: there is nowhere left to say so


def configure_logging(level: LogLevel, log_format: LogFormat, stream: IO[str] | None = None) -> None:
    """Set up the root logger, once, from the composition root: one handler on `stream` (standard error by default).

    uvicorn's error logger goes through it and its access log, which quotes paths, is off; the server must be built with
    `log_config=None` so that it does not configure logging a second time. Libraries that log requests are kept to
    warnings at every level.
    """
    handler = _Handler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter() if log_format is LogFormat.JSON else TextFormatter())
    handler.addFilter(FieldFilter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.value)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    access = logging.getLogger("uvicorn.access")
    access.handlers.clear()
    access.propagate = False
    access.disabled = True
    for name in _CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def install_exception_hooks() -> None:
    """Send what would be printed as a traceback, message and all, through the log instead: uncaught exceptions of the
    main thread and of others, and those of finalisers. Called once, from the composition root."""
    logger = logging.getLogger(__name__)

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            return
        logger.critical("uncaught exception", exc_info=(kind, error, trace))

    def uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
            logger.critical(
                "uncaught exception in a thread", exc_info=(args.exc_type, args.exc_value, args.exc_traceback)
            )

    def unraisable(args: "UnraisableHookArgs") -> None:
        if args.exc_value is not None:
            logger.error("exception in a finaliser", exc_info=(args.exc_type, args.exc_value, args.exc_traceback))

    sys.excepthook = uncaught
    threading.excepthook = uncaught_in_thread
    sys.unraisablehook = unraisable
