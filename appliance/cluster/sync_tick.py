"""sync_tick: the data's heartbeat (node §3), and the sweep that reclaims what nobody needs any more (store §1)."""

import logging

import anyio
from anyio.abc import TaskGroup

from appliance.chain.types import ChainError
from appliance.clock import Clock
from appliance.cluster.keys import ClusterKeys
from appliance.cluster.peers import PeerCache
from appliance.cluster.push import Pusher
from appliance.cluster.replica import Replica
from appliance.cluster.state import Availability

logger = logging.getLogger(__name__)

# Records reclaimed between two chances for other work.
SWEEP_BUDGET = 500


class SyncTick:
    """Pushes what peers have not acknowledged, while there is a sync key and the node is available."""

    def __init__(self, *, peers: PeerCache, keys: ClusterKeys, pusher: Pusher, availability: Availability) -> None:
        self._peers = peers
        self._keys = keys
        self._pusher = pusher
        self._availability = availability

    async def run_once(self, group: TaskGroup) -> None:
        """Start a push to every peer in `group`; failures of single peers are the pusher's business."""
        if self._keys.sync_key is None or not self._availability.available:
            return
        try:
            await self._peers.refresh_if_stale()
        except ChainError as error:
            logger.warning("push skipped: peer cache stale", extra={"reason": str(error)})
            return
        await self._pusher.push(self._peers.peers(), group)


class Sweeper:
    """Reclaims expired records and old tombstones without being asked."""

    def __init__(self, *, replica: Replica, peers: PeerCache, pusher: Pusher, clock: Clock) -> None:
        self._replica = replica
        self._peers = peers
        self._pusher = pusher
        self._clock = clock

    async def run_once(self) -> None:
        """Sweep until nothing is left to reclaim.

        Without a fresh view of the membership nobody is known to have anything, so only what is past retention goes.
        """
        settled_seq = self._pusher.settled_seq(self._peers.peers()) if self._peers.fresh else 0
        swept = SWEEP_BUDGET
        while swept == SWEEP_BUDGET:
            async with self._replica.writing():
                swept = self._replica.store.sweep(self._clock.now_ms(), settled_seq, SWEEP_BUDGET)
            await anyio.lowlevel.checkpoint()
