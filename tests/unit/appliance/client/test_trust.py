"""What the SDK does not believe, and what follows from it."""

import pytest

from appliance.client.answers import RefusalTrust
from appliance.client.errors import (
    FailureKind,
    KmsClientError,
    NotFound,
    OutcomeUnknown,
    UntrustedAnswer,
)
from tests.support import fake_node, wire
from tests.support.client_bench import APP_ID, Bench
from tests.support.fake_node import (
    MASTER_SECRET,
    OLD_NODE,
    Fault,
    Traits,
    answers_inner,
    refuses,
)

pytestmark = pytest.mark.anyio

NOTHING_DERIVED = {"app_id": APP_ID, "path": "disk", "key": wire.encode_base64(bytes(32)), "length": 32}
NOTHING_LISTED = {"app_id": APP_ID, "keys": [], "count": 0}


# --- missing keys ---


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
