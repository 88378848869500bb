"""A whole cluster on this machine: chain, contracts, nodes and an example app, each started, registered and stopped.

Everything in it is the real thing but the keys, which live in ordinary processes, and the chain, which is private.
"""

import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import anyio

from appliance.chain.provider import connect
from appliance.devnet.anvil import DEVNET_CHAIN_ID, Anvil, free_port
from appliance.devnet.contracts import DevRegistry, deploy_contracts
from appliance.devnet.nodes import DevnetError, NodeProcess, NodeStatus
from appliance.devnet.profile import APP_KEY_FILE, DevelopmentKeys, DevnetProfile
from appliance.devnet.progress import Progress

if TYPE_CHECKING:
    pass

KMS_APP_ID = 49
EXAMPLE_APP_ID = 101
AVAILABLE_TIMEOUT_S = 120.0
POLL_S = 0.3

# A development cluster is watched by a person: its ticks are short.
NODE_TICK_S = 2
SYNC_INTERVAL_S = 1


@dataclass(frozen=True, slots=True)
class RunningNode:
    """A node of the devnet with what it said of itself when it started."""

    process: NodeProcess
    status: NodeStatus


class Devnet:
    """Context manager: on entry everything runs and every node is available; on exit everything is stopped.

    `directory` receives the profile, the example app's key file and the logs. Raises `DevnetError` or `ConfigError`.
    """

    def __init__(self, directory: Path, *, node_count: int, progress: Progress) -> None:
        self._directory = directory
        self._node_count = node_count
        self._progress = progress
        self._cleanup = AsyncExitStack()
        self.nodes: Sequence[RunningNode] = ()
        self.app_keys = DevelopmentKeys.generate(secrets.token_bytes)
        self._profile: DevnetProfile | None = None

    @property
    def profile(self) -> DevnetProfile:
        """Where everything is. Raises `DevnetError` before the devnet has started."""
        if self._profile is None:
            raise DevnetError("the devnet has not started")
        return self._profile

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

    async def _start(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._progress.step("Starting a private chain"):
            anvil = Anvil(free_port())
            self._cleanup.push_async_callback(anvil.aclose)
            await anvil.wait_ready()
            w3 = connect(anvil.url)
            self._cleanup.push_async_callback(w3.provider.disconnect)
        with self._progress.step("Deploying the registries"):
            registry = await deploy_contracts(w3, kms_app_id=KMS_APP_ID)
            kms_version = await registry.enroll_version(KMS_APP_ID, "devnet")
        with self._progress.step(f"Starting {self._node_count} nodes"):
            profile = await self._start_nodes(anvil.url, registry)
        with self._progress.step("Registering the nodes"):
            for node in self.nodes:
                await registry.fund(node.status.wallet)
                await registry.register_instance(
                    KMS_APP_ID,
                    kms_version,
                    wallet=node.status.wallet,
                    url=node.process.url,
                    tee_pubkey=node.status.tee_pubkey,
                )
        with self._progress.step("Registering an example app"):
            await self._register_app(registry)
        await self._wait_until_available()
        profile.save(self._directory)
        self._profile = profile

    async def _start_nodes(self, rpc_url: str, registry: DevRegistry) -> DevnetProfile:
        key_file = self._directory / APP_KEY_FILE
        profile = DevnetProfile(
            rpc_url=rpc_url,
            chain_id=DEVNET_CHAIN_ID,
            nova_app_registry=registry.deployment.nova_app_registry,
            kms_registry=registry.deployment.kms_registry,
            kms_app_id=KMS_APP_ID,
            app_key_file=key_file,
            node_urls=(),
        )
        environ = {
            **profile.environ(),
            # Everything on this machine has one address: a limit by address would throttle the nodes for each other.
            "RATE_LIMIT_PER_MINUTE": "0",
            "NONCE_RATE_LIMIT_PER_MINUTE": "0",
            "KMS_NODE_TICK_SECONDS": str(NODE_TICK_S),
            "DATA_SYNC_INTERVAL_SECONDS": str(SYNC_INTERVAL_S),
        }
        processes = []
        for number in range(1, self._node_count + 1):
            name = f"node-{number}"
            process = NodeProcess(name, free_port(), environ, self._directory / f"{name}.log")
            self._cleanup.push_async_callback(process.stop)
            processes.append(process)
        self.nodes = [RunningNode(process, await process.wait_until_serving()) for process in processes]
        return DevnetProfile(
            rpc_url=profile.rpc_url,
            chain_id=profile.chain_id,
            nova_app_registry=profile.nova_app_registry,
            kms_registry=profile.kms_registry,
            kms_app_id=profile.kms_app_id,
            app_key_file=key_file,
            node_urls=tuple(process.url for process in processes),
        )

    async def _register_app(self, registry: DevRegistry) -> None:
        self.app_keys.save(self._directory / APP_KEY_FILE)
        await registry.register_app(EXAMPLE_APP_ID)
        version = await registry.enroll_version(EXAMPLE_APP_ID, "example")
        await registry.register_instance(
            EXAMPLE_APP_ID,
            version,
            wallet=self.app_keys.wallet_key().address,
            url="http://127.0.0.1:1",
            tee_pubkey=self.app_keys.agreement_key().public.der,
        )

    async def _wait_until_available(self) -> None:
        with self._progress.step("Waiting until every node is available") as step:
            with anyio.move_on_after(AVAILABLE_TIMEOUT_S):
                while True:
                    states = [await node.process.status() for node in self.nodes]
                    available = sum(state is not None and state.available for state in states)
                    reasons = {state.reason for state in states if state is not None and state.reason}
                    step.say(", ".join([f"{available} of {len(states)}", *sorted(reasons)]))
                    if available == len(states):
                        return
                    await anyio.sleep(POLL_S)
            raise DevnetError(
                f"not every node became available within {AVAILABLE_TIMEOUT_S:.0f} s; the logs are in {self._directory}"
            )

    async def _stop(self) -> None:
        """Stop what was started, nodes at once, then the chain; runs to its end even when cancelled."""
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as group:
                for node in self.nodes:
                    group.start_soon(node.process.stop)
            await self._cleanup.aclose()
