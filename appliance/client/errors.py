"""What the SDK raises, by what an application can do about it.

`str(error)` is one sentence for people. It may name nodes and what they answered; it never holds a key, a value or a
secret.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from kmscore.errors import KmsError

DEFAULT_RETRY_AFTER_S = 5.0


class FailureKind(StrEnum):
    """How one node failed to answer one call."""

    UNREACHABLE = "unreachable"
    """No connection, or the time ran out before the request was sent."""
    NO_ANSWER = "no answer"
    """The request was sent; the connection broke or the time ran out before a complete answer."""
    UNAVAILABLE = "unavailable"
    """503: the node says that it is not ready."""
    RATE_LIMITED = "rate limited"
    """429."""
    REFUSED = "refused"
    """403: the node does not accept who we are, our clock or our keys."""
    BAD_REQUEST = "bad request"
    """413 or 415 without a signature, which is how a node answers them before it knows who calls."""
    UNTRUSTED = "untrusted"
    """An answer that does not prove to come from the node, or does not fit the request."""
    NOT_ATTESTED = "not attested"
    """It did not prove to run an acceptable image, which this client requires before it asks anything."""
    FAULT = "fault"
    """A server error."""


@dataclass(frozen=True, slots=True)
class NodeFailure:
    """Why one node did not answer; `retry_after_s` is what it asked for, None when it asked for nothing."""

    url: str
    wallet: str
    kind: FailureKind
    message: str
    retry_after_s: float | None = None

    def __str__(self) -> str:
        return f"{self.url} {self.kind} ({self.message})"


class KmsClientError(KmsError):
    """Root of what `KmsClient` raises; `failures` says what each node did, empty when one node's word was enough."""

    def __init__(self, message: str, failures: Iterable[NodeFailure] = ()) -> None:
        super().__init__(message)
        self.failures = tuple(failures)


class BadRequest(KmsClientError):
    """The call itself is not acceptable: change it."""


class NotFound(KmsClientError):
    """The node proved that there is no such key: missing, expired and deleted look the same."""


class QuotaExceeded(KmsClientError):
    """The app's namespace or the store is full: delete something first. Nothing was changed."""


class NotAuthorized(KmsClientError):
    """Every node that answered refused this identity: its registration, its version, its keys or its clock (403).

    A 403 comes before a node knows who calls and may be unsigned; it is believed because nothing hangs on it but this
    error.
    """


class RateLimited(KmsClientError):
    """Every node that answered asks for patience beyond the call's deadline: try again after `retry_after_s`."""

    def __init__(self, message: str, failures: Iterable[NodeFailure], retry_after_s: float) -> None:
        super().__init__(message, failures)
        self.retry_after_s = retry_after_s


class NoNodeAvailable(KmsClientError):
    """No node could answer within the deadline, or the registry that lists them cannot be read: try again later."""

    def __init__(self, message: str, failures: Iterable[NodeFailure] = ()) -> None:
        super().__init__(message, failures)
        asked = [failure.retry_after_s for failure in self.failures if failure.retry_after_s is not None]
        self.retry_after_s = min(asked, default=DEFAULT_RETRY_AFTER_S)


class UntrustedAnswer(KmsClientError):
    """What came back does not prove to be from the nodes: something between here and them interferes, or they are
    broken.
    """


class NodeNotAttested(KmsClientError):
    """No node that answered proved to run an image that this client accepts. Nothing was asked of any of them."""


class IdentityUnavailable(KmsClientError):
    """This app's own TEE provider does not sign, seal or open now: try again later. Nothing was changed."""


class OutcomeUnknown(KmsClientError):
    """A put or delete was sent to `failure.wallet` and may or may not have happened: read the key back and decide."""

    def __init__(self, failure: NodeFailure) -> None:
        super().__init__(f"the change may or may not have happened: {failure}", (failure,))
        self.failure = failure


# What nodes that did answer say about the call as a whole when they all say the same.
_UNANIMOUS = {
    FailureKind.REFUSED: (NotAuthorized, "no node accepts this identity"),
    FailureKind.BAD_REQUEST: (BadRequest, "no node accepts this request"),
    FailureKind.NOT_ATTESTED: (NodeNotAttested, "no node proved to run an acceptable image"),
    FailureKind.UNTRUSTED: (UntrustedAnswer, "no node gave an answer that can be trusted"),
}
_SILENT = (FailureKind.UNREACHABLE, FailureKind.NO_ANSWER, FailureKind.UNAVAILABLE)


def error_for_failures(failures: Iterable[NodeFailure]) -> KmsClientError:
    """The error of a call that no node answered: by what all nodes that spoke agree on, else `NoNodeAvailable`."""
    known = tuple(failures)
    if not known:
        return NoNodeAvailable("no node could be asked: the registry lists none, or the time ran out")
    detail = "; ".join(str(failure) for failure in known)
    spoken = {failure.kind for failure in known if failure.kind not in _SILENT}
    if len(spoken) == 1:
        (kind,) = spoken
        if kind in _UNANIMOUS:
            error, summary = _UNANIMOUS[kind]
            return error(f"{summary}: {detail}", known)
        if kind is FailureKind.RATE_LIMITED:
            waits = [failure.retry_after_s or DEFAULT_RETRY_AFTER_S for failure in known if failure.kind is kind]
            return RateLimited(f"the nodes ask for patience: {detail}", known, min(waits))
    return NoNodeAvailable(f"no node could answer: {detail}", known)
