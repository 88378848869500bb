"""Bodies: refused by their headers, counted while they come, kept within a budget (protocol §7)."""

from collections.abc import Awaitable, Callable, Iterable

import anyio
import pytest
from starlette.requests import Request

from appliance.api import bodies
from appliance.api.bodies import check_body_headers, discard_body, read_body
from kmscore.errors import Reason, Rejected, Unavailable
from kmscore.limits import BodyBudget

LIMIT = 100
JSON_TYPE = (b"content-type", b"application/json")

Messages = list[dict[str, object]]


def chunks(*parts: bytes) -> Messages:
    return [
        {"type": "http.request", "body": part, "more_body": number < len(parts) - 1}
        for number, part in enumerate(parts)
    ]


def receiver(messages: Messages) -> Callable[[], Awaitable[dict[str, object]]]:
    """What the server hands to the application, and nothing more after that, for ever."""
    left = iter(messages)

    async def receive() -> dict[str, object]:
        for message in left:
            return message
        await anyio.sleep_forever()
        raise AssertionError

    return receive


def request(*headers: tuple[bytes, bytes], messages: Iterable[dict[str, object]] = ()) -> Request:
    return Request({"type": "http", "method": "POST", "headers": list(headers)}, receiver(list(messages)))


def refusal_of(*headers: tuple[bytes, bytes]) -> Reason:
    with pytest.raises(Rejected) as error:
        check_body_headers(request(*headers), LIMIT)
    return error.value.reason


class TestHeaders:
    def test_of_several_with_one_name_the_first_counts(self) -> None:
        other = (b"content-type", b"text/plain")
        check_body_headers(request(JSON_TYPE, other), LIMIT)
        assert refusal_of(other, JSON_TYPE) is Reason.UNSUPPORTED_MEDIA

    @pytest.mark.parametrize("length", [None, b"0", b"1", b"100", b"000100"])
    @pytest.mark.parametrize("media_type", [b"application/json", b"APPLICATION/JSON", b"application/json; charset=x"])
    def test_what_may_be_acceptable(self, length: bytes | None, media_type: bytes) -> None:
        headers = [(b"content-type", media_type)]
        check_body_headers(request(*headers, *([(b"content-length", length)] if length else [])), LIMIT)

    @pytest.mark.parametrize("length", [b"101", b"9" * 18, b"9" * 19, b"9" * 1000])
    def test_what_is_declared_too_long(self, length: bytes) -> None:
        assert refusal_of(JSON_TYPE, (b"content-length", length)) is Reason.TOO_LARGE

    @pytest.mark.parametrize("length", [b"", b"-1", b"+1", b"1.0", b"0x1", b"1_0", b"\xb2", b"x"])
    def test_what_declares_nothing(self, length: bytes) -> None:
        assert refusal_of(JSON_TYPE, (b"content-length", length)) is Reason.MALFORMED

    @pytest.mark.parametrize("media_type", [None, b"", b"text/plain", b"application/jsonx", b"x; application/json"])
    def test_what_is_no_json(self, media_type: bytes | None) -> None:
        headers = [] if media_type is None else [(b"content-type", media_type)]
        assert refusal_of(*headers) is Reason.UNSUPPORTED_MEDIA


def nothing(_size: int) -> None:
    """A share without an end."""


@pytest.mark.anyio
class TestReading:
    @pytest.mark.parametrize("parts", [[b""], [b"a" * 100], [b"a" * 60, b"b" * 40], [b"a"] * 100])
    async def test_a_body_within_the_limit_is_read_whole(self, parts: list[bytes]) -> None:
        assert await read_body(request(messages=chunks(*parts)), LIMIT, nothing) == b"".join(parts)
        await discard_body(request(messages=chunks(*parts)), LIMIT)

    @pytest.mark.parametrize("parts", [[b"a" * 101], [b"a" * 60, b"b" * 41], [b"a"] * 101])
    async def test_one_byte_more_is_too_much(self, parts: list[bytes]) -> None:
        """Found out without waiting for the rest, which never comes here."""
        endless = [{**message, "more_body": True} for message in chunks(*parts)]
        for reading in (
            read_body(request(messages=endless), LIMIT, nothing),
            discard_body(request(messages=endless), LIMIT),
        ):
            with pytest.raises(Rejected) as error, anyio.fail_after(5):
                await reading
            assert error.value.reason is Reason.TOO_LARGE

    async def test_a_client_that_leaves_is_malformed(self) -> None:
        messages = [{"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.disconnect"}]
        with pytest.raises(Rejected) as error:
            await read_body(request(messages=messages), LIMIT, nothing)
        assert error.value.reason is Reason.MALFORMED

    async def test_a_body_that_came_whole_is_read_once_and_under_the_same_limit(self) -> None:
        come = request()
        come.scope[bodies.WHOLE_BODY] = b"a" * LIMIT
        assert await read_body(come, LIMIT, nothing) == b"a" * LIMIT
        assert bodies.WHOLE_BODY not in come.scope
        for reading in (lambda: read_body(come, LIMIT, nothing), lambda: discard_body(come, LIMIT)):
            come.scope[bodies.WHOLE_BODY] = b"a" * (LIMIT + 1)
            with pytest.raises(Rejected) as error:
                await reading()
            assert error.value.reason is Reason.TOO_LARGE
        come.scope[bodies.WHOLE_BODY] = b"a" * LIMIT
        await discard_body(come, LIMIT)
        assert bodies.WHOLE_BODY not in come.scope

    async def test_a_body_that_came_whole_counts_into_its_share(self) -> None:
        come = request()
        come.scope[bodies.WHOLE_BODY] = b"a" * 50
        with BodyBudget(100, 49).share_of("a") as share, pytest.raises(Unavailable):
            await read_body(come, LIMIT, share.take)

    async def test_a_body_that_does_not_come_is_waited_for_only_so_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bodies, "BODY_DEADLINE_S", 0.01)
        messages = [{"type": "http.request", "body": b"a", "more_body": True}]
        with pytest.raises(Rejected) as error:
            await read_body(request(messages=messages), LIMIT, nothing)
        assert error.value.reason is Reason.MALFORMED


class TestBudget:
    def test_a_wallet_has_its_part(self) -> None:
        budget = BodyBudget(100, 60)
        with budget.share_of("a") as share:
            share.take(60)
            with pytest.raises(Unavailable):
                share.take(1)
            with budget.share_of("a") as another, pytest.raises(Unavailable):
                another.take(1)
            with budget.share_of("b") as other:
                other.take(40)
                with pytest.raises(Unavailable):
                    other.take(1)

    def test_everything_is_given_back_however_it_ends(self) -> None:
        budget = BodyBudget(100, 100)

        def fail_with_a_full_share() -> None:
            with budget.share_of("a") as share:
                share.take(100)
                raise KeyError

        for _ in range(3):
            with pytest.raises(KeyError):
                fail_with_a_full_share()
        with budget.share_of("b") as share:
            share.take(100)

    def test_a_share_that_was_refused_takes_nothing(self) -> None:
        budget = BodyBudget(100, 100)
        with budget.share_of("a") as share:
            with pytest.raises(Unavailable):
                share.take(101)
            share.take(100)
