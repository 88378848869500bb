"""Errors to answers: the table of protocol §7, whole."""

import json

import pytest

from appliance.api.errors import (
    ANSWERS,
    INTERNAL_ERROR,
    METHOD_NOT_ALLOWED,
    error_response,
    json_response,
    response_for,
)
from kmscore.errors import Reason, Rejected, Unavailable

TABLE = {
    400: "bad_request",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "payload_too_large",
    415: "unsupported_media_type",
    429: "rate_limited",
    500: "internal_error",
    503: "service_unavailable",
    507: "quota_exceeded",
}


def test_every_reason_has_an_answer_of_the_table() -> None:
    assert set(ANSWERS) == set(Reason)
    for status, code in (*ANSWERS.values(), METHOD_NOT_ALLOWED, INTERNAL_ERROR):
        assert TABLE[status] == code


@pytest.mark.parametrize("reason", Reason)
def test_a_refusal_is_its_code_and_its_sentence(reason: Reason) -> None:
    response = response_for(Rejected(reason, "what was wrong, in a sentence"))
    status, code = ANSWERS[reason]
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert json.loads(response.body) == {"code": code, "message": "what was wrong, in a sentence"}
    assert ("retry-after" in response.headers) == (status == 429)


@pytest.mark.parametrize(("retry_after_s", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.1, "2"), (60.0, "60")])
def test_who_should_come_back_is_told_when_in_whole_seconds(retry_after_s: float, header: str) -> None:
    response = response_for(Unavailable("initializing", retry_after_s=retry_after_s))
    assert response.status_code == 503
    assert response.headers["retry-after"] == header
    assert json.loads(response.body) == {"code": "service_unavailable", "message": "initializing"}


def test_headers_are_added_and_bodies_are_compact_utf8() -> None:
    response = error_response(METHOD_NOT_ALLOWED, "é", [(b"allow", b"GET")])
    assert response.headers["allow"] == "GET"
    assert response.body == '{"code":"method_not_allowed","message":"é"}'.encode()
    assert json_response(200, {"a": 1}).body == b'{"a":1}'
