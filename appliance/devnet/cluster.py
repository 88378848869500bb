"""A whole cluster on this machine: chain, contracts, nodes and an example app, each started, registered and stopped.

Everything in it is the real thing but the keys, which live in ordinary processes, and the chain, which is private. One
node more can run from an enclave image: its keys live in an emulated enclave and are registered as it attests them.
"""

import secrets
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from ssl import DER_cert_to_PEM_cert
from types import TracebackType
from typing import Self

import anyio

from appliance.chain.provider import connect
from appliance.devnet.anvil import DEVNET_CHAIN_ID, HOST, Anvil, free_port
from appliance.devnet.contracts import DevRegistry, deploy_contracts
from appliance.devnet.emulator.qemu import Qemu
from appliance.devnet.image_node import ImageNode, NodeImage, load_image
from appliance.devnet.names import CHAIN_NAME, CHAIN_PORT, NODE_PORT, Names, node_name
from appliance.devnet.nodes import DevnetError, DevnetNode, NodeProcess, NodeStatus, wait_until_serving
from appliance.devnet.profile import APP_KEY_FILE, DevelopmentKeys, DevnetProfile
from appliance.devnet.progress import Progress
from appliance.host.streams import listen_tcp

KMS_APP_ID = 49
EXAMPLE_APP_ID = 101
AVAILABLE_TIMEOUT_S = 120.0
POLL_S = 0.3

# A development cluster is watched by a person: its ticks are short.
NODE_TICK_S = 2
SYNC_INTERVAL_S = 1


ATTEST_ROOT_FILE = "attest-root.pem"
IMAGE_NODE = "image-node"
# Booting and Python's start in software emulation, beside everything else that runs.
IMAGE_START_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class RunningNode:
    """A node of the devnet with what it said of itself when it started."""

    process: DevnetNode
    status: NodeStatus


@dataclass(frozen=True, slots=True)
class ImageToRun:
    """An image for one more node, the QEMU to boot it with, and whether the devnet registers what it attests: otherwise
    the node waits for somebody to provision it.
    """

    eif: Path
    qemu: Qemu
    registered: bool = True


class Devnet:
    """Context manager: on entry everything runs and every node is available; on exit everything is stopped.

    `directory` receives the profile, the example app's key file and the logs; with `image` also the throw-away root of
    its attestation. `settings` are variables of the nodes that take the place of the devnet's own. Raises `DevnetError`
    or `ConfigError`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        node_count: int,
        progress: Progress,
        image: ImageToRun | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._directory = directory
        self._node_count = node_count
        self._progress = progress
        self._image = image
        self._names = Names()
        self._settings = settings or {}
        self._cleanup = AsyncExitStack()
        # What serves an image's node in this process; used only with one.
        self._background = anyio.create_task_group()
        self._in_background = False
        self.nodes: Sequence[RunningNode] = ()
        self.image_node: ImageNode | None = None
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
            version = await registry.enroll_version(KMS_APP_ID, "devnet")
        profile = DevnetProfile(
            rpc_url=anvil.url,
            chain_id=DEVNET_CHAIN_ID,
            nova_app_registry=registry.deployment.nova_app_registry,
            kms_registry=registry.deployment.kms_registry,
            kms_app_id=KMS_APP_ID,
            app_key_file=self._directory / APP_KEY_FILE,
            node_urls=(),
        )
        # A wrong image should cost nobody the start of everything else.
        image = None if self._image is None else load_image(self._image.eif, profile)
        ports = {f"node-{number}": free_port() for number in range(1, self._node_count + 1)}
        image_port = free_port()
        if image is not None:
            await self._background.__aenter__()
            self._in_background = True
            for name, port in {**ports, IMAGE_NODE: image_port}.items():
                self._names.add(node_name(name), NODE_PORT, port)
            self._names.add(CHAIN_NAME, CHAIN_PORT, anvil.port)
            proxy = listen_tcp(HOST, free_port())
            self._background.start_soon(self._names.serve, proxy)
            host, port = proxy.getsockname()
            profile = replace(profile, egress_proxy=f"{host}:{port}")
        with self._progress.step(f"Starting {self._node_count} nodes"):
            await self._start_nodes(profile, ports, named=image is not None)
        with self._progress.step("Registering the nodes"):
            for node in self.nodes:
                await self._register(registry, version, node.process, node.status.wallet, node.status.tee_pubkey)
        if image is not None and self._image is not None:
            booted = await self._boot_image(image, self._image.qemu, image_port)
            if self._image.registered:
                self.nodes = [*self.nodes, await self._register_image(registry, image, booted)]
        with self._progress.step("Registering an example app"):
            await self._register_app(registry)
        await self._wait_until_available()
        profile = replace(profile, node_urls=tuple(node.process.url for node in self.nodes))
        profile.save(self._directory)
        self._profile = profile

    async def _start_nodes(self, profile: DevnetProfile, ports: Mapping[str, int], *, named: bool) -> None:
        environ = {
            **profile.environ(),
            # Everything on this machine has one address: a limit by address would throttle the nodes for each other.
            "RATE_LIMIT_PER_MINUTE": "0",
            "NONCE_RATE_LIMIT_PER_MINUTE": "0",
            "KMS_NODE_TICK_SECONDS": str(NODE_TICK_S),
            "DATA_SYNC_INTERVAL_SECONDS": str(SYNC_INTERVAL_S),
            **self._settings,
        }
        processes = []
        for name, port in ports.items():
            url = _named_url(name) if named else None
            process = NodeProcess(name, port, environ, self._directory / f"{name}.log", registered_url=url)
            self._cleanup.push_async_callback(process.stop)
            processes.append(process)
        self.nodes = [RunningNode(process, await wait_until_serving(process)) for process in processes]

    async def _boot_image(self, image: NodeImage, qemu: Qemu, port: int) -> ImageNode:
        node = self.image_node = ImageNode(
            IMAGE_NODE,
            port,
            image,
            qemu,
            self._names,
            self._directory / f"{IMAGE_NODE}.log",
            registered_url=_named_url(IMAGE_NODE),
        )
        with self._progress.step("Booting a node from its image in the emulator"):
            self._background.start_soon(node.run)
            await wait_until_serving(node, IMAGE_START_TIMEOUT_S)
        (self._directory / ATTEST_ROOT_FILE).write_text(DER_cert_to_PEM_cert(node.attest_root_der))
        return node

    async def _register_image(self, registry: DevRegistry, image: NodeImage, node: ImageNode) -> RunningNode:
        with self._progress.step("Verifying its attestation and registering it"):
            identity = await node.attest()
            version = await registry.enroll_version(KMS_APP_ID, "image", image.code_measurement)
            await self._register(registry, version, node, identity.wallet, identity.tee_pubkey.der)
        return RunningNode(node, await wait_until_serving(node))

    async def _register(
        self, registry: DevRegistry, version: int, node: DevnetNode, wallet: str, tee_pubkey: bytes
    ) -> None:
        await registry.fund(wallet)
        await registry.register_instance(
            KMS_APP_ID, version, wallet=wallet, url=node.registered_url, tee_pubkey=tee_pubkey
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
            if self.image_node is not None:
                await self.image_node.stop()
        # Not within the scope above: a task group has to be left from the scope it was entered in.
        if self._in_background:
            self._background.cancel_scope.cancel()
            await self._background.__aexit__(None, None, None)
        with anyio.CancelScope(shield=True):
            await self._cleanup.aclose()


def _named_url(name: str) -> str:
    return f"http://{node_name(name)}:{NODE_PORT}"
