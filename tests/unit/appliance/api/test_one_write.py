"""A connection's writes of one turn of the event loop go out together, and nothing of them is lost or reordered."""

import asyncio

import pytest

from appliance.api.http_protocol import OneWrite

pytestmark = pytest.mark.anyio


class RecordingTransport(asyncio.Transport):
    """What is asked of the transport below, in order; `failing` writes raise."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[bytes | str] = []
        self.failing = 0
        self._closing = False

    def write(self, data: bytes) -> None:  # type: ignore[override]
        if self.failing:
            self.failing -= 1
            raise MemoryError
        self.asked.append(data)

    def close(self) -> None:
        self._closing = True
        self.asked.append("close")

    def abort(self) -> None:
        self.asked.append("abort")

    def is_closing(self) -> bool:
        return self._closing


def connection() -> tuple[OneWrite, RecordingTransport]:
    below = RecordingTransport()
    return OneWrite(below, asyncio.get_running_loop()), below


async def test_what_is_written_in_one_turn_is_one_piece() -> None:
    transport, below = connection()
    transport.write(b"head ")
    transport.write(b"body")
    assert below.asked == []
    await asyncio.sleep(0)
    transport.write(b"next ")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert below.asked == [b"head body", b"next "]


@pytest.mark.parametrize(("gone", "asked"), [(False, ["close", "close", "abort"]), (True, ["close", "close"])])
async def test_what_nobody_reads_is_given_up_after_a_while_unless_the_connection_has_gone(
    monkeypatch: pytest.MonkeyPatch, gone: bool, asked: list[str]
) -> None:
    monkeypatch.setattr("appliance.api.http_protocol.FLUSH_DEADLINE_S", 0.01)
    transport, below = connection()
    transport.close()
    transport.close()
    if gone:
        transport.lost()
    await asyncio.sleep(0.05)
    assert below.asked == asked


async def test_closing_sends_first_what_was_written() -> None:
    transport, below = connection()
    transport.write(b"last ")
    transport.write(b"words")
    transport.close()
    assert transport.is_closing()
    await asyncio.sleep(0)
    assert below.asked == [b"last words", "close"]


async def test_nothing_is_written_to_a_connection_that_is_closing() -> None:
    transport, below = connection()
    transport.close()
    transport.write(b"too late")
    await asyncio.sleep(0)
    assert below.asked == ["close"]


async def test_a_write_that_failed_holds_nothing_back() -> None:
    transport, below = connection()
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context["exception"]))
    below.failing = 1
    transport.write(b"lost")
    await asyncio.sleep(0)
    transport.write(b"next")
    await asyncio.sleep(0)
    assert below.asked == [b"next"]
    assert [type(failure) for failure in failures] == [MemoryError]
