"""Request bodies, read within a byte limit and a deadline (protocol §7, last paragraphs)."""

from collections import Counter
from collections.abc import Callable

import anyio
from starlette.requests import Request

from kmscore.errors import Reason, Rejected, Unavailable

# A body of the largest size at 1 Mbit/s takes longer; whoever is that slow holds a connection, not memory or a worker.
BODY_DEADLINE_S = 60.0
# What our server writes into a request's scope when nothing of its body is still to come: no deadline is needed then,
# and setting one up costs more than reading a small body.
BODY_HAS_COME = "nova.body_has_come"


def check_body_headers(request: Request, limit_bytes: int) -> None:
    """Refuse by the headers alone what cannot be acceptable; the count while reading is what decides.

    Raises `Rejected` with TOO_LARGE (declared longer than the limit), MALFORMED (no valid length) or UNSUPPORTED_MEDIA.
    """
    declared = header_of(request, b"content-length")
    if declared is not None:
        if not declared.isdigit():
            raise Rejected(Reason.MALFORMED, "Content-Length is not a number")
        if len(declared) > 18 or int(declared) > limit_bytes:
            raise _too_large(limit_bytes)
    media_type = (header_of(request, b"content-type") or b"").partition(b";")[0].strip().lower()
    if media_type != b"application/json":
        raise Rejected(Reason.UNSUPPORTED_MEDIA, "the body must be application/json")


def header_of(request: Request, name: bytes) -> bytes | None:
    """The first header called `name` (lower case, as servers hand names out), None when there is none."""
    for given, value in request.scope["headers"]:
        if given == name:
            return bytes(value)
    return None


class BodyBudget:
    """How many bytes of bodies the whole process keeps at once, and one wallet's part of that.

    Without it callers that are each within their limits could together fill the memory.
    """

    def __init__(self, total_bytes: int, wallet_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._wallet_bytes = wallet_bytes
        self._used_bytes = 0
        self._used_by: Counter[str] = Counter()

    def share_of(self, wallet: str) -> "BodyShare":
        """What one of the wallet's bodies counts its bytes into; all are given back when its `with` block ends."""
        return BodyShare(self, wallet)

    def take(self, wallet: str, size: int) -> None:
        """Raises `Unavailable` when there is no room for that many bytes more."""
        if self._used_by[wallet] + size > self._wallet_bytes or self._used_bytes + size > self._total_bytes:
            raise Unavailable("too many large requests at once", retry_after_s=1.0)
        self._used_bytes += size
        self._used_by[wallet] += size

    def give_back(self, wallet: str, size: int) -> None:
        self._used_bytes -= size
        self._used_by[wallet] -= size
        if not self._used_by[wallet]:
            del self._used_by[wallet]


class BodyShare:
    """A wallet's part of the budget for the time of one body."""

    __slots__ = ("_budget", "_taken_bytes", "_wallet")

    def __init__(self, budget: BodyBudget, wallet: str) -> None:
        self._budget = budget
        self._wallet = wallet
        self._taken_bytes = 0

    def __enter__(self) -> Callable[[int], None]:
        return self._take

    def __exit__(self, *_: object) -> None:
        self._budget.give_back(self._wallet, self._taken_bytes)

    def _take(self, size: int) -> None:
        self._budget.take(self._wallet, size)
        self._taken_bytes += size


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
    if request.scope.get(BODY_HAS_COME):
        return await _take_in(request, limit_bytes, keep)
    try:
        with anyio.fail_after(BODY_DEADLINE_S):
            await _take_in(request, limit_bytes, keep)
    except TimeoutError as error:
        raise _incomplete() from error


async def _take_in(request: Request, limit_bytes: int, keep: Callable[[bytes], None]) -> None:
    size = 0
    more = True
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


def _incomplete() -> Rejected:
    return Rejected(Reason.MALFORMED, "the body did not arrive")


def _too_large(limit_bytes: int) -> Rejected:
    return Rejected(Reason.TOO_LARGE, f"the body is larger than {limit_bytes} bytes")
