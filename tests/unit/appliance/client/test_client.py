"""The SDK over whole calls: what it believes, what it tries again, and what it says when nothing helps."""

import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import httpx
import pytest

from appliance.client.answers import PutResult, RefusalTrust
from appliance.client.client import KmsClient
from appliance.client.discovery import NodeFacts, StaticDirectory
from appliance.client.errors import (
    BadRequest,
    FailureKind,
    IdentityUnavailable,
    KmsClientError,
    NoNodeAvailable,
    NotAuthorized,
    NotFound,
    OutcomeUnknown,
    QuotaExceeded,
    RateLimited,
    UntrustedAnswer,
)
from kmscore.errors import ConfigError, Unavailable
from tests.support import fake_node, wire
from tests.support.client_bench import APP_ID, Bench, app_identity, facts_of
from tests.support.fake_node import (
    MASTER_SECRET,
    OLD_NODE,
    VALUE_TIME_MS,
    FakeNode,
    Fault,
    Traits,
    answers_inner,
    refuses,
    refuses_signed,
)

pytestmark = pytest.mark.anyio

NOTHING_DERIVED = {"app_id": APP_ID, "path": "disk", "key": wire.encode_base64(bytes(32)), "length": 32}
NOTHING_LISTED = {"app_id": APP_ID, "keys": [], "count": 0}


# --- calls that succeed ---


async def test_derive_returns_what_the_cluster_derives_for_this_app(bench: Bench) -> None:
    bench.add_node()
    async with bench.client() as kms:
        assert await kms.derive("disk", "v2", 48) == wire.derive_key(MASTER_SECRET, APP_ID, "disk", "v2", 48)


async def test_a_value_can_be_put_read_listed_and_deleted(bench: Bench) -> None:
    bench.add_node()
    async with bench.client() as kms:
        assert await kms.put("config", b"\x00value\xff") == PutResult(VALUE_TIME_MS)
        found = await kms.get("config")
        assert (found.value, found.updated_at_ms) == (b"\x00value\xff", VALUE_TIME_MS)
        assert await kms.keys() == ["config"]
        await kms.delete("config")
        with pytest.raises(NotFound):
            await kms.get("config")


@pytest.mark.parametrize("key", ["a/b", "a b", "a+b", "a%2Bb", "..", "ключ", "a?b#c&d=e"])
@pytest.mark.parametrize("knows_key_query", [True, False])
async def test_any_text_is_a_key_with_either_form_of_request(bench: Bench, key: str, knows_key_query: bool) -> None:
    bench.add_node(Traits(knows_key_query=knows_key_query))
    async with bench.client() as kms:
        await kms.put(key, b"value")
        assert (await kms.get(key)).value == b"value"


async def test_the_key_goes_into_the_path_after_one_listing_from_a_node_that_takes_no_query(bench: Bench) -> None:
    node = bench.add_node(Traits(knows_key_query=False))
    bench.store["k"] = b"v"
    async with bench.client() as kms:
        await kms.get("k")
        await kms.get("k")
    assert node.ran == ["list", "get k", "get k"]


async def test_the_next_nonce_saves_the_request_for_one(bench: Bench) -> None:
    node = bench.add_node()
    async with bench.client() as kms:
        for _ in range(3):
            await kms.keys()
    assert node.asked == ["GET /nonce", *["GET /kms/data"] * 3]


async def test_a_next_nonce_that_has_become_old_is_not_used(bench: Bench) -> None:
    node = bench.add_node()
    async with bench.client() as kms:
        await kms.keys()
        bench.clock.elapsed_ms += 21_000
        await kms.keys()
    assert node.asked.count("GET /nonce") == 2


async def test_a_put_with_a_next_nonce_that_the_node_forgot_is_sent_again_with_a_fetched_one(bench: Bench) -> None:
    node = bench.add_node()
    async with bench.client() as kms:
        await kms.keys()
        node.forget_nonces()
        await kms.put("k", b"v")
    assert node.ran == ["list", "put k"]
    assert node.asked[-3:] == ["PUT /kms/data", "GET /nonce", "PUT /kms/data"]


async def test_concurrent_calls_share_a_client(bench: Bench) -> None:
    node = bench.add_node()
    async with bench.client() as kms, anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(kms.put, f"k{number}", b"v")
    assert sorted(bench.store) == sorted(f"k{number}" for number in range(20))
    assert len(node.ran) == 20


# --- older nodes ---

OLDER_NODES = {
    "no extension": OLD_NODE,
    "v 27 or 28 without 0x": Traits(signs=False, form=wire.SignatureForm(27, "")),
    "upper-case hex with 0x": Traits(signs=False, upper_case_hex=True),
    "only the oldest label": Traits(signs=False, labels=(wire.ENCLAVER_LABEL,)),
    "only the middle label": Traits(signs=False, labels=(wire.CAPSULE_API_LABEL,)),
    "no query for keys": Traits(signs=False, knows_key_query=False),
}


@pytest.mark.parametrize("traits", OLDER_NODES.values(), ids=OLDER_NODES.keys())
async def test_every_call_works_at_an_older_node(bench: Bench, traits: Traits) -> None:
    node = bench.add_node(traits)
    async with bench.client() as kms:
        await kms.put("k", b"v")
        assert (await kms.get("k")).value == b"v"
        assert len(await kms.derive("disk")) == 32
        assert await kms.keys() == ["k"]
        await kms.delete("k")
    assert node.ran.count("put k") == 1


async def test_the_label_a_node_understood_is_used_from_then_on(bench: Bench) -> None:
    node = bench.add_node(OLDER_NODES["only the oldest label"])
    async with bench.client() as kms:
        await kms.put("k", b"1")
        asked = len(node.asked)
        await kms.put("k", b"2")
    assert node.asked[asked:] == ["GET /nonce", "PUT /kms/data"]


@pytest.mark.parametrize(
    ("traits", "trust", "expected"),
    [
        pytest.param(Traits(), RefusalTrust.SIGNED_ANSWER, NotFound, id="new node, strictest"),
        pytest.param(Traits(), RefusalTrust.DANGEROUS_UNSIGNED, NotFound, id="new node, laxest"),
        pytest.param(
            Traits(signs=False, signs_responses_only=True),
            RefusalTrust.SIGNED_RESPONSE,
            NotFound,
            id="older node that signs the request of a refusal, default",
        ),
        pytest.param(
            Traits(signs=False, signs_responses_only=True),
            RefusalTrust.SIGNED_ANSWER,
            UntrustedAnswer,
            id="older node that signs the request of a refusal, strictest",
        ),
        pytest.param(OLD_NODE, RefusalTrust.SIGNED_RESPONSE, UntrustedAnswer, id="older node that signs none, default"),
        pytest.param(OLD_NODE, RefusalTrust.DANGEROUS_UNSIGNED, NotFound, id="older node that signs none, laxest"),
    ],
)
async def test_a_missing_key_is_believed_as_far_as_the_caller_chose(
    bench: Bench, traits: Traits, trust: RefusalTrust, expected: type[KmsClientError]
) -> None:
    bench.add_node(traits)
    async with bench.client(refusal_trust=trust) as kms:
        with pytest.raises(expected):
            await kms.get("missing")


@pytest.mark.parametrize("trust", RefusalTrust)
async def test_a_node_that_showed_it_signs_answers_is_held_to_it(bench: Bench, trust: RefusalTrust) -> None:
    node = bench.add_node()
    async with bench.client(refusal_trust=trust) as kms:
        await kms.put("k", b"v")
        for fault in (refuses(404), fake_node.turns_its_success_into_a_404):
            node.faults.append(fault)
            with pytest.raises(UntrustedAnswer):
                await kms.get("k")


# --- answers that are not believed ---

SPOILED: dict[str, Fault] = {
    "no response signature": fake_node.answers_unsigned,
    "signed by another wallet": fake_node.is_signed_by_a_stranger,
    "signed for another request": fake_node.signs_another_request,
    "answer signature of another body": fake_node.adds_a_wrong_answer_signature,
    "tampered ciphertext": fake_node.flips_a_bit,
    "the request itself": fake_node.reflects_the_request,
    "the request itself under the node's name": fake_node.reflects_under_its_own_key,
    "sealed with a key the chain does not list": fake_node.seals_with_an_unregistered_key,
    "plaintext": fake_node.answers_plaintext,
    "a body without end": fake_node.answers_without_end,
    "a redirect": refuses(307, headers={"Location": "https://elsewhere.example/kms/derive"}),
    "an unsigned 404": refuses(404),
    "a 404 signed for another body": fake_node.gives_a_404_signed_for_another_body,
    "an unsigned 507": refuses(507, body=b"<html>"),
    "a status that does not exist": refuses(799),
    "made for another request": answers_inner(NOTHING_DERIVED | {"answer_to": "another nonce"}),
    "of another path": answers_inner(NOTHING_DERIVED | {"path": "other"}),
    "of another length": answers_inner(NOTHING_DERIVED | {"length": 16}),
    "a key of another length": answers_inner(NOTHING_DERIVED | {"key": wire.encode_base64(bytes(31))}),
    "a key that is not base64": answers_inner(NOTHING_DERIVED | {"key": "A" * 44}),
    "without an app": answers_inner({name: NOTHING_DERIVED[name] for name in ("path", "key", "length")}),
    "an app that is true": answers_inner(NOTHING_DERIVED | {"app_id": True}),
    "of another kind": answers_inner(NOTHING_LISTED),
}


@pytest.mark.parametrize("fault", SPOILED.values(), ids=SPOILED.keys())
async def test_a_spoiled_answer_makes_a_read_go_to_the_next_node(bench: Bench, fault: Fault) -> None:
    liar, honest = bench.add_node(), bench.add_node()
    liar.always = fault
    async with bench.client() as kms:
        assert await kms.derive("disk") == wire.derive_key(MASTER_SECRET, APP_ID, "disk")
    assert honest.ran == ["derive"]


@pytest.mark.parametrize("fault", SPOILED.values(), ids=SPOILED.keys())
async def test_a_spoiled_answer_to_a_put_leaves_its_outcome_unknown(bench: Bench, fault: Fault) -> None:
    liar, other = bench.add_node(), bench.add_node()
    liar.always = fault
    async with bench.client() as kms:
        with pytest.raises(OutcomeUnknown) as caught:
            await kms.put("k", b"v")
    assert caught.value.failure.wallet == liar.wallet.address
    assert other.asked == []


async def test_a_call_that_only_liars_answer_is_untrusted(bench: Bench) -> None:
    for _ in range(2):
        bench.add_node().always = fake_node.is_signed_by_a_stranger
    async with bench.client() as kms:
        with pytest.raises(UntrustedAnswer) as caught:
            await kms.derive("disk")
    assert [failure.kind for failure in caught.value.failures] == [FailureKind.UNTRUSTED] * 2


async def test_an_envelope_is_accepted_once(bench: Bench) -> None:
    node = bench.add_node(OLD_NODE)
    node.always = fake_node.repeats_an_old_envelope()
    async with bench.client() as kms:
        assert await kms.keys() == []
        with pytest.raises(UntrustedAnswer, match="accepted before"):
            await kms.keys()


async def test_a_value_of_another_key_is_not_taken_for_the_one_asked_for(bench: Bench) -> None:
    node = bench.add_node(OLD_NODE)
    node.always = answers_inner({"app_id": APP_ID, "key": "other", "value": "", "updated_at_ms": 1})
    async with bench.client() as kms:
        with pytest.raises(UntrustedAnswer):
            await kms.get("k")


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


# --- arguments ---

BAD_CALLS: dict[str, Callable[[Any], Awaitable[object]]] = {
    "empty path": lambda kms: kms.derive(""),
    "path that is no text": lambda kms: kms.derive(7),
    "context that is no text": lambda kms: kms.derive("p", None),
    "length 0": lambda kms: kms.derive("p", length=0),
    "length 1025": lambda kms: kms.derive("p", length=1025),
    "length true": lambda kms: kms.derive("p", length=True),
    "empty key": lambda kms: kms.get(""),
    "key with half a surrogate pair": lambda kms: kms.delete("\ud800"),
    "value that is text": lambda kms: kms.put("k", "v"),
    "negative ttl": lambda kms: kms.put("k", b"v", ttl_ms=-1),
}


@pytest.mark.parametrize("call", BAD_CALLS.values(), ids=BAD_CALLS.keys())
async def test_a_call_that_cannot_be_right_is_refused_before_anything_is_sent(
    bench: Bench, call: Callable[[Any], Awaitable[object]]
) -> None:
    node = bench.add_node()
    async with bench.client() as kms:
        with pytest.raises(BadRequest):
            await call(kms)
    assert node.asked == []


async def test_a_label_that_is_none_of_the_protocol_is_a_configuration_error(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="label"):
        bench.client(label="no such label")


async def test_its_own_connections_verify_tls_follow_nothing_and_ignore_the_environment(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    made: list[dict[str, Any]] = []
    original = httpx.AsyncClient

    def recording(**options: Any) -> httpx.AsyncClient:
        made.append(options)
        return original(**options)

    monkeypatch.setattr(httpx, "AsyncClient", recording)
    async with KmsClient(bench.identity, StaticDirectory([])):
        pass
    private_ca = ssl.create_default_context()
    async with KmsClient(bench.identity, StaticDirectory([]), tls=private_ca):
        pass
    assert [options["verify"] for options in made] == [True, private_ca]
    assert not any(options["follow_redirects"] or options["trust_env"] for options in made)


async def test_a_cancelled_call_leaves_the_client_usable(bench: Bench) -> None:
    node: FakeNode = bench.add_node()
    node.faults = [fake_node.hangs]
    async with bench.client() as kms:
        with anyio.move_on_after(0.05) as scope:
            await kms.keys()
        assert scope.cancelled_caught
        assert await kms.keys() == []
