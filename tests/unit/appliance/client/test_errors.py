"""What a call that no node answered says to the application."""

import pytest

from appliance.client.errors import (
    DEFAULT_RETRY_AFTER_S,
    BadRequest,
    FailureKind,
    KmsClientError,
    NodeFailure,
    NoNodeAvailable,
    NotAuthorized,
    RateLimited,
    UntrustedAnswer,
    error_for_failures,
)

K = FailureKind


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        pytest.param([], NoNodeAvailable, id="nobody was there"),
        pytest.param([K.UNREACHABLE, K.NO_ANSWER, K.UNAVAILABLE], NoNodeAvailable, id="nobody spoke"),
        pytest.param([K.REFUSED, K.REFUSED], NotAuthorized, id="all refuse"),
        pytest.param([K.REFUSED, K.UNREACHABLE], NotAuthorized, id="all that spoke refuse"),
        pytest.param([K.REFUSED, K.UNTRUSTED], NoNodeAvailable, id="they disagree"),
        pytest.param([K.BAD_REQUEST, K.UNAVAILABLE], BadRequest, id="the request is too large for all that spoke"),
        pytest.param([K.RATE_LIMITED, K.UNREACHABLE], RateLimited, id="all that spoke ask for patience"),
        pytest.param([K.UNTRUSTED, K.UNTRUSTED], UntrustedAnswer, id="all lie"),
        pytest.param([K.FAULT, K.FAULT], NoNodeAvailable, id="all are broken"),
    ],
)
def test_the_error_is_what_all_nodes_that_spoke_agree_on(
    kinds: list[FailureKind], expected: type[KmsClientError]
) -> None:
    failures = [NodeFailure(f"https://n{n}.example", f"0x{n}", kind, "why") for n, kind in enumerate(kinds)]
    error = error_for_failures(failures)
    assert type(error) is expected
    assert error.failures == tuple(failures)
    assert all(failure.url in str(error) for failure in failures)


@pytest.mark.parametrize(
    ("asked_s", "expected_s"), [([], DEFAULT_RETRY_AFTER_S), ([None, 9.0], 9.0), ([12.0, 3.0], 3.0)]
)
def test_no_node_available_says_when_the_first_may_be_back(asked_s: list[float | None], expected_s: float) -> None:
    failures = [NodeFailure("https://n.example", "0x1", K.UNAVAILABLE, "why", seconds) for seconds in asked_s]
    error = error_for_failures(failures)
    assert isinstance(error, NoNodeAvailable)
    assert error.retry_after_s == expected_s
