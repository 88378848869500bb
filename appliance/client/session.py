"""One call to one node: prove, seal, send, and decide how far to believe what comes back (protocol §2-§4, §7).

Knows nothing of other nodes: whether the call goes on elsewhere is the client's decision, made from what is raised
here.
"""

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

import anyio
import httpx

from appliance.auth.envelopes import EnvelopeGate, encode_inner
from appliance.client.answers import (
    Proof,
    Refusal,
    RefusalTrust,
    UnverifiedAnswer,
    is_believed,
    verify_refusal,
    verify_success,
)
from appliance.client.attestation import NONCE_BYTES, AttestationRequirement, DocumentUnavailable, fetch_document
from appliance.client.discovery import NodeFacts
from appliance.client.errors import BadRequest, FailureKind, KmsClientError, NodeFailure, NotFound, QuotaExceeded
from appliance.clock import Clock
from appliance.http import AnswerTooLarge, parse_nonce, parse_retry_after_s, read_bounded
from appliance.log import short
from appliance.tee.attestation.errors import Refused
from appliance.tee.port import TeeProvider
from kmscore.errors import KmsError, Rejected
from kmscore.json import parse_json_object
from kmscore.pop import PopKind, pop_text

logger = logging.getLogger(__name__)

MAX_NONCE_ANSWER_BYTES = 4 * 1024
MAX_REFUSAL_BYTES = 64 * 1024
# A nonce that came with an answer is used within this time, well inside the shortest sensible POP_MAX_AGE_SECONDS.
NEXT_NONCE_MAX_AGE_MS = 20_000
# As many as calls that end at about the same time; older ones are forgotten, not used.
MAX_NEXT_NONCES = 16
# Refusals that may mean "I do not know this envelope label" (protocol §3, last paragraph).
LABEL_REFUSALS = (400, 500)
# Statuses a node answers with before it knows who calls, and therefore without a signature; the call has not been run.
# A liar in between gains no more than making the same change happen twice, or this call fail.
_BEFORE_AUTHENTICATION = {
    403: FailureKind.REFUSED,
    413: FailureKind.BAD_REQUEST,
    415: FailureKind.BAD_REQUEST,
    429: FailureKind.RATE_LIMITED,
    503: FailureKind.UNAVAILABLE,
}
# What these say about a node that was asked for its document; any other answer is no proof.
_NO_DOCUMENT = {429: FailureKind.RATE_LIMITED, 503: FailureKind.UNAVAILABLE}
# Raised by httpx before a byte of the request has left.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


@dataclass(frozen=True, slots=True)
class KmsRequest:
    """One call of the protocol, without anything that depends on the node.

    `key` names the record of a request without a body. `changes` marks what must not be sent twice without thought.
    `may_be_missing` tells a 404 that means the key from one that means the route.
    """

    method: str
    path: str
    inner: Mapping[str, object] | None = None
    key: str | None = None
    changes: bool = False
    may_be_missing: bool = False


@dataclass(slots=True)
class Attempt:
    """Shared with whoever may cancel the exchange: whether the node may have run the request by now."""

    may_have_run: bool = False


class AttemptFailed(KmsError):
    """This node did not answer; another one may."""

    def __init__(self, failure: NodeFailure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class NodeSession:
    """What is remembered about one node: nonces it offered, whether it signs answers, which query form it knows."""

    def __init__(
        self,
        node: NodeFacts,
        *,
        identity: TeeProvider,
        gate: EnvelopeGate,
        http: httpx.AsyncClient,
        clock: Clock,
        attestation: AttestationRequirement | None,
        trust: RefusalTrust,
        limit_bytes: int,
    ) -> None:
        self.node = node
        self._identity = identity
        self._gate = gate
        self._http = http
        self._clock = clock
        self._attestation = attestation
        self._attesting = anyio.Lock()
        self._attested = attestation is None
        self._trust = trust
        self._limit_bytes = limit_bytes
        self._next_nonces: deque[tuple[str, int]] = deque(maxlen=MAX_NEXT_NONCES)
        self._label_known = False
        self._signs_answers = False
        self._knows_key_query = True

    async def exchange(self, request: KmsRequest, attempt: Attempt) -> dict[str, object]:
        """The verified inner answer to `request`.

        Tries again, at this node only, what a refusal says was not run: once with a fetched nonce after a remembered
        one was refused, with each other label while the node's is unknown, and with the key in the path for nodes that
        take no query. Raises `AttemptFailed`; `NotFound`, `BadRequest` and `QuotaExceeded` when the node is believed;
        `Unavailable` when our own TEE provider fails.
        """
        await self._require_attested()
        labels = self._labels_to_try(request)
        nonce = self._take_next_nonce()
        while True:
            remembered = nonce is not None
            nonce = nonce or await self._fetch_nonce()
            key_in_query = request.key is not None and self._knows_key_query
            answer, signature = await self._send(request, self._url(request, key_in_query), labels[0], nonce, attempt)
            if answer.status == httpx.codes.OK:
                inner = await self._open(answer, signature, nonce)
                if not (key_in_query and "keys" in inner):
                    return inner
                self._knows_key_query = False
            else:
                refusal = self._read_refusal(answer, signature)
                if refusal.status == httpx.codes.FORBIDDEN and remembered:
                    # The rest were offered before this one was refused.
                    self._next_nonces.clear()
                elif refusal.status in LABEL_REFUSALS and len(labels) > 1 and refusal.proof is not Proof.ANSWER:
                    # Only nodes that know one label refuse the others, so no request runs twice; whoever forges this
                    # refusal gains no more than the same change a few times over.
                    labels = labels[1:]
                    logger.info("envelope refused, trying another label", extra={"peer": short(self.node.wallet)})
                else:
                    raise self._refused(refusal, request, attempt)
            attempt.may_have_run = False
            nonce = None

    def _labels_to_try(self, request: KmsRequest) -> tuple[str | None, ...]:
        known = self._identity.labels
        if request.inner is None or self._label_known or not known:
            return (None,)
        first = self._gate.labels.get(self.node.tee_pubkey)
        return (first, *(label for label in known if label != first))

    async def _send(
        self, request: KmsRequest, url: str, label: str | None, nonce: str, attempt: Attempt
    ) -> tuple[UnverifiedAnswer, str]:
        """One request on the wire: what came back, and the signature text it was made with."""
        identity = await self._identity.identity()
        timestamp_s = self._clock.now_ms() // 1000
        signature = await self._identity.sign_message(pop_text(PopKind.APP, nonce, self.node.wallet, timestamp_s))
        headers = {
            "X-App-Signature": signature,
            "X-App-Nonce": nonce,
            "X-App-Timestamp": str(timestamp_s),
            "X-App-Wallet": identity.wallet,
        }
        body = None
        if request.inner is not None:
            plaintext = encode_inner({**request.inner, "pop_nonce": nonce})
            body = (await self._gate.seal(plaintext, self.node.tee_pubkey, label)).canonical
            headers["Content-Type"] = "application/json"
        attempt.may_have_run = True
        try:
            answer = await self._stream(request.method, url, body, headers, self._limit_bytes)
        except httpx.InvalidURL as error:
            # The node's own URL is short: what makes it too long is the key.
            attempt.may_have_run = False
            raise BadRequest("key is too long for a request") from error
        except _NOT_SENT as error:
            attempt.may_have_run = False
            raise self._failed(FailureKind.UNREACHABLE, "no connection") from error
        except httpx.HTTPError as error:
            raise self._failed(FailureKind.NO_ANSWER, "the connection broke before a complete answer") from error
        except AnswerTooLarge as error:
            raise self._failed(FailureKind.UNTRUSTED, "the answer is larger than this client accepts") from error
        return answer, signature

    async def _stream(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], limit_bytes: int
    ) -> UnverifiedAnswer:
        async with self._http.stream(
            method, url, content=body, headers=dict(headers), follow_redirects=False
        ) as response:
            limit = limit_bytes if response.status_code == httpx.codes.OK else MAX_REFUSAL_BYTES
            return UnverifiedAnswer(response.status_code, response.headers, await read_bounded(response, limit))

    def _url(self, request: KmsRequest, key_in_query: bool) -> str:
        if request.key is None:
            return f"{self.node.url}{request.path}"
        key = quote(request.key, safe="")
        if key_in_query:
            return f"{self.node.url}{request.path}?key={key}"
        # A key of dots would otherwise be taken for a relative path on its way.
        return f"{self.node.url}{request.path}/{key.replace('.', '%2E')}"

    async def _open(self, answer: UnverifiedAnswer, signature: str, nonce: str) -> dict[str, object]:
        try:
            verified = verify_success(answer, signature, self.node.wallet)
            inner = await self._gate.open_answer(verified.envelope, self.node.tee_pubkey, nonce)
        except Rejected as error:
            raise self._failed(FailureKind.UNTRUSTED, str(error)) from error
        self._label_known = True
        # Inside the envelope nobody can take the extension's mark away, unlike a header.
        self._signs_answers = self._signs_answers or "answer_to" in inner
        self._remember_next_nonce(verified.next_nonce)
        return inner

    def _read_refusal(self, answer: UnverifiedAnswer, signature: str) -> Refusal:
        try:
            refusal = verify_refusal(answer, signature, self.node.wallet)
        except Rejected as error:
            raise self._failed(FailureKind.UNTRUSTED, str(error)) from error
        self._remember_next_nonce(refusal.next_nonce)
        if refusal.proof is Proof.ANSWER:
            self._signs_answers = True
        return refusal

    def _refused(self, refusal: Refusal, request: KmsRequest, attempt: Attempt) -> KmsError:
        """The error a refusal amounts to; clears `attempt.may_have_run` where it shows that the request was not run."""
        believed = is_believed(refusal.proof, self._trust, node_signs=self._signs_answers)
        if believed:
            attempt.may_have_run = False
            error = _final_error(refusal, request)
            if error is not None:
                return error
        message = f"answered {refusal.status} {refusal.code}".rstrip()
        message = f"{message}: {refusal.message}" if refusal.message else message
        if refusal.status in _BEFORE_AUTHENTICATION:
            attempt.may_have_run = False
            return self._failed(_BEFORE_AUTHENTICATION[refusal.status], message, refusal.retry_after_s)
        if refusal.status >= httpx.codes.INTERNAL_SERVER_ERROR or believed:
            return self._failed(FailureKind.FAULT, message, refusal.retry_after_s)
        return self._failed(FailureKind.UNTRUSTED, f"{message}, without the proof that is asked for")

    async def _require_attested(self) -> None:
        """Once for as long as the registry lists the same keys: a node that starts anew has others."""
        async with self._attesting:
            if self._attestation is None or self._attested:
                return
            nonce = await self._identity.random_bytes(NONCE_BYTES)
            try:
                document = await fetch_document(self._http, self.node.url, nonce)
                await self._attestation.verify_node(document, self.node, nonce, self._clock.now_ms())
            except DocumentUnavailable as error:
                if error.status is None:
                    raise self._failed(FailureKind.UNREACHABLE, str(error)) from error
                kind = _NO_DOCUMENT.get(error.status, FailureKind.NOT_ATTESTED)
                asked = None if kind is FailureKind.NOT_ATTESTED else error.retry_after_s
                raise self._failed(kind, str(error), asked) from error
            except Refused as error:
                raise self._failed(FailureKind.NOT_ATTESTED, str(error)) from error
            self._attested = True

    async def _fetch_nonce(self) -> str:
        try:
            answer = await self._stream("GET", f"{self.node.url}/nonce", None, {}, MAX_NONCE_ANSWER_BYTES)
            if answer.status != httpx.codes.OK:
                kind = _BEFORE_AUTHENTICATION.get(answer.status, FailureKind.FAULT)
                retry_after_s = parse_retry_after_s(answer.headers.get("retry-after"))
                raise self._failed(kind, f"answered {answer.status} to a request for a nonce", retry_after_s)
            return parse_nonce(parse_json_object(answer.body).get("nonce"))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._failed(FailureKind.UNREACHABLE, "no connection") from error
        except (AnswerTooLarge, Rejected) as error:
            raise self._failed(FailureKind.UNTRUSTED, "what it answers is not a nonce") from error

    def _take_next_nonce(self) -> str | None:
        while self._next_nonces:
            nonce, received_at_ms = self._next_nonces.pop()
            if self._clock.monotonic_ms() - received_at_ms <= NEXT_NONCE_MAX_AGE_MS:
                return nonce
        return None

    def _remember_next_nonce(self, nonce: str | None) -> None:
        if nonce is not None:
            self._next_nonces.append((nonce, self._clock.monotonic_ms()))

    def _failed(self, kind: FailureKind, message: str, retry_after_s: float | None = None) -> AttemptFailed:
        return AttemptFailed(NodeFailure(self.node.url, self.node.wallet, kind, message, retry_after_s))


def _final_error(refusal: Refusal, request: KmsRequest) -> KmsClientError | None:
    """What a believed refusal means for the application; None when another node may answer differently."""
    message = refusal.message or f"the node answered {refusal.status}"
    if refusal.status == httpx.codes.NOT_FOUND and request.may_be_missing:
        return NotFound(message)
    if refusal.status in (400, 405, 413, 415):
        return BadRequest(message)
    if refusal.status == httpx.codes.INSUFFICIENT_STORAGE:
        return QuotaExceeded(message)
    return None
