"""The KMSRegistry: the cluster's master secret hash, and the one transaction a node ever sends (chain §2, §4).

The transaction is signed by the node's own wallet inside the TEE. What the providers say about nonce, gas and fees is
bounded here, since liars among them could otherwise burn the wallet's money. That they cannot fake the result is
ensured elsewhere: a claim counts only when a later pinned read shows it.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum

import anyio

from appliance.chain import abi
from appliance.chain.abi import MASTER_SECRET_HASH, SET_MASTER_SECRET_HASH, Call, decode_bytes32, encode_call
from appliance.chain.rpc import (
    ChainReader,
    Question,
    Reverted,
    call_at,
    parse_data,
    parse_quantity,
    parse_revert,
)
from appliance.chain.types import ChainError, ClaimCost, PinnedBlock
from appliance.tee.port import Eip1559Transaction, TeeProvider
from kmscore.errors import InvariantBroken
from kmscore.keccak import keccak256

logger = logging.getLogger(__name__)

# The claim takes about 100,000 gas; a registry behind a proxy with long strings takes more. Ten times that is no claim.
MAX_GAS = 1_000_000
# What one is reckoned with that the contract would refuse now, as it does before the wallet is registered: it cannot be
# estimated then.
UNESTIMATED_GAS = 200_000
# The estimate may be of another state than the one the claim is mined in: a quarter more.
GAS_MARGIN_NUM, GAS_MARGIN_DEN = 5, 4
# The busiest days of the largest network stayed below this. With MAX_GAS, one claim costs at most 0.2 of its coin.
MAX_FEE_PER_GAS_WEI = 200 * 10**9
# More than this buys nothing on the networks in use.
MAX_TIP_PER_GAS_WEI = 5 * 10**9
# A base fee rises by an eighth a block at most: double it and the claim stays valid for at least five full blocks.
BASE_FEE_HEADROOM = 2

RECEIPT_TIMEOUT_S = 45.0
RECEIPT_POLL_S = 1.0


class ClaimOutcome(Enum):
    """How an attempt to set the master secret hash ended; what the chain holds is read back at a later tick."""

    CLAIMED = "claimed"
    ALREADY_SET = "already_set"
    NOT_AUTHORIZED = "not_authorized"
    PENDING = "pending"
    """A transaction of this wallet is waiting to be mined; nothing further was sent."""


@dataclass(frozen=True, slots=True)
class _SentClaim:
    """The claim this process has signed, so that trying again sends the same bytes and never a second transaction."""

    hash32: bytes
    raw: bytes
    nonce: int

    @property
    def transaction_hash(self) -> bytes:
        return keccak256(self.raw)


@dataclass(frozen=True, slots=True)
class _Receipt:
    succeeded: bool


class _Sent(Enum):
    """What a provider says to a transaction."""

    TAKEN = "taken"
    NO_FUNDS = "no_funds"
    REFUSED = "refused"


class KmsRegistry:
    """The contract at `address` (canonical) on chain `chain_id`, through `reader`.

    `receipt_timeout_s` bounds the wait for a claim to be mined; `sleep` is there for tests.
    """

    def __init__(
        self,
        reader: ChainReader,
        address: str,
        chain_id: int,
        *,
        receipt_timeout_s: float = RECEIPT_TIMEOUT_S,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._reader = reader
        self._address = address
        self._chain_id = chain_id
        self._receipt_timeout_s = receipt_timeout_s
        self._sleep = sleep
        self._sent: _SentClaim | None = None

    async def master_secret_hash(self, block: PinnedBlock | None = None) -> bytes:
        """The 32-byte hash as of `block`, or of the newest block that has its confirmations; zero while unset.

        Raises ChainError.
        """
        number = await self._reader.pinned_number() if block is None else block.number
        (answer,) = await self._reader.call_batch([encode_call(self._address, MASTER_SECRET_HASH)], number)
        if isinstance(answer, Reverted):
            raise ChainError("the KMS registry does not tell the master secret hash")
        return decode_bytes32(answer)

    async def claim_cost(self, wallet: str) -> ClaimCost:
        """What a claim by this canonical wallet may cost, reckoned as `set_master_secret_hash` would; nothing is sent.

        The wallet need not be registered yet. Raises ChainError.
        """
        gas, tip, base_fee, balance = await self._reader.agree_on_numbers(
            [_gas_estimate(wallet, self._claim_call(_ANY_HASH), _parse_refusal), _TIP, _BASE_FEE, _balance(wallet)]
        )
        _, max_fee = _fees(tip, base_fee)
        return ClaimCost(gas * GAS_MARGIN_NUM // GAS_MARGIN_DEN if gas else UNESTIMATED_GAS, max_fee, balance)

    async def set_master_secret_hash(self, hash32: bytes, tee: TeeProvider) -> ClaimOutcome:
        """Claims `hash32` for the cluster with the wallet of `tee`, and waits until that is mined.

        Called again while the claim it sent is not mined, it sends the same bytes again. While any other transaction of
        this wallet is waiting it sends nothing: the claim of a process that died may be among them.
        Raises InvariantBroken if `hash32` is not 32 bytes or zero; ChainError if the chain cannot be read, gas or fee
        are absurd, the wallet cannot pay, no provider takes the transaction, or it failed for a reason that is not
        one of the outcomes. What `tee` raises passes through.
        """
        if len(hash32) != 32 or not any(hash32):
            raise InvariantBroken("a master secret hash is 32 bytes and not zero")
        wallet = (await tee.identity()).wallet
        if self._sent is None or await self._is_over(self._sent, wallet):
            refusal = await self._refusal(hash32, wallet)
            if refusal is not None:
                return refusal
            transaction = await self._prepare(hash32, wallet)
            if transaction is None:
                return ClaimOutcome.PENDING
            self._sent = _SentClaim(hash32, await tee.sign_transaction(transaction), transaction.nonce)
        elif self._sent.hash32 != hash32:
            return ClaimOutcome.PENDING
        return await self._deliver(self._sent, wallet)

    def _claim_call(self, hash32: bytes) -> Call:
        return encode_call(self._address, SET_MASTER_SECRET_HASH, hash32)

    async def _is_over(self, sent: _SentClaim, wallet: str) -> bool:
        """Whether the claim, or another transaction in its place, has been mined."""
        (mined,) = await self._reader.agree_on_numbers([_transaction_count(wallet, "latest")])
        return mined > sent.nonce

    async def _refusal(self, hash32: bytes, wallet: str) -> ClaimOutcome | None:
        """Why the contract would refuse the claim if it were mined now; None if it would not.

        The one question that is asked of the newest block: a claim is mined on top of it and not of a confirmed one.
        """
        (answer,) = await self._reader.agree([call_at(self._claim_call(hash32), "latest", sender=wallet)])
        if not isinstance(answer, Reverted):
            return None
        match answer.data[:4]:
            case abi.MASTER_SECRET_HASH_ALREADY_SET:
                return ClaimOutcome.ALREADY_SET
            case abi.NOT_AUTHORIZED_TO_SET_HASH:
                return ClaimOutcome.NOT_AUTHORIZED
        raise ChainError("the KMS registry refuses the claim for a reason that is not one of its own")

    async def _prepare(self, hash32: bytes, wallet: str) -> Eip1559Transaction | None:
        """The transaction to sign; None if the wallet has one waiting. Raises ChainError."""
        call = self._claim_call(hash32)
        mined, pending, gas, tip, base_fee, balance = await self._reader.agree_on_numbers(
            [
                _transaction_count(wallet, "latest"),
                _transaction_count(wallet, "pending"),
                _gas_estimate(wallet, call),
                _TIP,
                _BASE_FEE,
                _balance(wallet),
            ]
        )
        if pending > mined:
            return None
        gas_limit = gas * GAS_MARGIN_NUM // GAS_MARGIN_DEN
        tip, max_fee = _fees(tip, base_fee)
        if gas_limit > MAX_GAS:
            raise ChainError(f"the claim would take {gas_limit} gas, and more than {MAX_GAS} is refused")
        if max_fee > MAX_FEE_PER_GAS_WEI:
            raise ChainError(
                f"the claim would cost {max_fee} wei a gas, and more than {MAX_FEE_PER_GAS_WEI} is refused"
            )
        if balance < gas_limit * max_fee:
            raise ChainError(
                f"the node's wallet has {balance} wei and the claim may cost {gas_limit * max_fee}: fund it"
            )
        return Eip1559Transaction(
            chain_id=self._chain_id,
            nonce=mined,
            max_priority_fee_per_gas=tip,
            max_fee_per_gas=max_fee,
            gas_limit=gas_limit,
            to=self._address,
            value=0,
            data=call.data,
        )

    async def _deliver(self, sent: _SentClaim, wallet: str) -> ClaimOutcome:
        answers = await self._reader.ask_each(_send(sent), lambda answers: _Sent.TAKEN in answers)
        if _Sent.TAKEN not in answers:
            self._sent = None
            if _Sent.NO_FUNDS in answers:
                raise ChainError("the node's wallet cannot pay for the claim of the master secret hash: fund it")
            raise ChainError("no chain provider takes the claim of the master secret hash")
        receipt = await self._await_receipt(sent)
        if receipt is None:
            return ClaimOutcome.PENDING
        self._sent = None
        if receipt.succeeded:
            return ClaimOutcome.CLAIMED
        refusal = await self._refusal(sent.hash32, wallet)
        if refusal is None:
            raise ChainError("the claim of the master secret hash was mined and failed")
        return refusal

    async def _await_receipt(self, sent: _SentClaim) -> _Receipt | None:
        with anyio.move_on_after(self._receipt_timeout_s):
            while True:
                try:
                    (receipt,) = await self._reader.agree([_receipt_of(sent)])
                except ChainError as error:
                    logger.warning("the claim's receipt cannot be read", extra={"reason": str(error)})
                else:
                    if receipt is not None:
                        return receipt
                await self._sleep(RECEIPT_POLL_S)
        return None


def _transaction_count(wallet: str, block: str) -> Question[int]:
    return Question("eth_getTransactionCount", (wallet, block), parse_quantity)


def _balance(wallet: str) -> Question[int]:
    return Question("eth_getBalance", (wallet, "latest"), parse_quantity)


def _gas_estimate(
    wallet: str, call: Call, parse_error: Callable[[Mapping[str, object]], int] | None = None
) -> Question[int]:
    # Not of the pending state, in which our own waiting claim has set the hash.
    transaction = {"from": wallet, **call.as_transaction()}
    return Question("eth_estimateGas", (transaction, "latest"), parse_quantity, parse_error)


def _parse_refusal(error: Mapping[str, object]) -> int:
    """0 for what the contract would refuse. Raises ChainError for every other error."""
    parse_revert(error)
    return 0


def _parse_base_fee(result: object) -> int:
    if not isinstance(result, dict):
        raise ChainError("a chain provider does not have a newest block")
    return parse_quantity(result.get("baseFeePerGas"))


def _fees(tip: int, base_fee: int) -> tuple[int, int]:
    """What a claim offers at most: wei a gas as tip, and in all."""
    tip = min(tip, MAX_TIP_PER_GAS_WEI)
    return tip, base_fee * BASE_FEE_HEADROOM + tip


_TIP = Question("eth_maxPriorityFeePerGas", (), parse_quantity)
_BASE_FEE = Question("eth_getBlockByNumber", ("latest", False), _parse_base_fee)
# A stand-in where only the cost matters.
_ANY_HASH = b"\xff" * 32


def _send(sent: _SentClaim) -> Question[_Sent]:
    def parse(result: object) -> _Sent:
        if parse_data(result) != sent.transaction_hash:
            raise ChainError("a chain provider took another transaction than the one it was given")
        return _Sent.TAKEN

    return Question("eth_sendRawTransaction", ("0x" + sent.raw.hex(),), parse, _parse_send_error)


def _parse_send_error(error: Mapping[str, object]) -> _Sent:
    # There is no code for these, only what the nodes in use write.
    message = str(error.get("message")).lower()
    if any(words in message for words in ("already known", "already imported", "nonce too low")):
        return _Sent.TAKEN  # it has been sent before; whether it is the one that was mined, the receipt tells
    return _Sent.NO_FUNDS if "insufficient funds" in message else _Sent.REFUSED


def _receipt_of(sent: _SentClaim) -> Question[_Receipt | None]:
    transaction_hash = sent.transaction_hash

    def parse(result: object) -> _Receipt | None:
        if result is None:
            return None
        if not isinstance(result, dict) or parse_data(result.get("transactionHash")) != transaction_hash:
            raise ChainError("a chain provider answered something that is not the claim's receipt")
        return _Receipt(parse_quantity(result.get("status")) == 1)

    return Question("eth_getTransactionReceipt", ("0x" + transaction_hash.hex(),), parse)
