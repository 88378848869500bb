"""Several nodes' replication in one process: real stores, pushers and comparisons, and a network that is told what to
lose. Messages go through JSON, but through no HTTP, no envelope and no proof.
"""

import random
from collections import Counter
from collections.abc import Mapping

import anyio

from appliance.auth.envelopes import encode_inner
from appliance.cluster.anti_entropy import AntiEntropy
from appliance.cluster.digests import DigestServer
from appliance.cluster.keys import ClusterKeys
from appliance.cluster.messages import EXTENSIONS
from appliance.cluster.peers import Peer
from appliance.cluster.push import Pusher
from appliance.cluster.replica import Replica
from appliance.cluster.snapshot import SnapshotClient, SnapshotServer
from appliance.cluster.state import Availability
from appliance.cluster.sync_tick import Sweeper
from appliance.cluster.transport import PeerAnswer, PeerRefused, PeerUnreachable
from kmscore.envelope import AgreementKey
from kmscore.errors import Rejected
from kmscore.json import parse_json_object
from kmscore.kdf import master_secret_hash
from kmscore.secret import SecretBytes
from kmscore.store import Store, StoreLimits
from tests.support.fake_node import FakeClock

SECRET = bytes(range(32))
ISOLATION_MS = 43_200_000
PUBKEY = AgreementKey.from_scalar(7).public


class SimulatedClock:
    """The network's time, and how far this node is off."""

    def __init__(self, true: FakeClock, skew_ms: int) -> None:
        self._true = true
        self._skew_ms = skew_ms

    def now_ms(self) -> int:
        return self._true.now_ms() + self._skew_ms

    def monotonic_ms(self) -> int:
        return self._true.monotonic_ms()

    async def sleep(self, seconds: float) -> None:
        raise AssertionError(f"nothing in here waits, not even {seconds} s")


class SimulatedNode:
    """One node; `start` gives it an empty store and a new life."""

    def __init__(self, network: "SimulatedNetwork", number: int, limits: StoreLimits, skew_ms: int) -> None:
        self.wallet = "0x" + f"{number:040x}"
        self.peer = Peer(self.wallet, 49, 1, number, "0x" + "0e" * 20, f"http://{number}", PUBKEY, 0, True, 1)
        self.clock = SimulatedClock(network.clock, skew_ms)
        self._network = network
        self._limits = limits
        self.lives = 0
        self.start()

    def start(self) -> None:
        self.lives += 1
        self.keys = ClusterKeys(self.clock)
        secret = SecretBytes(SECRET)
        self.keys.adopt(secret, master_secret_hash(secret), "0x" + 40 * "0")
        store = Store(self.wallet, self._limits, seed=self._network.rng.randbytes(16))
        self.replica = Replica(store, self.keys, self.clock, self._limits, self._network.rng.randbytes)
        self.availability = Availability()
        self.digests = DigestServer(self.replica, self.keys, self.clock)
        self.snapshots = SnapshotServer(self.replica, max_answer_bytes=1 << 30)
        transport = SimulatedTransport(self._network, self)
        client = SnapshotClient(self.replica, transport, max_answer_bytes=1 << 30, max_records=1 << 30)
        self.pusher = Pusher(
            own_wallet=self.wallet,
            replica=self.replica,
            transport=transport,
            snapshots=client,
            clock=self.clock,
            isolation_ms=ISOLATION_MS,
        )
        self.anti_entropy = AntiEntropy(
            own_wallet=self.wallet,
            peers=self._network,
            keys=self.keys,
            replica=self.replica,
            transport=transport,
            snapshots=client,
            pusher=self.pusher,
            availability=self.availability,
            clock=self.clock,
        )
        self.sweeper = Sweeper(replica=self.replica, peers=self._network, pusher=self.pusher, clock=self.clock)
        self._client = client

    def serve(self) -> None:
        """Its copy is complete: it began the cluster."""
        self.replica.mark_complete()
        self.availability.set(None)

    async def join(self) -> bool:
        """Take a snapshot over from any node that can give one; whether that worked."""
        others = [node for node in self._network.nodes if node is not self and node.replica.complete]
        self._network.rng.shuffle(others)
        for other in others:
            try:
                await self._client.pull(other.peer, frozenset(EXTENSIONS), keep_names=False)
            except PeerUnreachable:
                continue
            self.pusher.note_snapshot(other.peer, self._network.peers())
            self.serve()
            return True
        return False

    def put(self, app_id: int, key: str, value: bytes, ttl_ms: int = 0) -> None:
        self.replica.store.put(app_id, key, self.replica.encrypt(app_id, value), ttl_ms, self.clock.now_ms())

    def delete(self, app_id: int, key: str) -> None:
        self.replica.store.delete(app_id, key, self.clock.now_ms())

    async def push(self) -> None:
        if self.availability.available:
            async with anyio.create_task_group() as group:
                await self.pusher.push(self._network.peers(), group)

    def contents(self) -> dict[tuple[int, str], bytes]:
        """What apps can read."""
        found = {}
        for app_id in range(8):
            for key in self.replica.keys(app_id):
                value = self.replica.get(app_id, key)
                if value is not None:
                    found[app_id, key] = value[0]
        return found

    async def answer(self, sender: "SimulatedNode", inner: dict[str, object]) -> dict[str, object]:
        """What `POST /sync` does once everything has been checked."""
        try:
            match inner["type"]:
                case "delta":
                    incoming = await self.replica.check_incoming(inner["data"])
                    return self.replica.merge(incoming, sender.wallet).as_answer()
                case "snapshot_page_request":
                    return await self.snapshots.page(inner)
                case "digest_request":
                    return await self.digests.ranges(inner)
                case "records_request":
                    return self.digests.records(inner)
                case "snapshot_request":
                    async with self.snapshots.whole() as data:
                        return {"status": "ok", "data": b"".join(data.parts)}
        except Rejected as error:
            raise PeerRefused(400, str(error), None) from error
        raise AssertionError("no such message")


class SimulatedNetwork:
    """The nodes, who is cut off from whom, and how many messages get lost."""

    def __init__(self, count: int, *, seed: int = 0, limits: StoreLimits | None = None, skew_ms: int = 0) -> None:
        self.rng = random.Random(seed)  # noqa: S311
        self.clock = FakeClock()
        self.loss = 0.0
        self.cuts: set[frozenset[str]] = set()
        self.extensions = EXTENSIONS
        self.messages: Counter[str] = Counter()
        self.bytes = 0
        self.nodes: list[SimulatedNode] = []
        for number in range(1, count + 1):
            skew = self.rng.randint(-skew_ms, skew_ms)
            self.nodes.append(SimulatedNode(self, number, limits or StoreLimits(), skew))
            self.nodes[-1].serve()

    # What the nodes ask of their peer cache.
    fresh = True

    async def refresh_if_stale(self) -> None:
        """The membership never changes."""

    def peers(self) -> list[Peer]:
        return [node.peer for node in self.nodes]

    def by_wallet(self, wallet: str) -> SimulatedNode:
        return next(node for node in self.nodes if node.wallet == wallet)

    def separate(self, *groups: list[SimulatedNode]) -> None:
        """From now on only nodes of one group reach each other."""
        self.cuts = {
            frozenset((one.wallet, other.wallet))
            for group in groups
            for one in group
            for other in self.nodes
            if other not in group
        }

    def introduce(self) -> None:
        """Every node has heard what its peers announce, as it does with the first answer to a push."""
        for node in self.nodes:
            for peer in self.peers():
                node.pusher._of(peer).extensions = frozenset(self.extensions)

    def heal(self) -> None:
        self.cuts = set()
        self.loss = 0.0

    def pass_time(self, milliseconds: int) -> None:
        self.clock.elapsed_ms += milliseconds


class SimulatedTransport:
    """Stands for `PeerTransport` between two simulated nodes."""

    def __init__(self, network: SimulatedNetwork, sender: SimulatedNode) -> None:
        self._network = network
        self._sender = sender
        self._life = sender.lives

    def forget_departed(self, wallets: frozenset[str]) -> None:
        """Nothing is remembered."""

    async def exchange(
        self, peer: Peer, inner: Mapping[str, object], *, deadline_s: float, limit_bytes: int
    ) -> PeerAnswer:
        assert deadline_s > 0
        network = self._network
        receiver = network.by_wallet(peer.wallet)
        request = encode_inner(dict(inner))
        network.messages[str(inner["type"])] += 1
        if frozenset((self._sender.wallet, peer.wallet)) in network.cuts or network.rng.random() < network.loss:
            raise PeerUnreachable("lost on the way")
        if not receiver.replica.complete:
            raise PeerRefused(503, "service_unavailable", None)
        answer = encode_inner(await receiver.answer(self._sender, parse_json_object(request)))
        network.bytes += len(request) + len(answer)
        assert len(answer) * 2 < limit_bytes
        if network.rng.random() < network.loss:
            raise PeerUnreachable("lost on the way back")
        return PeerAnswer(parse_json_object(answer), frozenset(network.extensions), f"{peer.wallet} {receiver.lives}")
