"""How far one answer may be believed, without a connection."""

import json
from collections.abc import Callable

import pytest

from appliance.client.answers import (
    MAX_MESSAGE_CHARS,
    Proof,
    RefusalTrust,
    UnverifiedAnswer,
    Value,
    is_believed,
    parse_deleted,
    parse_keys,
    parse_put,
    parse_value,
    verify_refusal,
)
from appliance.http import MAX_RETRY_AFTER_S, parse_nonce, parse_retry_after_s
from kmscore.errors import Reason, Rejected
from tests.support import wire

WALLET = wire.Wallet(b"\x02" * 32)
POP_SIGNATURE = "0x" + "5a" * 65


@pytest.mark.parametrize(
    ("proof", "trust", "node_signs", "expected"),
    [
        (Proof.ANSWER, RefusalTrust.SIGNED_ANSWER, False, True),
        (Proof.ANSWER, RefusalTrust.DANGEROUS_UNSIGNED, True, True),
        (Proof.RESPONSE, RefusalTrust.SIGNED_ANSWER, False, False),
        (Proof.RESPONSE, RefusalTrust.SIGNED_RESPONSE, False, True),
        (Proof.RESPONSE, RefusalTrust.SIGNED_RESPONSE, True, False),
        (Proof.RESPONSE, RefusalTrust.DANGEROUS_UNSIGNED, True, False),
        (Proof.NONE, RefusalTrust.SIGNED_ANSWER, False, False),
        (Proof.NONE, RefusalTrust.SIGNED_RESPONSE, False, False),
        (Proof.NONE, RefusalTrust.DANGEROUS_UNSIGNED, False, True),
        (Proof.NONE, RefusalTrust.DANGEROUS_UNSIGNED, True, False),
    ],
)
def test_a_refusal_counts_by_its_proof_and_what_the_node_has_shown(
    proof: Proof, trust: RefusalTrust, node_signs: bool, expected: bool
) -> None:
    assert is_believed(proof, trust, node_signs=node_signs) is expected


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b'{"detail":"of another framework"}', b'{"code":7,"message":["x"]}', b"\xff", b"{" * 5000],
)
def test_an_error_body_of_any_shape_is_no_error_of_ours(body: bytes) -> None:
    refusal = verify_refusal(UnverifiedAnswer(502, {}, body), POP_SIGNATURE, WALLET.address)
    assert (refusal.status, refusal.code, refusal.message, refusal.proof) == (502, "", "", Proof.NONE)


def test_outside_text_is_cut_and_made_printable() -> None:
    body = json.dumps({"code": "c", "message": "\x1b[31m\n" + "x" * 1000}).encode()
    refusal = verify_refusal(UnverifiedAnswer(400, {}, body), POP_SIGNATURE, WALLET.address)
    assert refusal.message.isprintable()
    assert len(refusal.message) == MAX_MESSAGE_CHARS


@pytest.mark.parametrize("header", ["x-kms-response-signature", "x-kms-answer-signature"])
@pytest.mark.parametrize("value", ["", "nonsense", "0x" + "00" * 65, "0x" + "ff" * 65])
def test_a_refusal_with_a_bad_signature_is_worse_than_one_without(header: str, value: str) -> None:
    with pytest.raises(Rejected) as caught:
        verify_refusal(UnverifiedAnswer(404, {header: value}, b"{}"), POP_SIGNATURE, WALLET.address)
    assert caught.value.reason is Reason.SIGNATURE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("", None),
        ("0", 0),
        ("7", 7),
        ("99999", MAX_RETRY_AFTER_S),
        ("9" * 5000, None),
        ("-1", None),
        ("1.5", None),
        ("٣", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
    ],
)
def test_retry_after_is_whole_seconds_up_to_an_hour(text: str | None, expected: float | None) -> None:
    assert parse_retry_after_s(text) == expected


VALUE = {"app_id": 7, "key": "k", "value": "dmFsdWU=", "updated_at_ms": 5}
PUT = {"app_id": 7, "key": "k", "updated_at_ms": 5}
DELETED = {"app_id": 7, "key": "k", "deleted": True}
KEYS = {"app_id": 7, "keys": ["a", "b"], "count": 2}
Inner = dict[str, object]


def test_good_inner_answers_are_read() -> None:
    assert parse_value(VALUE, "k") == Value(b"value", 5)
    assert parse_put(PUT, "k").updated_at_ms == 5
    parse_deleted(DELETED, "k")
    assert parse_keys(KEYS) == ["a", "b"]


def test_a_value_stays_out_of_its_repr() -> None:
    assert "value" not in repr(Value(b"value", 5)).removeprefix("Value")


MISFITS: dict[str, tuple[Callable[[Inner], object], Inner]] = {
    "value: app 0": (lambda inner: parse_value(inner, "k"), VALUE | {"app_id": 0}),
    "value: app as text": (lambda inner: parse_value(inner, "k"), VALUE | {"app_id": "7"}),
    "value: other key": (lambda inner: parse_value(inner, "k"), VALUE | {"key": "K"}),
    "value: null": (lambda inner: parse_value(inner, "k"), VALUE | {"value": None}),
    "value: without padding": (lambda inner: parse_value(inner, "k"), VALUE | {"value": "dmFsdWU"}),
    "value: with a line break": (lambda inner: parse_value(inner, "k"), VALUE | {"value": "dmFs\ndWU="}),
    "value: with spare bits": (lambda inner: parse_value(inner, "k"), VALUE | {"value": "dmFsdWV="}),
    "value: not ASCII": (lambda inner: parse_value(inner, "k"), VALUE | {"value": "é"}),
    "value: negative time": (lambda inner: parse_value(inner, "k"), VALUE | {"updated_at_ms": -1}),
    "value: time as a fraction": (lambda inner: parse_value(inner, "k"), VALUE | {"updated_at_ms": 1.5}),
    "put: other key": (lambda inner: parse_put(inner, "k"), PUT | {"key": "other"}),
    "put: no time": (lambda inner: parse_put(inner, "k"), {"app_id": 7, "key": "k"}),
    "delete: not deleted": (lambda inner: parse_deleted(inner, "k"), DELETED | {"deleted": False}),
    "delete: 1 is not true": (lambda inner: parse_deleted(inner, "k"), DELETED | {"deleted": 1}),
    "delete: other key": (lambda inner: parse_deleted(inner, "k"), DELETED | {"key": "other"}),
    "keys: no list": (parse_keys, KEYS | {"keys": "ab"}),
    "keys: a number among them": (parse_keys, KEYS | {"keys": ["a", 1]}),
    "keys: miscounted": (parse_keys, KEYS | {"count": 3}),
}


@pytest.mark.parametrize(("parse", "inner"), MISFITS.values(), ids=MISFITS.keys())
def test_an_inner_answer_that_does_not_fit_is_rejected(parse: Callable[[Inner], object], inner: Inner) -> None:
    with pytest.raises(Rejected) as caught:
        parse(inner)
    assert caught.value.reason is Reason.MALFORMED


@pytest.mark.parametrize("text", ["AAEC", "opaque-text+/=", "x" * 512, "a:b"])
def test_a_nonce_is_opaque(text: str) -> None:
    assert parse_nonce(text) == text


@pytest.mark.parametrize("value", [None, 7, "", "x" * 513, "a b", "a\nb", "a\x7f", "é"])
def test_a_nonce_that_a_header_cannot_carry_is_refused(value: object) -> None:
    with pytest.raises(Rejected) as caught:
        parse_nonce(value)
    assert caught.value.reason is Reason.NONCE
