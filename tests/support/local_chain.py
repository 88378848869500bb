"""A private chain for a test: anvil, the two registries, and the owner's powers over them, all blocking."""

import itertools
import json
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
import httpx
from eth_abi import decode, encode

from appliance.devnet.anvil import DEVNET_CHAIN_ID, Anvil, free_port
from tests.support.legacy_chain import call_data
from tests.support.processes import wait_until

ROOT = Path(__file__).parents[2]
ARTIFACTS = ROOT / "appliance/chain/artifacts"

CHAIN_ID = DEVNET_CHAIN_ID
KMS_APP_ID = 49
ETHER = 10**18
NO_CONTRACT = "0x" + 40 * "0"

# Status numbers of chain §1.
ACTIVE, STOPPED, FAILED = 0, 1, 2
ENROLLED, DEPRECATED, REVOKED = 0, 1, 2


class LocalChain:
    """anvil with a NovaAppRegistry and a KMSRegistry whose KMS app has one enrolled version. A context manager."""

    def __init__(self) -> None:
        self.anvil = Anvil(free_port())
        self.url = self.anvil.url
        self._ids = itertools.count(1)
        self._apps = itertools.count(101)
        self._client = httpx.Client(timeout=10.0, trust_env=False)
        self.owner = NO_CONTRACT
        self.app_registry = NO_CONTRACT
        self.kms_registry = NO_CONTRACT
        self.kms_version = 0

    def __enter__(self) -> Self:
        try:
            anyio.run(self.anvil.wait_ready)
            self._deploy_registries()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()
        self.anvil.stop()

    def _deploy_registries(self) -> None:
        self.owner = self.rpc("eth_accounts")[0]
        self.app_registry = self._deploy("NovaAppRegistry", ["address", "bool"], [self.owner, False])
        self.kms_registry = self._deploy("KMSRegistry", ["address", "address"], [self.owner, self.app_registry])
        self.transact(self.kms_registry, "setKmsAppId(uint256)", KMS_APP_ID)
        self._register_app(KMS_APP_ID, self.kms_registry)
        self.kms_version = self.enroll_version(KMS_APP_ID)

    # --- JSON-RPC ---

    def rpc(self, method: str, *parameters: object) -> object:
        """The result of one call; AssertionError with the endpoint's message when it refuses."""
        request = {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": parameters}
        answer = self._client.post(self.url, json=request).json()
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def view(self, to: str, signature: str, result: str, *arguments: object) -> object:
        data = call_data(signature, list(arguments))
        raw = self.rpc("eth_call", {"to": to, "data": "0x" + data.hex()}, "latest")
        return decode([result], bytes.fromhex(raw[2:]))[0]

    def transact(self, to: str, signature: str, *arguments: object) -> None:
        """Call as the owner and see it mined."""
        data = call_data(signature, list(arguments))
        self._mine({"from": self.owner, "to": to, "data": "0x" + data.hex()})

    def _mine(self, transaction: dict[str, str]) -> dict[str, str]:
        transaction_hash = self.rpc("eth_sendTransaction", transaction)
        wait_until(lambda: self.rpc("eth_getTransactionReceipt", transaction_hash), timeout_s=10.0, what="the receipt")
        receipt = self.rpc("eth_getTransactionReceipt", transaction_hash)
        assert receipt["status"] == "0x1", receipt
        return receipt

    def _deploy(self, name: str, types: list[str], arguments: list[object]) -> str:
        bytecode = json.loads((ARTIFACTS / f"{name}.json").read_text())["bytecode"].removeprefix("0x")
        return self._mine({"from": self.owner, "data": "0x" + bytecode + encode(types, arguments).hex()})[
            "contractAddress"
        ]

    # --- what the owner of the registries does ---

    def create_app(self) -> tuple[int, int]:
        """A new active app and its one enrolled version."""
        app_id = next(self._apps)
        self._register_app(app_id, NO_CONTRACT)
        return app_id, self.enroll_version(app_id)

    def _register_app(self, app_id: int, contract: str) -> None:
        self.transact(
            self.app_registry, "registerApp(uint256,address,address,string)", app_id, contract, NO_CONTRACT, ""
        )

    def enroll_version(self, app_id: int) -> int:
        self.transact(self.app_registry, "enrollVersion(uint256,string,bytes32)", app_id, "1.0.0", bytes(32))
        versions = self.view(
            self.app_registry,
            "getApp(uint256)",
            "(uint256,address,bytes32,address,string,uint256,uint256,uint8,address)",
            app_id,
        )
        return versions[5]

    def register_instance(self, app_id: int, version_id: int, url: str, tee_pubkey: bytes, wallet: str) -> int:
        """The id of a new active, verified instance."""
        self.transact(
            self.app_registry,
            "registerInstance(uint256,uint256,address,string,bytes,address)",
            app_id,
            version_id,
            self.owner,
            url,
            tee_pubkey,
            wallet,
        )
        return self.view(self.app_registry, "getInstancesForVersion(uint256,uint256)", "uint256[]", app_id, version_id)[
            -1
        ]

    def set_instance_status(self, instance_id: int, status: int) -> None:
        self.transact(self.app_registry, "setInstanceStatus(uint256,uint8)", instance_id, status)

    def set_version_status(self, app_id: int, version_id: int, status: int) -> None:
        self.transact(self.app_registry, "setVersionStatus(uint256,uint256,uint8)", app_id, version_id, status)

    def set_app_status(self, app_id: int, status: int) -> None:
        self.transact(self.app_registry, "setAppStatus(uint256,uint8)", app_id, status)

    def set_instance_url(self, instance_id: int, url: str) -> None:
        self.transact(self.app_registry, "setInstanceUrl(uint256,string)", instance_id, url)

    def set_tee_pubkey(self, instance_id: int, tee_pubkey: bytes) -> None:
        self.transact(self.app_registry, "setTeePubkey(uint256,bytes)", instance_id, tee_pubkey)

    def set_zk_verified(self, instance_id: int, verified: bool) -> None:
        self.transact(self.app_registry, "setZkVerified(uint256,bool)", instance_id, verified)

    def fund(self, wallet: str, wei: int = ETHER) -> None:
        self.rpc("anvil_setBalance", wallet, hex(wei))

    def master_secret_hash(self) -> bytes:
        return self.view(self.kms_registry, "masterSecretHash()", "bytes32")

    def reset_master_secret_hash(self) -> None:
        self.transact(self.kms_registry, "resetMasterSecretHash()")
