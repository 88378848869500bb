"""What `CachedNovaRegistry` remembers, for how long, for whom, and what it never does (node §1)."""

from collections.abc import Awaitable, Callable

import anyio
import pytest

from appliance.chain import cache as cache_module
from appliance.chain.cache import CachedNovaRegistry
from appliance.chain.types import ChainError, Instance
from kmscore.errors import Reason, Rejected
from tests.support.fake_registry import FakeRegistry

pytestmark = pytest.mark.anyio

APP = 7
TTL_S = 180.0
TTL_MS = 180_000
NOT_FOUND_TTL_MS = 10_000


class ManualClock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.ms = 5_000

    def now_ms(self) -> int:
        raise AssertionError("ages are measured on the monotonic clock")

    def monotonic_ms(self) -> int:
        return self.ms


def wallet(number: int) -> str:
    return f"0x{number:040x}"


def instance_reads(registry: FakeRegistry) -> list[object]:
    return [what[1] for what in registry.reads if what[0] == "get_instance_by_wallet"]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def registry() -> FakeRegistry:
    """One app with one version and the instance of wallet 1."""
    registry = FakeRegistry()
    await registry.register_app(APP)
    await registry.enroll_version(APP, "1.0.0")
    await registry.register_instance(APP, 1, wallet=wallet(1), url="https://app", tee_pubkey=b"key")
    return registry


@pytest.fixture
def cached(registry: FakeRegistry, clock: ManualClock) -> CachedNovaRegistry:
    return CachedNovaRegistry(registry, clock, ttl_s=TTL_S)


def failing(message: str = "unreadable") -> Callable[[], Awaitable[None]]:
    async def fail() -> None:
        raise ChainError(message)

    return fail


# --- TTL ---


async def test_a_found_instance_is_read_once_within_its_ttl(
    cached: CachedNovaRegistry, registry: FakeRegistry, clock: ManualClock
) -> None:
    first = await cached.get_instance_by_wallet(wallet(1))
    clock.ms += TTL_MS - 1
    assert await cached.get_instance_by_wallet(wallet(1)) is first
    assert len(registry.reads) == 1

    clock.ms += 1
    assert await cached.get_instance_by_wallet(wallet(1)) == first
    assert len(registry.reads) == 2


async def test_the_ttl_counts_from_before_the_read(
    cached: CachedNovaRegistry, registry: FakeRegistry, clock: ManualClock
) -> None:
    async def take_a_minute() -> None:
        clock.ms += 60_000

    registry.before_read = take_a_minute
    await cached.get_instance_by_wallet(wallet(1))
    clock.ms += TTL_MS - 60_000
    await cached.get_instance_by_wallet(wallet(1))
    assert len(registry.reads) == 2


async def test_what_is_not_found_is_asked_again_after_ten_seconds(
    cached: CachedNovaRegistry, registry: FakeRegistry, clock: ManualClock
) -> None:
    assert await cached.get_instance_by_wallet(wallet(2)) is None
    await registry.register_instance(APP, 1, wallet=wallet(2), url="", tee_pubkey=b"")
    clock.ms += NOT_FOUND_TTL_MS - 1
    assert await cached.get_instance_by_wallet(wallet(2)) is None
    assert len(registry.reads) == 1

    clock.ms += 1
    assert await cached.get_instance_by_wallet(wallet(2)) is not None


async def test_not_found_is_never_remembered_for_longer_than_found(registry: FakeRegistry, clock: ManualClock) -> None:
    cached = CachedNovaRegistry(registry, clock, ttl_s=2.0)
    await cached.get_instance_by_wallet(wallet(2))
    clock.ms += 2_000
    await cached.get_instance_by_wallet(wallet(2))
    assert len(registry.reads) == 2


async def test_with_a_ttl_of_zero_nothing_is_remembered(registry: FakeRegistry, clock: ManualClock) -> None:
    cached = CachedNovaRegistry(registry, clock, ttl_s=0)
    for _ in range(2):
        await cached.get_instance_by_wallet(wallet(1))
        await cached.get_app(APP)
    assert len(registry.reads) == 4


async def test_a_stale_entry_is_not_served_while_the_chain_cannot_be_read(
    cached: CachedNovaRegistry, registry: FakeRegistry, clock: ManualClock
) -> None:
    await cached.get_instance_by_wallet(wallet(1))
    registry.before_read = failing()
    clock.ms += TTL_MS - 1
    assert await cached.get_instance_by_wallet(wallet(1)) is not None
    clock.ms += 1
    with pytest.raises(ChainError):
        await cached.get_instance_by_wallet(wallet(1))


async def test_errors_are_not_remembered(cached: CachedNovaRegistry, registry: FakeRegistry) -> None:
    registry.before_read = failing()
    with pytest.raises(ChainError):
        await cached.get_instance_by_wallet(wallet(1))
    registry.before_read = None
    assert await cached.get_instance_by_wallet(wallet(1)) is not None


async def test_an_instance_that_disappears_is_not_found_after_its_ttl(
    cached: CachedNovaRegistry, registry: FakeRegistry, clock: ManualClock
) -> None:
    await cached.get_instance_by_wallet(wallet(1))
    await registry.set_instance_of_wallet(wallet(1), 0)
    clock.ms += TTL_MS
    assert await cached.get_instance_by_wallet(wallet(1)) is None


# --- apps and versions ---


async def test_an_app_and_its_version_are_one_read_and_then_none(
    cached: CachedNovaRegistry, registry: FakeRegistry
) -> None:
    pair = await cached.get_app_and_version(APP, 1)
    assert registry.reads == [("get_app_and_version", APP, 1)]

    assert await cached.get_app_and_version(APP, 1) == pair
    assert (await cached.get_app(APP), await cached.get_version(APP, 1)) == pair
    assert len(registry.reads) == 1


async def test_a_second_version_of_a_known_app_costs_only_the_version(
    cached: CachedNovaRegistry, registry: FakeRegistry
) -> None:
    await registry.enroll_version(APP, "2.0.0")
    await cached.get_app_and_version(APP, 1)
    await cached.get_app_and_version(APP, 2)
    assert registry.reads[1:] == [("get_version", APP, 2)]


async def test_an_unknown_app_or_version_is_asked_again_after_ten_seconds(
    cached: CachedNovaRegistry, registry: FakeRegistry, clock: ManualClock
) -> None:
    assert await cached.get_app_and_version(8, 1) == (None, None)
    assert await cached.get_app_and_version(8, 1) == (None, None)
    assert len(registry.reads) == 1
    clock.ms += NOT_FOUND_TTL_MS
    await cached.get_app_and_version(8, 1)
    assert len(registry.reads) == 2


async def test_versions_of_different_apps_are_kept_apart(cached: CachedNovaRegistry, registry: FakeRegistry) -> None:
    await registry.register_app(8)
    assert await cached.get_version(APP, 1) is not None
    assert await cached.get_version(8, 1) is None


async def test_the_facts_of_a_wallet_are_remembered_together_and_for_as_long_as_each_of_them(
    cached: CachedNovaRegistry, registry: FakeRegistry, clock: ManualClock
) -> None:
    assert cached.remembered_facts(wallet(1)) is None
    instance = await cached.get_instance_by_wallet(wallet(1))
    assert instance is not None
    assert cached.remembered_facts(wallet(1)) is None
    clock.ms += TTL_MS - 1
    app, version = await cached.get_app_and_version(instance.app_id, instance.version_id)
    assert cached.remembered_facts(wallet(1)) == (instance, app, version)
    clock.ms += 1
    assert cached.remembered_facts(wallet(1)) is None
    await cached.get_instance_by_wallet(wallet(1))
    assert cached.remembered_facts(wallet(1)) == (instance, app, version)


# --- single flight ---


class Gate:
    """Holds every read until it is opened."""

    def __init__(self) -> None:
        self.opened = anyio.Event()
        self.waiting = 0

    async def __call__(self) -> None:
        self.waiting += 1
        await self.opened.wait()


async def settle() -> None:
    """Lets every task run until it waits."""
    await anyio.wait_all_tasks_blocked()


async def test_concurrent_misses_for_one_wallet_share_one_read(
    cached: CachedNovaRegistry, registry: FakeRegistry
) -> None:
    gate = registry.before_read = Gate()
    found: list[Instance | None] = []

    async def ask() -> None:
        found.append(await cached.get_instance_by_wallet(wallet(1)))

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(ask)
        await settle()
        gate.opened.set()

    assert len(registry.reads) == 1
    assert len(found) == 5
    assert all(instance is found[0] for instance in found)


async def test_misses_for_different_wallets_do_not_wait_for_each_other(
    cached: CachedNovaRegistry, registry: FakeRegistry
) -> None:
    gate = registry.before_read = Gate()
    async with anyio.create_task_group() as group:
        for number in range(3):
            group.start_soon(cached.get_instance_by_wallet, wallet(number))
        await settle()
        assert gate.waiting == 3
        gate.opened.set()


async def test_a_cancelled_leader_does_not_fail_those_who_wait(
    cached: CachedNovaRegistry, registry: FakeRegistry
) -> None:
    gate = registry.before_read = Gate()
    found: list[Instance | None] = []
    leader = anyio.CancelScope()

    async def lead() -> None:
        with leader:
            await cached.get_instance_by_wallet(wallet(1))

    async def follow() -> None:
        found.append(await cached.get_instance_by_wallet(wallet(1)))

    async with anyio.create_task_group() as group:
        group.start_soon(lead)
        await settle()
        group.start_soon(follow)
        group.start_soon(follow)
        await settle()
        leader.cancel()
        await settle()
        assert gate.waiting == 2  # the leader's read, and one of a follower in its place
        gate.opened.set()

    assert [instance and instance.wallet for instance in found] == [wallet(1), wallet(1)]


async def test_a_cancelled_follower_disturbs_nobody(cached: CachedNovaRegistry, registry: FakeRegistry) -> None:
    gate = registry.before_read = Gate()
    follower = anyio.CancelScope()
    found: list[Instance | None] = []

    async def lead() -> None:
        found.append(await cached.get_instance_by_wallet(wallet(1)))

    async def follow() -> None:
        with follower:
            await cached.get_instance_by_wallet(wallet(1))

    async with anyio.create_task_group() as group:
        group.start_soon(lead)
        await settle()
        group.start_soon(follow)
        await settle()
        follower.cancel()
        await settle()
        gate.opened.set()

    assert len(found) == 1
    assert gate.waiting == 1


async def test_a_failed_read_fails_everyone_who_waited_and_nobody_afterwards(
    cached: CachedNovaRegistry, registry: FakeRegistry
) -> None:
    gate = Gate()
    errors: list[str] = []

    async def wait_and_fail() -> None:
        await gate()
        raise ChainError("unreadable")

    async def ask() -> None:
        try:
            await cached.get_instance_by_wallet(wallet(1))
        except ChainError as error:
            errors.append(str(error))

    registry.before_read = wait_and_fail
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(ask)
        await settle()
        gate.opened.set()
    registry.before_read = None

    assert errors == ["unreadable"] * 3
    assert gate.waiting == 1
    assert await cached.get_instance_by_wallet(wallet(1)) is not None


async def test_concurrent_misses_for_one_app_and_version_share_one_read(
    cached: CachedNovaRegistry, registry: FakeRegistry
) -> None:
    gate = registry.before_read = Gate()
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(cached.get_app_and_version, APP, 1)
        await settle()
        gate.opened.set()
    assert registry.reads == [("get_app_and_version", APP, 1)]


# --- bounds and the budget ---


async def test_inventing_wallets_does_not_push_out_found_ones(
    registry: FakeRegistry, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "MAX_NOT_FOUND", 5)
    cached = CachedNovaRegistry(registry, clock, ttl_s=TTL_S)
    await cached.get_instance_by_wallet(wallet(1))
    for number in range(2, 22):
        await cached.get_instance_by_wallet(wallet(number))
    registry.reads.clear()

    await cached.get_instance_by_wallet(wallet(1))
    await cached.get_instance_by_wallet(wallet(21))
    assert registry.reads == []
    await cached.get_instance_by_wallet(wallet(2))  # pushed out by later inventions
    assert len(registry.reads) == 1


async def test_the_found_one_unused_for_longest_makes_room(
    registry: FakeRegistry, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "MAX_FOUND", 2)
    for number in (2, 3):
        await registry.register_instance(APP, 1, wallet=wallet(number), url="", tee_pubkey=b"")
    cached = CachedNovaRegistry(registry, clock, ttl_s=TTL_S)
    for number in (1, 2, 1, 3):
        await cached.get_instance_by_wallet(wallet(number))
    registry.reads.clear()

    await cached.get_instance_by_wallet(wallet(1))
    await cached.get_instance_by_wallet(wallet(2))
    assert instance_reads(registry) == [wallet(2)]


async def test_unknown_wallets_share_one_budget_of_reads(registry: FakeRegistry, clock: ManualClock) -> None:
    cached = CachedNovaRegistry(registry, clock, ttl_s=TTL_S, unknown_reads_per_s=2, unknown_reads_burst=3)
    for number in range(10, 13):
        await cached.get_instance_by_wallet(wallet(number))
    with pytest.raises(Rejected) as refused:
        await cached.get_instance_by_wallet(wallet(13))
    assert refused.value.reason is Reason.RATE
    assert len(registry.reads) == 3

    clock.ms += 500
    await cached.get_instance_by_wallet(wallet(13))
    with pytest.raises(Rejected):
        await cached.get_instance_by_wallet(wallet(14))


async def test_an_idle_budget_fills_up_to_its_burst_and_no_further(registry: FakeRegistry, clock: ManualClock) -> None:
    cached = CachedNovaRegistry(registry, clock, ttl_s=TTL_S, unknown_reads_per_s=2, unknown_reads_burst=1)
    clock.ms += 3_600_000
    await cached.get_instance_by_wallet(wallet(10))
    with pytest.raises(Rejected):
        await cached.get_instance_by_wallet(wallet(11))


async def test_a_spent_budget_does_not_touch_wallets_that_were_found(
    registry: FakeRegistry, clock: ManualClock
) -> None:
    cached = CachedNovaRegistry(registry, clock, ttl_s=TTL_S, unknown_reads_per_s=0.000001, unknown_reads_burst=2)
    await cached.get_instance_by_wallet(wallet(1))
    assert await cached.get_instance_by_wallet(wallet(10)) is None
    with pytest.raises(Rejected):
        await cached.get_instance_by_wallet(wallet(11))

    assert await cached.get_instance_by_wallet(wallet(1)) is not None
    assert await cached.get_instance_by_wallet(wallet(10)) is None  # remembered as not found
    clock.ms += TTL_MS
    assert await cached.get_instance_by_wallet(wallet(1)) is not None  # expired, but known


async def test_joining_a_read_under_way_costs_nothing_of_the_budget(registry: FakeRegistry, clock: ManualClock) -> None:
    cached = CachedNovaRegistry(registry, clock, ttl_s=TTL_S, unknown_reads_per_s=0.000001, unknown_reads_burst=1)
    gate = registry.before_read = Gate()
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(cached.get_instance_by_wallet, wallet(10))
        await settle()
        gate.opened.set()
    assert len(registry.reads) == 1
