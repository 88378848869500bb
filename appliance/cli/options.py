"""What the client commands have in common: which cluster, whose identity, and how they reach both."""

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from os import environ as process_environ
from pathlib import Path
from secrets import token_bytes
from typing import Any

import anyio
import click
import httpx

from appliance.chain.types import ClaimCost, RegistryPort
from appliance.devnet.profile import PROFILE_FILE, DevelopmentKeys, DevnetProfile
from appliance.egress import Tunnels, connect_to
from appliance.http import new_http_client
from appliance.settings import Settings
from appliance.tee.port import TeeProvider
from appliance.urls import parse_service_url
from kmscore.errors import ConfigError, Rejected

DEFAULT_DEVNET = Path(".devnet")
CLOSE_TIMEOUT_S = 2.0
DEFAULT_TIMEOUT_S = 30.0
MAX_CHAIN_TIMEOUT_S = 10.0

# Flag → the node's variable of the same meaning (node §4), and what help says about it.
CHAIN_FLAGS = {
    "rpc_url": ("HELIOS_RPC_URL", "URLS", "Chain RPC, several with commas between."),
    "quorum": ("CHAIN_RPC_QUORUM", "N", "How many of them must return the same bytes."),
    "chain_id": ("CHAIN_ID", "ID", "The chain they must serve."),
    "confirmations": ("CHAIN_CONFIRMATIONS", "N", "How many blocks behind the latest to read."),
    "registry": ("NOVA_APP_REGISTRY_ADDRESS", "ADDRESS", "The registry of apps and instances."),
    "kms_registry": ("KMS_REGISTRY_ADDRESS", "ADDRESS", "The contract with the master secret's hash."),
    "kms_app_id": ("KMS_APP_ID", "ID", "The app whose instances are the cluster."),
}


@dataclass(frozen=True, slots=True)
class Chain:
    """The two registries as the commands read them.

    The hash is 32 bytes, all zero when unset; the cost is that of setting it with a wallet.
    """

    registry: RegistryPort
    master_secret_hash: Callable[[], Awaitable[bytes]]
    claim_cost: Callable[[str], Awaitable[ClaimCost]]


@dataclass(frozen=True, slots=True)
class Toolbox:
    """Everything the commands take from outside the process; tests put another one into the context.

    `connect` takes the settings and how many seconds one reading of the chain may take.
    """

    environ: Mapping[str, str]
    directory: Path
    connect: Callable[[Settings, float], AbstractAsyncContextManager[Chain]]
    http: Callable[[Tunnels | None], httpx.AsyncClient]


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """One cluster, found and checked: the chain to read, how to speak to nodes, and how to print."""

    settings: Settings
    profile: DevnetProfile | None
    https_only: bool
    timeout_s: float
    as_json: bool

    @property
    def tunnels(self) -> Tunnels | None:
        """The way to the nodes of a devnet that are registered under names; None for the ordinary one."""
        proxy = self.settings.egress_proxy
        return None if proxy is None else Tunnels(connect_to(proxy), lambda _host, _port: True)


@dataclass(frozen=True, slots=True)
class IdentityOptions:
    """Where the app's keys are: a key file, or a TEE runtime's local API."""

    key_file: Path | None
    odyn_url: str | None

    @asynccontextmanager
    async def open(self, http: httpx.AsyncClient) -> AsyncIterator[TeeProvider]:
        """The identity, closed at the end. Raises `ConfigError` for a file that cannot be used."""
        identity = self._make(http)
        try:
            yield identity
        finally:
            with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                await identity.aclose()

    def _make(self, http: httpx.AsyncClient) -> TeeProvider:
        if self.key_file is not None:
            from appliance.tee.local import LocalTee

            keys = DevelopmentKeys.load(self.key_file)
            return LocalTee(keys.wallet_key(), keys.agreement_key(), token_bytes)
        from appliance.tee.odyn import OdynTee

        return OdynTee(http, self.odyn_url or "")


def toolbox_of(ctx: click.Context) -> Toolbox:
    """The context's toolbox; the real one unless a test put another there."""
    found = ctx.find_object(Toolbox)
    return found or Toolbox(process_environ, Path.cwd(), connect_chain, new_http_client)


@asynccontextmanager
async def connect_chain(settings: Settings, timeout_s: float) -> AsyncIterator[Chain]:
    """The registries over RPC. Raises `ConfigError` for a wrong chain, `ChainError` when it cannot be read."""
    # Here and not above: they take a second to import, which help and usage errors should not cost.
    from appliance.chain.kms_registry import KmsRegistry
    from appliance.chain.registry import NovaRegistry
    from appliance.chain.rpc import ChainReader

    async with AsyncExitStack() as cleanup:
        reader = ChainReader(
            settings.helios_rpc_urls,
            settings.chain_rpc_quorum,
            settings.chain_id,
            settings.chain_confirmations,
            timeout_s=min(timeout_s, MAX_CHAIN_TIMEOUT_S),
        )
        cleanup.push_async_callback(_close_in_time, reader.aclose)
        await reader.check_chain_id()
        kms_registry = KmsRegistry(reader, settings.kms_registry_address, settings.chain_id)
        yield Chain(
            NovaRegistry(reader, settings.nova_app_registry_address),
            kms_registry.master_secret_hash,
            kms_registry.claim_cost,
        )


async def _close_in_time(close: Callable[[], Awaitable[None]]) -> None:
    with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
        await close()


def cluster_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` the options that name a cluster, and call it with `toolbox` and `cluster` in their place."""

    @functools.wraps(command)
    @click.pass_context
    def wrapper(
        ctx: click.Context,
        /,
        *args: Any,
        devnet: Path | None,
        allow_http: bool,
        timeout: float,
        as_json: bool,
        **options: Any,
    ) -> None:
        toolbox = toolbox_of(ctx)
        flags = {name: options.pop(name) for name in CHAIN_FLAGS}
        settings, profile = find_cluster(toolbox, devnet, flags)
        https_only = not (allow_http or profile is not None)
        cluster = ClusterOptions(settings, profile, https_only, timeout, as_json)
        command(*args, toolbox=toolbox, cluster=cluster, **options)

    decorated: Callable[..., None] = wrapper
    decorators = [
        click.option(
            "--devnet",
            type=click.Path(file_okay=False, path_type=Path),
            help="Directory of a development cluster; ./.devnet is found by itself when no chain variable is set.",
        ),
        *(
            click.option(f"--{name.replace('_', '-')}", name, metavar=metavar, help=f"{text}  [env: {variable}]")
            for name, (variable, metavar, text) in CHAIN_FLAGS.items()
        ),
        click.option(
            "--allow-http",
            is_flag=True,
            envvar="NOVA_KMS_ALLOW_HTTP",
            show_envvar=True,
            help="Also ask nodes without TLS. Bodies stay sealed and answers signed. A devnet implies it.",
        ),
        click.option(
            "--timeout",
            type=click.FloatRange(0.1, 600),
            default=DEFAULT_TIMEOUT_S,
            show_default=True,
            metavar="SECONDS",
            help="How long reading the chain, and then asking the nodes, may take.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs."),
    ]
    for decorate in reversed(decorators):
        decorated = decorate(decorated)
    return decorated


def identity_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` the options that name an app's identity, and call it with `identity` in their place.

    Stands under `cluster_options`, whose profile names the key file of a development cluster.
    """

    @functools.wraps(command)
    def wrapper(*args: Any, cluster: ClusterOptions, key_file: Path | None, odyn: str | None, **options: Any) -> None:
        identity = find_identity(cluster, key_file, odyn)
        command(*args, cluster=cluster, identity=identity, **options)

    decorated: Callable[..., None] = wrapper
    for decorate in (
        click.option(
            "--odyn",
            metavar="URL",
            help="Local API of the TEE runtime that holds the app's keys, in place of a key file.",
        ),
        click.option(
            "--key-file",
            type=click.Path(dir_okay=False, path_type=Path),
            envvar="NOVA_KMS_APP_KEY_FILE",
            show_envvar=True,
            help="The app's private keys, for development; a devnet makes one and it is found by itself.",
        ),
    ):
        decorated = decorate(decorated)
    return decorated


def find_cluster(
    toolbox: Toolbox, devnet: Path | None, flags: Mapping[str, str | None]
) -> tuple[Settings, DevnetProfile | None]:
    """Which cluster is meant: `--devnet`, else the environment, else ./.devnet, else the public one.

    Flags replace single values. A profile and the environment are never mixed: half of each would name a cluster that
    nobody runs. Raises `ConfigError`.
    """
    variables = [variable for variable, _, _ in CHAIN_FLAGS.values()]
    given = {name: toolbox.environ[name] for name in variables if name in toolbox.environ}
    found_by_itself = toolbox.directory / DEFAULT_DEVNET
    profile = None
    if devnet is not None:
        profile = DevnetProfile.load(devnet)
    elif not given and (found_by_itself / PROFILE_FILE).exists():
        profile = DevnetProfile.load(found_by_itself)
    values = profile.environ() if profile is not None else given
    replaced = {CHAIN_FLAGS[name][0]: value for name, value in flags.items() if value is not None}
    # A command is no node: what only an enclave may not do does not concern it.
    return Settings.from_environ({"IN_ENCLAVE": "false", "TEE_PROVIDER": "software", **values, **replaced}), profile


def find_identity(cluster: ClusterOptions, key_file: Path | None, odyn: str | None) -> IdentityOptions:
    """Whose keys to use: `--odyn` or `--key-file`, else the profile's. Raises `ConfigError` unless it is clear."""
    if odyn is not None and key_file is not None:
        raise ConfigError("--odyn and --key-file exclude each other")
    if odyn is not None:
        try:
            return IdentityOptions(None, parse_service_url(odyn))
        except Rejected as error:
            raise ConfigError(f"--odyn is not accepted: {error}") from error
    key_file = key_file or (cluster.profile.app_key_file if cluster.profile is not None else None)
    if key_file is None:
        raise ConfigError("no app identity: give --odyn, or --key-file, or the directory of a devnet with --devnet")
    return IdentityOptions(key_file, None)
