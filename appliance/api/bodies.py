"""Request bodies, read within a byte limit and a deadline (protocol §7, last paragraphs)."""

from collections.abc import Callable
from typing import Self

import anyio
from starlette.requests import Request

from kmscore.errors import Reason, Rejected, Unavailable

# A body of the largest size at 1 Mbit/s takes longer; whoever is that slow holds a connection, not memory or a worker.
BODY_DEADLINE_S = 60.0
# Where our server puts a body that came together with its request's head: nothing has to be waited for then, and a
# deadline costs more to set up than a small body to read.
WHOLE_BODY = "nova.whole_body"
JSON_TYPE = b"application/json"


def check_body_headers(request: Request, limit_bytes: int) -> None:
    """Refuse by the headers alone what cannot be acceptable; the count while reading is what decides.

    Raises `Rejected` with TOO_LARGE (declared longer than the limit), MALFORMED (no valid length) or UNSUPPORTED_MEDIA.
    """
    headers: dict[bytes, bytes] = dict(request.scope["headers"])  # names in lower case, as servers hand them out
    declared = headers.get(b"content-length")
    if declared is not None:
        if not declared.isdigit():
            raise Rejected(Reason.MALFORMED, "Content-Length is not a number")
        if len(declared) > 18 or int(declared) > limit_bytes:
            raise _too_large(limit_bytes)
    media_type = headers.get(b"content-type", b"")
    if media_type != JSON_TYPE and media_type.partition(b";")[0].strip().lower() != JSON_TYPE:
        raise Rejected(Reason.UNSUPPORTED_MEDIA, "the body must be application/json")


class BodyBudget:
    """How many bytes of bodies the whole process keeps at once, and one wallet's part of that.

    Without it callers that are each within their limits could together fill the memory.
    """

    def __init__(self, total_bytes: int, wallet_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._wallet_bytes = wallet_bytes
        self._used_bytes = 0
        self._used_by: dict[str, int] = {}

    def take(self, wallet: str, size: int) -> None:
        """Raises `Unavailable` when there is no room for that many bytes more."""
        used = self._used_by.get(wallet, 0) + size
        if used > self._wallet_bytes or self._used_bytes + size > self._total_bytes:
            raise Unavailable("too many large requests at once", retry_after_s=1.0)
        self._used_bytes += size
        self._used_by[wallet] = used

    def give_back(self, wallet: str, size: int) -> None:
        """What was taken and is not kept any more."""
        self._used_bytes -= size
        left = self._used_by.get(wallet, 0) - size
        if left:
            self._used_by[wallet] = left
        else:
            self._used_by.pop(wallet, None)


class BodyShare:
    """A wallet's part of the budget for the time of one body: given back when the `with` block ends."""

    __slots__ = ("_budget", "_taken_bytes", "_wallet")

    def __init__(self, budget: BodyBudget, wallet: str) -> None:
        self._budget = budget
        self._wallet = wallet
        self._taken_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._budget.give_back(self._wallet, self._taken_bytes)

    def take(self, size: int) -> None:
        """Raises `Unavailable`."""
        self._budget.take(self._wallet, size)
        self._taken_bytes += size


async def read_body(request: Request, limit_bytes: int, take: Callable[[int], None]) -> bytes:
    """The whole body, counted into a share of the budget.

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
    return b"".join(chunks)


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
