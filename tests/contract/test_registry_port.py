"""One suite for the registry's reads: the double that unit tests use answers as the adapter does on a real chain."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from appliance.chain.types import App, RegistryPort, Version
from tests.support.chain import KMS_APP_ID, running_chain
from tests.support.fake_registry import FakeRegistry

pytestmark = pytest.mark.anyio

URL = "https://kms1.example:8443"
TEE_PUBKEY = bytes(range(97))
MEASUREMENT = bytes(range(32))


def wallet(number: int) -> str:
    return f"0x{number:040x}"


@dataclass
class Bench:
    """The port under test, and the owner who arranges what it reads; the KMS app exists and has no versions."""

    registry: RegistryPort
    owner: Any

    async def member(self, number: int, version_id: int, app_id: int = KMS_APP_ID) -> int:
        return await self.owner.register_instance(
            app_id, version_id, wallet=wallet(number), url=URL, tee_pubkey=TEE_PUBKEY
        )


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(
    params=[
        "fake",
        pytest.param("chain", marks=pytest.mark.chain),
        pytest.param("chain that reverts for unknown wallets", marks=pytest.mark.chain),
    ]
)
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    if request.param == "fake":
        fake = FakeRegistry()
        await fake.register_app(KMS_APP_ID)
        yield Bench(fake, fake)
        return
    async with running_chain(revert_unknown=request.param != "chain") as chain, chain.reader() as reader:
        yield Bench(chain.registry(reader), chain.owner)


async def test_an_instance_is_found_by_its_wallet_with_every_field(bench: Bench) -> None:
    version_id = await bench.owner.enroll_version(KMS_APP_ID, "1.0.0")
    instance_id = await bench.member(7, version_id)

    instance = await bench.registry.get_instance_by_wallet(wallet(7))

    assert instance is not None
    assert (instance.instance_id, instance.app_id, instance.version_id) == (instance_id, KMS_APP_ID, version_id)
    assert (instance.instance_url, instance.tee_pubkey, instance.wallet) == (URL, TEE_PUBKEY, wallet(7))
    assert (instance.zk_verified, instance.status) == (True, 0)
    assert instance.operator == instance.operator.lower()
    assert instance.registered_at > 0


async def test_what_is_not_registered_is_none(bench: Bench) -> None:
    await bench.owner.enroll_version(KMS_APP_ID, "1.0.0")

    assert await bench.registry.get_instance_by_wallet(wallet(1)) is None
    assert await bench.registry.get_app(KMS_APP_ID + 1) is None
    assert await bench.registry.get_version(KMS_APP_ID, 2) is None
    assert await bench.registry.get_version(KMS_APP_ID + 1, 1) is None
    assert await bench.registry.get_app_and_version(KMS_APP_ID + 1, 1) == (None, None)
    assert await bench.registry.active_instances(KMS_APP_ID) == []
    assert await bench.registry.active_instances(KMS_APP_ID + 1) == []


async def test_an_app_and_its_versions_are_read_together_or_apart(bench: Bench) -> None:
    assert await bench.owner.enroll_version(KMS_APP_ID, "1.0.0", MEASUREMENT) == 1
    assert await bench.owner.enroll_version(KMS_APP_ID, "2.0.0") == 2
    await bench.owner.set_version_status(KMS_APP_ID, 1, 1)

    app, version = await bench.registry.get_app_and_version(KMS_APP_ID, 1)

    assert isinstance(app, App)
    assert (app.app_id, app.latest_version_id, app.status) == (KMS_APP_ID, 2, 0)
    assert version == Version(1, "1.0.0", MEASUREMENT, 1)
    assert await bench.registry.get_app(KMS_APP_ID) == app
    assert await bench.registry.get_version(KMS_APP_ID, 1) == version
    assert await bench.registry.get_app_and_version(KMS_APP_ID, 9) == (app, None)


@pytest.mark.parametrize("status", [1, 2, 3, 255])
async def test_every_status_number_is_data_even_one_without_a_meaning(bench: Bench, status: int) -> None:
    version_id = await bench.owner.enroll_version(KMS_APP_ID, "1.0.0")
    instance_id = await bench.member(7, version_id)
    await bench.owner.set_instance_status(instance_id, status)
    await bench.owner.set_version_status(KMS_APP_ID, version_id, status)
    await bench.owner.set_app_status(KMS_APP_ID, status)

    instance = await bench.registry.get_instance_by_wallet(wallet(7))
    app, version = await bench.registry.get_app_and_version(KMS_APP_ID, version_id)

    assert instance is not None
    assert app is not None
    assert version is not None
    assert (instance.status, app.status, version.status) == (status, status, status)


async def test_active_instances_come_with_their_versions_and_without_the_stopped_ones(bench: Bench) -> None:
    old = await bench.owner.enroll_version(KMS_APP_ID, "1.0.0")
    new = await bench.owner.enroll_version(KMS_APP_ID, "2.0.0")
    await bench.owner.register_app(50)
    other = await bench.owner.enroll_version(50, "1.0.0")
    await bench.member(1, old)
    stopped = await bench.member(2, old)
    await bench.member(3, new)
    await bench.member(4, other, app_id=50)
    await bench.owner.set_instance_status(stopped, 1)

    members = await bench.registry.active_instances(KMS_APP_ID)

    assert {(m.instance.wallet, m.version and m.version.name) for m in members} == {
        (wallet(1), "1.0.0"),
        (wallet(3), "2.0.0"),
    }
    assert {m.app and m.app.app_id for m in members} == {KMS_APP_ID}


async def test_an_instance_started_again_is_active_again(bench: Bench) -> None:
    version_id = await bench.owner.enroll_version(KMS_APP_ID, "1.0.0")
    instance_id = await bench.member(1, version_id)
    await bench.owner.set_instance_status(instance_id, 2)
    assert await bench.registry.active_instances(KMS_APP_ID) == []

    await bench.owner.set_instance_status(instance_id, 0)

    assert [m.instance.instance_id for m in await bench.registry.active_instances(KMS_APP_ID)] == [instance_id]


async def test_one_listed_wallet_without_a_record_of_its_own_does_not_hide_the_others(bench: Bench) -> None:
    version_id = await bench.owner.enroll_version(KMS_APP_ID, "1.0.0")
    first = await bench.member(1, version_id)
    await bench.member(2, version_id)
    await bench.member(3, version_id)
    await bench.owner.set_instance_of_wallet(wallet(2), first)  # the record of another wallet
    await bench.owner.set_instance_of_wallet(wallet(3), 0)  # none, or a revert

    members = await bench.registry.active_instances(KMS_APP_ID)

    assert [m.instance.wallet for m in members] == [wallet(1)]


async def test_a_nonsense_key_and_url_are_data(bench: Bench) -> None:
    version_id = await bench.owner.enroll_version(KMS_APP_ID, "1.0.0")
    instance_id = await bench.member(1, version_id)
    await bench.owner.set_tee_pubkey(instance_id, b"\x00not a key")
    await bench.owner.set_instance_url(instance_id, "file:///etc/passwd")
    await bench.owner.set_zk_verified(instance_id, False)

    (member,) = await bench.registry.active_instances(KMS_APP_ID)

    assert member.instance.tee_pubkey == b"\x00not a key"
    assert member.instance.instance_url == "file:///etc/passwd"
    assert not member.instance.zk_verified
