"""Errors to answers, in one place (protocol §7)."""

import math
from collections.abc import Iterable

from starlette.responses import Response

from kmscore.errors import Reason, Rejected, Unavailable
from kmscore.json import compact_json

# reason → (HTTP status, machine word). Every reason is here; a test holds the table to the enumeration.
ANSWERS: dict[Reason, tuple[int, str]] = {
    Reason.MALFORMED: (400, "bad_request"),
    Reason.BAD_FIELD: (400, "bad_request"),
    Reason.UNDECRYPTABLE: (400, "bad_request"),
    Reason.VALUE_TOO_LARGE: (400, "bad_request"),
    Reason.POP: (403, "forbidden"),
    Reason.NONCE: (403, "forbidden"),
    Reason.TIMESTAMP: (403, "forbidden"),
    Reason.SIGNATURE: (403, "forbidden"),
    Reason.WALLET: (403, "forbidden"),
    Reason.MAC: (403, "forbidden"),
    Reason.NOT_AUTHORIZED: (403, "forbidden"),
    Reason.SENDER_KEY: (403, "forbidden"),
    Reason.REPLAY: (403, "forbidden"),
    Reason.NOT_FOUND: (404, "not_found"),
    Reason.TOO_LARGE: (413, "payload_too_large"),
    Reason.UNSUPPORTED_MEDIA: (415, "unsupported_media_type"),
    Reason.RATE: (429, "rate_limited"),
    Reason.QUOTA: (507, "quota_exceeded"),
}

METHOD_NOT_ALLOWED = (405, "method_not_allowed")
SERVICE_UNAVAILABLE = (503, "service_unavailable")
INTERNAL_ERROR = (500, "internal_error")

# When a caller that is sent too fast may try again: the time in which its bucket gains a request at the default rates.
RATE_RETRY_AFTER_S = 2


class PreparedResponse(Response):
    """A response whose body and raw headers, names in lower case, are ready: `Response` without what it finds out."""

    def __init__(self, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.status_code = status
        self.background = None
        self.body = body
        self.raw_headers = answer_headers(len(body), headers)


def answer_headers(body_bytes: int, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The raw headers of a JSON answer."""
    return [(b"content-length", b"%d" % body_bytes), (b"content-type", b"application/json"), *headers]


def json_response(status: int, body: dict[str, object], headers: Iterable[tuple[bytes, bytes]] = ()) -> Response:
    """The one encoder of plain JSON answers."""
    return PreparedResponse(status, compact_json(body), headers)


def error_response(answer: tuple[int, str], message: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> Response:
    """`{"code", "message"}` under the answer's status."""
    status, code = answer
    return json_response(status, {"code": code, "message": message}, headers)


def response_for(error: Rejected | Unavailable) -> Response:
    """The answer that the protocol's table gives for what we raise on purpose."""
    if isinstance(error, Unavailable):
        retry_after_s = max(1, math.ceil(error.retry_after_s))
        return error_response(SERVICE_UNAVAILABLE, str(error), [(b"retry-after", b"%d" % retry_after_s)])
    headers = [(b"retry-after", b"%d" % RATE_RETRY_AFTER_S)] if error.reason is Reason.RATE else []
    return error_response(ANSWERS[error.reason], str(error), headers)
