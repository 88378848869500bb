"""What the SDK tries again, where and when, and what it says when nothing helps."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from appliance.client.client import KmsClient
from appliance.client.discovery import NodeFacts
from appliance.client.errors import (
    BadRequest,
    FailureKind,
    IdentityUnavailable,
    NoNodeAvailable,
    NotAuthorized,
    OutcomeUnknown,
    QuotaExceeded,
    RateLimited,
)
from kmscore.errors import Unavailable
from tests.support import fake_node, wire
from tests.support.client_bench import APP_ID, Bench, app_identity, facts_of
from tests.support.fake_node import (
    Fault,
    refuses,
    refuses_signed,
)

pytestmark = pytest.mark.anyio

# --- failing over ---

NOT_RUN: dict[str, Fault] = {
    "no connection": fake_node.refuses_connection,
    "503": refuses(503),
    "503 with a time to wait": refuses(503, headers={"Retry-After": "5"}),
    "429": refuses(429, headers={"Retry-After": "5"}),
    "403": refuses(403),
    "413": refuses(413),
    "a signed 403": refuses_signed(403),
    "a signed 500": refuses_signed(500),
}


@pytest.mark.parametrize("fault", NOT_RUN.values(), ids=NOT_RUN.keys())
async def test_a_put_that_was_certainly_not_run_goes_to_the_next_node(bench: Bench, fault: Fault) -> None:
    failing, working = bench.add_node(), bench.add_node()
    failing.always = fault
    async with bench.client() as kms:
        await kms.put("k", b"v")
    assert (failing.ran, working.ran) == ([], ["put k"])


MAYBE_RUN: dict[str, Fault] = {
    "cut": fake_node.is_cut_after_running,
    "no answer in time": fake_node.times_out_after_running,
    "502 of a proxy": refuses(502, body=b"<html>"),
    "an unsigned 500": refuses(500),
}
CHANGES: dict[str, Callable[[KmsClient], Awaitable[object]]] = {
    "put": lambda kms: kms.put("k", b"v"),
    "delete": lambda kms: kms.delete("k"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("fault", MAYBE_RUN.values(), ids=MAYBE_RUN.keys())
async def test_a_change_that_may_have_been_run_is_not_repeated(
    bench: Bench, fault: Fault, change: Callable[[KmsClient], Awaitable[object]]
) -> None:
    failing, other = bench.add_node(), bench.add_node()
    bench.store["k"] = b"old"
    failing.always = fault
    async with bench.client() as kms:
        with pytest.raises(OutcomeUnknown) as caught:
            await change(kms)
    assert caught.value.failure.url == failing.url
    assert other.asked == []


@pytest.mark.parametrize("fault", MAYBE_RUN.values(), ids=MAYBE_RUN.keys())
async def test_a_read_that_may_have_been_run_goes_to_the_next_node(bench: Bench, fault: Fault) -> None:
    failing, _ = bench.add_node(), bench.add_node()
    failing.always = fault
    bench.store["k"] = b"v"
    async with bench.client() as kms:
        assert (await kms.get("k")).value == b"v"


async def test_a_node_that_hangs_costs_a_read_one_attempt(bench: Bench) -> None:
    hanging, _ = bench.add_node(), bench.add_node()
    hanging.always = fake_node.hangs
    async with bench.client(attempt_timeout_s=0.05) as kms:
        assert await kms.keys() == []


async def test_a_node_that_hangs_leaves_half_of_the_time_to_the_others(bench: Bench) -> None:
    hanging, working = bench.add_node(), bench.add_node()
    hanging.always_at_nonce = fake_node.hangs
    async with bench.client(timeout_s=0.2) as kms:
        await kms.put("k", b"v")
    assert working.ran == ["put k"]


async def test_a_node_that_hangs_leaves_a_put_unknown_and_one_that_gives_no_nonce_does_not(bench: Bench) -> None:
    hanging, working = bench.add_node(), bench.add_node()
    async with bench.client(attempt_timeout_s=0.05) as kms:
        hanging.always_at_nonce = fake_node.hangs
        await kms.put("k", b"v")
        assert working.ran == ["put k"]
    hanging.always_at_nonce, hanging.always = None, fake_node.hangs
    async with bench.client(attempt_timeout_s=0.05) as kms:
        with pytest.raises(OutcomeUnknown):
            await kms.put("k", b"v")


async def test_calls_stay_with_the_node_that_answered_last(bench: Bench) -> None:
    first, second = bench.add_node(), bench.add_node()
    first.faults = [refuses(503)]
    async with bench.client() as kms:
        for _ in range(3):
            await kms.keys()
        bench.clock.elapsed_ms += 60_000
        await kms.keys()
    assert (len(first.ran), len(second.ran)) == (0, 4)


async def test_a_node_that_failed_lately_is_asked_after_those_that_did_not(bench: Bench) -> None:
    first, second, third = (bench.add_node() for _ in range(3))
    first.always = refuses(503)
    async with bench.client() as kms:
        await kms.keys()
        asked = len(first.asked)
        second.always = refuses(503)
        await kms.keys()
    assert len(first.asked) == asked
    assert third.ran == ["list"]


async def test_a_refusal_that_is_believed_ends_the_call(bench: Bench) -> None:
    for status, expected in ((400, BadRequest), (413, BadRequest), (507, QuotaExceeded)):
        bench.nodes.clear()
        first, second = bench.add_node(), bench.add_node()
        first.always = refuses_signed(status)
        async with bench.client() as kms:
            with pytest.raises(expected, match="a message"):
                await kms.put("k", b"v")
        assert second.asked == []


async def test_an_identity_that_every_node_refuses_is_not_authorized(bench: Bench) -> None:
    first, second, dead = (bench.add_node() for _ in range(3))
    first.always, second.always, dead.always = refuses(403), refuses_signed(403), fake_node.refuses_connection
    async with bench.client() as kms:
        with pytest.raises(NotAuthorized) as caught:
            await kms.put("k", b"v")
    assert {failure.kind for failure in caught.value.failures} == {FailureKind.REFUSED, FailureKind.UNREACHABLE}


async def test_an_app_that_the_node_does_not_know_is_not_authorized(bench: Bench) -> None:
    bench.add_node()
    stranger = app_identity()
    bench.nodes[0].app = fake_node.RegisteredApp(APP_ID, "0x" + "00" * 20, bench.nodes[0].app.tee_pubkey)
    async with bench.client(identity=stranger) as kms:
        with pytest.raises(NotAuthorized):
            await kms.derive("disk")


async def test_no_node_available_says_what_each_node_did(bench: Bench) -> None:
    bench.add_node().always = fake_node.refuses_connection
    bench.add_node().always = refuses(503, headers={"Retry-After": "45"})
    async with bench.client() as kms:
        with pytest.raises(NoNodeAvailable) as caught:
            await kms.keys()
    kinds = {failure.url: failure.kind for failure in caught.value.failures}
    assert kinds == {
        "https://node0.example": FailureKind.UNREACHABLE,
        "https://node1.example": FailureKind.UNAVAILABLE,
    }
    assert caught.value.retry_after_s == 45
    assert "https://node0.example unreachable" in str(caught.value)


async def test_text_from_outside_reaches_an_error_without_control_characters(bench: Bench) -> None:
    bench.add_node().always = refuses(503, body=b'{"code":"c","message":"\\u001b[2J' + b"x" * 5000 + b'"}')
    async with bench.client() as kms:
        with pytest.raises(NoNodeAvailable) as caught:
            await kms.keys()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


# --- waiting ---


async def test_retry_after_is_honoured_within_the_deadline(bench: Bench) -> None:
    node = bench.add_node()
    node.faults = [refuses(429, headers={"Retry-After": "7"})]
    async with bench.client(timeout_s=30) as kms:
        await kms.put("k", b"v")
    assert bench.clock.elapsed_ms == 7000
    assert node.ran == ["put k"]


async def test_a_wait_beyond_the_deadline_is_left_to_the_app(bench: Bench) -> None:
    node = bench.add_node()
    node.always = refuses(429, headers={"Retry-After": "31"})
    async with bench.client(timeout_s=30) as kms:
        for _ in range(2):
            with pytest.raises(RateLimited) as caught:
                await kms.keys()
            assert caught.value.retry_after_s == 31
    assert bench.clock.elapsed_ms == 0
    assert node.asked.count("GET /kms/data") == 1


async def test_retry_after_zero_is_no_invitation_to_hammer(bench: Bench) -> None:
    node = bench.add_node()
    node.always = refuses(503, headers={"Retry-After": "0"})
    async with bench.client(timeout_s=10) as kms:
        with pytest.raises(NoNodeAvailable):
            await kms.keys()
    assert node.asked.count("GET /kms/data") <= 11


async def test_a_rate_limited_nonce_request_waits_too(bench: Bench) -> None:
    node = bench.add_node()
    node.always_at_nonce = refuses(429, headers={"Retry-After": "40"})
    async with bench.client(timeout_s=30) as kms:
        with pytest.raises(RateLimited):
            await kms.put("k", b"v")
    assert node.asked == ["GET /nonce"]


# --- the nodes and the identity themselves ---


class Directory:
    """Answers from a list of lists, the last one for ever."""

    def __init__(self, *answers: Sequence[NodeFacts] | Unavailable) -> None:
        self.answers = list(answers)
        self.max_ages_s: list[float | None] = []

    async def nodes(self, *, max_age_s: float | None = None) -> Sequence[NodeFacts]:
        self.max_ages_s.append(max_age_s)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Unavailable):
            raise answer
        return answer


async def test_the_registry_is_asked_again_when_every_known_node_failed(bench: Bench) -> None:
    gone, new = bench.add_node(), bench.add_node()
    gone.always = fake_node.refuses_connection
    directory = Directory([facts_of(gone)], [facts_of(new)])
    async with bench.client(directory=directory) as kms:
        assert await kms.keys() == []
    assert directory.max_ages_s == [None, 5.0]


async def test_a_node_that_restarted_with_new_keys_is_found_again(bench: Bench) -> None:
    node = bench.add_node()
    before = facts_of(node)
    node.wallet, node.tee = wire.Wallet(), wire.TeeKey()
    async with bench.client(directory=Directory([before], [facts_of(node)])) as kms:
        assert await kms.keys() == []


@pytest.mark.parametrize(
    "directory",
    [
        pytest.param(Directory([]), id="no node is listed"),
        pytest.param(Directory(Unavailable("the chain is away")), id="the registry cannot be read"),
    ],
)
async def test_without_a_node_to_ask_none_is_available(bench: Bench, directory: Directory) -> None:
    async with bench.client(directory=directory) as kms:
        with pytest.raises(NoNodeAvailable, match="registry"):
            await kms.keys()


async def test_a_registry_that_fails_on_the_second_reading_does_not_hide_what_the_nodes_did(bench: Bench) -> None:
    node = bench.add_node()
    node.always = refuses(403)
    async with bench.client(directory=Directory([facts_of(node)], Unavailable("away"))) as kms:
        with pytest.raises(NotAuthorized):
            await kms.keys()


class FailingIdentity:
    """The app's identity, with one operation that does not answer."""

    def __init__(self, failing: str) -> None:
        self._identity = app_identity()
        self._failing = failing

    def __getattr__(self, name: str) -> Any:
        return self._fail if name == self._failing else getattr(self._identity, name)

    async def _fail(self, *_: object) -> None:
        raise Unavailable("the runtime does not answer")


@pytest.mark.parametrize("failing", ["identity", "sign_message", "seal"])
async def test_an_identity_provider_that_fails_before_sending_changes_nothing(bench: Bench, failing: str) -> None:
    node = bench.add_node()
    async with bench.client(identity=FailingIdentity(failing)) as kms:
        with pytest.raises(IdentityUnavailable):
            await kms.put("k", b"v")
    assert node.ran == []


async def test_an_identity_provider_that_cannot_open_an_answer_leaves_only_changes_unknown(bench: Bench) -> None:
    bench.add_node()
    async with bench.client(identity=FailingIdentity("open")) as kms:
        with pytest.raises(OutcomeUnknown):
            await kms.put("k", b"v")
        with pytest.raises(IdentityUnavailable):
            await kms.keys()
