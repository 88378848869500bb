"""The one transaction a node sends: what bounds it, and that a second one is never sent in its place (chain §4)."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import anyio
import pytest

from appliance.chain import kms_registry as module
from appliance.chain.kms_registry import ClaimOutcome, KmsRegistry
from appliance.chain.rpc import ChainReader
from appliance.chain.types import ChainError, ClaimCost, PinnedBlock
from appliance.tee.port import Eip1559Transaction, TeeIdentity
from kmscore.errors import InvariantBroken, Unavailable
from kmscore.keccak import keccak256

pytestmark = pytest.mark.anyio

CHAIN_ID = 84532
CONTRACT = "0x" + "6a" * 20
WALLET = "0x" + "0b" * 20
HASH = bytes(range(32))
OTHER_HASH = bytes(range(1, 33))
GWEI = 10**9

ALREADY_SET = {"error": {"code": 3, "message": "execution reverted", "data": "0xd7d88fdf"}}
NOT_AUTHORIZED = {"error": {"code": 3, "message": "execution reverted", "data": "0xa76d08c2"}}


class FakeTee:
    """Signs by writing the fields down."""

    def __init__(self) -> None:
        self.signed: list[Eip1559Transaction] = []
        self.fails = False

    async def identity(self) -> TeeIdentity:
        return TeeIdentity(WALLET, None)  # type: ignore[arg-type] # the claim does not look at the key

    async def sign_transaction(self, tx: Eip1559Transaction) -> bytes:
        if self.fails:
            raise Unavailable("the TEE does not answer")
        self.signed.append(tx)
        return b"\2" + tx.nonce.to_bytes(8, "big") + tx.data


class FakeChain:
    """One provider whose answers a test sets; a transaction that is taken is mined at once unless told otherwise."""

    def __init__(self) -> None:
        self.mined_count = 4
        self.pending_count: int | None = None
        self.gas = 100_000
        self.gas_refusal: Any = None
        self.tip = GWEI
        self.base_fee = 10 * GWEI
        self.balance = 10**18
        self.call: Any = "0x"
        self.send: Any = None
        self.mines = True
        self.status = "0x1"
        self.sent: list[bytes] = []
        self.receipts: dict[str, str] = {}
        self.asked: list[tuple[str, Any]] = []

    async def make_batch_request(self, batch: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
        await anyio.lowlevel.checkpoint()
        self.asked += batch
        results = [self._answer(method, params) for method, params in batch]
        return [r if isinstance(r, dict) and "error" in r else {"result": r} for r in results]

    async def disconnect(self) -> None: ...

    def mine(self) -> None:
        """Everything that was sent."""
        for raw in self.sent:
            self.receipts.setdefault("0x" + keccak256(raw).hex(), self.status)
        self.mined_count += 1

    def _answer(self, method: str, params: Any) -> Any:
        match method:
            case "eth_call":
                return self.call
            case "eth_getTransactionCount":
                pending = self.mined_count if self.pending_count is None else self.pending_count
                return hex(pending if params[1] == "pending" else self.mined_count)
            case "eth_estimateGas":
                return self.gas_refusal or hex(self.gas)
            case "eth_maxPriorityFeePerGas":
                return hex(self.tip)
            case "eth_getBlockByNumber":
                return {"baseFeePerGas": hex(self.base_fee)}
            case "eth_getBalance":
                return hex(self.balance)
            case "eth_sendRawTransaction":
                return self._send(bytes.fromhex(params[0][2:]))
            case "eth_getTransactionReceipt":
                status = self.receipts.get(params[0])
                return status and {"transactionHash": params[0], "status": status, "blockNumber": "0x1"}
            case "eth_blockNumber":
                return "0x64"
        raise AssertionError(method)

    def _send(self, raw: bytes) -> Any:
        if self.send is not None:
            return self.send
        self.sent.append(raw)
        if self.mines:
            self.mine()
        return "0x" + keccak256(raw).hex()


async def no_sleep(_: float) -> None:
    await anyio.lowlevel.checkpoint()


@pytest.fixture
def chain() -> FakeChain:
    return FakeChain()


@pytest.fixture
def tee() -> FakeTee:
    return FakeTee()


@pytest.fixture
async def registry(chain: FakeChain) -> AsyncIterator[KmsRegistry]:
    reader = ChainReader(
        ["http://chain"],
        1,
        CHAIN_ID,
        6,
        connect=lambda *_: chain,
        sleep=no_sleep,  # type: ignore[arg-type, return-value]
    )
    yield KmsRegistry(reader, CONTRACT, CHAIN_ID, receipt_timeout_s=0.02, sleep=no_sleep)
    await reader.aclose()


# --- reading ---


async def test_the_hash_is_read_at_the_confirmed_block(registry: KmsRegistry, chain: FakeChain) -> None:
    chain.call = "0x" + HASH.hex()
    assert await registry.master_secret_hash() == HASH
    method, (transaction, block) = chain.asked[-1]
    assert (method, block) == ("eth_call", hex(94))
    assert transaction["to"] == CONTRACT


async def test_the_hash_is_read_at_a_block_of_the_callers_choice(registry: KmsRegistry, chain: FakeChain) -> None:
    chain.call = "0x" + "00" * 32
    assert await registry.master_secret_hash(PinnedBlock(7, HASH)) == bytes(32)
    assert [(method, params[1]) for method, params in chain.asked] == [("eth_call", "0x7")]


@pytest.mark.parametrize("answer", ["0x", "0x01", "0x" + "00" * 33, NOT_AUTHORIZED])
async def test_what_is_no_hash_is_a_chain_error(registry: KmsRegistry, chain: FakeChain, answer: Any) -> None:
    chain.call = answer
    with pytest.raises(ChainError):
        await registry.master_secret_hash()


# --- claiming ---


async def test_a_claim_is_one_signed_transaction_to_the_contract(
    registry: KmsRegistry, chain: FakeChain, tee: FakeTee
) -> None:
    assert await registry.set_master_secret_hash(HASH, tee) is ClaimOutcome.CLAIMED
    assert tee.signed == [
        Eip1559Transaction(
            chain_id=CHAIN_ID,
            nonce=4,
            max_priority_fee_per_gas=GWEI,
            max_fee_per_gas=21 * GWEI,
            gas_limit=125_000,
            to=CONTRACT,
            value=0,
            data=keccak256(b"setMasterSecretHash(bytes32)")[:4] + HASH,
        )
    ]
    assert len(chain.sent) == 1


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [(ALREADY_SET, ClaimOutcome.ALREADY_SET), (NOT_AUTHORIZED, ClaimOutcome.NOT_AUTHORIZED)],
)
async def test_a_claim_that_the_contract_would_refuse_is_not_sent(
    registry: KmsRegistry, chain: FakeChain, tee: FakeTee, answer: Any, outcome: ClaimOutcome
) -> None:
    chain.call = answer
    assert await registry.set_master_secret_hash(HASH, tee) is outcome
    assert (tee.signed, chain.sent) == ([], [])


async def test_a_refusal_for_an_unknown_reason_is_a_chain_error(
    registry: KmsRegistry, chain: FakeChain, tee: FakeTee
) -> None:
    chain.call = {"error": {"code": 3, "message": "execution reverted"}}
    with pytest.raises(ChainError, match="not one of its own"):
        await registry.set_master_secret_hash(HASH, tee)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [(ALREADY_SET, ClaimOutcome.ALREADY_SET), (NOT_AUTHORIZED, ClaimOutcome.NOT_AUTHORIZED)],
)
async def test_a_race_lost_between_sending_and_mining_is_the_normal_outcome(
    registry: KmsRegistry, chain: FakeChain, tee: FakeTee, answer: Any, outcome: ClaimOutcome
) -> None:
    chain.status = "0x0"
    mine = chain.mine

    def lose() -> None:
        mine()
        chain.call = answer

    chain.mine = lose  # type: ignore[method-assign]
    assert await registry.set_master_secret_hash(HASH, tee) is outcome


async def test_a_claim_that_fails_for_no_known_reason_is_a_chain_error(
    registry: KmsRegistry, chain: FakeChain, tee: FakeTee
) -> None:
    chain.status = "0x0"
    with pytest.raises(ChainError, match="mined and failed"):
        await registry.set_master_secret_hash(HASH, tee)


@pytest.mark.parametrize("hash32", [b"", bytes(31), bytes(32), bytes(33)])
async def test_what_is_no_hash_is_never_claimed(registry: KmsRegistry, tee: FakeTee, hash32: bytes) -> None:
    with pytest.raises(InvariantBroken):
        await registry.set_master_secret_hash(hash32, tee)


# --- bounds ---

ABSURD: dict[str, tuple[Callable[[FakeChain], None], str]] = {
    "gas": (lambda chain: setattr(chain, "gas", module.MAX_GAS), "more than 1000000 is refused"),
    "a base fee": (lambda chain: setattr(chain, "base_fee", 101 * GWEI), "wei a gas"),
    "a poor wallet": (lambda chain: setattr(chain, "balance", 125_000 * 21 * GWEI - 1), "fund it"),
}


@pytest.mark.parametrize(("change", "message"), ABSURD.values(), ids=ABSURD)
async def test_a_claim_beyond_its_bounds_is_not_signed(
    registry: KmsRegistry, chain: FakeChain, tee: FakeTee, change: Callable[[FakeChain], None], message: str
) -> None:
    change(chain)
    with pytest.raises(ChainError, match=message):
        await registry.set_master_secret_hash(HASH, tee)
    assert tee.signed == []


async def test_the_wallet_that_can_just_pay_does(registry: KmsRegistry, chain: FakeChain, tee: FakeTee) -> None:
    chain.balance = 125_000 * 21 * GWEI
    assert await registry.set_master_secret_hash(HASH, tee) is ClaimOutcome.CLAIMED


async def test_an_absurd_tip_is_cut(registry: KmsRegistry, chain: FakeChain, tee: FakeTee) -> None:
    chain.tip = 10**18
    assert await registry.set_master_secret_hash(HASH, tee) is ClaimOutcome.CLAIMED
    assert tee.signed[0].max_priority_fee_per_gas == module.MAX_TIP_PER_GAS_WEI


SEND_ERRORS = {
    "insufficient funds for gas * price + value": "fund it",
    "replacement transaction underpriced": "no chain provider takes",
    "": "no chain provider takes",
}


@pytest.mark.parametrize(("message", "says"), SEND_ERRORS.items())
async def test_a_transaction_that_nobody_takes_is_a_chain_error(
    registry: KmsRegistry, chain: FakeChain, tee: FakeTee, message: str, says: str
) -> None:
    chain.send = {"error": {"code": -32000, "message": message}}
    with pytest.raises(ChainError, match=says):
        await registry.set_master_secret_hash(HASH, tee)


async def test_a_provider_that_took_something_else_did_not_take_it(
    registry: KmsRegistry, chain: FakeChain, tee: FakeTee
) -> None:
    chain.send = "0x" + "00" * 32
    with pytest.raises(ChainError):
        await registry.set_master_secret_hash(HASH, tee)


# --- reckoning ---


async def test_the_cost_of_a_claim_is_reckoned_as_the_claim_is_made(
    registry: KmsRegistry, chain: FakeChain, tee: FakeTee
) -> None:
    cost = await registry.claim_cost(WALLET)

    assert await registry.set_master_secret_hash(HASH, tee) is ClaimOutcome.CLAIMED
    assert cost == ClaimCost(tee.signed[0].gas_limit, tee.signed[0].max_fee_per_gas, 10**18)
    assert cost.wei == 125_000 * 21 * GWEI


async def test_reckoning_sends_nothing(registry: KmsRegistry, chain: FakeChain) -> None:
    await registry.claim_cost(WALLET)

    assert {method for method, _ in chain.asked} == {
        "eth_estimateGas", "eth_maxPriorityFeePerGas", "eth_getBlockByNumber", "eth_getBalance"
    }  # fmt: skip


async def test_a_wallet_that_may_not_claim_yet_is_reckoned_with_a_fixed_amount_of_gas(
    registry: KmsRegistry, chain: FakeChain
) -> None:
    chain.gas_refusal = NOT_AUTHORIZED

    assert await registry.claim_cost(WALLET) == ClaimCost(module.UNESTIMATED_GAS, 21 * GWEI, 10**18)


async def test_a_provider_that_cannot_estimate_is_not_taken_for_a_refusal(
    registry: KmsRegistry, chain: FakeChain
) -> None:
    chain.gas_refusal = {"error": {"code": -32005, "message": "limit exceeded"}}

    with pytest.raises(ChainError):
        await registry.claim_cost(WALLET)


# --- never a second transaction ---


async def test_a_claim_that_is_not_mined_in_time_is_pending_and_sent_again_unchanged(
    registry: KmsRegistry, chain: FakeChain, tee: FakeTee
) -> None:
    chain.mines = False
    assert await registry.set_master_secret_hash(HASH, tee) is ClaimOutcome.PENDING
    chain.pending_count = 5
    assert await registry.set_master_secret_hash(HASH, tee) is ClaimOutcome.PENDING
    assert chain.sent[0] == chain.sent[1]
    assert len(tee.signed) == 1


async def test_a_claim_sent_again_may_be_known_already(registry: KmsRegistry, chain: FakeChain, tee: FakeTee) -> None:
    chain.mines = False
    await registry.set_master_secret_hash(HASH, tee)
    chain.send = {"error": {"code": -32000, "message": "already known"}}
    assert await registry.set_master_secret_hash(HASH, tee) is ClaimOutcome.PENDING


async def test_a_claim_mined_later_is_seen_at_the_next_call(
    registry: KmsRegistry, chain: FakeChain, tee: FakeTee
) -> None:
    chain.mines = False
    await registry.set_master_secret_hash(HASH, tee)
    chain.mine()
    chain.call = ALREADY_SET
    assert await registry.set_master_secret_hash(HASH, tee) is ClaimOutcome.ALREADY_SET
    assert len(tee.signed) == 1


async def test_another_hash_waits_for_the_claim_under_way(
    registry: KmsRegistry, chain: FakeChain, tee: FakeTee
) -> None:
    chain.mines = False
    await registry.set_master_secret_hash(HASH, tee)
    assert await registry.set_master_secret_hash(OTHER_HASH, tee) is ClaimOutcome.PENDING
    assert len(tee.signed) == 1


async def test_a_process_that_starts_while_its_wallets_claim_is_pending_sends_nothing(
    registry: KmsRegistry, chain: FakeChain, tee: FakeTee
) -> None:
    chain.pending_count = 5
    assert await registry.set_master_secret_hash(HASH, tee) is ClaimOutcome.PENDING
    assert (tee.signed, chain.sent) == ([], [])


async def test_after_the_owner_reset_the_hash_the_same_secret_is_claimed_with_a_new_transaction(
    registry: KmsRegistry, chain: FakeChain, tee: FakeTee
) -> None:
    await registry.set_master_secret_hash(HASH, tee)
    assert await registry.set_master_secret_hash(HASH, tee) is ClaimOutcome.CLAIMED
    assert [tx.nonce for tx in tee.signed] == [4, 5]


async def test_a_tee_that_fails_leaves_nothing_behind(registry: KmsRegistry, chain: FakeChain, tee: FakeTee) -> None:
    tee.fails = True
    with pytest.raises(Unavailable):
        await registry.set_master_secret_hash(HASH, tee)
    tee.fails = False
    assert await registry.set_master_secret_hash(HASH, tee) is ClaimOutcome.CLAIMED


async def test_a_claim_cancelled_while_it_waits_is_gone_on_with(
    registry: KmsRegistry, chain: FakeChain, tee: FakeTee
) -> None:
    chain.mines = False
    with anyio.CancelScope() as scope:
        chain.mine = scope.cancel  # type: ignore[method-assign]
        chain.mines = True
        await registry.set_master_secret_hash(HASH, tee)
    assert scope.cancelled_caught
    del chain.mine  # type: ignore[attr-defined]
    assert await registry.set_master_secret_hash(HASH, tee) is ClaimOutcome.CLAIMED
    assert len(tee.signed) == 1
