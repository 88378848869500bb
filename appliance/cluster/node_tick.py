"""node_tick: the heartbeat that decides whether this node may serve (node §2)."""

import logging
import random
from collections.abc import Awaitable, Callable, Sequence

import anyio

from appliance.chain.kms_registry import ClaimOutcome, KmsRegistry
from appliance.chain.types import ChainError
from appliance.cluster.handover import SecretClient
from appliance.cluster.keys import ClusterKeys, SecretState
from appliance.cluster.peers import Peer, PeerCache
from appliance.cluster.push import Pusher
from appliance.cluster.replica import Replica
from appliance.cluster.snapshot import SnapshotClient
from appliance.cluster.state import Availability, UnavailableReason
from appliance.log import short
from appliance.tee.port import TeeIdentity, TeeProvider
from kmscore.errors import Unavailable
from kmscore.kdf import master_secret_hash
from kmscore.secret import SecretBytes

logger = logging.getLogger(__name__)

HASH_UNSET = bytes(32)
MASTER_SECRET_BYTES = 32


class NodeTick:
    """One run brings membership, master secret, snapshot and availability in line with the chain.

    A snapshot may take many times the interval between runs: while it does, the membership is read again every
    `refresh_every_s` all the same, because peers that this node does not know any more are refused.
    """

    def __init__(
        self,
        *,
        identity: TeeIdentity,
        tee: TeeProvider,
        peers: PeerCache,
        kms_registry: KmsRegistry,
        keys: ClusterKeys,
        replica: Replica,
        pusher: Pusher,
        secrets: SecretClient,
        snapshots: SnapshotClient,
        availability: Availability,
        grace_s: float,
        refresh_every_s: float,
        rng: random.Random,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._identity = identity
        self._tee = tee
        self._peers = peers
        self._kms_registry = kms_registry
        self._keys = keys
        self._replica = replica
        self._pusher = pusher
        self._secrets = secrets
        self._snapshots = snapshots
        self._availability = availability
        self._grace_s = grace_s
        self._refresh_every_s = refresh_every_s
        self._rng = rng
        self._sleep = sleep

    async def run_once(self) -> None:
        """Do the steps of node §2 and set the availability; expected failures become its reason."""
        try:
            await self._tee.refresh_identity()
        except Unavailable as error:
            # Requests are answered 503 by what they need; membership and the chain's hash still want looking after.
            logger.warning("TEE provider does not answer", extra={"reason": str(error)})
        self._availability.set(await self._decide())
        await self._peers.probe(self._identity.wallet)

    async def _decide(self) -> UnavailableReason | None:
        await self._refresh_members()
        if not self._peers.fresh:
            return UnavailableReason.PEER_CACHE_REFRESH_FAILED
        me = self._peers.get(self._identity.wallet)
        if me is None:
            return UnavailableReason.NOT_IN_NODE_LIST
        if me.tee_pubkey != self._identity.tee_pubkey:
            return UnavailableReason.TEE_PUBKEY_MISMATCH
        try:
            chain_hash = await self._kms_registry.master_secret_hash()
        except ChainError as error:
            logger.warning("master secret hash not read", extra={"reason": str(error)})
            if self._keys.confirmed_within(self._grace_s):
                # A short outage of the chain is none of the KMS: go on with what was confirmed (node §2.3).
                return None if self._replica.complete else UnavailableReason.SECRET_SYNC_FAILED
            return UnavailableReason.CANNOT_READ_HASH
        if chain_hash == HASH_UNSET:
            return await self._claim()
        return await self._align(chain_hash)

    async def _claim(self) -> UnavailableReason:
        """The cluster has no secret: offer ours. Whoever's hash a later tick reads back has won."""
        self._availability.set(UnavailableReason.AWAITING_HASH)
        self._keys.unconfirm()
        try:
            if not self._keys.initialized:
                self._keys.generate(SecretBytes(await self._tee.random_bytes(MASTER_SECRET_BYTES)))
                self._replica.mark_complete()
            outcome = await self._kms_registry.set_master_secret_hash(self._keys.secret_hash, self._tee)
        except Unavailable as error:
            logger.warning("master secret hash not claimed", extra={"reason": str(error)})
            return UnavailableReason.CLAIM_FAILED
        logger.info("master secret hash claim", extra={"outcome": outcome.value})
        if outcome is ClaimOutcome.NOT_AUTHORIZED:
            return UnavailableReason.CLAIM_FAILED
        return UnavailableReason.AWAITING_HASH

    async def _align(self, chain_hash: bytes) -> UnavailableReason | None:
        """Hold the secret that the chain shows, and a complete snapshot; or say why not."""
        if self._keys.matches(chain_hash):
            self._keys.confirm(chain_hash)
            if self._replica.complete:
                return None
        elif self._keys.state is SecretState.GENERATED and not self._keys.was_confirmed:
            self._availability.set(UnavailableReason.SECRET_SYNC_FAILED)
            logger.info("another node's master secret was mined first, ours is dropped")
            await self._replica.replace_secret(self._keys.wipe)
        elif self._keys.initialized:
            # At once: from here on the store is not the cluster's, and then empty.
            self._availability.set(UnavailableReason.SECRET_SYNC_FAILED)
            logger.warning("the chain shows another master secret than ours")
            self._keys.unconfirm()
        reason: UnavailableReason | None = UnavailableReason.SECRET_SYNC_FAILED
        async with anyio.create_task_group() as group:
            group.start_soon(self._keep_members_fresh)
            reason = await self._join(chain_hash)
            group.cancel_scope.cancel()
        return reason

    async def _refresh_members(self) -> None:
        try:
            await self._peers.refresh()
        except ChainError as error:
            logger.warning("peer cache not refreshed", extra={"reason": str(error)})

    async def _keep_members_fresh(self) -> None:
        while True:
            await self._sleep(self._refresh_every_s)
            await self._refresh_members()

    async def _join(self, chain_hash: bytes) -> UnavailableReason | None:
        """Take secret and snapshot over from the first peer that gives both; or say why none did."""
        reason = UnavailableReason.SECRET_SYNC_FAILED
        members = self._peers.peers()
        for peer in self._others(members):
            try:
                extensions = await self._secret_from(peer, chain_hash)
                if extensions is None:
                    reason = UnavailableReason.SECRET_HASH_MISMATCH
                    continue
                await self._snapshots.pull(peer, extensions, keep_names=False)
            except Unavailable as error:
                logger.warning("peer cannot bring us up", extra={"peer": short(peer.wallet), "reason": str(error)})
                continue
            self._replica.mark_complete()
            self._pusher.note_snapshot(peer, members)
            return None
        return reason

    async def _secret_from(self, peer: Peer, chain_hash: bytes) -> frozenset[str] | None:
        """Make sure we hold the chain's secret, from `peer` if need be; its extensions, or None when it lies."""
        handover = await self._secrets.request(peer)
        if master_secret_hash(handover.secret) != chain_hash:
            handover.secret.wipe()
            logger.error("peer sent a master secret that the chain does not show", extra={"peer": short(peer.wallet)})
            return None
        if self._keys.matches(chain_hash):
            handover.secret.wipe()
            return handover.extensions
        replaces = self._keys.initialized
        dropped = await self._replica.replace_secret(lambda: self._keys.adopt(handover.secret, chain_hash, peer.wallet))
        if replaces:
            # The old data is unreadable to this cluster (node §2.5).
            self._pusher.reset()
            level = logging.ERROR if dropped else logging.INFO
            logger.log(level, "master secret replaced, store dropped", extra={"records": dropped})
        return handover.extensions

    def _others(self, members: Sequence[Peer]) -> Sequence[Peer]:
        """The other members in random order, so that a joining crowd does not lean on one."""
        others = [peer for peer in members if peer.wallet != self._identity.wallet]
        self._rng.shuffle(others)
        return others
