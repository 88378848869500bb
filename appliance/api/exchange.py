"""What every authenticated exchange has in common: from a verified caller to a sealed, signed answer (protocol §2-§4).

A change is applied only after its answer has been sealed and signed: a request that ends in an error has changed
nothing.
"""

import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import NamedTuple

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from appliance.api.bodies import CLIENT_GONE
from appliance.api.errors import PreparedResponse, answer_headers, response_for
from appliance.auth.envelopes import EnvelopeGate, encode_inner, encode_long_inner
from appliance.cluster.replica import Replica
from appliance.tee.port import LongEnvelope, LongText, TeeProvider
from kmscore.envelope import TeePublicKey
from kmscore.errors import Rejected, Unavailable
from kmscore.pop import answer_text, response_text
from kmscore.proof import PopVerifier, VerifiedPop

logger = logging.getLogger(__name__)

# In lower case and as bytes: as ASGI takes them.
NEXT_NONCE_HEADER = b"x-kms-next-nonce"
ANSWER_SIGNATURE_HEADER = b"x-kms-answer-signature"
APP_SIGNATURE_HEADER = b"x-kms-response-signature"
PEER_SIGNATURE_HEADER = b"x-kms-peer-signature"
PIECE_BYTES = 1 << 20
# A refusal is often that the TEE provider does not answer: its caller has waited long enough.
REFUSAL_SIGNING_DEADLINE_S = 2.0
# How long a caller may take for a long answer, which is what a node of ours waits for one (`WHOLE_DEADLINE_S`), and for
# each piece of it: others wait for what is held meanwhile.
LONG_ANSWER_DEADLINE_S = 300.0
PIECE_DEADLINE_S = 15.0


class Reading(NamedTuple):
    """An operation that changes nothing, and its inner answer, as for `encode_inner`."""

    inner: dict[str, object]


@dataclass(frozen=True, slots=True)
class LongReading:
    """The same with `data` so long that it is made while it is sent, and held until then."""

    inner: dict[str, object]
    data: AbstractAsyncContextManager[LongText]


@dataclass(frozen=True, slots=True)
class Change:
    """An operation in two halves: `plan` says what the answer will be, `apply` makes it true and returns what it is.

    Both run under the store's write lock; either may raise `Rejected`, `apply` only when `plan` just did.
    """

    plan: Callable[[], dict[str, object]]
    apply: Callable[[], dict[str, object]]


@dataclass(frozen=True, slots=True)
class SteppedChange:
    """The same for what takes so long that others get their turn in between, readers of the store included.

    Once begun, `apply` comes to its end, even when nobody waits for the answer any more.
    """

    plan: Callable[[], Awaitable[dict[str, object]]]
    apply: Callable[[], Awaitable[dict[str, object]]]


class SealedAnswer(PreparedResponse):
    """A sealed 200."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - an ASGI callable
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send_body(send, self.body, more=False)


class LongAnswer(Response):
    """A 200 whose body is sealed while it is sent; `held` is let go at the end of that, however it ends."""

    def __init__(
        self, envelope: LongEnvelope, headers: Iterable[tuple[bytes, bytes]], held: AbstractAsyncContextManager[object]
    ) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self.raw_headers = answer_headers(envelope.body_bytes, headers)
        self._pieces = envelope.pieces
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - an ASGI callable
        """Left unfinished when the caller has gone, or, which closes the connection, does not take it in time."""
        ends_s = anyio.current_time() + LONG_ANSWER_DEADLINE_S
        async with self._held, aclosing(self._pieces):
            with anyio.CancelScope() as scope_of_pieces:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                async for piece in self._pieces:
                    scope_of_pieces.deadline = min(ends_s, anyio.current_time() + PIECE_DEADLINE_S)
                    await send_body(send, piece, more=True)
                    await anyio.lowlevel.checkpoint()
                    if CLIENT_GONE in scope:
                        return
                await send({"type": "http.response.body", "body": b""})
        if scope_of_pieces.cancelled_caught:
            logger.warning("a long answer was not taken in time")


async def send_body(send: Send, body: bytes | memoryview, *, more: bool) -> None:
    """A long body goes out in pieces, each when the one before is on its way: the loop copies what it is given."""
    sent = 0
    while len(body) - sent > PIECE_BYTES:
        await send({"type": "http.response.body", "body": body[sent : sent + PIECE_BYTES], "more_body": True})
        sent += PIECE_BYTES
        await anyio.lowlevel.checkpoint()
    await send({"type": "http.response.body", "body": body[sent:], "more_body": more})


class Answerer:
    """Signs and seals what goes back to authenticated callers."""

    def __init__(
        self, *, wallet: str, tee: TeeProvider, gate: EnvelopeGate, pop: PopVerifier, replica: Replica
    ) -> None:
        self._wallet = wallet
        self._tee = tee
        self._gate = gate
        self._pop = pop
        self._replica = replica

    async def answer(
        self,
        operation: Reading | LongReading | Change | SteppedChange,
        pop: VerifiedPop,
        key: TeePublicKey,
        label: str | None,
        signature_header: bytes,
        *,
        extra: dict[str, object] | None = None,
    ) -> Response:
        """Carry the operation out and answer it under 200, sealed to the caller's registered `key`.

        `extra` joins the inner answer. Raises `Rejected` from the operation, `Unavailable` from the TEE provider.
        """
        common = {**(extra or {}), "answer_to": pop.nonce}
        signature = await self._tee.sign_message(response_text(pop.signature, self._wallet))
        if isinstance(operation, LongReading):
            async with AsyncExitStack() as held:
                inner = encode_long_inner(operation.inner | common, await held.enter_async_context(operation.data))
                long = await self._gate.seal_long(inner, key, label)
                return LongAnswer(long, self._headers(signature_header, signature), held.pop_all())
        if isinstance(operation, Reading):
            envelope = await self._gate.seal(encode_inner(operation.inner | common), key, label)
        else:
            async with self._replica.writing():
                planned = operation.plan() if isinstance(operation, Change) else await operation.plan()
                envelope = await self._gate.seal(encode_inner(planned | common), key, label)
                if isinstance(operation, Change):
                    done = operation.apply()
                else:
                    with anyio.CancelScope(shield=True):
                        done = await operation.apply()
            if done != planned:
                # The records of a delta can exhaust the store together though each would fit: say what came of it.
                envelope = await self._gate.seal(encode_inner(done | common), key, label)
        return SealedAnswer(200, envelope.canonical, self._headers(signature_header, signature))

    def _headers(self, signature_header: bytes, signature: str) -> list[tuple[bytes, bytes]]:
        return [(signature_header, signature.encode()), (NEXT_NONCE_HEADER, self._pop.issue_nonce().encode())]

    async def refuse(self, error: Rejected | Unavailable, pop: VerifiedPop, signature_header: bytes) -> Response:
        """The error's answer, signed so that the caller can tell it from a stranger's.

        When the TEE provider does not answer either, the refusal goes out unsigned.
        """
        response = response_for(error)
        body_sha256 = hashlib.sha256(bytes(response.body)).hexdigest()
        try:
            with anyio.fail_after(REFUSAL_SIGNING_DEADLINE_S):
                signature = await self._tee.sign_message(response_text(pop.signature, self._wallet))
                answer_signature = await self._tee.sign_message(
                    answer_text(pop.signature, response.status_code, body_sha256, self._wallet)
                )
        except (Unavailable, TimeoutError):
            return response
        response.raw_headers += [
            (signature_header, signature.encode()),
            (ANSWER_SIGNATURE_HEADER, answer_signature.encode()),
            (NEXT_NONCE_HEADER, self._pop.issue_nonce().encode()),
        ]
        return response
