"""One authenticated exchange with a peer over `POST /sync` (protocol §2, §3, §5).

Knows how to prove, seal, sign, send, and how far to believe what comes back. Knows nothing of what the messages mean.
"""

import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import anyio
import anyio.to_thread
import httpx

from appliance.auth.envelopes import EnvelopeGate, encode_inner
from appliance.clock import Clock
from appliance.cluster.keys import ClusterKeys
from appliance.cluster.peers import Peer
from appliance.http import (
    HTTP_FAILURES,
    INLINE_BYTES,
    AnswerTooLarge,
    SentOnce,
    parse_nonce,
    parse_retry_after_s,
    read_bounded,
)
from appliance.log import short
from appliance.tee.port import TeeProvider
from kmscore.envelope import LABELS, Envelope, parse_envelope
from kmscore.errors import Rejected, Unavailable
from kmscore.json import parse_json_object
from kmscore.mac import sign_canonical
from kmscore.pop import PopKind, pop_text, response_text, verify_signed_by

logger = logging.getLogger(__name__)

MAX_ERROR_BYTES = 64 * 1024
MAX_NONCE_ANSWER_BYTES = 4 * 1024
# A nonce handed out with an answer is used within this time, well inside the shortest sensible POP_MAX_AGE_SECONDS.
NEXT_NONCE_MAX_AGE_MS = 20_000
# Refusals that may mean "I do not know this envelope label" (protocol §3, last paragraph).
LABEL_REFUSALS = (400, 500)


_CODE = re.compile(r"[a-z_]{1,40}", re.ASCII)


class PeerError(Unavailable):
    """The exchange did not succeed; trying again later may."""


class PeerUnreachable(PeerError):
    """No complete answer within the deadline."""


class PeerUntrusted(PeerError):
    """An answer that does not prove to come from the peer, or does not fit the request."""


class PeerRefused(PeerError):
    """The peer answered with an error status; `code` is the machine word of its body, empty when it has none."""

    def __init__(self, status: int, code: str, retry_after_s: float | None) -> None:
        super().__init__(f"peer answered {status} {code}".rstrip(), retry_after_s=retry_after_s or 0.0)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class PeerAnswer:
    """A verified inner answer, and the extensions and boot id that the peer announced in it."""

    inner: dict[str, object]
    extensions: frozenset[str]
    boot_id: str | None


class PeerTransport:
    """Exchanges with peers; remembers the next nonce that each of them offered."""

    def __init__(
        self,
        *,
        own_wallet: str,
        tee: TeeProvider,
        gate: EnvelopeGate,
        keys: ClusterKeys,
        http: httpx.AsyncClient,
        clock: Clock,
    ) -> None:
        self._own_wallet = own_wallet
        self._tee = tee
        self._gate = gate
        self._keys = keys
        self._http = http
        self._clock = clock
        self._next_nonces: dict[str, tuple[str, int]] = {}

    def forget_departed(self, wallets: frozenset[str]) -> None:
        """Keep the nonces of these peers only."""
        self._next_nonces = {wallet: nonce for wallet, nonce in self._next_nonces.items() if wallet in wallets}

    async def exchange(
        self, peer: Peer, inner: Mapping[str, object], *, deadline_s: float, limit_bytes: int
    ) -> PeerAnswer:
        """Send `inner` and return the peer's verified answer of at most `limit_bytes` on the wire.

        Raises `PeerUnreachable`, `PeerRefused`, `PeerUntrusted`; `Unavailable` when our own TEE provider fails.
        """
        try:
            with anyio.fail_after(deadline_s):
                return await self._with_each_label(peer, inner, limit_bytes)
        except TimeoutError as error:
            raise PeerUnreachable("the peer did not answer in time") from error

    async def _with_each_label(self, peer: Peer, inner: Mapping[str, object], limit_bytes: int) -> PeerAnswer:
        """The first label's refusal is the one that counts: the others may merely not be understood."""
        first, *others = self._labels_to_try(peer)
        try:
            return await self._with_fresh_nonce(peer, inner, first, limit_bytes)
        except PeerRefused as refusal:
            if refusal.status not in LABEL_REFUSALS:
                raise
            for label in others:
                logger.info("envelope refused, trying another label", extra={"peer": short(peer.wallet)})
                with suppress(PeerRefused):
                    return await self._with_fresh_nonce(peer, inner, label, limit_bytes)
            raise

    def _labels_to_try(self, peer: Peer) -> list[str]:
        first = self._gate.labels.get(peer.tee_pubkey)
        if self._gate.labels.knows(peer.tee_pubkey) or not self._tee.labels:
            return [first]
        return [first, *(label for label in LABELS if label != first)]

    async def _with_fresh_nonce(
        self, peer: Peer, inner: Mapping[str, object], label: str, limit_bytes: int
    ) -> PeerAnswer:
        """One attempt, and a second with a newly fetched nonce when the remembered one was refused."""
        remembered = self._take_next_nonce(peer)
        if remembered is not None:
            try:
                return await self._attempt(peer, inner, label, remembered, limit_bytes)
            except PeerRefused as refusal:
                if refusal.status != httpx.codes.FORBIDDEN:
                    raise
        return await self._attempt(peer, inner, label, await self._fetch_nonce(peer), limit_bytes)

    async def _attempt(
        self, peer: Peer, inner: Mapping[str, object], label: str, nonce: str, limit_bytes: int
    ) -> PeerAnswer:
        timestamp_s = self._clock.now_ms() // 1000
        signature = await self._tee.sign_message(pop_text(PopKind.PEER, nonce, peer.wallet, timestamp_s))
        await anyio.lowlevel.checkpoint()  # what was put together before and what is done with it here may each be long
        body = encode_inner({**inner, "sender_wallet": self._own_wallet, "pop_nonce": nonce})
        try:
            envelope = await self._gate.seal(body, peer.tee_pubkey, label)
        except Rejected as error:
            # Too large for our own TEE provider: as good as a peer's 413, which makes the sender halve it.
            raise PeerRefused(httpx.codes.REQUEST_ENTITY_TOO_LARGE, "payload_too_large", None) from error
        content = SentOnce(envelope.canonical)
        headers = {
            **content.headers,
            "X-KMS-Signature": signature,
            "X-KMS-Nonce": nonce,
            "X-KMS-Timestamp": str(timestamp_s),
            "X-KMS-Wallet": self._own_wallet,
        }
        sync_key = self._keys.sync_key
        if sync_key is not None:
            headers["X-Sync-Signature"] = sign_canonical(sync_key, envelope.canonical)
        try:
            async with self._http.stream(
                "POST", f"{peer.instance_url}/sync", content=content, headers=headers
            ) as response:
                if response.status_code != httpx.codes.OK:
                    raise await _refusal(response)
                answer_body = await read_bounded(response, limit_bytes)
        except (*HTTP_FAILURES, AnswerTooLarge) as error:
            raise PeerUnreachable("no complete answer from the peer") from error
        try:
            verify_signed_by(
                response_text(signature, peer.wallet), response.headers.get("x-kms-peer-signature", ""), peer.wallet
            )
            answer = await self._gate.open_answer(await _parse_envelope(answer_body), peer.tee_pubkey, nonce)
        except Rejected as error:
            raise PeerUntrusted(f"the answer is not the peer's: {error}") from error
        self._remember_next_nonce(peer, response.headers.get("x-kms-next-nonce"))
        return _parse_answer(answer)

    async def _fetch_nonce(self, peer: Peer) -> str:
        try:
            async with self._http.stream("GET", f"{peer.instance_url}/nonce") as response:
                if response.status_code in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE):
                    raise await _refusal(response)
                if response.status_code != httpx.codes.OK:
                    # No word on what we want to send: it must not look like a refusal of that.
                    raise PeerUnreachable("the peer gives no nonce")
                answer = parse_json_object(await read_bounded(response, MAX_NONCE_ANSWER_BYTES))
                return parse_nonce(answer.get("nonce"))
        except (*HTTP_FAILURES, AnswerTooLarge) as error:
            raise PeerUnreachable("no nonce from the peer") from error
        except Rejected as error:
            raise PeerUntrusted("the nonce answer holds no usable nonce") from error

    def _take_next_nonce(self, peer: Peer) -> str | None:
        nonce, received_at_ms = self._next_nonces.pop(peer.wallet, (None, 0))
        if nonce is None or self._clock.monotonic_ms() - received_at_ms > NEXT_NONCE_MAX_AGE_MS:
            return None
        return nonce

    def _remember_next_nonce(self, peer: Peer, nonce: str | None) -> None:
        if nonce is not None:
            with suppress(Rejected):  # an extension that is offered wrongly is one that is not offered
                self._next_nonces[peer.wallet] = (parse_nonce(nonce), self._clock.monotonic_ms())


async def _parse_envelope(body: bytes) -> Envelope:
    """A page's takes 0.1 ms, a whole store's 50."""
    if len(body) <= INLINE_BYTES:
        return parse_envelope(body)
    return await anyio.to_thread.run_sync(parse_envelope, body)


async def _refusal(response: httpx.Response) -> PeerRefused:
    code = ""
    try:
        body = parse_json_object(await read_bounded(response, MAX_ERROR_BYTES))
        word = body.get("code")
        if isinstance(word, str) and _CODE.fullmatch(word):
            code = word
    except (Rejected, AnswerTooLarge, *HTTP_FAILURES) as error:
        logger.debug("error answer without a readable body", extra={"kind": type(error).__name__})
    return PeerRefused(response.status_code, code, parse_retry_after_s(response.headers.get("retry-after")))


def _parse_answer(inner: dict[str, object]) -> PeerAnswer:
    if inner.get("status") != "ok":
        raise PeerUntrusted("the answer's status is not ok")
    announced = inner.get("ext")
    extensions = frozenset(name for name in announced if isinstance(name, str)) if isinstance(announced, list) else ()
    boot_id = inner.get("boot_id")
    return PeerAnswer(inner, frozenset(extensions), boot_id if isinstance(boot_id, str) else None)
