"""A private chain with real nodes, registered apps and, where asked for, a peer whose keys the bench holds."""

import secrets
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import anyio

from appliance.chain.provider import connect
from appliance.chain.types import InstanceStatus
from appliance.devnet.anvil import DEVNET_CHAIN_ID, Anvil, free_port
from appliance.devnet.contracts import DevRegistry, deploy_contracts
from appliance.devnet.nodes import SERVE, NodeProcess, NodeStatus, wait_until_serving
from appliance.devnet.profile import DevelopmentKeys
from appliance.http import new_http_client
from bench.load.http import LoadError
from bench.load.identities import CallerKeys, NodeAddress

KMS_APP_ID: Final = 49
FIRST_APP_ID: Final = 1001
AVAILABLE_TIMEOUT_S: Final = 300.0
POLL_S: Final = 0.1
UNREACHED_LIMIT: Final = "100000000"
# Default intervals make a node available after a minute or two; only the idle node is measured with them.
SHORT_TICKS: Final = {"KMS_NODE_TICK_SECONDS": "1", "DATA_SYNC_INTERVAL_SECONDS": "1"}


@dataclass(frozen=True, slots=True)
class LoadNode:
    """A running node process and what it said of itself."""

    process: NodeProcess
    status: NodeStatus
    address: NodeAddress

    @property
    def pid(self) -> int:
        return self.process.pid


class LoadCluster:
    """Context manager: chain and contracts on entry; on exit everything is stopped. Nodes and apps come when asked for.

    `directory` receives the nodes' logs, and goes when the block ends without an error.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._cleanup = AsyncExitStack()
        self._registry: DevRegistry | None = None
        self._environ: dict[str, str] = {}
        self._kms_version = 0
        self._next_app_id = FIRST_APP_ID

    @property
    def registry(self) -> DevRegistry:
        assert self._registry is not None
        return self._registry

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()
        if kind is None:
            shutil.rmtree(self.directory)

    async def _start(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        anvil = Anvil(free_port())
        self._cleanup.push_async_callback(anvil.aclose)
        await anvil.wait_ready()
        w3 = connect(anvil.url)
        self._cleanup.push_async_callback(w3.provider.disconnect)
        self._registry = await deploy_contracts(w3, kms_app_id=KMS_APP_ID)
        self._kms_version = await self._registry.enroll_version(KMS_APP_ID, "bench")
        self._environ = {
            "HELIOS_RPC_URL": anvil.url,
            "CHAIN_ID": str(DEVNET_CHAIN_ID),
            "CHAIN_CONFIRMATIONS": "0",
            "NOVA_APP_REGISTRY_ADDRESS": self._registry.deployment.nova_app_registry,
            "KMS_REGISTRY_ADDRESS": self._registry.deployment.kms_registry,
            "KMS_APP_ID": str(KMS_APP_ID),
            # Counted like a node in service counts, and never reached.
            "RATE_LIMIT_PER_MINUTE": UNREACHED_LIMIT,
            "NONCE_RATE_LIMIT_PER_MINUTE": UNREACHED_LIMIT,
            "IDENTITY_RATE_LIMIT_PER_MINUTE": UNREACHED_LIMIT,
            "LOG_FORMAT": "json",
        }

    async def start_node(
        self, name: str, environ: Mapping[str, str] = SHORT_TICKS, *, arguments: Sequence[str] = SERVE
    ) -> LoadNode:
        """A node that answers `/status`; it is not registered yet."""
        port = free_port()
        process = NodeProcess(
            name, port, {**self._environ, **environ}, self.directory / f"{name}.log", arguments=arguments
        )
        self._cleanup.push_async_callback(process.stop)
        status = await wait_until_serving(process)
        return LoadNode(process, status, NodeAddress(port, status.wallet, status.tee_pubkey.hex()))

    async def register_node(self, node: LoadNode) -> int:
        """The id of the node's instance, active from now on."""
        await self.registry.fund(node.status.wallet)
        return await self._register_kms_instance(node.status.wallet, node.process.url, node.status.tee_pubkey)

    async def retire_node(self, node: LoadNode, instance_id: int) -> None:
        """The node stops and is no member any more."""
        await node.process.stop()
        await self.registry.set_instance_status(instance_id, InstanceStatus.STOPPED)

    async def wait_until_available(self, node: LoadNode) -> None:
        """Raises `LoadError` when the node does not get there."""
        with anyio.move_on_after(AVAILABLE_TIMEOUT_S):
            while True:
                status = await node.process.status()
                if status is not None and status.available:
                    return
                await anyio.sleep(POLL_S)
        raise LoadError(f"{node.process.name} did not become available; see {node.process.log_path}")

    async def wait_until_members(self, node: LoadNode, count: int) -> None:
        """Until the node's view of the cluster has so many members. Raises `LoadError`."""
        async with new_http_client() as http:
            with anyio.move_on_after(AVAILABLE_TIMEOUT_S):
                while True:
                    if (await http.get(f"{node.process.url}/nodes")).json()["count"] == count:
                        return
                    await anyio.sleep(POLL_S)
        raise LoadError(f"{node.process.name} does not see {count} members; see {node.process.log_path}")

    async def add_node(
        self, name: str, environ: Mapping[str, str] = SHORT_TICKS, *, arguments: Sequence[str] = SERVE
    ) -> LoadNode:
        """A node that is registered and available."""
        node = await self.start_node(name, environ, arguments=arguments)
        await self.register_node(node)
        await self.wait_until_available(node)
        return node

    async def add_apps(self, count: int) -> list[CallerKeys]:
        """So many apps of one instance each."""
        return [await self._add_app() for _ in range(count)]

    async def add_peer(self) -> CallerKeys:
        """A KMS instance that is registered like a node but has no server: the bench speaks in its name."""
        keys = DevelopmentKeys.generate(secrets.token_bytes)
        url = f"http://127.0.0.1:{free_port()}"
        await self._register_kms_instance(keys.wallet_key().address, url, keys.agreement_key().public.der)
        return _caller_keys(KMS_APP_ID, keys)

    async def _register_kms_instance(self, wallet: str, url: str, tee_pubkey: bytes) -> int:
        return await self.registry.register_instance(
            KMS_APP_ID, self._kms_version, wallet=wallet, url=url, tee_pubkey=tee_pubkey
        )

    async def _add_app(self) -> CallerKeys:
        app_id, self._next_app_id = self._next_app_id, self._next_app_id + 1
        keys = DevelopmentKeys.generate(secrets.token_bytes)
        await self.registry.register_app(app_id)
        version = await self.registry.enroll_version(app_id, "bench")
        await self.registry.register_instance(
            app_id,
            version,
            wallet=keys.wallet_key().address,
            url="http://127.0.0.1:1",
            tee_pubkey=keys.agreement_key().public.der,
        )
        return _caller_keys(app_id, keys)

    async def _stop(self) -> None:
        with anyio.CancelScope(shield=True):
            await self._cleanup.aclose()


def _caller_keys(app_id: int, keys: DevelopmentKeys) -> CallerKeys:
    return CallerKeys(app_id, keys.wallet_secret.reveal().hex(), keys.tee_secret.reveal().hex())


def log_directory() -> Path:
    """A new directory for one run's logs."""
    return Path(tempfile.mkdtemp(prefix="nova-kms-load-"))
