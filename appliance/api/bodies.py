"""Request bodies, read within a byte limit and a deadline (protocol §7, last paragraphs)."""

from collections.abc import Callable

import anyio
from starlette.requests import Request

from appliance.http import joined
from kmscore.errors import Reason, Rejected

# A body of the largest size at 1 Mbit/s takes longer; whoever is that slow holds a connection, not memory or a worker.
BODY_DEADLINE_S = 60.0
# Where our server puts a body that came together with its request's head: nothing has to be waited for then, and a
# deadline costs more to set up than a small body to read.
WHOLE_BODY = "nova.whole_body"
# Where a handler that waits for more of a body says how many bytes it takes: our server wakes it once there are more.
BODY_ROOM = "nova.body_room"
# Is there once the connection is no more: what is still made for the request is made for nobody.
CLIENT_GONE = "nova.client_gone"
JSON_TYPE = b"application/json"


def check_body_headers(request: Request, limit_bytes: int) -> None:
    """Refuse by the headers alone what cannot be acceptable; the count while reading is what decides.

    Raises `Rejected` with TOO_LARGE (declared longer than the limit), MALFORMED (no valid length) or UNSUPPORTED_MEDIA.
    """
    # Names are in lower case, as servers hand them out; of several with one name the first counts.
    headers: dict[bytes, bytes] = dict(reversed(request.scope["headers"]))
    declared = headers.get(b"content-length")
    if declared is not None:
        if not declared.isdigit():
            raise Rejected(Reason.MALFORMED, "Content-Length is not a number")
        if len(declared) > 18 or int(declared) > limit_bytes:
            raise _too_large(limit_bytes)
    media_type = headers.get(b"content-type", b"")
    if media_type != JSON_TYPE and media_type.partition(b";")[0].strip().lower() != JSON_TYPE:
        raise Rejected(Reason.UNSUPPORTED_MEDIA, "the body must be application/json")


async def read_body(request: Request, limit_bytes: int, take: Callable[[int], None]) -> bytes:
    """The whole body, counted into a share of the budget. One that came whole is taken even if its sender has gone.

    Raises `Rejected` with TOO_LARGE, or MALFORMED when it did not arrive in time; `Unavailable` from `take`.
    """
    whole: bytes | None = request.scope.pop(WHOLE_BODY, None)
    if whole is not None:
        if len(whole) > limit_bytes:
            raise _too_large(limit_bytes)
        take(len(whole))
        return whole
    chunks: list[bytes] = []

    def keep(chunk: bytes) -> None:
        take(len(chunk))
        chunks.append(chunk)

    await _receive(request, limit_bytes, keep)
    return await joined(chunks)


async def discard_body(request: Request, limit_bytes: int) -> None:
    """Read a refused request's body to its end without keeping it, so that a body over the limit is called that.

    Raises like `read_body`.
    """
    whole: bytes | None = request.scope.pop(WHOLE_BODY, None)
    if whole is None:
        await _receive(request, limit_bytes, lambda _chunk: None)
    elif len(whole) > limit_bytes:
        raise _too_large(limit_bytes)


async def _receive(request: Request, limit_bytes: int, keep: Callable[[bytes], None]) -> None:
    size = 0
    more = True
    try:
        with anyio.fail_after(BODY_DEADLINE_S):
            while more:
                request.scope[BODY_ROOM] = limit_bytes - size
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise _incomplete()
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > limit_bytes:
                    raise _too_large(limit_bytes)
                keep(chunk)
                more = message.get("more_body", False)
    except TimeoutError as error:
        raise _incomplete() from error


def _incomplete() -> Rejected:
    return Rejected(Reason.MALFORMED, "the body did not arrive")


def _too_large(limit_bytes: int) -> Rejected:
    return Rejected(Reason.TOO_LARGE, f"the body is larger than {limit_bytes} bytes")
