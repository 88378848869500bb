"""From a verified wallet to its app: what is read, and what a failing read means (chain §3, node §1)."""

import pytest

from appliance.auth.apps import AppAuthorizer
from appliance.chain.types import ChainError
from kmscore.errors import Reason, Rejected
from tests.support import wire
from tests.support.fake_registry import FakeRegistry

pytestmark = pytest.mark.anyio

KMS_APP_ID = 49
APP_ID = 101
WALLET = "0x" + "ab" * 20


class Bench:
    """A registry with one app, and the authoriser that reads it."""

    def __init__(self) -> None:
        self.registry = FakeRegistry()
        self.authorizer = AppAuthorizer(self.registry, kms_app_id=KMS_APP_ID)
        self.instance_id = 0

    async def register(self, app_id: int = APP_ID) -> None:
        await self.registry.register_app(app_id)
        version = await self.registry.enroll_version(app_id, "1")
        self.instance_id = await self.registry.register_instance(
            app_id, version, wallet=WALLET, url="", tee_pubkey=wire.TeeKey(7).der
        )

    async def refusal(self, wallet: str = WALLET) -> Reason:
        with pytest.raises(Rejected) as error:
            await self.authorizer.authorize(wallet)
        assert wallet not in str(error.value)
        return error.value.reason


async def test_an_app_is_what_the_registry_says() -> None:
    bench = Bench()
    await bench.register()
    caller = await bench.authorizer.authorize(WALLET)
    assert (caller.wallet, caller.app_id) == (WALLET, APP_ID)
    assert caller.tee_pubkey.der == wire.TeeKey(7).der


async def test_an_unknown_wallet_costs_one_read() -> None:
    bench = Bench()
    assert await bench.refusal() is Reason.NOT_AUTHORIZED
    assert bench.registry.reads == [("get_instance_by_wallet", WALLET)]


async def test_a_node_of_the_cluster_is_refused() -> None:
    bench = Bench()
    await bench.register(KMS_APP_ID)
    assert await bench.refusal() is Reason.NOT_AUTHORIZED


async def test_a_registry_that_answers_for_another_wallet_is_not_believed() -> None:
    bench = Bench()
    await bench.register()
    other = "0x" + "cd" * 20
    await bench.registry.set_instance_of_wallet(other, bench.instance_id)
    assert await bench.refusal(other) is Reason.NOT_AUTHORIZED


@pytest.mark.parametrize("failing_read", [1, 2], ids=["of the instance", "of app and version"])
async def test_what_cannot_be_read_is_refused(failing_read: int) -> None:
    bench = Bench()
    await bench.register()

    async def fail() -> None:
        if len(bench.registry.reads) >= failing_read:
            raise ChainError("no provider answers")

    bench.registry.before_read = fail
    assert await bench.refusal() is Reason.NOT_AUTHORIZED


async def test_too_many_unknown_wallets_are_told_so() -> None:
    bench = Bench()

    async def exhausted() -> None:
        raise Rejected(Reason.RATE, "too many unknown wallets")

    bench.registry.before_read = exhausted
    assert await bench.refusal() is Reason.RATE


async def test_what_changed_in_the_registry_changes_the_decision_at_once() -> None:
    bench = Bench()
    await bench.register()
    first = await bench.authorizer.authorize(WALLET)
    assert await bench.authorizer.authorize(WALLET) is first
    await bench.registry.set_tee_pubkey(bench.instance_id, wire.TeeKey(8).der)
    assert (await bench.authorizer.authorize(WALLET)).tee_pubkey.der == wire.TeeKey(8).der
    for change, undo in (
        (bench.registry.set_app_status(APP_ID, 2), bench.registry.set_app_status(APP_ID, 0)),
        (bench.registry.set_version_status(APP_ID, 1, 2), bench.registry.set_version_status(APP_ID, 1, 0)),
        (bench.registry.set_instance_status(1, 1), bench.registry.set_instance_status(1, 0)),
    ):
        await change
        assert await bench.refusal() is Reason.NOT_AUTHORIZED
        await undo
        await bench.authorizer.authorize(WALLET)


async def test_only_so_many_decisions_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.auth.apps.MAX_DECISIONS", 2)
    bench = Bench()
    await bench.register()
    wallets = [f"0x{number:040x}" for number in range(3)]
    for wallet in wallets:
        await bench.registry.register_instance(APP_ID, 1, wallet=wallet, url="", tee_pubkey=wire.TeeKey(7).der)
    first = [await bench.authorizer.authorize(wallet) for wallet in wallets]
    again = [await bench.authorizer.authorize(wallet) for wallet in reversed(wallets)]
    assert [old is new for old, new in zip(reversed(first), again, strict=True)] == [True, True, False]
