"""The peer endpoint, `POST /sync` (protocol §5). The protocol's order of checks reads top to bottom in `sync`."""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

from appliance.api.bodies import check_body_headers, discard_body, read_body
from appliance.api.exchange import PEER_SIGNATURE_HEADER, Answerer, LongReading, Reading, SteppedChange
from appliance.auth.envelopes import EnvelopeGate
from appliance.cluster.digests import DigestServer
from appliance.cluster.handover import SecretServer
from appliance.cluster.keys import ClusterKeys
from appliance.cluster.messages import (
    DELTA,
    DIGEST_REQUEST,
    EXTENSIONS,
    MASTER_SECRET_REQUEST,
    RECORDS_REQUEST,
    SNAPSHOT_PAGE_REQUEST,
    SNAPSHOT_REQUEST,
)
from appliance.cluster.peers import Peer, PeerCache
from appliance.cluster.push import Pusher
from appliance.cluster.replica import Replica
from appliance.cluster.snapshot import SnapshotServer
from appliance.http import INLINE_BYTES
from appliance.log import short
from kmscore.envelope import Envelope, parse_envelope
from kmscore.errors import Reason, Rejected, Unavailable
from kmscore.limits import BodyBudget, BodyShare, RateLimiter
from kmscore.mac import MacVerdict, check_mac
from kmscore.message import STEP_BYTES
from kmscore.pop import PopKind, parse_wallet
from kmscore.proof import PopVerifier, VerifiedPop, parse_pop_headers

logger = logging.getLogger(__name__)

# In lower case and as bytes: as ASGI has them.
MAC_HEADER: Final = b"x-sync-signature"

Inner = dict[str, object]
Handler = Callable[[Peer, Inner], Awaitable[Reading | LongReading | SteppedChange]]


class SyncApi:
    """Handler of the peer endpoint, and one method for each message type."""

    def __init__(
        self,
        *,
        own_wallet: str,
        boot_id: str,
        pop: PopVerifier,
        peers: PeerCache,
        gate: EnvelopeGate,
        answerer: Answerer,
        keys: ClusterKeys,
        replica: Replica,
        snapshots: SnapshotServer,
        digests: DigestServer,
        secrets: SecretServer,
        pusher: Pusher,
        wallet_limiter: RateLimiter,
        budget: BodyBudget,
        give_back: Callable[[Request], None],
        max_body_bytes: int,
    ) -> None:
        self._own_wallet = own_wallet
        self._pop = pop
        self._peers = peers
        self._gate = gate
        self._answerer = answerer
        self._keys = keys
        self._replica = replica
        self._snapshots = snapshots
        self._digests = digests
        self._secrets = secrets
        self._pusher = pusher
        self._wallet_limiter = wallet_limiter
        self._budget = budget
        self._give_back = give_back
        self._max_body_bytes = max_body_bytes
        self._announcement: Final[Inner] = {"ext": list(EXTENSIONS), "boot_id": boot_id}
        self._handlers: Final[dict[str, Handler]] = {
            DELTA: self._delta,
            SNAPSHOT_REQUEST: self._snapshot,
            SNAPSHOT_PAGE_REQUEST: self._snapshot_page,
            DIGEST_REQUEST: self._digest,
            RECORDS_REQUEST: self._records,
            MASTER_SECRET_REQUEST: self._master_secret,
        }

    async def sync(self, request: Request) -> Response:
        """Readiness → size → headers → PoP → peer → nonce → MAC verdict → key → decrypt → MAC → wallet → dispatch."""
        self._keys.require_confirmed()
        check_body_headers(request, self._max_body_bytes)
        try:
            pop, peer = self._admit(request)
        except Rejected:
            await discard_body(request, self._max_body_bytes)
            raise
        try:
            with self._budget.share_of(pop.wallet) as share:
                response = await self._answer(request, pop, peer, share)
        except (Rejected, Unavailable) as error:
            return await self._answerer.refuse(error, pop, PEER_SIGNATURE_HEADER)
        self._pusher.note_contact()
        return response

    async def _answer(self, request: Request, pop: VerifiedPop, peer: Peer, share: BodyShare) -> Response:
        self._wallet_limiter.take(pop.wallet)
        body = await read_body(request, self._max_body_bytes, share.take)
        self._pop.consume(pop)
        self._give_back(request)
        mac = next((value.decode("latin-1") for name, value in request.scope["headers"] if name == MAC_HEADER), None)
        if len(body) <= INLINE_BYTES:
            envelope, verdict = self._parse(body, mac)
            if len(body) > STEP_BYTES:
                await anyio.lowlevel.checkpoint()  # a delta's MAC and what follows are a millisecond each
            inner, label = await self._gate.open_request(envelope, peer.tee_pubkey, pop.nonce)
        else:
            envelope, verdict = await anyio.to_thread.run_sync(self._parse, body, mac)
            inner, label = await self._gate.open_request(envelope, peer.tee_pubkey, pop.nonce)
            await anyio.lowlevel.checkpoint()  # what it decrypted to has just been freed, which took milliseconds
            del body, envelope  # and so does this
        message_type = inner.get("type")
        # Old nodes send master_secret_request with whatever they take for a key: they have none yet (protocol §5).
        if verdict is not MacVerdict.VALID and message_type != MASTER_SECRET_REQUEST:
            raise Rejected(Reason.MAC, "X-Sync-Signature is absent or wrong")
        self._check_sender_wallet(inner, pop)
        handler = self._handlers.get(message_type) if isinstance(message_type, str) else None
        if handler is None:
            raise Rejected(Reason.BAD_FIELD, f"type must be one of {', '.join(self._handlers)}")
        return await self._answerer.answer(
            await handler(peer, inner),
            pop,
            peer.tee_pubkey,
            label,
            PEER_SIGNATURE_HEADER,
            extra=self._announcement,
        )

    def _admit(self, request: Request) -> tuple[VerifiedPop, Peer]:
        """Headers and their syntax → timestamp → nonce → signer → hint → peer, not ourselves → nonce unused.

        Changes nothing.
        """
        pop = self._pop.verify(PopKind.PEER, parse_pop_headers(PopKind.PEER, request.scope["headers"]))
        if pop.wallet == self._own_wallet:
            raise Rejected(Reason.NOT_AUTHORIZED, "a node is not its own peer")
        peer = self._peers.verify_kms_peer(pop.wallet)
        self._pop.require_unused(pop)
        return pop, peer

    def _parse(self, body: bytes, mac: str | None) -> tuple[Envelope, MacVerdict]:
        envelope = parse_envelope(body)
        sync_key = self._keys.sync_key
        if sync_key is None:
            raise Unavailable("master secret not initialized")
        return envelope, check_mac(sync_key, envelope.canonical, mac)

    @staticmethod
    def _check_sender_wallet(inner: Inner, pop: VerifiedPop) -> None:
        claimed = inner.get("sender_wallet")
        if not isinstance(claimed, str) or parse_wallet(claimed) != pop.wallet:
            raise Rejected(Reason.WALLET, "sender_wallet is not the wallet that signed")

    # --- message types ---

    async def _delta(self, peer: Peer, inner: Inner) -> SteppedChange:
        incoming = await self._replica.check_incoming(inner.get("data"))
        if incoming.refused:
            logger.warning(
                "records of a delta refused",
                extra={
                    "peer": short(peer.wallet),
                    "rejected": incoming.refused.total(),
                    "reason": sorted(incoming.refused),
                },
            )

        async def plan() -> Inner:
            return (await self._replica.evaluate(incoming)).as_answer()

        async def apply() -> Inner:
            return (await self._replica.take_in(incoming, peer.wallet)).as_answer()

        return SteppedChange(plan, apply)

    async def _snapshot(self, _peer: Peer, _inner: Inner) -> LongReading:
        self._require_complete()
        return LongReading({"status": "ok"}, self._snapshots.whole())

    async def _snapshot_page(self, _peer: Peer, inner: Inner) -> Reading:
        self._require_complete()
        page = await self._snapshots.page(inner)
        await anyio.lowlevel.checkpoint()  # sealing it is a step of its own
        return Reading(page)

    async def _digest(self, _peer: Peer, inner: Inner) -> Reading:
        self._require_comparable()
        return Reading(await self._digests.ranges(inner))

    async def _records(self, _peer: Peer, inner: Inner) -> Reading:
        self._require_comparable()
        return Reading(self._digests.records(inner))

    async def _master_secret(self, _peer: Peer, inner: Inner) -> Reading:
        return Reading(self._secrets.answer(inner))

    def _require_comparable(self) -> None:
        """A node that was cut off for long gives nothing away that the cluster may have forgotten (store §1)."""
        self._require_complete()
        if self._pusher.isolated:
            raise Unavailable("this node was cut off and has not caught up yet")

    def _require_complete(self) -> None:
        if not self._replica.complete:
            raise Unavailable("snapshot not complete")
