"""The contracts on a real EVM: every rule, event and error of chain §2, and the development registry's callbacks."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from web3.exceptions import ContractCustomError
from web3.logs import DISCARD

from appliance.chain import compile as compiler
from appliance.devnet.contracts import NO_CONTRACT, DevRegistry, attach_contracts, deploy_contracts, load_artifact
from kmscore.errors import Unavailable
from kmscore.keccak import keccak256
from tests.support.chain import KMS_APP_ID, Chain, running_chain

pytestmark = [pytest.mark.anyio, pytest.mark.chain]

HASH = bytes(range(32))
OTHER_HASH = bytes(range(1, 33))
ACTIVE, STOPPED, FAILED = 0, 1, 2
ENROLLED, DEPRECATED, REVOKED = 0, 1, 2


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def chain() -> AsyncIterator[Chain]:
    async with running_chain() as chain:
        yield chain


@dataclass
class Bench:
    """Fresh registries, whose KMS app has one enrolled version, and the chain's accounts."""

    owner: DevRegistry
    accounts: list[str]
    version_id: int

    @property
    def kms(self) -> Any:
        return self.owner.kms_registry

    @property
    def apps(self) -> Any:
        return self.owner.app_registry

    async def member(self, account: int, *, app_id: int = KMS_APP_ID, version_id: int = 1) -> int:
        """An active instance whose wallet is the account with this number."""
        return await self.owner.register_instance(
            app_id, version_id, wallet=self.accounts[account], url="https://kms", tee_pubkey=b"key"
        )

    async def send(self, function: Any, account: int) -> Any:
        """The receipt of a transaction sent by an account; ContractCustomError if it would revert."""
        transaction_hash = await function.transact({"from": self.accounts[account]})
        return await self.owner.w3.eth.wait_for_transaction_receipt(transaction_hash, 10, 0.02)

    async def claim(self, hash32: bytes, account: int) -> Any:
        return await self.send(self.kms.functions.setMasterSecretHash(hash32), account)


@pytest.fixture
async def bench(chain: Chain) -> Bench:
    owner = await deploy_contracts(chain.w3, kms_app_id=KMS_APP_ID)
    accounts = await chain.w3.eth.accounts
    return Bench(owner, list(accounts), await owner.enroll_version(KMS_APP_ID, "1.0.0"))


def error(name: str) -> Any:
    """Expects a revert with exactly this custom error, which has no arguments."""
    return pytest.raises(ContractCustomError, match="0x" + keccak256(f"{name}()".encode())[:4].hex())


def events(contract: Any, receipt: Any) -> list[tuple[str, dict[str, Any]]]:
    """Every event of the contract in the receipt, by name and arguments."""
    found = []
    for entry in contract.abi:
        if entry["type"] == "event":
            logs = contract.events[entry["name"]]().process_receipt(receipt, errors=DISCARD)
            found += [
                (log["logIndex"], log["event"], dict(log["args"])) for log in logs if log["address"] == contract.address
            ]
    return [(name, arguments) for _, name, arguments in sorted(found, key=lambda item: item[0])]


# --- deployment and ownership ---


async def test_the_owner_and_the_registry_are_those_of_the_constructor(bench: Bench) -> None:
    assert await bench.kms.functions.OWNER().call() == bench.accounts[0]
    assert await bench.kms.functions.novaAppRegistry().call() == bench.apps.address
    assert await bench.kms.functions.kmsAppId().call() == KMS_APP_ID
    assert await bench.kms.functions.masterSecretHash().call() == bytes(32)


@pytest.mark.parametrize(
    ("owner", "registry", "name"),
    [(None, 1, "InvalidOwnerAddress"), (1, None, "InvalidRegistryAddress")],
)
async def test_a_deployment_without_owner_or_registry_reverts(
    bench: Bench, owner: int | None, registry: int | None, name: str
) -> None:
    artifact = load_artifact("KMSRegistry")
    arguments = [NO_CONTRACT if account is None else bench.accounts[account] for account in (owner, registry)]
    constructor = bench.owner.w3.eth.contract(abi=artifact["abi"], bytecode=artifact["bytecode"]).constructor(
        *arguments
    )
    with error(name):
        await constructor.estimate_gas({"from": bench.accounts[0]})


async def test_only_the_owner_names_the_registry_and_never_the_zero_address(bench: Bench) -> None:
    change = bench.kms.functions.setNovaAppRegistry(bench.accounts[5])
    with error("NotOwner"):
        await bench.send(change, 1)
    with error("InvalidRegistryAddress"):
        await bench.send(bench.kms.functions.setNovaAppRegistry(NO_CONTRACT), 0)

    receipt = await bench.send(change, 0)

    assert events(bench.kms, receipt) == [("NovaAppRegistrySet", {"registry": bench.accounts[5]})]
    assert await bench.kms.functions.novaAppRegistry().call() == bench.accounts[5]


async def test_only_the_owner_names_the_app_once_and_never_zero(bench: Bench) -> None:
    artifact = load_artifact("KMSRegistry")
    factory = bench.owner.w3.eth.contract(abi=artifact["abi"], bytecode=artifact["bytecode"])
    receipt = await bench.send(factory.constructor(bench.accounts[0], bench.apps.address), 0)
    fresh = bench.owner.w3.eth.contract(receipt["contractAddress"], abi=artifact["abi"])
    with error("NotOwner"):
        await bench.send(fresh.functions.setKmsAppId(7), 1)
    with error("InvalidAppId"):
        await bench.send(fresh.functions.setKmsAppId(0), 0)

    receipt = await bench.send(fresh.functions.setKmsAppId(7), 0)

    assert events(fresh, receipt) == [("KmsAppIdSet", {"appId": 7})]
    for app_id in (0, 7, 8):
        with error("AppIdAlreadySet"):
            await bench.send(fresh.functions.setKmsAppId(app_id), 0)


# --- operators ---


async def operators(bench: Bench) -> list[str]:
    """The list, after checking that every view of it says the same."""
    listed: list[str] = await bench.kms.functions.getOperators().call()
    count = await bench.kms.functions.operatorCount().call()
    assert [await bench.kms.functions.operatorAt(index).call() for index in range(count)] == listed
    for account in bench.accounts:
        assert await bench.kms.functions.isOperator(account).call() == (account in listed)
    with error("OperatorIndexOutOfRange"):
        await bench.kms.functions.operatorAt(count).call()
    return listed


async def as_registry(bench: Bench) -> None:
    """Makes account 9 the registry, so that a test can make the callbacks itself."""
    await bench.send(bench.kms.functions.setNovaAppRegistry(bench.accounts[9]), 0)


async def test_only_the_registry_adds_and_removes_operators_and_only_of_the_kms_app(bench: Bench) -> None:
    await as_registry(bench)
    for name in ("addOperator", "removeOperator"):
        function = bench.kms.functions[name]
        with error("OnlyNovaAppRegistry"):
            await bench.send(function(bench.accounts[1], KMS_APP_ID, 1, 1), 0)
        for app_id in (0, KMS_APP_ID + 1):
            with error("AppIdMismatch"):
                await bench.send(function(bench.accounts[1], app_id, 1, 1), 9)


async def test_callbacks_before_the_app_is_named_revert(bench: Bench) -> None:
    artifact = load_artifact("KMSRegistry")
    factory = bench.owner.w3.eth.contract(abi=artifact["abi"], bytecode=artifact["bytecode"])
    receipt = await bench.send(factory.constructor(bench.accounts[0], bench.accounts[9]), 0)
    fresh = bench.owner.w3.eth.contract(receipt["contractAddress"], abi=artifact["abi"])
    with error("AppIdMismatch"):
        await bench.send(fresh.functions.addOperator(bench.accounts[1], 0, 1, 1), 9)


async def test_adding_and_removing_twice_changes_nothing_and_says_nothing(bench: Bench) -> None:
    await as_registry(bench)
    wallet = bench.accounts[1]
    arguments = {"operator": wallet, "appId": KMS_APP_ID, "versionId": 3, "instanceId": 4}
    add = bench.kms.functions.addOperator(wallet, KMS_APP_ID, 3, 4)
    remove = bench.kms.functions.removeOperator(wallet, KMS_APP_ID, 3, 4)

    assert events(bench.kms, await bench.send(remove, 9)) == []
    assert events(bench.kms, await bench.send(add, 9)) == [("OperatorAdded", arguments)]
    assert events(bench.kms, await bench.send(add, 9)) == []
    assert await operators(bench) == [wallet]
    assert events(bench.kms, await bench.send(remove, 9)) == [("OperatorRemoved", arguments)]
    assert events(bench.kms, await bench.send(remove, 9)) == []
    assert await operators(bench) == []


@pytest.mark.parametrize("removed", [1, 2, 3])
async def test_the_list_stays_whole_whichever_operator_is_removed(bench: Bench, removed: int) -> None:
    await as_registry(bench)
    for account in (1, 2, 3):
        await bench.send(bench.kms.functions.addOperator(bench.accounts[account], KMS_APP_ID, 1, account), 9)

    await bench.send(bench.kms.functions.removeOperator(bench.accounts[removed], KMS_APP_ID, 1, removed), 9)

    left = [bench.accounts[account] for account in (1, 2, 3) if account != removed]
    assert sorted(await operators(bench)) == sorted(left)
    await bench.send(bench.kms.functions.addOperator(bench.accounts[removed], KMS_APP_ID, 1, removed), 9)
    assert len(await operators(bench)) == 3


async def test_removing_an_operator_costs_the_same_however_many_there_are(bench: Bench) -> None:
    await as_registry(bench)
    costs = []
    for count in (2, 9):
        for account in range(count):
            await bench.send(bench.kms.functions.addOperator(bench.accounts[account], KMS_APP_ID, 1, 1), 9)
        receipt = await bench.send(bench.kms.functions.removeOperator(bench.accounts[0], KMS_APP_ID, 1, 1), 9)
        costs.append(receipt["gasUsed"])
    assert costs[0] == costs[1]


# --- the master secret hash ---


async def test_an_eligible_instance_claims_the_hash_once(bench: Bench) -> None:
    await bench.member(1)
    await bench.member(2)

    receipt = await bench.claim(HASH, 1)

    assert events(bench.kms, receipt) == [("MasterSecretHashSet", {"hash": HASH, "setter": bench.accounts[1]})]
    assert await bench.owner.master_secret_hash() == HASH
    for account, hash32 in ((1, HASH), (2, OTHER_HASH), (5, OTHER_HASH)):
        with error("MasterSecretHashAlreadySet"):
            await bench.claim(hash32, account)


async def test_a_zero_hash_is_refused(bench: Bench) -> None:
    await bench.member(1)
    with error("InvalidMasterSecretHash"):
        await bench.claim(bytes(32), 1)


async def test_a_wallet_that_is_no_instance_may_not_claim(bench: Bench) -> None:
    for account in (0, 5):
        with error("NotAuthorizedToSetHash"):
            await bench.claim(HASH, account)


@pytest.mark.parametrize("status", [STOPPED, FAILED, 3, 255])
async def test_an_instance_that_is_not_active_may_not_claim(bench: Bench, status: int) -> None:
    instance_id = await bench.member(1)
    await bench.owner.set_instance_status(instance_id, status)
    with error("NotAuthorizedToSetHash"):
        await bench.claim(HASH, 1)


@pytest.mark.parametrize("status", [DEPRECATED, REVOKED, 3, 255])
async def test_a_version_that_is_not_enrolled_may_run_but_not_seed(bench: Bench, status: int) -> None:
    await bench.member(1)
    await bench.owner.set_version_status(KMS_APP_ID, bench.version_id, status)
    with error("NotAuthorizedToSetHash"):
        await bench.claim(HASH, 1)


async def test_an_instance_of_another_app_may_not_claim(bench: Bench) -> None:
    await bench.owner.register_app(50)
    await bench.member(1, app_id=50, version_id=await bench.owner.enroll_version(50, "1.0.0"))
    with error("NotAuthorizedToSetHash"):
        await bench.claim(HASH, 1)


async def test_a_wallet_for_which_the_registry_answers_with_another_instance_may_not_claim(bench: Bench) -> None:
    instance_id = await bench.member(1)
    await bench.owner.set_instance_of_wallet(bench.accounts[2], instance_id)
    with error("NotAuthorizedToSetHash"):
        await bench.claim(HASH, 2)


async def test_a_registry_that_reverts_for_unknown_wallets_says_the_same(chain: Chain, bench: Bench) -> None:
    owner = await deploy_contracts(chain.w3, kms_app_id=KMS_APP_ID, revert_unknown=True)
    with error("NotAuthorizedToSetHash"):
        await bench.send(owner.kms_registry.functions.setMasterSecretHash(HASH), 5)


async def test_a_registry_without_code_authorises_nobody(bench: Bench) -> None:
    await bench.member(1)
    await as_registry(bench)
    with error("NotAuthorizedToSetHash"):
        await bench.claim(HASH, 1)


async def test_only_the_owner_resets_the_hash_and_then_it_can_be_claimed_anew(bench: Bench) -> None:
    await bench.member(1)
    reset = bench.kms.functions.resetMasterSecretHash()
    assert events(bench.kms, await bench.send(reset, 0)) == []
    await bench.claim(HASH, 1)
    with error("NotOwner"):
        await bench.send(reset, 1)

    receipt = await bench.send(reset, 0)

    assert events(bench.kms, receipt) == [("MasterSecretHashReset", {"resetter": bench.accounts[0]})]
    assert await bench.owner.master_secret_hash() == bytes(32)
    await bench.claim(OTHER_HASH, 1)
    assert await bench.owner.master_secret_hash() == OTHER_HASH


# --- the development registry ---


async def test_the_apps_contract_hears_of_instances_that_start_and_stop(bench: Bench) -> None:
    first, second = await bench.member(1), await bench.member(2)
    assert await operators(bench) == [bench.accounts[1], bench.accounts[2]]

    await bench.owner.set_instance_status(first, STOPPED)
    assert await operators(bench) == [bench.accounts[2]]
    await bench.owner.set_instance_status(first, FAILED)
    await bench.owner.set_instance_status(second, FAILED)
    assert await operators(bench) == []
    await bench.owner.set_instance_status(first, ACTIVE)
    await bench.owner.set_instance_status(first, ACTIVE)
    assert await operators(bench) == [bench.accounts[1]]
    assert await bench.apps.functions.getActiveInstances(KMS_APP_ID).call() == [bench.accounts[1]]


async def test_an_app_without_a_contract_needs_no_callbacks(bench: Bench) -> None:
    await bench.owner.register_app(50)
    version_id = await bench.owner.enroll_version(50, "1.0.0")
    instance_id = await bench.member(1, app_id=50, version_id=version_id)
    await bench.owner.set_instance_status(instance_id, STOPPED)
    assert await operators(bench) == []


async def test_the_views_have_the_layout_that_the_registry_publishes(bench: Bench) -> None:
    instance_id = await bench.member(1)
    wallet, owner = bench.accounts[1], bench.accounts[0]
    instance = await bench.apps.functions.getInstance(instance_id).call()
    assert instance[:9] == (instance_id, KMS_APP_ID, 1, owner, "https://kms", b"key", wallet, True, ACTIVE)
    assert await bench.apps.functions.getInstanceByWallet(wallet).call() == instance
    assert await bench.apps.functions.getInstancesForVersion(KMS_APP_ID, 1).call() == [instance_id]
    app = await bench.apps.functions.getApp(KMS_APP_ID).call()
    assert (app[0], app[1], app[3], app[5], app[7]) == (KMS_APP_ID, owner, bench.kms.address, 1, ACTIVE)
    version = await bench.apps.functions.getVersion(KMS_APP_ID, 1).call()
    assert (version[0], version[1], version[2], version[7], version[9]) == (1, "1.0.0", bytes(32), ENROLLED, owner)
    for view in (
        bench.apps.functions.getApp(1),
        bench.apps.functions.getVersion(KMS_APP_ID, 2),
        bench.apps.functions.getInstance(99),
        bench.apps.functions.getInstanceByWallet(bench.accounts[5]),
    ):
        assert (await view.call())[0] == 0


OWNER_ONLY = {
    "registerApp": (50, NO_CONTRACT, NO_CONTRACT, ""),
    "enrollVersion": (KMS_APP_ID, "2.0.0", bytes(32)),
    "registerInstance": (KMS_APP_ID, 1, NO_CONTRACT, "", b"", NO_CONTRACT),
    "setAppStatus": (KMS_APP_ID, 1),
    "setVersionStatus": (KMS_APP_ID, 1, 1),
    "setInstanceStatus": (1, 1),
    "setZkVerified": (1, False),
    "setTeePubkey": (1, b""),
    "setInstanceUrl": (1, ""),
    "setInstanceOfWallet": (NO_CONTRACT, 1),
}


async def test_only_the_owner_changes_the_development_registry(bench: Bench) -> None:
    changing = {
        entry["name"] for entry in bench.apps.abi if entry.get("stateMutability") == "nonpayable" and "name" in entry
    }
    assert changing == set(OWNER_ONLY)
    for name, arguments in OWNER_ONLY.items():
        with error("NotOwner"):
            await bench.send(bench.apps.functions[name](*arguments), 1)


async def test_what_does_not_exist_cannot_be_changed_and_what_exists_not_be_registered_again(bench: Bench) -> None:
    await bench.member(1)
    refused = [
        bench.owner.register_app(KMS_APP_ID),
        bench.owner.enroll_version(50, "1.0.0"),
        bench.member(1),
        bench.member(2, version_id=9),
        bench.owner.set_app_status(50, 0),
        bench.owner.set_version_status(KMS_APP_ID, 9, 0),
        bench.owner.set_instance_status(9, 0),
        bench.owner.set_zk_verified(9, True),
    ]
    for change in refused:
        with pytest.raises(Unavailable, match="the development registry refuses"):
            await change


async def test_registries_that_were_deployed_before_are_attached_to(bench: Bench) -> None:
    known = bench.owner.deployment

    attached = await attach_contracts(
        bench.owner.w3, nova_app_registry=known.nova_app_registry, kms_registry=known.kms_registry
    )

    assert attached.deployment == known
    version_id = await attached.enroll_version(KMS_APP_ID, "image", HASH)
    assert (await bench.apps.functions.getVersion(KMS_APP_ID, version_id).call())[2] == HASH


async def test_an_address_without_a_registry_is_not_attached_to(bench: Bench) -> None:
    with pytest.raises(Unavailable, match="there is no development registry at 0x"):
        await attach_contracts(bench.owner.w3, nova_app_registry="0x" + "0d" * 20, kms_registry="0x" + "0e" * 20)


async def test_a_registry_of_somebody_elses_is_not_attached_to(bench: Bench) -> None:
    contract = bench.owner.w3.eth.contract(
        **{name: load_artifact("NovaAppRegistry")[name] for name in ("abi", "bytecode")}
    )
    stranger = bench.owner.w3.to_checksum_address("0x" + "0d" * 20)
    receipt = await bench.send(contract.constructor(stranger, False), 0)

    with pytest.raises(Unavailable, match="does not hold the key of the registry's owner"):
        await attach_contracts(
            bench.owner.w3,
            nova_app_registry=receipt["contractAddress"].lower(),
            kms_registry=bench.owner.deployment.kms_registry,
        )


# --- artifacts ---


def test_the_committed_artifacts_match_the_sources() -> None:
    digest = compiler.sources_digest(compiler.read_sources())
    for name in compiler.COMPILED:
        artifact = load_artifact(name)
        assert artifact["sources_sha256"] == digest
        assert artifact["compiler"].startswith("0.8.37+")


def test_compiling_again_gives_the_committed_bytes(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled = compiler.compile_contracts(compiler.read_sources())
    assert compiled == {name: compiler.artifact_path(name).read_bytes() for name in compiler.COMPILED}

    monkeypatch.setattr(compiler, "compile_contracts", lambda _: compiled)
    monkeypatch.setattr(compiler, "ARTIFACTS_DIR", tmp_path)
    assert compiler.main(["--check"]) == 1
    assert "does not match the contract sources: run `make contracts`" in capsys.readouterr().err
    assert compiler.main([]) == 0
    assert compiler.main(["--check"]) == 0


def test_a_source_that_does_not_compile_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiler, "read_sources", lambda: {"KMSRegistry.sol": "contract KMSRegistry {"})
    assert compiler.main(["--check"]) == 1
    assert "do not compile without complaint" in capsys.readouterr().err
