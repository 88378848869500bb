"""The composition root: builds every object of a node, runs server and ticks as siblings, stops them in order."""

import ctypes
import gc
import logging
import math
import os
import random
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
import httpx
import uvicorn
from starlette.types import ASGIApp

from appliance import __version__
from appliance.api.app import AddressLimiter, Endpoints
from appliance.api.attestation import AttestationApi
from appliance.api.exchange import Answerer
from appliance.api.http_protocol import bounded_http_protocol
from appliance.api.kms import KmsApi
from appliance.api.public import PublicApi
from appliance.api.sync import SyncApi
from appliance.auth.apps import AppAuthorizer
from appliance.auth.envelopes import EnvelopeGate, LabelMemory
from appliance.chain.cache import CachedNovaRegistry
from appliance.chain.kms_registry import KmsRegistry
from appliance.chain.registry import NovaRegistry
from appliance.chain.rpc import ChainReader, connect_http
from appliance.clock import Clock, SystemClock
from appliance.cluster.anti_entropy import AntiEntropy
from appliance.cluster.digests import DigestServer
from appliance.cluster.handover import SecretClient, SecretServer
from appliance.cluster.keys import ClusterKeys
from appliance.cluster.node_tick import NodeTick
from appliance.cluster.peers import PeerCache
from appliance.cluster.push import Pusher
from appliance.cluster.replica import Replica
from appliance.cluster.snapshot import SnapshotClient, SnapshotServer
from appliance.cluster.state import Availability
from appliance.cluster.sync_tick import Sweeper, SyncTick
from appliance.cluster.transport import PeerTransport
from appliance.egress import Tunnels, admits_origins, connect_to
from appliance.http import new_http_client
from appliance.log import short
from appliance.settings import Settings, TeeProviderName
from appliance.supervise import run_periodically
from appliance.tee.nsm.device import NsmDevice
from appliance.tee.nsm.module import SecureModule
from appliance.tee.nsm.provider import NsmTee
from appliance.tee.odyn import OdynTee
from appliance.tee.port import TeeIdentity, TeeProvider
from appliance.variables import BindAddress, TcpAddress, TrustedIngress, UnixAddress, VsockAddress
from kmscore.errors import ConfigError, Unavailable
from kmscore.json import MAX_ITEMS
from kmscore.limits import BodyBudget, RateLimiter
from kmscore.nonce import EnvelopeNonces, NonceIssuer, UsedNonces
from kmscore.proof import PopVerifier
from kmscore.secret import SecretBytes
from kmscore.store import Store, StoreLimits

logger = logging.getLogger(__name__)

# For the garbage collector's generations, as `gc.set_threshold` takes them; Python's own are 700, 10 and 10.
COLLECTOR_THRESHOLDS = (700, 3, 30)
# <malloc.h>
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3

ResultT = TypeVar("ResultT")

TEE_RETRY_S = 2.0
SWEEP_INTERVAL_S = 1.0
REQUESTS_FINISH_S = 10.0
FINAL_PUSH_S = 10.0
# Commas and brackets in an app's inner request, which has at most three members; the rest is room for newer apps.
MAX_APP_ITEMS = 256
# What the store counts for a record besides key and ciphertext (store §1).
MIN_RECORD_BYTES = 128
# How many used nonces of one wallet are remembered when its rate has no limit.
UNLIMITED_NONCES = 2_000_000


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is built but not running."""

    identity: TeeIdentity
    app: ASGIApp
    node_tick: NodeTick
    sync_tick: SyncTick
    anti_entropy: AntiEntropy
    sweeper: Sweeper
    keys: ClusterKeys
    peer_urls: Callable[[], Iterable[str]]


async def open_tee(settings: Settings, http: httpx.AsyncClient) -> TeeProvider:
    """The TEE provider that the settings name.

    Raises `ConfigError` for one that this machine does not have, `Unavailable` when its device does not answer.
    """
    match settings.tee_provider:
        case TeeProviderName.SOFTWARE:
            return await _open_software_tee(settings)
        case TeeProviderName.ODYN:
            return OdynTee(http, settings.odyn_url)
        case TeeProviderName.NSM:
            device = NsmDevice()
            device.require_present()
            return await NsmTee.generate(SecureModule(device), config_digest=settings.enclave_config_digest)


async def _open_software_tee(settings: Settings) -> TeeProvider:
    try:
        # Here and not above: the enclave image does not contain it.
        from appliance.tee.software.provider import SoftwareTee
    except ModuleNotFoundError as error:
        raise ConfigError("TEE_PROVIDER='software' is not accepted: this image does not contain it") from error
    tee = SoftwareTee.generate(os.urandom, config_digest=settings.enclave_config_digest)
    if settings.software_tee_root_file is not None:
        try:
            await anyio.Path(settings.software_tee_root_file).write_bytes(tee.root_pem)
        except OSError as error:
            raise ConfigError(f"SOFTWARE_TEE_ROOT_FILE cannot be written: {error.strerror}") from error
    return tee


def build_node(
    settings: Settings,
    *,
    identity: TeeIdentity,
    tee: TeeProvider,
    reader: ChainReader,
    http: httpx.AsyncClient,
    clock: Clock,
    random_bytes: Callable[[int], bytes],
    rng: random.Random,
) -> Node:
    """Wire one node together. No I/O happens here."""
    limits = StoreLimits(
        max_value_bytes=settings.max_kv_value_size_bytes,
        max_app_bytes=settings.max_app_storage_bytes,
        max_store_bytes=settings.max_store_bytes,
        max_tombstones_per_app=settings.max_tombstones_per_app,
        tombstone_retention_ms=settings.tombstone_retention_ms,
        max_clock_skew_ms=settings.max_clock_skew_ms,
        quota_policy=settings.quota_policy,
    )
    registry = NovaRegistry(reader, settings.nova_app_registry_address)
    kms_registry = KmsRegistry(reader, settings.kms_registry_address, settings.chain_id)
    availability = Availability()
    keys = ClusterKeys(clock)
    replica = Replica(Store(identity.wallet, limits, seed=random_bytes(16)), keys, clock, limits, random_bytes)
    peers = PeerCache(
        registry,
        http,
        clock,
        kms_app_id=settings.kms_app_id,
        https_only=settings.in_enclave,
        ttl_s=settings.peer_cache_ttl_seconds,
    )
    pop = PopVerifier(
        wallet=identity.wallet,
        issuer=NonceIssuer(SecretBytes(random_bytes(32)), int(settings.pop_max_age_seconds * 1000)),
        used=UsedNonces(max_per_owner=_nonces_per_wallet(settings)),
        clock=clock,
        random_bytes=random_bytes,
        max_age_s=settings.pop_max_age_seconds,
    )
    labels = LabelMemory(settings.e2e_label)
    # Two memories of envelope nonces, so that many apps cannot push the peers' out.
    app_gate = EnvelopeGate(tee, EnvelopeNonces(), labels, max_items=MAX_APP_ITEMS)
    gate = EnvelopeGate(tee, EnvelopeNonces(), labels, max_items=MAX_ITEMS)
    transport = PeerTransport(own_wallet=identity.wallet, tee=tee, gate=gate, keys=keys, http=http, clock=clock)
    # What one answer may carry: a whole store in hex in JSON in hex, for peers that know no pages.
    max_snapshot_bytes = 4 * settings.max_sync_payload_bytes
    snapshots = SnapshotClient(
        replica,
        transport,
        max_answer_bytes=max_snapshot_bytes,
        max_records=settings.max_store_bytes // MIN_RECORD_BYTES,
    )
    pusher = Pusher(
        own_wallet=identity.wallet,
        replica=replica,
        transport=transport,
        snapshots=snapshots,
        clock=clock,
        isolation_ms=settings.tombstone_retention_ms // 2,
    )
    limiter = AddressLimiter(
        RateLimiter(settings.rate_limit_per_minute, clock),
        RateLimiter(settings.nonce_rate_limit_per_minute, clock),
        RateLimiter(settings.nonce_rate_limit_per_minute, clock),
        settings.trusted_ingress.networks,
    )
    # What peers send has room of its own: apps, each of them with a few bodies at once, cannot take it.
    app_budget = BodyBudget(32 * settings.max_request_body_bytes, 4 * settings.max_request_body_bytes)
    budget = BodyBudget(4 * settings.max_sync_payload_bytes, 2 * settings.max_sync_payload_bytes)
    wallet_limiter = RateLimiter(settings.identity_rate_limit_per_minute, clock)
    app_answerer = Answerer(wallet=identity.wallet, tee=tee, gate=app_gate, pop=pop, replica=replica)
    answerer = Answerer(wallet=identity.wallet, tee=tee, gate=gate, pop=pop, replica=replica)
    endpoints = Endpoints(
        PublicApi(
            version=__version__,
            identity=identity,
            node_url=settings.node_instance_url,
            kms_app_id=settings.kms_app_id,
            registry_address=settings.nova_app_registry_address,
            pop=pop,
            availability=availability,
            keys=keys,
            peers=peers,
            pusher=pusher,
            replica=replica,
            clock=clock,
        ),
        AttestationApi(tee),
        KmsApi(
            availability=availability,
            pop=pop,
            authorizer=AppAuthorizer(
                CachedNovaRegistry(registry, clock, ttl_s=settings.registry_cache_ttl_seconds),
                kms_app_id=settings.kms_app_id,
            ),
            gate=app_gate,
            answerer=app_answerer,
            keys=keys,
            replica=replica,
            clock=clock,
            wallet_limiter=wallet_limiter,
            budget=app_budget,
            give_back=limiter.give_back,
            max_body_bytes=settings.max_request_body_bytes,
        ),
        SyncApi(
            own_wallet=identity.wallet,
            boot_id=random_bytes(16).hex(),
            pop=pop,
            peers=peers,
            gate=gate,
            answerer=answerer,
            keys=keys,
            replica=replica,
            snapshots=SnapshotServer(replica, max_answer_bytes=max_snapshot_bytes),
            digests=DigestServer(replica, keys, clock),
            secrets=SecretServer(keys, random_bytes),
            pusher=pusher,
            wallet_limiter=wallet_limiter,
            budget=budget,
            give_back=limiter.give_back,
            max_body_bytes=settings.max_sync_payload_bytes,
        ),
        limiter,
    )
    node_tick = NodeTick(
        identity=identity,
        tee=tee,
        peers=peers,
        kms_registry=kms_registry,
        keys=keys,
        replica=replica,
        pusher=pusher,
        secrets=SecretClient(transport),
        snapshots=snapshots,
        availability=availability,
        grace_s=settings.peer_cache_ttl_seconds,
        refresh_every_s=settings.kms_node_tick_seconds,
        rng=rng,
    )
    sync_tick = SyncTick(peers=peers, keys=keys, pusher=pusher, availability=availability)
    anti_entropy = AntiEntropy(
        own_wallet=identity.wallet,
        peers=peers,
        keys=keys,
        replica=replica,
        transport=transport,
        snapshots=snapshots,
        pusher=pusher,
        availability=availability,
        clock=clock,
    )
    sweeper = Sweeper(replica=replica, peers=peers, pusher=pusher, clock=clock)
    return Node(identity, endpoints, node_tick, sync_tick, anti_entropy, sweeper, keys, peers.urls)


async def serve(settings: Settings) -> None:
    """Run a node until SIGTERM or SIGINT; on return everything is stopped and every secret wiped.

    Raises `ConfigError` when it must not start, `InvariantBroken` or what a tick did not expect when it must not go on.
    """
    clock = SystemClock()
    rng = random.Random(secrets.randbits(64))  # noqa: S311 - jitter and the order of peers, no secrets
    async with AsyncExitStack() as cleanup:
        # uvicorn raises the signals it caught again once it has stopped: this is what then takes them.
        signals = cleanup.enter_context(anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT))
        built: list[Node] = []  # the way out leads to nobody before there is a node that knows its peers
        peer_tunnels = _tunnels(settings, lambda: [url for node in built for url in node.peer_urls()])
        http = await cleanup.enter_async_context(new_http_client(peer_tunnels))

        async def start_tee() -> tuple[TeeProvider, TeeIdentity]:
            tee = await _wait_for_tee(lambda: open_tee(settings, http))
            cleanup.push_async_callback(_shielded, tee.aclose)
            return tee, await _wait_for_tee(tee.identity)

        started = await _unless_signalled(signals, start_tee)
        if started is None:
            return
        tee, identity = started
        reader = ChainReader(
            settings.helios_rpc_urls,
            settings.chain_rpc_quorum,
            settings.chain_id,
            settings.chain_confirmations,
            connect=partial(connect_http, tunnels=_tunnels(settings, lambda: settings.helios_rpc_urls)),
        )
        cleanup.push_async_callback(_shielded, reader.aclose)
        node = build_node(
            settings,
            identity=identity,
            tee=tee,
            reader=reader,
            http=http,
            clock=clock,
            random_bytes=os.urandom,
            rng=rng,
        )
        built.append(node)
        cleanup.callback(node.keys.wipe)
        listener = bind(settings.bind_addr)
        cleanup.callback(listener.close)
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # we say ourselves when we start and stop
        server = uvicorn.Server(uvicorn_config(node.app, settings.trusted_ingress))
        spare_the_collector()
        keep_freed_memory()
        await _run(settings, node, reader, server, listener, rng)


def spare_the_collector() -> None:
    """Have the garbage collector look at little at a time: it stops the event loop.

    What was made until here stays as long as the process: to look at it again and again would take tens of milliseconds
    each time. What httpx leaves behind of each exchange with a peer is collected before it has become much.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


def keep_freed_memory() -> None:
    """Let the C library keep some of what is freed, and take the buffers of a message from that.

    Otherwise the kernel hands their pages out, zeroed, for each message anew and takes them back after it. Does nothing
    where the C library has no such setting.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 4 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 8 << 20)


def uvicorn_config(app: ASGIApp, ingress: TrustedIngress) -> uvicorn.Config:
    """How a node's HTTP server is set up, around whatever it serves and behind this ingress."""
    return uvicorn.Config(
        app,
        http=bounded_http_protocol(proxy_v2=ingress.proxy_v2, trusted_ingress=ingress.networks),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(REQUESTS_FINISH_S),
        backlog=1024,
    )


def _tunnels(settings: Settings, urls: Callable[[], Iterable[str]]) -> Tunnels | None:
    """The way to the hosts of these URLs where there is no network; None where there is one."""
    if settings.egress_proxy is None:
        return None
    return Tunnels(connect_to(settings.egress_proxy), admits_origins(urls))


async def _run(
    settings: Settings,
    node: Node,
    reader: ChainReader,
    server: uvicorn.Server,
    listener: socket.socket,
    rng: random.Random,
) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(_node_ticks, settings, node, reader, rng)
        group.start_soon(
            lambda: run_periodically(
                "sync_tick",
                partial(node.sync_tick.run_once, group),
                interval_s=settings.data_sync_interval_seconds,
                rng=rng,
            )
        )
        group.start_soon(lambda: run_periodically("sweep", node.sweeper.run_once, interval_s=SWEEP_INTERVAL_S, rng=rng))
        if settings.anti_entropy_interval_seconds > 0:
            group.start_soon(
                lambda: run_periodically(
                    "anti_entropy",
                    node.anti_entropy.run_once,
                    interval_s=settings.anti_entropy_interval_seconds,
                    rng=rng,
                )
            )
        logger.info("serving", extra={"wallet": short(node.identity.wallet), "address": repr(settings.bind_addr)})
        await server.serve(sockets=[listener])
        group.cancel_scope.cancel()
    logger.info("stopped serving, pushing once more")
    with anyio.move_on_after(FINAL_PUSH_S, shield=True):
        async with anyio.create_task_group() as last_pushes:
            await node.sync_tick.run_once(last_pushes)


async def _unless_signalled(
    signals: AsyncIterator[signal.Signals], work: Callable[[], Awaitable[ResultT]]
) -> ResultT | None:
    """The result of `work`, None when a signal came first."""
    result: ResultT | None = None
    async with anyio.create_task_group() as group:

        async def stop_on_signal() -> None:
            async for _ in signals:
                group.cancel_scope.cancel()

        group.start_soon(stop_on_signal)
        result = await work()
        group.cancel_scope.cancel()
    return result


async def _node_ticks(settings: Settings, node: Node, reader: ChainReader, rng: random.Random) -> None:
    """node_tick for ever, after the chain behind the RPC has been found to be the configured one."""
    checked = False

    async def tick() -> None:
        nonlocal checked
        if not checked:
            await reader.check_chain_id()
            checked = True
            spare_the_collector()  # of web3, which has just been loaded; nobody is served before the first tick
        await node.node_tick.run_once()

    await run_periodically("node_tick", tick, interval_s=settings.kms_node_tick_seconds, rng=rng)


async def _wait_for_tee(ask: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """What `ask` returns, waited for: whatever owns or makes the keys may still be starting."""
    while True:
        try:
            return await ask()
        except Unavailable as error:
            logger.warning("waiting for the TEE provider", extra={"reason": str(error)})
            await anyio.sleep(TEE_RETRY_S)


def _nonces_per_wallet(settings: Settings) -> int:
    """How many nonces one wallet can have used while they are remembered: by its rate limit, else by a fixed bound."""
    remembered_min = 2 * settings.pop_max_age_seconds / 60
    return math.ceil((1 + remembered_min) * settings.identity_rate_limit_per_minute) or UNLIMITED_NONCES


def bind(address: BindAddress) -> socket.socket:
    """A listening socket for the address. Raises `ConfigError` when it cannot be had."""
    try:
        match address:
            case TcpAddress(host, port):
                family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
                # With the protocol named, asyncio switches Nagle's algorithm off; without it an answer waits 40 ms.
                listener = socket.socket(family, kind, protocol)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(where)
            case UnixAddress(path):
                listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                if Path(path).is_socket():
                    Path(path).unlink()  # left by an earlier process
                listener.bind(path)
            case VsockAddress(port):
                listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
                listener.bind((socket.VMADDR_CID_ANY, port))
    except OSError as error:
        raise ConfigError(f"BIND_ADDR cannot be bound: {os.strerror(error.errno or 0)}") from error
    listener.setblocking(False)
    return listener


async def _shielded(close: Callable[[], Awaitable[None]]) -> None:
    with anyio.move_on_after(5, shield=True):
        await close()
