"""The log: which data reaches it, in which forms, and that nothing else does."""

import io
import json
import logging
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from appliance.log import FIELDS, FieldFilter, configure_logging, describe_error, short
from appliance.settings import LogFormat, LogLevel
from kmscore.errors import InvariantBroken, Reason, Rejected, Unavailable
from tests.support.strict_log import strict_logging

pytestmark = pytest.mark.own_logging

WALLET = "0x" + "ab12" * 10
SECRET = "hunter2"

logger = logging.getLogger("appliance.test")


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """The process's logging as it was, whatever a test configures."""
    names = ["", "uvicorn", "uvicorn.error", "uvicorn.asgi", "uvicorn.access", "httpx", "httpcore", "asyncio", "web3"]
    names += ["urllib3", "websockets"]
    loggers = [logging.getLogger(name) for name in names]
    before = [(each, list(each.handlers), each.level, each.propagate, each.disabled) for each in loggers]
    yield
    for each, handlers, level, propagate, disabled in before:
        each.handlers[:] = handlers
        each.setLevel(level)
        each.propagate = propagate
        each.disabled = disabled


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def json_log(restored_logging: None, stream: io.StringIO) -> io.StringIO:
    configure_logging(LogLevel.DEBUG, LogFormat.JSON, stream)
    return stream


@pytest.fixture
def text_log(restored_logging: None, stream: io.StringIO) -> io.StringIO:
    configure_logging(LogLevel.DEBUG, LogFormat.TEXT, stream)
    return stream


def only_line(stream: io.StringIO) -> dict[str, object]:
    (line,) = stream.getvalue().splitlines()
    return json.loads(line)


def test_a_line_is_one_object_with_the_message_and_the_fields(json_log: io.StringIO) -> None:
    logger.info("peer pushed", extra={"peer": short(WALLET), "records": 3, "age_s": 0.5, "keys": ["a", "b"]})

    line = only_line(json_log)
    assert line.pop("time").endswith("Z")  # type: ignore[union-attr]
    assert line == {
        "level": "INFO",
        "logger": "appliance.test",
        "message": "peer pushed",
        "peer": "ab12ab12",
        "records": 3,
        "age_s": 0.5,
        "keys": ["a", "b"],
    }


def test_the_text_form_is_for_people(text_log: io.StringIO) -> None:
    logger.warning("peer refused", extra={"peer": "ab12ab12", "reason": "two words", "status": 403})

    assert text_log.getvalue().endswith(
        ' WARNING appliance.test: peer refused peer=ab12ab12 reason="two words" status=403\n'
    )


def test_a_field_that_is_not_on_the_list_is_dropped(json_log: io.StringIO) -> None:
    logger.info("key derived", extra={"secret_key": SECRET, "app_id": 7})

    assert only_line(json_log)["app_id"] == 7
    assert SECRET not in json_log.getvalue()


def test_arguments_are_never_put_into_a_message(json_log: io.StringIO) -> None:
    logging.getLogger("some.library").warning("bad request from %s", SECRET)

    assert only_line(json_log)["message"] == "bad request from %s"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (WALLET, "ab12ab12…"),
        (f"peer {WALLET} left", "peer ab12ab12… left"),
        ("ab" * 32, "abababab…"),
        ("x y " * 100, ("x y " * 100)[:128] + "…"),
        (b"raw bytes", "<bytes>"),
        ({"inner": SECRET}, "<dict>"),
        (ValueError(SECRET), "<ValueError>"),
        (float("inf"), "<float>"),
        (list(range(100)), list(range(16))),
        ((WALLET, b"x"), ["ab12ab12…", "<bytes>"]),
        (None, None),
        (True, True),
        (Reason.NONCE, "nonce"),
    ],
)
def test_values_are_cut_and_only_plain_ones_are_shown(json_log: io.StringIO, value: object, expected: object) -> None:
    logger.info("value", extra={"reason": value})

    assert only_line(json_log)["reason"] == expected


def test_a_line_cannot_be_forged(json_log: io.StringIO) -> None:
    logger.info("first\nsecond", extra={"reason": 'a\n{"level":"INFO"}'})

    assert only_line(json_log)["message"] == "first"


def test_a_line_of_text_cannot_be_forged(text_log: io.StringIO) -> None:
    logger.info("first\r\x1b[2Jrest\nsecond", extra={"reason": "a\nb=c\u2028\x1b"})

    assert text_log.getvalue().count("\n") == 1
    assert not {"\r", "\x1b", "\u2028"} & set(text_log.getvalue())


def failing(secret: str) -> None:
    raise ValueError(f"cannot use {secret}")


def test_an_unexpected_exception_is_its_type_and_locations_without_message_or_locals(json_log: io.StringIO) -> None:
    try:
        failing(SECRET)
    except ValueError:
        logger.exception("task failed")

    (described,) = only_line(json_log)["exception"]  # type: ignore[misc]
    assert described["type"] == "builtins.ValueError"
    assert "message" not in described
    assert described["at"][0].startswith("unit/appliance/test_log.py:")
    assert described["at"][0].endswith(" failing")
    assert SECRET not in json_log.getvalue()


def test_our_own_errors_keep_their_sentence_and_their_causes_do_not() -> None:
    try:
        try:
            failing(SECRET)
        except ValueError as error:
            raise Unavailable("the runtime cannot be reached") from error
    except Unavailable as error:
        ours, cause = describe_error(error)

    assert ours["message"] == "the runtime cannot be reached"
    assert cause["type"] == "builtins.ValueError"
    assert "message" not in cause


def test_the_members_of_a_group_are_described_and_a_suppressed_context_is_not() -> None:
    try:
        try:
            failing(SECRET)
        except ValueError:
            raise Rejected(Reason.NONCE, "the nonce is not ours") from None
    except Rejected as error:
        group = ExceptionGroup(SECRET, [error, KeyError(SECRET)])

    described = list(describe_error(group))

    assert [each["type"].rpartition(".")[2] for each in described] == ["ExceptionGroup", "Rejected", "KeyError"]
    assert SECRET not in json.dumps(described)


def test_a_description_is_bounded_in_errors_and_frames() -> None:
    def dive(depth: int) -> None:
        if depth == 0:
            raise ExceptionGroup("many", [ValueError() for _ in range(100)])
        dive(depth - 1)

    with pytest.raises(ExceptionGroup) as caught:
        dive(50)
    described = list(describe_error(caught.value))

    assert len(described) == 8
    assert len(described[0]["at"]) == 12


def test_errors_that_cause_each_other_end_the_description() -> None:
    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first

    assert len(list(describe_error(first))) == 2


def test_uvicorns_errors_go_through_and_its_access_log_is_off(json_log: io.StringIO) -> None:
    logging.getLogger("uvicorn.access").info('%s - "%s %s"', "10.0.0.1", "GET", "/kms/data/secret-path")
    logging.getLogger("uvicorn.error").error("Invalid HTTP request received.")

    assert only_line(json_log)["message"] == "Invalid HTTP request received."


def test_libraries_that_log_requests_are_kept_to_warnings(json_log: io.StringIO) -> None:
    logging.getLogger("httpx").info("HTTP Request: %s", SECRET)
    logging.getLogger("web3.providers").debug("params")

    assert json_log.getvalue() == ""


def test_the_level_of_the_settings_holds(restored_logging: None, stream: io.StringIO) -> None:
    configure_logging(LogLevel.ERROR, LogFormat.JSON, stream)

    logger.warning("quiet")
    logging.getLogger("httpx").warning("quiet")

    assert stream.getvalue() == ""


def test_a_stream_that_is_gone_harms_nobody(json_log: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    json_log.close()

    logger.info("lost", extra={"reason": SECRET})

    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("message", "args", "extra"),
    [
        ("value %s", (1,), {}),
        ("value", (), {"secret_key": "x"}),
        ("value", (), {"peer": WALLET}),
        ("value", (), {"reason": "x" * 129}),
        ("value", (), {"reason": b"x"}),
        ("value", (), {"keys": [WALLET]}),
    ],
)
def test_in_tests_a_careless_line_of_ours_is_refused(
    message: str, args: tuple[object, ...], extra: dict[str, object]
) -> None:
    record = logging.makeLogRecord({"name": "appliance.x", "msg": message, "args": args, **extra})

    with pytest.raises(InvariantBroken):
        FieldFilter(strict=True).filter(record)
    record.name = "some.library"
    assert FieldFilter(strict=True).filter(record)


def test_the_guard_for_tests_reaches_every_logger_of_ours_at_every_level() -> None:
    with strict_logging():
        logger.debug("peer pushed", extra={"peer": short(WALLET)})
        with pytest.raises(InvariantBroken):
            logger.debug("peer pushed", extra={"peer": WALLET})

    logger.debug("peer pushed", extra={"peer": WALLET})


def test_a_careful_line_passes_the_strict_filter_twice() -> None:
    record = logging.makeLogRecord({"name": "appliance.x", "msg": "x", "peer": "ab12ab12", "keys": (1, 2), "count": 1})

    assert FieldFilter(strict=True).filter(record)
    assert FieldFilter(strict=True).filter(record)


def test_no_field_has_the_name_of_a_part_that_every_line_has() -> None:
    assert not FIELDS & {"time", "level", "logger", "message", "exception"}
    assert not FIELDS & set(vars(logging.makeLogRecord({})))


def test_an_identifier_is_cut_to_eight_digits() -> None:
    assert short(WALLET) == short(WALLET.removeprefix("0x")) == "ab12ab12"


def test_nothing_prints_a_traceback_once_the_hooks_are_installed() -> None:
    script = """
        import threading
        from appliance.log import configure_logging, install_exception_hooks
        from appliance.settings import LogFormat, LogLevel

        class Finaliser:
            def __del__(self):
                raise ValueError("hunter2")

        def fail():
            raise ValueError("hunter2")

        configure_logging(LogLevel.INFO, LogFormat.JSON)
        install_exception_hooks()
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        Finaliser()
        fail()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)

    assert done.returncode == 1
    assert [json.loads(line)["message"] for line in done.stderr.splitlines()] == [
        "uncaught exception in a thread",
        "exception in a finaliser",
        "uncaught exception",
    ]
    assert "hunter2" not in done.stderr
