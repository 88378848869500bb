"""What the model's steps cost, measured with the code of a real node: two peers in this process, HTTP over loopback.

Both sides share the process: what is measured is what an exchange costs the two of them.
"""

import json
import os
import socket
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

import anyio
import uvicorn
from anyio.abc import TaskGroup
from eth_abi.abi import encode
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from appliance.api.errors import json_response
from appliance.api.exchange import Answerer
from appliance.api.http_protocol import bounded_http_protocol
from appliance.api.sync import SyncApi
from appliance.auth.eligibility import authorize_peer
from appliance.auth.envelopes import EnvelopeGate, LabelMemory
from appliance.chain.abi import decode_instance
from appliance.chain.types import App, Instance, MemberFacts, Version
from appliance.clock import SystemClock
from appliance.cluster.digests import DigestServer
from appliance.cluster.handover import SecretServer
from appliance.cluster.keys import ClusterKeys
from appliance.cluster.messages import DELTA, MAX_SMALL_ANSWER_BYTES
from appliance.cluster.peers import PeerCache
from appliance.cluster.push import Pusher
from appliance.cluster.replica import Replica
from appliance.cluster.snapshot import SnapshotClient, SnapshotServer
from appliance.cluster.transport import PeerTransport
from appliance.http import new_http_client
from appliance.tee.local import LocalTee
from bench.scale.costs import Costs
from bench.scale.stores import AgedStore
from bench.scale.timing import collector_off, cpu_ns, sent_bytes
from kmscore.envelope import LABELS, AgreementKey
from kmscore.errors import Unavailable
from kmscore.json import MAX_ITEMS
from kmscore.kdf import master_secret_hash
from kmscore.limits import BodyBudget, RateLimiter
from kmscore.message import write_data
from kmscore.nonce import EnvelopeNonces, NonceIssuer, UsedNonces
from kmscore.pop import WalletKey
from kmscore.proof import PopVerifier
from kmscore.secret import SecretBytes
from kmscore.store import Store, StoreLimits

VALUE_BYTES: Final = 1024
BATCH_RECORDS: Final = 200
KMS_APP_ID: Final = 49
APP_ID: Final = 101
BODY_BYTES: Final = 50 << 20
DEADLINE_S: Final = 20.0
EXCHANGES: Final = 20
WARM_UP: Final = 20
DIGEST_STORE_RECORDS: Final = 100_000
DIGEST_CHANGES: Final = 1_000
MASTER_SECRET: Final = bytes(range(32))
ROOMY: Final = StoreLimits(max_app_bytes=1 << 30)
_INSTANCE: Final = "(uint256,uint256,uint256,address,bytes,bytes,address,bool,uint8,uint256)"


@dataclass(frozen=True, slots=True)
class Members:
    """The membership, as the chain would show it."""

    facts: Sequence[MemberFacts]

    async def active_instances(self, app_id: int) -> list[MemberFacts]:
        return [member for member in self.facts if member.instance.app_id == app_id]


class Side:
    """One node's part of replication: what pushes and what answers pushes, wired as `appliance.main` does."""

    def __init__(self, tee: LocalTee, wallet: str) -> None:
        self.tee = tee
        self.wallet = wallet
        self.clock = SystemClock()
        self.keys = ClusterKeys(self.clock)
        secret = SecretBytes(MASTER_SECRET)
        self.keys.adopt(secret, master_secret_hash(secret), wallet)
        self.replica = Replica(Store(wallet, ROOMY, seed=os.urandom(16)), self.keys, self.clock, ROOMY, os.urandom)
        self.replica.mark_complete()
        self.gate = EnvelopeGate(tee, EnvelopeNonces(), LabelMemory(LABELS[0]), max_items=MAX_ITEMS)

    async def connect(self, stack: AsyncExitStack, members: Members) -> None:
        self.http = await stack.enter_async_context(new_http_client())
        self.peers = PeerCache(members, self.http, self.clock, kms_app_id=KMS_APP_ID, https_only=False, ttl_s=3600.0)
        await self.peers.refresh()
        self.transport = PeerTransport(
            own_wallet=self.wallet, tee=self.tee, gate=self.gate, keys=self.keys, http=self.http, clock=self.clock
        )

    def sync_api(self) -> tuple[SyncApi, PopVerifier]:
        pop = PopVerifier(
            wallet=self.wallet,
            issuer=NonceIssuer(SecretBytes(os.urandom(32)), 120_000),
            used=UsedNonces(max_per_owner=1 << 20),
            clock=self.clock,
            random_bytes=os.urandom,
            max_age_s=120,
        )
        snapshots = SnapshotClient(self.replica, self.transport, max_answer_bytes=BODY_BYTES, max_records=1 << 20)
        pusher = Pusher(
            own_wallet=self.wallet,
            replica=self.replica,
            transport=self.transport,
            snapshots=snapshots,
            clock=self.clock,
            isolation_ms=1 << 40,
        )
        api = SyncApi(
            own_wallet=self.wallet,
            boot_id="00" * 16,
            pop=pop,
            peers=self.peers,
            gate=self.gate,
            answerer=Answerer(wallet=self.wallet, tee=self.tee, gate=self.gate, pop=pop, replica=self.replica),
            keys=self.keys,
            replica=self.replica,
            snapshots=SnapshotServer(self.replica, max_answer_bytes=BODY_BYTES),
            digests=DigestServer(self.replica, self.keys, self.clock),
            secrets=SecretServer(self.keys, os.urandom),
            pusher=pusher,
            wallet_limiter=RateLimiter(0, self.clock),
            budget=BodyBudget(4 * BODY_BYTES, 2 * BODY_BYTES),
            give_back=lambda _request: None,
            max_body_bytes=BODY_BYTES,
        )
        return api, pop


async def measure_costs(*, repeats: int, say: Callable[[str], None]) -> Costs:
    """All costs, each the median of `repeats`. Raises `Unavailable` when the two peers do not understand each other."""
    say("the cost of an exchange between two peers")
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        sender, receiver, members = two_sides(url)
        await sender.connect(stack, members)
        await receiver.connect(stack, members)
        traffic = Traffic()
        group = await stack.enter_async_context(anyio.create_task_group())
        stop = await _serve(group, receiver, listener, traffic)
        stack.callback(stop)
        peer = sender.peers.get(receiver.wallet)
        if peer is None:
            raise Unavailable("the receiving side is no member")

        async def exchange(data: bytes) -> None:
            answer = await sender.transport.exchange(
                peer, {"type": DELTA, "data": data}, deadline_s=DEADLINE_S, limit_bytes=MAX_SMALL_ANSWER_BYTES
            )
            if answer.inner.get("rejected") != 0:
                raise Unavailable("the receiving side refuses records")

        async def ask() -> None:
            (await sender.http.get(f"{url}/nonce")).raise_for_status()

        for _ in range(WARM_UP):
            await exchange(b"{}")
            await ask()
        with collector_off():
            asks_s = [await _cpu_s(ask, EXCHANGES) for _ in range(repeats)]
            written_bytes = sent_bytes(os.getpid())
            empty_s = [await _cpu_s(lambda: exchange(b"{}"), EXCHANGES) for _ in range(repeats)]
            empty = Traffic(traffic.request_bytes, traffic.answer_bytes)
            # What both wrote beyond the bodies: request and status lines with their headers.
            exchange_bytes = (sent_bytes(os.getpid()) - written_bytes) / EXCHANGES / repeats
            head_bytes = (exchange_bytes - empty.request_bytes - empty.answer_bytes) / 2
            news_s, repeated_s = [], []
            for number in range(repeats):
                data = _records(sender, number)
                news_s.append(await _cpu_s(lambda data=data: exchange(data), 1))  # type: ignore[misc]
                repeated_s.append(await _cpu_s(lambda data=data: exchange(data), 1))  # type: ignore[misc]
    ask_s, message_s = statistics.median(asks_s), statistics.median(empty_s)
    new_s = max(0.0, statistics.median(news_s) - message_s) / BATCH_RECORDS
    repeat_s = max(0.0, statistics.median(repeated_s) - message_s) / BATCH_RECORDS
    say("the cost of a member and of a digest")
    return Costs(
        # Both sides together are what is measured. In a cluster each node is as often one side as the other.
        send_message_s=message_s / 2,
        receive_message_s=message_s / 2,
        send_record_s=repeat_s / 2,
        receive_record_s=new_s - repeat_s / 2,
        repeat_record_s=repeat_s / 2,
        ask_s=ask_s / 2,
        answer_s=ask_s / 2,
        agree_s=agree_s(repeats),
        member_s=member_s(members.facts[0], repeats),
        digest_record_s=digest_record_s(repeats),
        message_bytes=empty.request_bytes + head_bytes,
        answer_bytes=empty.answer_bytes + head_bytes,
        record_bytes=(traffic.request_bytes - empty.request_bytes) / BATCH_RECORDS,
    )


@dataclass(slots=True)
class Traffic:
    """Bytes of the last bodies that went each way."""

    request_bytes: int = 0
    answer_bytes: int = 0


def two_sides(url: str) -> tuple[Side, Side, Members]:
    """A sender, a receiver at `url`, and the membership of both."""
    app = App(KMS_APP_ID, "0x" + "0a" * 20, 1, 0, "0x" + "00" * 20)
    version = Version(1, "bench", bytes(32), 0)
    sides, facts = [], []
    for number in (1, 2):
        wallet, agreement = WalletKey(SecretBytes(bytes([number]) * 32)), AgreementKey.from_scalar(number + 6)
        address, der = wallet.address, agreement.public.der
        sides.append(Side(LocalTee(wallet, agreement, os.urandom), address))
        instance = Instance(
            instance_id=number,
            app_id=KMS_APP_ID,
            version_id=1,
            operator=app.owner,
            instance_url=url,
            tee_pubkey=der,
            wallet=address,
            zk_verified=True,
            status=0,
            registered_at=1,
        )
        facts.append(MemberFacts(instance, app, version))
    return sides[0], sides[1], Members(facts)


async def _serve(group: TaskGroup, side: Side, listener: socket.socket, traffic: Traffic) -> Callable[[], None]:
    """Run the receiving side's server; the answer stops it."""
    api, pop = side.sync_api()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if request.url.path == "/sync":
            response = await api.sync(request)
            traffic.request_bytes = int(request.headers["content-length"])
            traffic.answer_bytes = len(response.body)
        else:
            response = json_response(200, {"nonce": pop.issue_nonce()}, [(b"cache-control", b"no-store")])
        await response(scope, receive, send)

    server = uvicorn.Server(
        uvicorn.Config(app, http=bounded_http_protocol(), ws="none", lifespan="off", log_config=None, access_log=False)
    )
    # Signals stay with whoever called: `serve` would take them.
    group.start_soon(server._serve, [listener])
    with anyio.fail_after(DEADLINE_S):
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await anyio.sleep(0.05)

    def stop() -> None:
        server.should_exit = True

    return stop


async def _cpu_s(work: Callable[[], Awaitable[None]], count: int) -> float:
    """Processor time of the process for each of `count` runs, both sides of an exchange included."""
    started = time.process_time_ns()
    for _ in range(count):
        await work()
    return (time.process_time_ns() - started) / count / 1e9


def _records(sender: Side, number: int) -> bytes:
    """The data of a delta with new values, sealed under the app's key as everything in a store is."""
    store, now_ms = sender.replica.store, sender.clock.now_ms()
    for record in range(BATCH_RECORDS):
        ciphertext = sender.replica.encrypt(APP_ID, os.urandom(VALUE_BYTES))
        store.put(APP_ID, f"key-{number}-{record:08d}", ciphertext, 0, now_ms)
    first = store.last_seq - BATCH_RECORDS
    batch = store.since(first, limit_records=BATCH_RECORDS, limit_bytes=1 << 40)
    return write_data(batch.records)


def member_s(member: MemberFacts, repeats: int) -> float:
    """One member in a refresh: its record out of JSON and of the contract's layout, and the decision about it."""
    held = member.instance
    fields = (
        *(held.instance_id, held.app_id, held.version_id, held.operator),
        *(held.instance_url.encode(), held.tee_pubkey, held.wallet, held.zk_verified, held.status, held.registered_at),
    )
    answer = json.dumps({"jsonrpc": "2.0", "id": 1, "result": "0x" + encode([_INSTANCE], [fields]).hex()})

    def refresh() -> None:
        for _ in range(BATCH_RECORDS):
            instance = decode_instance(bytes.fromhex(json.loads(answer)["result"][2:]))
            authorize_peer(held.wallet, instance, member.app, member.version, kms_app_id=KMS_APP_ID)

    with collector_off():
        return statistics.median(cpu_ns(refresh) for _ in range(repeats)) / BATCH_RECORDS / 1e9


def agree_s(repeats: int) -> float:
    """A key of its own for one request, and the secret it shares: what each side of a hand-over does."""
    public = AgreementKey.generate().public

    def agree() -> None:
        for _ in range(EXCHANGES):
            AgreementKey.generate().agree(public)

    return statistics.median(cpu_ns(agree) for _ in range(repeats)) / EXCHANGES / 1e9


def digest_record_s(repeats: int) -> float:
    """One changed record in a refresh of the digests, among 100,000."""
    aged = AgedStore(DIGEST_STORE_RECORDS)
    aged.track_digests()
    with collector_off():
        costs = [cpu_ns(aged.digest_updates(DIGEST_CHANGES)) for _ in range(repeats)]
    return statistics.median(costs) / DIGEST_CHANGES / 1e9
