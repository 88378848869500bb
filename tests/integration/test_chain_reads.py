"""Reading and claiming on a real chain: pinned blocks, reorganisations, lying, dead and paused providers (chain §4)."""

import os
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from web3.types import RPCEndpoint

from appliance.chain.kms_registry import ClaimOutcome
from appliance.chain.provider import connect
from appliance.chain.rpc import ChainReader
from appliance.chain.types import ChainError, PinnedBlock
from appliance.devnet.anvil import DEVNET_CHAIN_ID, Anvil, free_port
from appliance.tee.software.provider import SoftwareTee
from kmscore.errors import ConfigError
from tests.support.chain import KMS_APP_ID, Chain, running_chain, running_proxy

pytestmark = [pytest.mark.anyio, pytest.mark.chain]

HASH = bytes(range(32))
OTHER_HASH = bytes(range(1, 33))


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def chain() -> AsyncIterator[Chain]:
    """A chain whose KMS app has one enrolled version."""
    async with running_chain() as chain:
        await chain.owner.enroll_version(KMS_APP_ID, "1.0.0")
        yield chain


def wallet(number: int) -> str:
    return f"0x{number:040x}"


async def member(chain: Chain, number: int, version_id: int = 1) -> int:
    return await chain.owner.register_instance(
        KMS_APP_ID, version_id, wallet=wallet(number), url="https://kms", tee_pubkey=b"key"
    )


async def register_tee(chain: Chain, *, funded: bool = True) -> SoftwareTee:
    """A TEE whose wallet is an eligible instance."""
    tee = SoftwareTee.generate(os.urandom)
    identity = await tee.identity()
    await chain.owner.register_instance(
        KMS_APP_ID, 1, wallet=identity.wallet, url="https://kms", tee_pubkey=identity.tee_pubkey.der
    )
    if funded:
        await chain.owner.fund(identity.wallet)
    return tee


async def waiting_transactions(chain: Chain) -> int:
    return int((await chain.rpc("txpool_status"))["pending"], 16)


# --- pinned blocks ---


async def test_a_change_is_seen_when_it_has_its_confirmations_and_not_before(chain: Chain) -> None:
    await chain.owner.mine(10)
    async with chain.reader(confirmations=3) as reader:
        registry = chain.registry(reader)
        await member(chain, 1)
        for _ in range(3):
            assert await registry.get_instance_by_wallet(wallet(1)) is None
            assert await registry.active_instances(KMS_APP_ID) == []
            await chain.owner.mine()
        assert await registry.get_instance_by_wallet(wallet(1)) is not None
        assert len(await registry.active_instances(KMS_APP_ID)) == 1


async def test_a_chain_shorter_than_the_confirmations_is_not_read_at_its_newest_block(chain: Chain) -> None:
    async with chain.reader(confirmations=1000) as reader:
        with pytest.raises(ChainError, match="shorter than the 1000 confirmations"):
            await chain.registry(reader).get_app(KMS_APP_ID)


async def test_a_block_that_does_not_exist_is_an_error(chain: Chain) -> None:
    async with chain.reader(timeout_s=3.0) as reader:
        with pytest.raises(ChainError):
            await reader.call_batch_with_block([], 10_000)
        with pytest.raises(ChainError):
            await chain.kms_registry(reader).master_secret_hash(PinnedBlock(10_000, bytes(32)))


async def test_a_reorganised_block_is_noticed_by_its_hash(chain: Chain) -> None:
    async with chain.reader() as reader:
        await chain.owner.mine(5)
        block = await reader.pinned_block()
        await reader.confirm_block(block)
        await chain.rpc("anvil_reorg", 3, [])
        with pytest.raises(ChainError, match="reorganised"):
            await reader.confirm_block(block)


async def test_a_reorganisation_in_the_middle_of_a_refresh_fails_the_refresh(chain: Chain) -> None:
    await member(chain, 1)
    await chain.owner.mine(5)
    asked = 0

    def reorganise_during_the_last_batch(method: str, _: list[Any], response: dict[str, Any]) -> dict[str, Any]:
        nonlocal asked
        if method == "eth_getBlockByNumber":
            asked += 1
            if asked == 2:
                response["result"]["hash"] = "0x" + "cc" * 32
        return response

    async with (
        running_proxy(chain.anvil.url, reorganise_during_the_last_batch) as proxy,
        chain.reader(proxy.url) as reader,
    ):
        with pytest.raises(ChainError, match="reorganised away during a refresh"):
            await chain.registry(reader).active_instances(KMS_APP_ID)
        assert len(await chain.registry(reader).active_instances(KMS_APP_ID)) == 1


# --- round trips ---


@pytest.mark.parametrize("members", [0, 1, 12])
async def test_a_refresh_takes_the_same_four_round_trips_however_many_members_there_are(
    chain: Chain, members: int
) -> None:
    for version in range(2, 5):
        await chain.owner.enroll_version(KMS_APP_ID, f"{version}.0.0")
    for number in range(1, members + 1):
        await member(chain, number, version_id=1 + number % 4)
    async with running_proxy(chain.anvil.url) as proxy, chain.reader(proxy.url) as reader:
        found = await chain.registry(reader).active_instances(KMS_APP_ID)
        assert len(found) == members
        assert proxy.requests == (4 if members else 3)
        assert sum(methods.count("eth_call") for methods in proxy.methods) == 2 + members + min(members, 4)


async def test_one_read_takes_two_round_trips(chain: Chain) -> None:
    async with running_proxy(chain.anvil.url) as proxy, chain.reader(proxy.url) as reader:
        await chain.registry(reader).get_app_and_version(KMS_APP_ID, 1)
        assert proxy.methods == [["eth_blockNumber"], ["eth_call", "eth_call"]]


# --- what anyone may have registered ---


async def test_text_that_is_not_utf8_and_bytes_without_end_hide_no_other_member(chain: Chain) -> None:
    first = await member(chain, 1)
    await member(chain, 2)
    await chain.owner.set_tee_pubkey(first, b"k" * 5000)
    call = chain.owner.app_registry.encode_abi("setInstanceUrl", [first, "??"]).replace(b"??".hex(), "fffe")
    await chain.rpc(
        "eth_sendTransaction",
        {"from": chain.owner.deployment.owner, "to": chain.owner.deployment.nova_app_registry, "data": call},
    )
    await chain.owner.mine()
    async with chain.reader() as reader:
        members = await chain.registry(reader).active_instances(KMS_APP_ID)
    assert [m.instance.wallet for m in members] == [wallet(1), wallet(2)]
    assert (members[0].instance.tee_pubkey, members[0].instance.instance_url) == (b"", "\ufffd\ufffd")


async def test_an_address_without_a_contract_is_an_error_and_not_an_empty_registry(chain: Chain) -> None:
    async with chain.reader() as reader:
        registry = type(chain.registry(reader))(reader, wallet(77))
        with pytest.raises(ChainError, match="no contract"):
            await registry.get_instance_by_wallet(wallet(1))
        with pytest.raises(ChainError):
            await registry.active_instances(KMS_APP_ID)


# --- the wrong chain, dead and paused providers ---


async def test_the_wrong_chain_is_fatal_at_start_up(chain: Chain) -> None:
    reader = ChainReader([chain.anvil.url], 1, 84532, 0)
    with pytest.raises(ConfigError, match="the chain has id 31337, expected 84532"):
        await reader.check_chain_id()
    await reader.aclose()
    async with chain.reader() as reader:
        await reader.check_chain_id()


async def test_a_dead_provider_is_an_error_within_the_deadline_and_forgotten_when_it_is_back(chain: Chain) -> None:
    port = free_port()
    reader = ChainReader([f"http://127.0.0.1:{port}"], 1, DEVNET_CHAIN_ID, 0, timeout_s=3.0)
    with anyio.fail_after(5.0), pytest.raises(ChainError):
        await reader.check_chain_id()
    with Anvil(port) as anvil:
        await anvil.wait_ready()
        await reader.check_chain_id()
    await reader.aclose()


async def test_a_paused_provider_is_an_error_at_the_deadline_and_forgotten_when_it_goes_on(chain: Chain) -> None:
    async with chain.reader(timeout_s=0.5) as reader:
        registry = chain.registry(reader)
        assert await registry.get_app(KMS_APP_ID) is not None
        chain.anvil.pause()
        try:
            with anyio.fail_after(5.0), pytest.raises(ChainError):
                await registry.get_app(KMS_APP_ID)
        finally:
            chain.anvil.resume()
        assert await registry.get_app(KMS_APP_ID) is not None


async def test_a_chain_keeps_its_state_over_a_restart(tmp_path: Any) -> None:
    port, state = free_port(), tmp_path / "state.json"
    reader = ChainReader([f"http://127.0.0.1:{port}"], 1, DEVNET_CHAIN_ID, 0)
    with Anvil(port, state_file=state) as anvil:
        await anvil.wait_ready()
        w3 = connect(anvil.url)
        await w3.provider.make_request(RPCEndpoint("anvil_mine"), ["0x7"])
        await w3.provider.disconnect()
        assert await reader.pinned_number() == 7
    with Anvil(port, state_file=state) as anvil:
        await anvil.wait_ready()
        assert await reader.pinned_number() == 7
    await reader.aclose()


# --- quorum ---


def promote(method: str, _: list[Any], response: dict[str, Any]) -> dict[str, Any]:
    """Answers every call for a wallet's instance with nothing, and with a far newer block for the newest."""
    if method == "eth_blockNumber":
        return {**response, "result": hex(10**6)}
    if method == "eth_call":
        return {**response, "result": "0x" + "00" * 32}
    return response


async def test_a_lying_provider_is_outvoted(chain: Chain) -> None:
    await member(chain, 1)
    async with (
        running_proxy(chain.anvil.url, promote) as liar,
        running_proxy(chain.anvil.url) as honest,
        chain.reader(liar.url, honest.url, chain.anvil.url, quorum=2) as reader,
    ):
        registry = chain.registry(reader)
        assert await registry.get_instance_by_wallet(wallet(1)) is not None
        assert len(await registry.active_instances(KMS_APP_ID)) == 1
        assert await chain.kms_registry(reader).master_secret_hash() == bytes(32)


async def test_two_providers_that_disagree_are_no_quorum_of_two(chain: Chain) -> None:
    def lie(method: str, _: list[Any], response: dict[str, Any]) -> dict[str, Any]:
        return {**response, "result": "0x" + "00" * 32} if method == "eth_call" else response

    async with (
        running_proxy(chain.anvil.url, lie) as liar,
        chain.reader(liar.url, chain.anvil.url, quorum=2) as reader,
    ):
        with pytest.raises(ChainError, match="1 of 2 chain providers agree on eth_call, 2 are needed"):
            await chain.registry(reader).get_app(KMS_APP_ID)


async def test_a_dead_provider_costs_nothing_but_its_vote(chain: Chain) -> None:
    async with running_proxy(chain.anvil.url) as honest:
        dead = f"http://127.0.0.1:{free_port()}"
        async with chain.reader(dead, honest.url, chain.anvil.url, quorum=2) as reader:
            assert await chain.registry(reader).get_app(KMS_APP_ID) is not None


# --- the claim ---


async def test_a_claim_by_an_eligible_wallet_is_read_back(chain: Chain) -> None:
    tee = await register_tee(chain)
    async with chain.reader() as reader:
        kms = chain.kms_registry(reader)
        assert await kms.set_master_secret_hash(HASH, tee) is ClaimOutcome.CLAIMED
        assert await kms.master_secret_hash() == HASH
        assert await kms.set_master_secret_hash(HASH, tee) is ClaimOutcome.ALREADY_SET
    await tee.aclose()


async def test_a_stranger_is_not_authorised_and_pays_nothing(chain: Chain) -> None:
    tee = SoftwareTee.generate(os.urandom)
    async with chain.reader() as reader:
        assert await chain.kms_registry(reader).set_master_secret_hash(HASH, tee) is ClaimOutcome.NOT_AUTHORIZED
    await tee.aclose()


async def test_a_claim_costs_no_more_than_was_reckoned_before_and_after_registering(chain: Chain) -> None:
    tee = SoftwareTee.generate(os.urandom)
    identity = await tee.identity()
    async with chain.reader() as reader:
        kms = chain.kms_registry(reader)
        before = await kms.claim_cost(identity.wallet)
        await chain.owner.register_instance(
            KMS_APP_ID, 1, wallet=identity.wallet, url="https://kms", tee_pubkey=identity.tee_pubkey.der
        )
        await chain.owner.fund(identity.wallet)
        after = await kms.claim_cost(identity.wallet)
        assert await kms.set_master_secret_hash(HASH, tee) is ClaimOutcome.CLAIMED
    paid_wei = 10**18 - await chain.w3.eth.get_balance(chain.w3.to_checksum_address(identity.wallet))
    assert (before.balance_wei, after.balance_wei) == (0, 10**18)
    assert before.gas >= after.gas
    assert 0 < paid_wei <= after.wei
    await tee.aclose()


async def test_a_wallet_without_money_is_told_so(chain: Chain) -> None:
    tee = await register_tee(chain, funded=False)
    async with chain.reader() as reader:
        with pytest.raises(ChainError, match="has 0 wei and the claim may cost"):
            await chain.kms_registry(reader).set_master_secret_hash(HASH, tee)
    await tee.aclose()


async def test_of_two_wallets_that_claim_at_once_one_wins_and_the_other_learns_it(chain: Chain) -> None:
    tees = [await register_tee(chain), await register_tee(chain)]
    await chain.rpc("evm_setAutomine", False)
    outcomes: dict[int, ClaimOutcome] = {}

    async with chain.reader() as reader:

        async def claim(number: int, hash32: bytes) -> None:
            kms = chain.kms_registry(reader)
            outcomes[number] = await kms.set_master_secret_hash(hash32, tees[number])

        with anyio.fail_after(20.0):
            async with anyio.create_task_group() as group:
                group.start_soon(claim, 0, HASH)
                group.start_soon(claim, 1, OTHER_HASH)
                while await waiting_transactions(chain) < 2:  # noqa: ASYNC110 -- a chain has no event for it
                    await anyio.sleep(0.02)
                await chain.owner.mine()

        assert sorted(outcome.value for outcome in outcomes.values()) == ["already_set", "claimed"]
        winner = next(number for number, outcome in outcomes.items() if outcome is ClaimOutcome.CLAIMED)
        assert await chain.kms_registry(reader).master_secret_hash() == (HASH, OTHER_HASH)[winner]
    for tee in tees:
        await tee.aclose()


async def test_a_claim_that_is_not_mined_in_time_is_pending_for_this_process_and_for_the_next(chain: Chain) -> None:
    tee = await register_tee(chain)
    await chain.rpc("evm_setAutomine", False)
    async with chain.reader() as reader:
        kms = chain.kms_registry(reader, receipt_timeout_s=0.1)
        assert await kms.set_master_secret_hash(HASH, tee) is ClaimOutcome.PENDING
        assert await kms.set_master_secret_hash(HASH, tee) is ClaimOutcome.PENDING
        restarted = chain.kms_registry(reader, receipt_timeout_s=0.1)
        assert await restarted.set_master_secret_hash(OTHER_HASH, tee) is ClaimOutcome.PENDING
        assert await waiting_transactions(chain) == 1

        await chain.owner.mine()
        assert await kms.set_master_secret_hash(HASH, tee) is ClaimOutcome.ALREADY_SET
        assert await kms.master_secret_hash() == HASH
    await tee.aclose()


async def test_a_claim_goes_to_every_provider_and_needs_only_one_that_takes_it(chain: Chain) -> None:
    def censor(method: str, _: list[Any], response: dict[str, Any]) -> dict[str, Any]:
        if method == "eth_sendRawTransaction":
            return {"id": response["id"], "error": {"code": -32000, "message": "no"}}
        return response

    tee = await register_tee(chain)
    async with (
        running_proxy(chain.anvil.url, censor) as censoring,
        running_proxy(chain.anvil.url) as honest,
        chain.reader(censoring.url, honest.url, quorum=2) as reader,
    ):
        assert await chain.kms_registry(reader).set_master_secret_hash(HASH, tee) is ClaimOutcome.CLAIMED
    await tee.aclose()
