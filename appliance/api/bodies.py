"""Request bodies, read within a byte limit and a deadline (protocol §7, last paragraphs)."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
from starlette.requests import ClientDisconnect, Request

from kmscore.errors import Reason, Rejected, Unavailable

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


class BodyBudget:
    """How many bytes of bodies the whole process keeps at once, and one wallet's part of that.

    Without it callers that are each within their limits could together fill the memory.
    """

    def __init__(self, total_bytes: int, wallet_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._wallet_bytes = wallet_bytes
        self._used_bytes = 0
        self._used_by: Counter[str] = Counter()

    @contextmanager
    def share_of(self, wallet: str) -> Iterator[Callable[[int], None]]:
        """What the body counts its bytes into; all are given back at the end.

        The callable raises `Unavailable` when there is no room for that many bytes more.
        """
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            if self._used_by[wallet] + size > self._wallet_bytes or self._used_bytes + size > self._total_bytes:
                raise Unavailable("too many large requests at once", retry_after_s=1.0)
            taken += size
            self._used_bytes += size
            self._used_by[wallet] += size

        try:
            yield take
        finally:
            self._used_bytes -= taken
            self._used_by[wallet] -= taken
            if not self._used_by[wallet]:
                del self._used_by[wallet]


async def read_body(request: Request, limit_bytes: int, take: Callable[[int], None]) -> bytes:
    """The whole body, counted into a share of the budget.

    Raises `Rejected` with TOO_LARGE, or MALFORMED when it did not arrive in time; `Unavailable` from `take`.
    """
    chunks: list[bytes] = []

    def keep(chunk: bytes) -> None:
        take(len(chunk))
        chunks.append(chunk)

    await _receive(request, limit_bytes, keep)
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
