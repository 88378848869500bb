"""Request bodies, read within a byte limit and a deadline (protocol §7, last paragraphs)."""

from collections.abc import Callable

import anyio
from starlette.requests import ClientDisconnect, Request

from kmscore.errors import Reason, Rejected

# A body of the largest size at 1 Mbit/s takes longer; whoever is that slow holds a connection, not memory or a worker.
BODY_DEADLINE_S = 60.0


def check_body_headers(request: Request, limit_bytes: int) -> None:
    """Refuse by the headers alone what cannot be acceptable; the count while reading is what decides.

    Raises `Rejected` with TOO_LARGE (declared longer than the limit), MALFORMED (no valid length) or UNSUPPORTED_MEDIA.
    """
    declared = request.headers.get("content-length")
    if declared is not None:
        if not declared.isascii() or not declared.isdecimal():
            raise Rejected(Reason.MALFORMED, "Content-Length is not a number")
        if len(declared) > 18 or int(declared) > limit_bytes:
            raise _too_large(limit_bytes)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Rejected(Reason.UNSUPPORTED_MEDIA, "the body must be application/json")


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The whole body. Raises `Rejected` with TOO_LARGE, or MALFORMED when it did not arrive in time."""
    chunks: list[bytes] = []
    await _receive(request, limit_bytes, chunks.append)
    return b"".join(chunks)


async def discard_body(request: Request, limit_bytes: int) -> None:
    """Read a refused request's body to its end without keeping it, so that a body over the limit is called that.

    Raises like `read_body`.
    """
    await _receive(request, limit_bytes, lambda _chunk: None)


async def _receive(request: Request, limit_bytes: int, keep: Callable[[bytes], None]) -> None:
    size = 0
    try:
        with anyio.fail_after(BODY_DEADLINE_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit_bytes:
                    raise _too_large(limit_bytes)
                keep(chunk)
    except (TimeoutError, ClientDisconnect) as error:
        raise Rejected(Reason.MALFORMED, "the body did not arrive") from error


def _too_large(limit_bytes: int) -> Rejected:
    return Rejected(Reason.TOO_LARGE, f"the body is larger than {limit_bytes} bytes")
