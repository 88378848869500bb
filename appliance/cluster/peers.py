"""PeerCache: the cluster's membership as the chain last showed it (node §1).

The only source of peer authorisation. Refreshed by the ticks, never by a request.
"""

import logging
import time
from dataclasses import dataclass

import anyio
import httpx

from appliance.auth.eligibility import authorize_peer
from appliance.chain.types import MembershipReads
from appliance.clock import Clock
from appliance.http import HTTP_FAILURES
from appliance.log import short
from appliance.urls import parse_node_url
from kmscore.envelope import TeePublicKey
from kmscore.errors import Reason, Rejected

logger = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Peer:
    """An eligible KMS instance with a usable URL; ourselves included."""

    wallet: str
    app_id: int
    version_id: int
    instance_id: int
    operator: str
    instance_url: str
    tee_pubkey: TeePublicKey
    status: int
    zk_verified: bool
    registered_at: int


@dataclass(frozen=True, slots=True)
class PeerProbe:
    """What `GET /status` of a peer's URL said last; diagnostics only, it authorises nothing."""

    status_reachable: bool
    status_http_code: int | None
    status_probe_ms: int
    status_checked_at_ms: int


class PeerCache:
    """An atomically replaced set of peers; empty once it is older than its TTL."""

    def __init__(
        self,
        registry: MembershipReads,
        http: httpx.AsyncClient,
        clock: Clock,
        *,
        kms_app_id: int,
        https_only: bool,
        ttl_s: float,
    ) -> None:
        self._registry = registry
        self._http = http
        self._clock = clock
        self._kms_app_id = kms_app_id
        self._https_only = https_only
        self._ttl_ms = int(ttl_s * 1000)
        self._peers: dict[str, Peer] = {}
        self._probes: dict[str, PeerProbe] = {}
        self._refreshed_at_ms: int | None = None

    @property
    def fresh(self) -> bool:
        """Whether the last successful refresh is within the TTL."""
        return self._refreshed_at_ms is not None and self._clock.monotonic_ms() - self._refreshed_at_ms <= self._ttl_ms

    def peers(self) -> tuple[Peer, ...]:
        """All eligible instances, ourselves included, by instance id; none when the cache is stale."""
        return tuple(self._peers.values()) if self.fresh else ()

    def urls(self) -> tuple[str, ...]:
        """The URLs of `peers`: whom this node may connect to."""
        return tuple(peer.instance_url for peer in self.peers())

    def get(self, wallet: str) -> Peer | None:
        return self._peers.get(wallet) if self.fresh else None

    def probe_of(self, wallet: str) -> PeerProbe | None:
        return self._probes.get(wallet)

    def verify_kms_peer(self, wallet: str) -> Peer:
        """The peer behind a verified wallet. Raises `Rejected(NOT_AUTHORIZED)`."""
        peer = self.get(wallet)
        if peer is None:
            logger.warning("peer refused: not in the peer cache", extra={"wallet": short(wallet)})
            raise Rejected(Reason.NOT_AUTHORIZED, "the wallet is not an eligible KMS node")
        return peer

    async def refresh(self) -> None:
        """Read the membership anew and swap it in; raises `ChainError` and keeps the old set when it cannot be read."""
        # Age counts from before the read: what we then know was true no later than that.
        asked_at_ms = self._clock.monotonic_ms()
        members = await self._registry.active_instances(self._kms_app_id)
        peers: dict[str, Peer] = {}
        for facts in sorted(members, key=lambda member: member.instance.instance_id):
            instance = facts.instance
            try:
                authorized = authorize_peer(
                    instance.wallet, instance, facts.app, facts.version, kms_app_id=self._kms_app_id
                )
                url = parse_node_url(instance.instance_url, https_only=self._https_only)
            except Rejected as error:
                logger.warning("instance left out", extra={"wallet": short(instance.wallet), "reason": str(error)})
                continue
            peers[instance.wallet] = Peer(
                wallet=instance.wallet,
                app_id=instance.app_id,
                version_id=instance.version_id,
                instance_id=instance.instance_id,
                operator=instance.operator,
                instance_url=url,
                tee_pubkey=authorized.tee_pubkey,
                status=instance.status,
                zk_verified=instance.zk_verified,
                registered_at=instance.registered_at,
            )
        if self._refreshed_at_ms is not None and asked_at_ms < self._refreshed_at_ms:
            return  # a refresh that was asked later has come first
        self._peers = peers
        self._probes = {wallet: probe for wallet, probe in self._probes.items() if wallet in peers}
        self._refreshed_at_ms = asked_at_ms

    async def refresh_if_stale(self) -> None:
        """Refresh when older than the TTL (before an outbound push)."""
        if not self.fresh:
            await self.refresh()

    async def probe(self, own_wallet: str) -> None:
        """Ask every other peer's `/status` at once and remember how that went; never raises for a peer's failure."""
        async with anyio.create_task_group() as group:
            for peer in self.peers():
                if peer.wallet != own_wallet:
                    group.start_soon(self._probe_one, peer)

    async def _probe_one(self, peer: Peer) -> None:
        started = time.perf_counter()
        code: int | None = None
        try:
            with anyio.fail_after(PROBE_TIMEOUT_S):
                async with self._http.stream("GET", f"{peer.instance_url}/status") as response:
                    code = response.status_code
        except (*HTTP_FAILURES, TimeoutError) as error:
            logger.info("status probe failed", extra={"peer": short(peer.wallet), "kind": type(error).__name__})
        self._probes[peer.wallet] = PeerProbe(
            status_reachable=code is not None,
            status_http_code=code,
            status_probe_ms=round((time.perf_counter() - started) * 1000),
            status_checked_at_ms=self._clock.now_ms(),
        )
