"""Registering an enclave on a devnet, as the owner of its development registry.

On every other chain the operator registers, with the platform's own tools: nothing here can sign for a real network,
and `require_devnet` refuses to try.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from appliance.chain.types import ClaimCost
from appliance.cli.options import ClusterOptions
from appliance.cli.registration import CannotProvision, Evidence, Registration, Verdict
from appliance.devnet.anvil import DEVNET_CHAIN_ID
from appliance.log import short
from appliance.settings import Settings
from appliance.urls import is_loopback_url
from kmscore.errors import ConfigError

if TYPE_CHECKING:
    from appliance.devnet.contracts import DevRegistry


def require_devnet(cluster: ClusterOptions) -> None:
    """Raises `ConfigError` unless a devnet's profile names a chain on this machine that has the devnet's id."""
    settings = cluster.settings
    if cluster.profile is None:
        raise ConfigError("--register is for a devnet, which --devnet names: elsewhere the operator submits the bundle")
    if not all(map(is_loopback_url, settings.helios_rpc_urls)):
        raise ConfigError("--register is for a devnet, whose chain is on this machine: --rpc-url names another one")
    if settings.chain_id != DEVNET_CHAIN_ID:
        raise ConfigError(
            f"--register is for a devnet, whose chain id is {DEVNET_CHAIN_ID}: this one is {settings.chain_id}"
        )


async def enrol(settings: Settings, code_measurement: bytes) -> int:
    """Enrol an image (32 bytes) as the next version of the devnet's KMS app; returns its id. Raises `Unavailable`."""
    async with _owner(settings) as owner:
        name = f"provisioned-{short(code_measurement.hex())}"
        return await owner.enroll_version(settings.kms_app_id, name, code_measurement)


async def register(settings: Settings, evidence: Evidence, verdict: Verdict, cost: ClaimCost) -> None:
    """Give the enclave's wallet gas money when it lacks it, and register it unless it is. Raises `Unavailable`."""
    async with _owner(settings) as owner:
        if cost.balance_wei < cost.wei:
            await owner.fund(evidence.identity.wallet)
        if verdict.registration is Registration.NONE:
            await owner.register_instance(
                settings.kms_app_id,
                verdict.version.version_id,
                wallet=evidence.identity.wallet,
                url=evidence.url,
                tee_pubkey=evidence.identity.tee_pubkey.der,
            )


def require_registrable(verdict: Verdict) -> None:
    """Raises `CannotProvision` when the wallet is taken by another registration, which is somebody's to correct."""
    if verdict.registration not in (Registration.NONE, Registration.OURS):
        raise CannotProvision(
            f"the wallet is {verdict.registration} as instance {verdict.instance_id}: restart the enclave, which gives "
            "it new keys, and provision it again"
        )


@asynccontextmanager
async def _owner(settings: Settings) -> AsyncIterator["DevRegistry"]:
    # Here and not above: web3 takes a second to import.
    from appliance.chain.provider import connect
    from appliance.devnet.contracts import attach_contracts

    w3 = connect(settings.helios_rpc_urls[0])
    try:
        yield await attach_contracts(
            w3, nova_app_registry=settings.nova_app_registry_address, kms_registry=settings.kms_registry_address
        )
    finally:
        await w3.provider.disconnect()
