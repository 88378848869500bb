"""The chain as an older peer reads it: one `eth_call` after the other over raw JSON-RPC (chain §1-§3).

No batches, no pinned block, no quorum: that is what the node under test does better, and what this one must not share.
"""

import asyncio
import itertools
from dataclasses import dataclass

import httpx
import rlp
from eth_abi import decode, encode
from eth_abi.exceptions import DecodingError

from tests.support.wire import WireError, keccak256, parse_tee_pubkey, parse_wallet

INSTANCE = "(uint256,uint256,uint256,address,string,bytes,address,bool,uint8,uint256)"
APP = "(uint256,address,bytes32,address,string,uint256,uint256,uint8,address)"
VERSION = "(uint256,string,bytes32,string,string,string,string,uint8,uint256,address)"

ACTIVE = 0
RUNNABLE_VERSIONS = (0, 1)


class ChainReadError(Exception):
    """The endpoint did not give a result; `reverted` when the contract refused, not the transport."""

    def __init__(self, message: str, *, reverted: bool) -> None:
        super().__init__(message)
        self.reverted = reverted


@dataclass(frozen=True)
class LegacyInstance:
    """One instance that may speak: its key parses and its app and version allow it."""

    instance_id: int
    app_id: int
    version_id: int
    operator: str
    url: str
    tee_pubkey: bytes
    wallet: str
    zk_verified: bool
    status: int
    registered_at: int


class LegacyChain:
    """JSON-RPC calls to one URL, decoded with the tuple layouts of chain §1."""

    def __init__(self, url: str, chain_id: int, app_registry: str, kms_registry: str) -> None:
        self._url = url
        self._chain_id = chain_id
        self._app_registry = app_registry
        self._kms_registry = kms_registry
        self._client = httpx.AsyncClient(timeout=10.0, trust_env=False)
        self._ids = itertools.count(1)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def active_wallets(self, app_id: int) -> list[str]:
        return await self._view(self._app_registry, "getActiveInstances(uint256)", [app_id], "address[]")

    async def admitted_instance(self, wallet: str, kms_app_id: int, *, peer: bool) -> LegacyInstance | None:
        """The instance of `wallet` when chain §3 lets it speak as a peer (or as an app), else None."""
        try:
            row = await self._view(self._app_registry, "getInstanceByWallet(address)", [wallet], INSTANCE)
        except ChainReadError as failure:
            if failure.reverted:
                return None
            raise
        try:
            instance = LegacyInstance(
                instance_id=row[0],
                app_id=row[1],
                version_id=row[2],
                operator=row[3],
                url=row[4],
                tee_pubkey=parse_tee_pubkey(row[5]),
                wallet=parse_wallet(row[6]),
                zk_verified=row[7],
                status=row[8],
                registered_at=row[9],
            )
        except WireError:
            return None
        if instance.instance_id == 0 or instance.wallet != parse_wallet(wallet):
            return None
        if instance.status != ACTIVE or not instance.zk_verified or (instance.app_id == kms_app_id) != peer:
            return None
        app = await self._view(self._app_registry, "getApp(uint256)", [instance.app_id], APP)
        version = await self._view(
            self._app_registry, "getVersion(uint256,uint256)", [instance.app_id, instance.version_id], VERSION
        )
        if app[0] == 0 or app[7] != ACTIVE or version[0] == 0 or version[7] not in RUNNABLE_VERSIONS:
            return None
        return instance

    async def master_secret_hash(self) -> bytes:
        return await self._view(self._kms_registry, "masterSecretHash()", [], "bytes32")

    async def claim_master_secret_hash(self, hash32: bytes, wallet: object) -> None:
        """Send the claim and wait for its receipt; ChainReadError when it reverts, now or in the block."""
        data = call_data("setMasterSecretHash(bytes32)", [hash32])
        call = {"from": wallet.address, "to": self._kms_registry, "data": "0x" + data.hex()}
        gas = int(await self._rpc("eth_estimateGas", [call]), 16)
        nonce = int(await self._rpc("eth_getTransactionCount", [wallet.address, "pending"]), 16)
        block = await self._rpc("eth_getBlockByNumber", ["latest", False])
        tip = 10**9
        fields = [
            self._chain_id,
            nonce,
            tip,
            2 * int(block["baseFeePerGas"], 16) + tip,
            gas + gas // 4,
            bytes.fromhex(self._kms_registry[2:]),
            0,
            data,
            [],
        ]
        sig65 = wallet.sign_digest(keccak256(b"\x02" + rlp.encode(fields)))
        signature = [sig65[64], int.from_bytes(sig65[:32], "big"), int.from_bytes(sig65[32:64], "big")]
        raw = b"\x02" + rlp.encode(fields + signature)
        sent = await self._rpc("eth_sendRawTransaction", ["0x" + raw.hex()])
        for _ in range(100):
            receipt = await self._rpc("eth_getTransactionReceipt", [sent])
            if receipt is not None:
                if int(receipt["status"], 16) != 1:
                    raise ChainReadError("the claim was reverted", reverted=True)
                return
            await asyncio.sleep(0.1)
        raise ChainReadError("no receipt for the claim", reverted=False)

    async def _view(self, to: str, signature: str, arguments: list[object], result: str) -> object:
        data = call_data(signature, arguments)
        answer = await self._rpc("eth_call", [{"to": to, "data": "0x" + data.hex()}, "latest"])
        try:
            return decode([result], bytes.fromhex(answer[2:]))[0]
        except (DecodingError, ValueError) as error:
            raise ChainReadError(f"{signature} did not return {result}", reverted=False) from error

    async def _rpc(self, method: str, parameters: list[object]) -> object:
        request = {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": parameters}
        try:
            answer = (await self._client.post(self._url, json=request)).json()
        except (httpx.HTTPError, ValueError) as error:
            raise ChainReadError(f"{method} got no answer", reverted=False) from error
        if "error" in answer:
            raise ChainReadError(str(answer["error"].get("message")), reverted="revert" in str(answer["error"]))
        return answer["result"]


def call_data(signature: str, arguments: list[object]) -> bytes:
    """Selector and ABI-encoded arguments of a call of `signature`, e.g. "getApp(uint256)"."""
    types = signature[signature.index("(") + 1 : -1]
    return keccak256(signature.encode())[:4] + encode(types.split(",") if types else [], arguments)
