"""Which nodes the SDK may ask, from what the registry says."""

from dataclasses import replace

import anyio
import pytest

from appliance.chain.types import (
    App,
    AppStatus,
    ChainError,
    Instance,
    InstanceStatus,
    MemberFacts,
    Version,
    VersionStatus,
)
from appliance.client.discovery import NodeFacts, RegistryDirectory, StaticDirectory, select_nodes
from kmscore.envelope import parse_tee_pubkey
from tests.support import wire
from tests.support.fake_node import FakeClock

KMS_APP_ID = 49
TEE = wire.TeeKey(7)
WALLET = "0x" + "ab" * 20


def member(
    instance: dict[str, object] | None = None,
    app: dict[str, object] | None = None,
    version: dict[str, object] | None = None,
) -> MemberFacts:
    """An eligible node with some facts replaced."""
    base = Instance(
        instance_id=5,
        app_id=KMS_APP_ID,
        version_id=3,
        operator="0x" + "01" * 20,
        instance_url="https://Node.example:443/",
        tee_pubkey=TEE.der,
        wallet=WALLET,
        zk_verified=True,
        status=InstanceStatus.ACTIVE,
        registered_at=1,
    )
    return MemberFacts(
        replace(base, **(instance or {})),  # type: ignore[arg-type]
        replace(App(KMS_APP_ID, WALLET, 3, AppStatus.ACTIVE, WALLET), **(app or {})),  # type: ignore[arg-type]
        replace(Version(3, "v3", bytes(32), VersionStatus.ENROLLED), **(version or {})),  # type: ignore[arg-type]
    )


class FakeRegistry:
    """Lists `members`, or fails; `gate` holds a read until it is set."""

    def __init__(self, members: list[MemberFacts]) -> None:
        self.members = members
        self.fails = False
        self.reads = 0
        self.gate: anyio.Event | None = None

    async def active_instances(self, app_id: int) -> list[MemberFacts]:
        assert app_id == KMS_APP_ID
        self.reads += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.fails:
            raise ChainError("the chain is away")
        return self.members


@pytest.mark.parametrize("status", [VersionStatus.ENROLLED, VersionStatus.DEPRECATED])
def test_an_eligible_node_is_listed_under_its_normalised_url(status: VersionStatus) -> None:
    nodes, left_out = select_nodes([member(version={"status": status})], KMS_APP_ID, https_only=True)
    assert nodes == (NodeFacts("https://node.example", WALLET, parse_tee_pubkey(TEE.der)),)
    assert left_out == ()


def test_a_key_registered_as_a_point_is_a_key() -> None:
    nodes, _ = select_nodes([member({"tee_pubkey": TEE.sec1})], KMS_APP_ID, https_only=True)
    assert nodes[0].tee_pubkey.der == TEE.der


INELIGIBLE = {
    "stopped": member({"status": InstanceStatus.STOPPED}),
    "a status nobody knows": member({"status": 9}),
    "not verified": member({"zk_verified": False}),
    "no key": member({"tee_pubkey": b""}),
    "a key of another curve": member({"tee_pubkey": b"\x04" + bytes(64)}),
    "of another app": member({"app_id": 50}, {"app_id": 50}),
    "app inactive": member(app={"status": AppStatus.INACTIVE}),
    "app unknown": replace(member(), app=None),
    "version revoked": member(version={"status": VersionStatus.REVOKED}),
    "version unknown": replace(member(), version=None),
    "another version's facts": member(version={"version_id": 4}),
    "url without a host": member({"instance_url": "https://"}),
    "url with credentials": member({"instance_url": "https://user:word@node.example"}),
    "url with a fragment": member({"instance_url": "https://node.example/#x"}),
    "plain http": member({"instance_url": "http://node.example"}),
}


@pytest.mark.parametrize("facts", INELIGIBLE.values(), ids=INELIGIBLE.keys())
def test_an_ineligible_instance_is_left_out_with_the_check_it_failed(facts: MemberFacts) -> None:
    nodes, left_out = select_nodes([facts], KMS_APP_ID, https_only=True)
    assert nodes == ()
    assert left_out[0].wallet == WALLET
    assert left_out[0].reason


def test_plain_http_is_for_those_who_ask_for_it() -> None:
    nodes, _ = select_nodes([INELIGIBLE["plain http"]], KMS_APP_ID, https_only=False)
    assert nodes[0].url == "http://node.example"


def test_the_order_is_that_of_the_instance_ids_whatever_the_registry_says() -> None:
    members = [member({"instance_id": number, "wallet": f"0x{number:040x}"}) for number in (3, 1, 2)]
    nodes, _ = select_nodes(members, KMS_APP_ID, https_only=True)
    assert [int(node.wallet, 16) for node in nodes] == [1, 2, 3]


@pytest.mark.anyio
async def test_a_reading_is_kept_for_its_time_and_not_longer() -> None:
    registry, clock = FakeRegistry([member()]), FakeClock()
    directory = RegistryDirectory(registry, KMS_APP_ID, ttl_s=180, clock=clock)
    assert len(await directory.nodes()) == 1
    clock.elapsed_ms += 180_000
    await directory.nodes()
    assert registry.reads == 1
    clock.elapsed_ms += 1
    await directory.nodes()
    assert registry.reads == 2


@pytest.mark.anyio
async def test_a_caller_may_ask_for_newer_facts() -> None:
    registry, clock = FakeRegistry([member()]), FakeClock()
    directory = RegistryDirectory(registry, KMS_APP_ID, clock=clock)
    await directory.nodes()
    clock.elapsed_ms += 6000
    await directory.nodes(max_age_s=10)
    assert registry.reads == 1
    registry.members = []
    assert await directory.nodes(max_age_s=5) == ()


@pytest.mark.anyio
async def test_a_failed_reading_is_not_covered_up_with_old_facts() -> None:
    registry, clock = FakeRegistry([member()]), FakeClock()
    directory = RegistryDirectory(registry, KMS_APP_ID, ttl_s=10, clock=clock)
    await directory.nodes()
    registry.fails = True
    assert len(await directory.nodes()) == 1
    clock.elapsed_ms += 10_001
    with pytest.raises(ChainError):
        await directory.nodes()


@pytest.mark.anyio
async def test_concurrent_callers_share_one_reading() -> None:
    registry = FakeRegistry([member()])
    registry.gate = anyio.Event()
    directory = RegistryDirectory(registry, KMS_APP_ID, clock=FakeClock())
    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(directory.nodes)
        await anyio.wait_all_tasks_blocked()
        registry.gate.set()
    assert registry.reads == 1


@pytest.mark.anyio
async def test_a_cancelled_reading_does_not_block_the_next() -> None:
    registry = FakeRegistry([member()])
    registry.gate = anyio.Event()
    directory = RegistryDirectory(registry, KMS_APP_ID, clock=FakeClock())
    async with anyio.create_task_group() as group:
        group.start_soon(directory.nodes)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    registry.gate = None
    assert len(await directory.nodes()) == 1


@pytest.mark.anyio
async def test_a_static_directory_says_what_it_was_told() -> None:
    facts = NodeFacts("https://node.example", WALLET, parse_tee_pubkey(TEE.der))
    assert await StaticDirectory([facts]).nodes(max_age_s=0) == (facts,)
