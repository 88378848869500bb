"""The endpoints that anyone may call (protocol §6)."""

from starlette.requests import Request
from starlette.responses import Response

from appliance.api.errors import json_response
from appliance.chain.types import InstanceStatus
from appliance.clock import Clock
from appliance.cluster.keys import ClusterKeys
from appliance.cluster.peers import Peer, PeerCache
from appliance.cluster.push import Pusher
from appliance.cluster.replica import Replica
from appliance.cluster.state import Availability
from appliance.tee.port import TeeIdentity
from kmscore.proof import PopVerifier

SERVICE_NAME = "Nova KMS"
NOT_TO_BE_KEPT = ((b"cache-control", b"no-store"),)


class PublicApi:
    """Handlers that authenticate nobody and tell nothing secret."""

    def __init__(
        self,
        *,
        version: str,
        identity: TeeIdentity,
        node_url: str | None,
        kms_app_id: int,
        registry_address: str,
        pop: PopVerifier,
        availability: Availability,
        keys: ClusterKeys,
        peers: PeerCache,
        pusher: Pusher,
        replica: Replica,
        clock: Clock,
    ) -> None:
        self._version = version
        self._identity = identity
        self._node_url = node_url
        self._kms_app_id = kms_app_id
        self._registry_address = registry_address
        self._pop = pop
        self._availability = availability
        self._keys = keys
        self._peers = peers
        self._pusher = pusher
        self._replica = replica
        self._clock = clock

    async def overview(self, _request: Request) -> Response:
        return json_response(
            200,
            {
                "service": SERVICE_NAME,
                "version": self._version,
                "endpoints": {
                    "GET /health": "whether the process serves",
                    "GET /status": "this node, its cluster and its store",
                    "GET /nodes": "the cluster's nodes as this node knows them",
                    "GET /nonce": "a nonce for one proof of possession",
                    "GET /attestation": "this node's attestation document; ?nonce= of at most 64 bytes, hex or base64",
                    "POST /kms/derive": "derive a key of the calling app",
                    "PUT /kms/data": "store a value",
                    "GET /kms/data/{key}": "read a value",
                    "GET /kms/data": "list the app's keys",
                    "DELETE /kms/data": "delete a value",
                    "POST /sync": "replication between nodes",
                },
                "auth": {
                    "apps": "X-App-Signature, X-App-Nonce, X-App-Timestamp and optionally X-App-Wallet",
                    "nodes": "X-KMS-Signature, X-KMS-Nonce, X-KMS-Timestamp and optionally X-KMS-Wallet",
                    "bodies": "AES-256-GCM envelopes between the P-384 keys that the registry lists",
                },
            },
        )

    async def health(self, _request: Request) -> Response:
        return json_response(200, {"status": "healthy"})

    async def nonce(self, _request: Request) -> Response:
        return json_response(200, {"nonce": self._pop.issue_nonce()}, NOT_TO_BE_KEPT)

    async def status(self, _request: Request) -> Response:
        me = self._peers.get(self._identity.wallet)
        stats = self._replica.store.stats(self._clock.now_ms())
        reason = self._availability.reason
        return json_response(
            200,
            {
                "node": {
                    "tee_wallet": self._identity.wallet,
                    "tee_pubkey": self._identity.tee_pubkey.der.hex(),
                    "node_url": self._node_url or (me.instance_url if me else None),
                    "is_operator": me is not None,
                    "service_available": self._availability.available,
                    "service_unavailable_reason": None if reason is None else reason.value,
                    "master_secret": {"state": self._keys.state.value, "synced_from": self._keys.synced_from},
                    "master_secret_initialized": self._keys.initialized,
                },
                "cluster": {
                    "kms_app_id": self._kms_app_id,
                    "registry_address": self._registry_address,
                    "total_instances": len(self._peers.peers()),
                },
                "data_store": {
                    "namespaces": stats.namespaces,
                    "total_keys": stats.total_keys,
                    "total_bytes": stats.total_bytes,
                },
            },
        )

    async def nodes(self, _request: Request) -> Response:
        operators = [self._describe(peer) for peer in self._peers.peers()]
        return json_response(200, {"operators": operators, "count": len(operators)})

    def _describe(self, peer: Peer) -> dict[str, object]:
        probe = self._peers.probe_of(peer.wallet)
        described: dict[str, object] = {
            "operator": peer.wallet,
            "instance": {
                "instance_id": peer.instance_id,
                "app_id": peer.app_id,
                "version_id": peer.version_id,
                "operator": peer.operator,
                "instance_url": peer.instance_url,
                "tee_wallet": peer.wallet,
                "zk_verified": peer.zk_verified,
                "instance_status": {"value": peer.status, "name": InstanceStatus(peer.status).name},
                "registered_at": peer.registered_at,
            },
            "connection": {
                "in_peer_cache": True,
                "cached_status": InstanceStatus(peer.status).name,
                "status_endpoint_reachable": probe.status_reachable if probe else None,
                "status_endpoint_http_code": probe.status_http_code if probe else None,
                "status_probe_ms": probe.status_probe_ms if probe else None,
                "status_checked_at_ms": probe.status_checked_at_ms if probe else None,
            },
        }
        progress = self._pusher.progress_of(peer.wallet)
        if progress is not None:
            described["push"] = {
                "acknowledged_seq": progress.acked_seq,
                "last_seq": self._replica.store.last_seq,
                "parked_records": len(progress.parked),
                "last_error": progress.last_error,
            }
        return described
