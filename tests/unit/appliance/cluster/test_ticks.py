"""`SyncTick` pushes only when it may; `Sweeper` reclaims only what everybody has (node §3, store §1)."""

import anyio
import pytest

from appliance.chain.types import ChainError
from appliance.cluster.state import UnavailableReason
from appliance.cluster.sync_tick import Sweeper, SyncTick
from tests.support.cluster_bench import APP_ID, TTL_S, Bench, FakePeer, Gate, cancelled_at

pytestmark = pytest.mark.anyio

RETENTION_MS = 86_400_000
TTL_MS = int(TTL_S * 1000)


@pytest.fixture
async def peer(bench: Bench) -> FakePeer:
    """A member, and a record that it has not got yet."""
    peer = FakePeer(1)
    await bench.register(peer)
    await bench.peers.refresh()
    bench.hold_secret()
    bench.availability.set(None)
    bench.put("key", b"x")
    return peer


async def sync(bench: Bench) -> None:
    tick = SyncTick(peers=bench.peers, keys=bench.keys, pusher=bench.pusher, availability=bench.availability)
    async with anyio.create_task_group() as group:
        await tick.run_once(group)


async def sweep(bench: Bench) -> None:
    await Sweeper(replica=bench.replica, peers=bench.peers, pusher=bench.pusher, clock=bench.clock).run_once()


def tombstones(bench: Bench) -> int:
    return bench.replica.store.stats(bench.clock.now_ms()).tombstones


class TestSyncTick:
    async def test_it_pushes_to_every_peer(self, bench: Bench, peer: FakePeer) -> None:
        await sync(bench)
        assert peer.kinds() == ["delta"]

    async def test_not_without_a_confirmed_secret(self, bench: Bench, peer: FakePeer) -> None:
        bench.keys.unconfirm()
        await sync(bench)
        assert peer.asked == []

    async def test_not_while_the_node_is_unavailable(self, bench: Bench, peer: FakePeer) -> None:
        bench.availability.set(UnavailableReason.SECRET_SYNC_FAILED)
        await sync(bench)
        assert peer.asked == []

    async def test_a_stale_membership_is_read_again_first(self, bench: Bench, peer: FakePeer) -> None:
        bench.clock.elapsed_ms += TTL_MS + 1
        await sync(bench)
        assert peer.kinds() == ["delta"]

    async def test_nobody_is_pushed_to_on_a_membership_that_cannot_be_read(self, bench: Bench, peer: FakePeer) -> None:
        async def fail() -> None:
            raise ChainError("unreadable")

        bench.registry.before_read = fail
        bench.clock.elapsed_ms += TTL_MS + 1
        await sync(bench)
        assert peer.asked == []

    async def test_cancelled_while_it_reads_the_membership(self, bench: Bench, peer: FakePeer) -> None:
        bench.clock.elapsed_ms += TTL_MS + 1
        bench.registry.before_read = (gate := Gate()).wait
        await cancelled_at(gate, lambda: sync(bench))
        assert peer.asked == []
        await sync(bench)
        assert peer.kinds() == ["delta"]


class TestSweeper:
    @pytest.mark.usefixtures("peer")
    async def test_a_tombstone_goes_after_its_retention_when_all_have_it(self, bench: Bench) -> None:
        bench.replica.store.delete(APP_ID, "key", bench.clock.now_ms())
        await sync(bench)
        await sweep(bench)
        assert tombstones(bench) == 1
        bench.clock.elapsed_ms += RETENTION_MS + 1
        await bench.peers.refresh()
        await sweep(bench)
        assert tombstones(bench) == 0

    async def test_a_tombstone_that_a_peer_has_not_acknowledged_stays(self, bench: Bench, peer: FakePeer) -> None:
        bench.replica.store.delete(APP_ID, "key", bench.clock.now_ms())
        peer.refusals = [503]
        await sync(bench)
        bench.clock.elapsed_ms += 10 * RETENTION_MS
        await bench.peers.refresh()
        await sweep(bench)
        assert tombstones(bench) == 1

    @pytest.mark.usefixtures("peer")
    async def test_without_a_view_of_the_members_no_tombstone_goes(self, bench: Bench) -> None:
        bench.replica.store.delete(APP_ID, "key", bench.clock.now_ms())
        await sync(bench)
        bench.clock.elapsed_ms += RETENTION_MS + 1
        assert not bench.peers.fresh
        await sweep(bench)
        assert tombstones(bench) == 1

    @pytest.mark.usefixtures("peer")
    async def test_expired_values_go_without_being_asked_for(self, bench: Bench) -> None:
        store = bench.replica.store
        for number in range(1200):
            store.put(APP_ID, f"short {number}", bytes(40), 1000, bench.clock.now_ms())
        await sync(bench)
        before = store.memory_used()
        bench.clock.elapsed_ms += 1001
        await sweep(bench)
        assert store.memory_used() < before
        assert bench.replica.keys(APP_ID) == ["key"]

    @pytest.mark.usefixtures("peer")
    async def test_cancelled_while_somebody_writes(self, bench: Bench) -> None:
        gate = Gate()

        async def announce_and_sweep() -> None:
            gate.reached.set()
            await sweep(bench)

        async with bench.replica.writing():
            await cancelled_at(gate, announce_and_sweep)
        await sweep(bench)
