"""The two registries on a development chain: deploying them, and everything their owner can do to them.

The owner is an account whose key the development chain itself holds; nothing here can sign for a real network.
"""

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from kmscore.errors import Unavailable

if TYPE_CHECKING:
    from eth_typing import ChecksumAddress
    from web3 import AsyncWeb3
    from web3.contract.async_contract import AsyncContract, AsyncContractConstructor, AsyncContractFunction
    from web3.types import TxReceipt

NO_CONTRACT = "0x" + 40 * "0"
RECEIPT_TIMEOUT_S = 30.0
RECEIPT_POLL_S = 0.02


def load_artifact(name: str) -> dict[str, Any]:
    """The committed artifact of a contract: `abi`, `bytecode`, `compiler`, `sources_sha256` and settings."""
    text = files("appliance.chain").joinpath("artifacts", f"{name}.json").read_text(encoding="utf-8")
    artifact: dict[str, Any] = json.loads(text)
    return artifact


@dataclass(frozen=True, slots=True)
class Deployment:
    """Where the registries are and who owns them; canonical addresses."""

    nova_app_registry: str
    kms_registry: str
    owner: str


async def deploy_contracts(w3: "AsyncWeb3[Any]", *, kms_app_id: int, revert_unknown: bool = False) -> "DevRegistry":
    """Deploys both registries as the chain's first account, names the KMS app and registers it, without any version.

    With `revert_unknown` the app registry reverts for unknown wallets. Raises Unavailable if a transaction fails.
    """
    owner = (await w3.eth.accounts)[0]
    app_registry = await _deploy(w3, "NovaAppRegistry", owner, owner, revert_unknown)
    kms_registry = await _deploy(w3, "KMSRegistry", owner, owner, app_registry)
    registry = DevRegistry(w3, Deployment(app_registry.lower(), kms_registry.lower(), owner.lower()))
    await registry.set_kms_app_id(kms_app_id)
    await registry.register_app(kms_app_id, dapp_contract=kms_registry)
    return registry


async def attach_contracts(w3: "AsyncWeb3[Any]", *, nova_app_registry: str, kms_registry: str) -> "DevRegistry":
    """The owner's hands on registries (canonical addresses) that were deployed before.

    Raises Unavailable when there is no such registry, or when the chain does not hold its owner's key.
    """
    from web3.exceptions import Web3Exception

    attached = DevRegistry(w3, Deployment(nova_app_registry, kms_registry, NO_CONTRACT))
    try:
        owner: str = await attached.app_registry.functions.OWNER().call()
    except Web3Exception as error:
        raise Unavailable(f"there is no development registry at {nova_app_registry}") from error
    if owner not in await w3.eth.accounts:
        raise Unavailable("the chain does not hold the key of the registry's owner: it is no development chain")
    return DevRegistry(w3, Deployment(nova_app_registry, kms_registry, owner.lower()))


async def _deploy(w3: "AsyncWeb3[Any]", name: str, owner: "ChecksumAddress", *arguments: object) -> "ChecksumAddress":
    artifact = load_artifact(name)
    contract = w3.eth.contract(abi=artifact["abi"], bytecode=artifact["bytecode"])
    receipt = await _transact(w3, contract.constructor(*arguments), owner)
    address = receipt["contractAddress"]
    if address is None:
        raise Unavailable(f"the deployment of {name} made no contract")
    return address


async def _transact(
    w3: "AsyncWeb3[Any]", what: "AsyncContractFunction | AsyncContractConstructor", sender: str
) -> "TxReceipt":
    from web3.exceptions import ContractLogicError

    try:
        transaction_hash = await what.transact({"from": w3.to_checksum_address(sender)})
    except ContractLogicError as error:
        raise Unavailable(f"the development registry refuses: {error}") from error
    receipt = await w3.eth.wait_for_transaction_receipt(transaction_hash, RECEIPT_TIMEOUT_S, RECEIPT_POLL_S)
    if receipt["status"] != 1:
        raise Unavailable("a transaction to a development registry failed")
    return receipt


class DevRegistry:
    """The owner's hands on a deployment. Every method returns when its transaction is mined.

    Status arguments are raw numbers, so that ones without a meaning can be set. Raises Unavailable when the contract
    refuses, for instance because it knows no such app, version or instance.
    """

    def __init__(self, w3: "AsyncWeb3[Any]", deployment: Deployment) -> None:
        self.w3 = w3
        self.deployment = deployment
        self.app_registry = self._contract("NovaAppRegistry", deployment.nova_app_registry)
        self.kms_registry = self._contract("KMSRegistry", deployment.kms_registry)

    async def register_app(
        self, app_id: int, *, dapp_contract: str = NO_CONTRACT, app_wallet: str = NO_CONTRACT
    ) -> None:
        """A new active app under the given id."""
        dapp, wallet = self.w3.to_checksum_address(dapp_contract), self.w3.to_checksum_address(app_wallet)
        await self._send(self.app_registry.functions.registerApp(app_id, dapp, wallet, ""))

    async def enroll_version(self, app_id: int, name: str, code_measurement: bytes = bytes(32)) -> int:
        """The id of a new enrolled version; `code_measurement` is 32 bytes."""
        receipt = await self._send(self.app_registry.functions.enrollVersion(app_id, name, code_measurement))
        return self._event_argument(receipt, self.app_registry.events.VersionEnrolled(), "versionId")

    async def register_instance(self, app_id: int, version_id: int, *, wallet: str, url: str, tee_pubkey: bytes) -> int:
        """The id of a new active, verified instance; the app's contract hears of it."""
        owner, tee_wallet = map(self.w3.to_checksum_address, (self.deployment.owner, wallet))
        receipt = await self._send(
            self.app_registry.functions.registerInstance(app_id, version_id, owner, url, tee_pubkey, tee_wallet)
        )
        return self._event_argument(receipt, self.app_registry.events.InstanceRegistered(), "instanceId")

    async def set_app_status(self, app_id: int, status: int) -> None:
        """Sets an app's status to any number below 256."""
        await self._send(self.app_registry.functions.setAppStatus(app_id, status))

    async def set_version_status(self, app_id: int, version_id: int, status: int) -> None:
        """Sets a version's status to any number below 256."""
        await self._send(self.app_registry.functions.setVersionStatus(app_id, version_id, status))

    async def set_instance_status(self, instance_id: int, status: int) -> None:
        """Sets an instance's status to any number below 256; the app's contract hears of starting and stopping."""
        await self._send(self.app_registry.functions.setInstanceStatus(instance_id, status))

    async def set_zk_verified(self, instance_id: int, verified: bool) -> None:
        """Says whether an instance counts as proven."""
        await self._send(self.app_registry.functions.setZkVerified(instance_id, verified))

    async def set_tee_pubkey(self, instance_id: int, tee_pubkey: bytes) -> None:
        """Replaces an instance's key by any bytes."""
        await self._send(self.app_registry.functions.setTeePubkey(instance_id, tee_pubkey))

    async def set_instance_url(self, instance_id: int, url: str) -> None:
        """Replaces an instance's URL by any text."""
        await self._send(self.app_registry.functions.setInstanceUrl(instance_id, url))

    async def set_instance_of_wallet(self, wallet: str, instance_id: int) -> None:
        """Makes the lookup of a wallet answer with another instance; 0 makes the wallet unknown."""
        address = self.w3.to_checksum_address(wallet)
        await self._send(self.app_registry.functions.setInstanceOfWallet(address, instance_id))

    async def set_kms_app_id(self, app_id: int) -> None:
        """Names the KMS app to the KMS registry; possible once."""
        await self._send(self.kms_registry.functions.setKmsAppId(app_id))

    async def master_secret_hash(self) -> bytes:
        """The hash as of the newest block; zero while unset."""
        value: bytes = await self.kms_registry.functions.masterSecretHash().call()
        return value

    async def reset_master_secret_hash(self) -> None:
        """Forgets the master secret hash, so that another can be claimed."""
        await self._send(self.kms_registry.functions.resetMasterSecretHash())

    async def fund(self, wallet: str, wei: int = 10**18) -> None:
        """Sets a wallet's balance; a power that only development chains have."""
        await self._rpc("anvil_setBalance", wallet, hex(wei))

    async def mine(self, blocks: int = 1) -> None:
        """Adds empty blocks."""
        await self._rpc("anvil_mine", hex(blocks))

    def _contract(self, name: str, address: str) -> "type[AsyncContract] | AsyncContract":
        return self.w3.eth.contract(self.w3.to_checksum_address(address), abi=load_artifact(name)["abi"])

    async def _send(self, function: "AsyncContractFunction") -> "TxReceipt":
        return await _transact(self.w3, function, self.deployment.owner)

    @staticmethod
    def _event_argument(receipt: "TxReceipt", event: Any, name: str) -> int:
        from web3.logs import DISCARD

        (log,) = event.process_receipt(receipt, errors=DISCARD)
        value: int = log["args"][name]
        return value

    async def _rpc(self, method: str, *params: object) -> object:
        response = await self.w3.provider.make_request(method, list(params))
        if "error" in response:
            raise Unavailable(f"the development chain refuses {method}")
        return response.get("result")
