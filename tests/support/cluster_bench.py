"""One node's cluster side in this process, between a chain in memory and fake peers that speak the other reading of the
protocol (`tests.support.wire`). Time stands still unless a test moves it; what waits, waits at a `Gate`.
"""

import base64
import itertools
import json
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio
import httpx

from appliance.auth.envelopes import EnvelopeGate, LabelMemory
from appliance.chain.kms_registry import ClaimOutcome
from appliance.cluster.handover import SecretClient
from appliance.cluster.keys import ClusterKeys
from appliance.cluster.node_tick import NodeTick
from appliance.cluster.peers import Peer, PeerCache
from appliance.cluster.push import Pusher
from appliance.cluster.replica import Replica
from appliance.cluster.snapshot import SnapshotClient
from appliance.cluster.state import Availability
from appliance.cluster.transport import PeerTransport
from appliance.tee.local import LocalTee
from appliance.tee.port import TeeIdentity, TeeProvider
from kmscore.envelope import AgreementKey, parse_tee_pubkey
from kmscore.nonce import EnvelopeNonces
from kmscore.pop import WalletKey
from kmscore.secret import SecretBytes
from kmscore.store import Store, StoreLimits
from tests.support import wire
from tests.support.fake_node import FakeClock
from tests.support.fake_registry import FakeRegistry

KMS_APP_ID = 49
APP_ID = 7
TTL_S = 180.0
REFRESH_S = 60.0
SECRET = bytes(range(32))
OTHER_SECRET = bytes(range(32, 64))
UNSET = bytes(32)
ISOLATION_MS = 43_200_000
PATIENCE_S = 5.0


class Gate:
    """A place where a fake waits: `reached` says that somebody is there, `open` lets everybody pass."""

    def __init__(self) -> None:
        self.reached = anyio.Event()
        self._opened = anyio.Event()

    async def wait(self) -> None:
        self.reached.set()
        await self._opened.wait()

    def open(self) -> None:
        self._opened.set()


async def cancelled_at(gate: Gate, work: Callable[[], Awaitable[object]]) -> None:
    """Run `work` until something in it waits at `gate`, cancel it there, and let later visitors of the gate pass."""
    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as group:
            group.start_soon(work)
            await gate.reached.wait()
            group.cancel_scope.cancel()
    gate.open()


class FakePeer:
    """A peer that is honest unless told otherwise.

    `refusals` are statuses for the next requests to /sync, one each; `alter` changes the inner answer by message type
    before it is sealed, `spoil` every response after; `gates` hold requests back, by path or message type. `extensions`
    None is an older peer, which announces nothing. `received` lists inner requests, `headers` are the last one's.
    """

    def __init__(
        self, number: int, *, secret: bytes = SECRET, extensions: list[str] | None = None, boot_id: str | None = None
    ) -> None:
        self.url = f"https://peer{number}.example"
        self.wallet = wire.Wallet(bytes([number]) * 32)
        self.tee = wire.TeeKey(1000 + number)
        self.secret = secret
        self.extensions = extensions
        self.boot_id = boot_id
        self.labels = wire.LABELS
        self.records: dict[str, list[dict[str, object]]] = {}
        self.page_records = 2
        self.offers_next_nonce = True
        self.refusals: list[int] = []
        self.refusal_headers: dict[str, str] = {}
        self.alter: dict[str, Callable[[dict[str, object]], dict[str, object]]] = {}
        self.spoil: Callable[[httpx.Response], httpx.Response] | None = None
        self.gates: defaultdict[str, Gate | None] = defaultdict(lambda: None)
        self.received: list[dict[str, object]] = []
        self.headers = httpx.Headers()
        self.asked: list[str] = []
        self.status_code = 200
        self._numbers = itertools.count(1)
        self._nonces: set[str] = set()

    @property
    def address(self) -> str:
        return self.wallet.address

    @property
    def peer(self) -> Peer:
        """This peer as the peer cache would hold it."""
        return Peer(
            wallet=self.address,
            app_id=KMS_APP_ID,
            version_id=1,
            instance_id=self.tee.private.private_numbers().private_value,
            operator="0x" + "0e" * 20,
            instance_url=self.url,
            tee_pubkey=parse_tee_pubkey(self.tee.der),
            status=0,
            zk_verified=True,
            registered_at=1,
        )

    def kinds(self) -> list[str]:
        return [str(inner["type"]) for inner in self.received]

    def forget_nonces(self) -> None:
        """What a restart does to the nonces that were handed out."""
        self._nonces.clear()

    async def handle(self, request: httpx.Request, caller_der: bytes) -> httpx.Response:
        path = request.url.path
        self.asked.append(path)
        if (gate := self.gates[path]) is not None:
            await gate.wait()
        if path == "/status":
            return httpx.Response(self.status_code, json={})
        if path == "/nonce":
            return self._spoiled(httpx.Response(200, json={"nonce": self._issue_nonce()}))
        self.headers = request.headers
        if self.refusals:
            status = self.refusals.pop(0)
            return httpx.Response(status, json={"code": "refused", "message": "no"}, headers=self.refusal_headers)
        return self._spoiled(await self._sync(request, caller_der))

    def _spoiled(self, response: httpx.Response) -> httpx.Response:
        return response if self.spoil is None else self.spoil(response)

    def _issue_nonce(self) -> str:
        nonce = base64.b64encode(next(self._numbers).to_bytes(16, "big")).decode()
        self._nonces.add(nonce)
        return nonce

    async def _sync(self, request: httpx.Request, caller_der: bytes) -> httpx.Response:
        signature, nonce, timestamp = (request.headers[f"x-kms-{name}"] for name in ("signature", "nonce", "timestamp"))
        signer = wire.recover_signer(wire.pop_text("Auth", nonce, self.address, timestamp), signature)
        if nonce not in self._nonces or signer != request.headers["x-kms-wallet"]:
            return httpx.Response(403, json={"code": "forbidden", "message": "no"})
        self._nonces.remove(nonce)
        envelope = json.loads(request.content)
        try:
            plaintext, label = wire.open_envelope(self.tee, envelope, self.labels)
        except wire.WireError:
            return httpx.Response(400, json={"code": "bad_request", "message": "no"})
        inner = json.loads(plaintext)
        assert inner["sender_wallet"] == signer
        assert inner["pop_nonce"] == nonce
        kind = inner["type"]
        sync_key = wire.derive_sync_key(self.secret)
        if kind != "master_secret_request" and request.headers.get("x-sync-signature") != wire.sync_mac(
            sync_key, envelope
        ):
            return httpx.Response(403, json={"code": "forbidden", "message": "no"})
        self.received.append(inner)
        if (gate := self.gates[kind]) is not None:
            await gate.wait()
        answer: dict[str, object] = {"status": "ok", **self._answer(kind, inner)}
        if self.extensions is not None:
            answer |= {"ext": self.extensions, "boot_id": self.boot_id, "answer_to": nonce}
        if kind in self.alter:
            answer = self.alter[kind](answer)
        headers = {"X-KMS-Peer-Signature": self.wallet.sign(wire.response_text(signature, self.address))}
        if self.extensions is not None and self.offers_next_nonce:
            headers["X-KMS-Next-Nonce"] = self._issue_nonce()
        sealed = wire.seal(self.tee, caller_der, label, json.dumps(answer).encode())
        return httpx.Response(200, json=sealed, headers=headers)

    def _answer(self, kind: str, inner: dict[str, object]) -> dict[str, object]:
        if kind == "master_secret_request":
            requester = wire.parse_hex(inner["ecdh_pubkey"])
            return {"sealed": wire.seal_master_secret(self.secret, requester)}
        if kind == "snapshot_request":
            return {"data": self.records}
        if kind == "snapshot_page_request":
            everything = [(app, record) for app, records in self.records.items() for record in records]
            after = int(str(inner["after"]))
            page = everything[after : after + self.page_records]
            data: dict[str, list[dict[str, object]]] = {}
            for app, record in page:
                data.setdefault(app, []).append(record)
            return {"data": data, "next": after + len(page), "done": after + len(page) >= len(everything)}
        assert kind == "delta", "a message type that no peer has announced"
        return {"merged": sum(map(len, inner["data"].values()))}  # type: ignore[attr-defined]


def record(
    key: str, value: bytes | None, *, secret: bytes = SECRET, counter: int = 1, at_ms: int = 1
) -> dict[str, object]:
    """A wire record of `APP_ID`, its value encrypted under `secret`'s data key; None makes a tombstone."""
    ciphertext = None if value is None else wire.encrypt_value(wire.derive_data_key(secret, APP_ID), value)
    return {
        "key": key,
        "value": None if ciphertext is None else ciphertext.hex(),
        "version": {"somebody": counter},
        "updated_at_ms": at_ms,
        "tombstone": ciphertext is None,
        "ttl_ms": 0,
    }


class FakeNetwork(httpx.AsyncBaseTransport):
    """Brings each request to the peer of its URL; a URL without a peer refuses the connection."""

    def __init__(self, caller_der: bytes) -> None:
        self.peers: dict[str, FakePeer] = {}
        self._caller_der = caller_der

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        peer = self.peers.get(f"{request.url.scheme}://{request.url.netloc.decode()}")
        if peer is None:
            raise httpx.ConnectError("connection refused")
        response = await peer.handle(request, self._caller_der)
        if not response.is_closed:
            return response
        # A response made from bytes counts as read already; from the network it comes as a stream.
        return httpx.Response(response.status_code, headers=response.headers, stream=httpx.ByteStream(response.content))


class FakeKmsRegistry:
    """The word of state that the cluster has on chain, and the trouble with it."""

    def __init__(self) -> None:
        self.hash32 = UNSET
        self.claims: list[bytes] = []
        self.outcome = ClaimOutcome.CLAIMED
        self.read_error: Exception | None = None
        self.claim_error: Exception | None = None
        self.read_gate: Gate | None = None
        self.claim_gate: Gate | None = None

    async def master_secret_hash(self) -> bytes:
        if self.read_gate is not None:
            await self.read_gate.wait()
        if self.read_error is not None:
            raise self.read_error
        return self.hash32

    async def set_master_secret_hash(self, hash32: bytes, tee: TeeProvider) -> ClaimOutcome:
        del tee
        if self.claim_gate is not None:
            await self.claim_gate.wait()
        if self.claim_error is not None:
            raise self.claim_error
        self.claims.append(hash32)
        if self.outcome is ClaimOutcome.CLAIMED:
            self.hash32 = hash32
        return self.outcome


class AsListed(random.Random):
    """Leaves lists in their order."""

    def shuffle(self, x: object) -> None:
        """Do nothing."""


@dataclass
class Bench:
    """Every object of the cluster side of one node, wired as the composition root wires them."""

    limits: StoreLimits = field(default_factory=StoreLimits)
    clock: FakeClock = field(default_factory=FakeClock)
    registry: FakeRegistry = field(default_factory=FakeRegistry)
    kms_registry: FakeKmsRegistry = field(default_factory=FakeKmsRegistry)

    def __post_init__(self) -> None:
        wallet, agreement = WalletKey(SecretBytes(b"\x77" * 32)), AgreementKey.from_scalar(77)
        self.identity = TeeIdentity(wallet.address, agreement.public)
        self.tee = LocalTee(wallet, agreement, random.SystemRandom().randbytes)
        self.network = FakeNetwork(agreement.public.der)
        self.http = httpx.AsyncClient(transport=self.network, trust_env=False)
        self.keys = ClusterKeys(self.clock)
        store = Store(self.identity.wallet, self.limits, seed=bytes(16))
        self.replica = Replica(store, self.keys, self.clock, self.limits, random.SystemRandom().randbytes)
        self.peers = PeerCache(
            self.registry, self.http, self.clock, kms_app_id=KMS_APP_ID, https_only=True, ttl_s=TTL_S
        )
        gate = EnvelopeGate(self.tee, EnvelopeNonces(), LabelMemory(wire.CAPSULE_LABEL), max_items=1_000_000)
        self.transport = PeerTransport(
            own_wallet=self.identity.wallet, tee=self.tee, gate=gate, keys=self.keys, http=self.http, clock=self.clock
        )
        self.snapshots = SnapshotClient(
            self.replica, self.transport, max_answer_bytes=1 << 24, max_records=self.limits.max_store_bytes
        )
        self.pusher = Pusher(
            own_wallet=self.identity.wallet,
            replica=self.replica,
            transport=self.transport,
            snapshots=self.snapshots,
            clock=self.clock,
            isolation_ms=ISOLATION_MS,
        )
        self.secrets = SecretClient(self.transport)
        self.pauses: list[float] = []
        self.wake = Gate()
        self.availability = Availability()
        self.node_tick = NodeTick(
            identity=self.identity,
            tee=self.tee,
            peers=self.peers,
            kms_registry=self.kms_registry,  # type: ignore[arg-type] # has what NodeTick asks of it
            keys=self.keys,
            replica=self.replica,
            pusher=self.pusher,
            secrets=self.secrets,
            snapshots=self.snapshots,
            availability=self.availability,
            grace_s=TTL_S,
            refresh_every_s=REFRESH_S,
            rng=AsListed(),
            sleep=self._pause,
        )

    async def _pause(self, seconds: float) -> None:
        """Sleeps in a tick last until `wake` opens; the second one for ever."""
        self.pauses.append(seconds)
        await (self.wake if len(self.pauses) == 1 else Gate()).wait()

    async def register(self, *peers: FakePeer, ourselves: bool = True) -> None:
        """The KMS app with one version, this node unless it is left out, and `peers`, who answer from now on."""
        await self.registry.register_app(KMS_APP_ID)
        await self.registry.enroll_version(KMS_APP_ID, "1.0.0")
        if ourselves:
            await self.register_ourselves()
        for peer in peers:
            await self.add(peer)

    async def register_ourselves(self) -> int:
        return await self.registry.register_instance(
            KMS_APP_ID,
            1,
            wallet=self.identity.wallet,
            url="https://ourselves.example",
            tee_pubkey=self.identity.tee_pubkey.der,
        )

    async def add(self, peer: FakePeer) -> int:
        self.reach(peer)
        return await self.registry.register_instance(
            KMS_APP_ID, 1, wallet=peer.address, url=peer.url, tee_pubkey=peer.tee.der
        )

    def reach(self, *peers: FakePeer) -> None:
        for peer in peers:
            self.network.peers[peer.url] = peer

    def hold_secret(self, secret: bytes = SECRET) -> None:
        """This node has `secret`, the chain has confirmed it, and its copy is complete."""
        self.kms_registry.hash32 = wire.keccak256(secret)
        self.keys.adopt(SecretBytes(secret), self.kms_registry.hash32, "0x" + 40 * "0")
        self.replica.mark_complete()

    def put(self, key: str, value: bytes) -> int:
        ciphertext = self.replica.encrypt(APP_ID, value)
        return self.replica.store.put(APP_ID, key, ciphertext, 0, self.clock.now_ms())

    async def push(self, *peers: FakePeer) -> None:
        """One push to `peers`, waited for."""
        async with anyio.create_task_group() as group:
            await self.pusher.push([peer.peer for peer in peers], group)

    def contents(self) -> dict[str, bytes]:
        found = {key: self.replica.get(APP_ID, key) for key in self.replica.keys(APP_ID)}
        return {key: value[0] for key, value in found.items() if value is not None}

    async def aclose(self) -> None:
        await self.http.aclose()
        await self.tee.aclose()
