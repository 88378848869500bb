"""What every authenticated exchange has in common: from a verified caller to a sealed, signed answer (protocol §2-§4).

A change is applied only after its answer has been sealed and signed: a request that ends in an error has changed
nothing.
"""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from appliance.api.errors import response_for
from appliance.auth.envelopes import EnvelopeGate, encode_inner, encode_inner_in_parts
from appliance.auth.pop import PopVerifier, VerifiedPop
from appliance.cluster.replica import Replica
from appliance.tee.port import TeeProvider
from kmscore.envelope import Envelope, TeePublicKey
from kmscore.errors import Rejected, Unavailable
from kmscore.pop import answer_text, response_text

NEXT_NONCE_HEADER = "X-KMS-Next-Nonce"
ANSWER_SIGNATURE_HEADER = "X-KMS-Answer-Signature"
APP_SIGNATURE_HEADER = "X-KMS-Response-Signature"
PEER_SIGNATURE_HEADER = "X-KMS-Peer-Signature"
PIECE_BYTES = 1 << 20
# A refusal is often that the TEE provider does not answer: its caller has waited long enough.
REFUSAL_SIGNING_DEADLINE_S = 2.0


@dataclass(frozen=True, slots=True)
class Reading:
    """An operation that changes nothing, and its inner answer; `data` is as for `encode_inner`, or in parts."""

    inner: dict[str, object]
    data: bytes | list[bytes] | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """An operation in two halves: `plan` says what the answer will be, `apply` makes it true and returns what it is.

    Both run under the store's write lock; either may raise `Rejected`, `apply` only when `plan` just did.
    """

    plan: Callable[[], dict[str, object]]
    apply: Callable[[], dict[str, object]]


@dataclass(frozen=True, slots=True)
class SteppedChange:
    """The same for what takes so long that others get their turn in between, readers of the store included."""

    plan: Callable[[], Awaitable[dict[str, object]]]
    apply: Callable[[], Awaitable[dict[str, object]]]


class SealedAnswer(Response):
    """A sealed 200 with its signature and the next nonce: `Response` without what it finds out for others."""

    def __init__(self, envelope: Envelope, signature_header: str, signature: str, next_nonce: str) -> None:
        self.status_code = 200
        self.background = None
        self.body = envelope.canonical
        self.raw_headers = [
            (b"content-length", b"%d" % len(envelope.canonical)),
            (b"content-type", b"application/json"),
            (signature_header.lower().encode(), signature.encode()),
            (NEXT_NONCE_HEADER.lower().encode(), next_nonce.encode()),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - an ASGI callable
        """A large body goes out in pieces, each when the one before is on its way: the loop copies what it is given."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        sent = 0
        while len(self.body) - sent > PIECE_BYTES:
            piece = self.body[sent : sent + PIECE_BYTES]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            sent += PIECE_BYTES
            await anyio.lowlevel.checkpoint()
        await send({"type": "http.response.body", "body": self.body[sent:]})


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
        operation: Reading | Change | SteppedChange,
        *,
        pop: VerifiedPop,
        key: TeePublicKey,
        label: str | None,
        signature_header: str,
        extra: dict[str, object] | None = None,
    ) -> Response:
        """Carry the operation out and answer it under 200, sealed to the caller's registered `key`.

        `extra` joins the inner answer. Raises `Rejected` from the operation, `Unavailable` from the TEE provider.
        """

        def inner_text(inner: dict[str, object], data: bytes | list[bytes] | None = None) -> bytes | list[bytes]:
            inner = {**inner, **(extra or {}), "answer_to": pop.nonce}
            if not isinstance(data, list):
                return encode_inner(inner, data)
            parts = encode_inner_in_parts(inner, data)
            data.clear()
            return parts

        signature = await self._tee.sign_message(response_text(pop.signature, self._wallet))
        if isinstance(operation, Reading):
            envelope = await self._gate.seal(inner_text(operation.inner, operation.data), key, label)
        else:
            async with self._replica.writing():
                planned = operation.plan() if isinstance(operation, Change) else await operation.plan()
                envelope = await self._gate.seal(inner_text(planned), key, label)
                done = operation.apply() if isinstance(operation, Change) else await operation.apply()
            if done != planned:
                # The records of a delta can exhaust the store together though each would fit: say what came of it.
                envelope = await self._gate.seal(inner_text(done), key, label)
        return SealedAnswer(envelope, signature_header, signature, self._pop.issue_nonce())

    async def refuse(self, error: Rejected | Unavailable, *, pop: VerifiedPop, signature_header: str) -> Response:
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
        response.headers[signature_header] = signature
        response.headers[ANSWER_SIGNATURE_HEADER] = answer_signature
        response.headers[NEXT_NONCE_HEADER] = self._pop.issue_nonce()
        return response
