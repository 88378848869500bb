"""Sealed hand-over of the master secret between nodes (protocol §5, node §2)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from appliance.cluster.keys import ClusterKeys
from appliance.cluster.messages import MASTER_SECRET_REQUEST, MAX_SMALL_ANSWER_BYTES
from appliance.cluster.peers import Peer
from appliance.cluster.transport import PeerTransport, PeerUntrusted
from kmscore.envelope import AgreementKey
from kmscore.errors import Rejected
from kmscore.mac import parse_hex
from kmscore.sealed import open_master_secret, seal_master_secret
from kmscore.secret import SecretBytes

REQUEST_DEADLINE_S = 20.0


@dataclass(frozen=True, slots=True)
class Handover:
    """A secret as a peer sent it, not yet compared with the chain, and what else that peer can do."""

    secret: SecretBytes
    extensions: frozenset[str]


class SecretClient:
    """Asks a peer for the master secret under a key made for this one request."""

    def __init__(self, transport: PeerTransport) -> None:
        self._transport = transport

    async def request(self, peer: Peer) -> Handover:
        """Raises `PeerError` when there is no answer, or none that opens; `Unavailable` from our own TEE provider."""
        ephemeral = AgreementKey.generate()
        answer = await self._transport.exchange(
            peer,
            {"type": MASTER_SECRET_REQUEST, "ecdh_pubkey": ephemeral.public.der.hex()},
            deadline_s=REQUEST_DEADLINE_S,
            limit_bytes=MAX_SMALL_ANSWER_BYTES,
        )
        try:
            secret = open_master_secret(answer.inner.get("sealed"), ephemeral)
        except Rejected as error:
            raise PeerUntrusted(f"the sealed master secret does not open: {error}") from error
        return Handover(secret, answer.extensions)


class SecretServer:
    """Seals the confirmed master secret for an authenticated peer."""

    def __init__(self, keys: ClusterKeys, random_bytes: Callable[[int], bytes]) -> None:
        self._keys = keys
        self._random_bytes = random_bytes

    def answer(self, inner: Mapping[str, object]) -> dict[str, object]:
        """Raises `Unavailable` without a confirmed secret, `Rejected(BAD_FIELD)` without a usable `ecdh_pubkey`."""
        secret = self._keys.require_confirmed()
        requester = parse_hex(inner.get("ecdh_pubkey"))
        sealed = seal_master_secret(secret, requester, AgreementKey.generate(), self._random_bytes(12))
        return {"status": "ok", "sealed": sealed}
