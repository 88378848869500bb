"""Whatever was lost, once all nodes can talk again all hold the same live map within two rounds (store §5)."""

import json

import anyio
import pytest

from appliance.cluster.anti_entropy import Comparison
from appliance.cluster.messages import EXT_SNAPSHOT_PAGES
from appliance.cluster.push import PeerRefusesRecords
from appliance.cluster.transport import PeerRefused, PeerUntrusted
from kmscore.errors import Rejected
from kmscore.store import Record, StoreLimits
from tests.support.simulated_cluster import SimulatedNetwork, SimulatedNode, SimulatedTransport

pytestmark = pytest.mark.anyio

SKEW_MS = 2_000
ROOMY = StoreLimits(max_app_bytes=1 << 30)


async def compare(network: SimulatedNetwork, one: SimulatedNode, other: SimulatedNode) -> Comparison:
    comparison = Comparison(other.peer, one.replica, one.keys, SimulatedTransport(network, one), one.clock)
    await comparison.run()
    return comparison


async def run_round(network: SimulatedNetwork) -> None:
    """Every node compares with every other in turn; nothing is pushed."""
    for _ in range(len(network.nodes) - 1):
        for node in network.nodes:
            await node.anti_entropy.run_once()


def same(network: SimulatedNetwork) -> bool:
    first, *others = [node.contents() for node in network.nodes]
    return all(contents == first for contents in others)


def fill(node: SimulatedNode, count: int, app_id: int = 1) -> None:
    for number in range(count):
        node.put(app_id, f"key {number}", b"v")


async def clones(count: int) -> SimulatedNetwork:
    """Two nodes that hold the same records."""
    network = SimulatedNetwork(2, limits=ROOMY)
    fill(network.nodes[0], count)
    await network.nodes[0].push()
    assert same(network)
    return network


class TestOneComparison:
    async def test_stores_that_agree_cost_one_small_message(self) -> None:
        network = await clones(2_000)
        network.bytes = 0
        comparison = await compare(network, *network.nodes)
        assert (comparison.requests, comparison.pulled, comparison.offered) == (1, 0, 0)
        assert network.bytes < 1_000

    @pytest.mark.parametrize("missing", [1, 10, 100])
    async def test_the_cost_follows_the_difference_and_not_the_store(self, missing: int) -> None:
        network = await clones(20_000)
        one, other = network.nodes
        for number in range(missing):
            one.put(1, f"of one {number}", b"v")
            other.put(1, f"of other {number}", b"v")
        network.bytes = 0
        comparison = await compare(network, one, other)
        assert (comparison.pulled, comparison.offered) == (missing, missing)
        # A level of the tree each, of at most 256 ranges a message; then records of theirs, and records of ours.
        assert comparison.requests <= 8 + missing // 30
        assert network.bytes < 20_000 + 2 * missing * 10_000
        assert same(network)
        assert (await compare(network, other, one)).requests == 1

    async def test_a_node_with_nothing_gets_everything_and_gives_everything(self) -> None:
        for direction in (1, -1):
            network = SimulatedNetwork(2, limits=ROOMY)
            for app_id in range(8):
                fill(network.nodes[0], 700, app_id)
            comparison = await compare(network, *network.nodes[::direction])
            assert same(network)
            assert len(network.nodes[1].contents()) == 5_600
            assert comparison.requests < 60

    async def test_records_that_fill_messages_alone_arrive_too(self) -> None:
        network = SimulatedNetwork(2)
        for number in range(5):
            network.nodes[0].put(1, f"large {number}", bytes([number]) * 900_000)
            network.nodes[1].put(2, f"large {number}", bytes([number]) * 900_000)
        await compare(network, *network.nodes)
        assert same(network)
        assert len(network.nodes[0].contents()) == 10

    async def test_a_deletion_wins_over_the_live_record_it_meets_whoever_asks(self) -> None:
        for direction in (1, -1):
            network = await clones(100)
            one, other = network.nodes
            network.pass_time(1_000)
            one.delete(1, "key 7")
            await compare(network, *network.nodes[::direction])
            assert same(network)
            assert (1, "key 7") not in other.contents()
            assert (await compare(network, one, other)).requests == 1

    async def test_an_expired_write_wins_over_the_live_record_it_meets_whoever_asks(self) -> None:
        for direction in (1, -1):
            network = await clones(100)
            one, other = network.nodes
            network.pass_time(1_000)
            one.put(1, "key 7", b"short-lived", 50)
            network.pass_time(1_000)
            await compare(network, *network.nodes[::direction])
            assert same(network)
            assert (1, "key 7") not in other.contents()

    async def test_concurrent_writes_are_settled_and_both_sides_know_it(self) -> None:
        network = await clones(100)
        one, other = network.nodes
        for number in range(10):
            one.put(1, f"key {number}", b"of one")
            network.pass_time(number % 2)
            other.put(1, f"key {number}", b"of other")
        await compare(network, one, other)
        assert same(network)
        assert (await compare(network, other, one)).requests == 1

    async def test_what_one_has_forgotten_and_the_other_not_yet_is_no_difference(self) -> None:
        network = SimulatedNetwork(2, limits=StoreLimits(tombstone_retention_ms=1_000))
        one, other = network.nodes
        fill(one, 50)
        for number in range(50, 100):
            one.put(1, f"key {number}", b"v", 500)
        await one.push()
        one.delete(1, "key 3")
        await one.push()
        network.pass_time(2_000)
        while one.replica.store.sweep(one.clock.now_ms(), one.replica.store.last_seq):
            pass
        assert one.replica.store.find(1, "key 3") is None
        assert other.replica.store.find(1, "key 3") is not None
        assert (await compare(network, one, other)).requests == 1

    async def test_what_came_by_comparison_is_an_ordinary_change_and_travels_on(self) -> None:
        network = SimulatedNetwork(3)
        one, other, third = network.nodes
        one.put(1, "k", b"v")
        await compare(network, other, one)
        await other.push()
        assert third.contents() == {(1, "k"): b"v"}

    async def test_a_record_that_the_peer_cannot_take_stops_nothing(self) -> None:
        network = await clones(10)
        one, other = network.nodes
        one.replica.store.put(1, "not ours", bytes(64), 0, one.clock.now_ms())
        one.put(1, "good", b"v")
        await compare(network, other, one)
        assert other.contents()[1, "good"] == b"v"

    async def test_a_record_for_which_a_peer_refuses_the_whole_message_holds_no_other_back(self) -> None:
        network = await clones(10)
        one, other = network.nodes
        for number in range(40):
            one.put(1, f"new {number:02d}", b"v")
        transport = Refusing(network, one, {"new 17"})
        comparison = Comparison(other.peer, one.replica, one.keys, transport, one.clock)
        await comparison.run()
        assert one.contents().keys() - other.contents().keys() == {(1, "new 17")}
        assert comparison.offered == 39

    async def test_a_peer_that_refuses_records_one_by_one_is_not_asked_about_all_of_them(self) -> None:
        network = await clones(10)
        one, other = network.nodes
        for number in range(400):
            one.put(1, f"new {number}", b"v")
        everything = {key for _, key in one.contents()}
        comparison = Comparison(other.peer, one.replica, one.keys, Refusing(network, one, everything), one.clock)
        with pytest.raises(PeerRefusesRecords):
            await comparison.run()
        assert network.messages["delta"] < 60

    @pytest.mark.parametrize(("extra", "count"), [(1, 5), (0, 4)])
    async def test_more_records_than_were_asked_for_or_looked_at_are_refused(self, extra: int, count: int) -> None:
        network = await clones(10)
        one, other = network.nodes
        for number in range(5):
            other.put(1, f"new {number}", b"v")

        class Generous(SimulatedTransport):
            async def exchange(self, peer, inner, **bounds):  # type: ignore[no-untyped-def]
                answer = await super().exchange(peer, inner, **bounds)
                if inner["type"] == "records_request":
                    assert answer.inner["count"] == 5
                    answer.inner["count"] = count
                    answer.inner["data"]["1"] += answer.inner["data"]["1"][:extra]
                return answer

        comparison = Comparison(other.peer, one.replica, one.keys, Generous(network, one), one.clock)
        with pytest.raises(PeerUntrusted):
            await comparison.run()
        assert len(one.contents()) == 10

    async def test_records_with_long_clocks_are_merged_in_slices_between_which_others_run(self) -> None:
        network = await clones(1)
        one, other = network.nodes
        clock = {f"writer {number}": 1 for number in range(1_000)}
        for number in range(40):
            record = Record(f"new {number}", other.replica.encrypt(1, b"v"), clock, other.clock.now_ms())
            other.replica.store.merge(1, record, other.clock.now_ms())
        counts: set[int] = set()

        async def others() -> None:
            while True:
                counts.add(len(one.contents()))
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as group:
            group.start_soon(others)
            comparison = await compare(network, one, other)
            group.cancel_scope.cancel()
        assert comparison.pulled == 40
        assert same(network)
        assert len(counts) >= 8

    @pytest.mark.parametrize("answered", [False, True])
    async def test_cancelled_at_any_message_it_leaves_nothing_that_the_next_one_does_not_settle(
        self, answered: bool
    ) -> None:
        for fatal in range(1, 9):
            network = await clones(600)
            one, other = network.nodes
            one.put(1, "of one", b"v")
            other.put(1, "of other", b"v")
            other.delete(1, "key 5")
            with anyio.CancelScope() as scope:
                transport = Fatal(network, one, scope, fatal, answered=answered)
                await Comparison(other.peer, one.replica, one.keys, transport, one.clock).run()
            await compare(network, one, other)
            assert same(network)
            assert len(one.contents()) == 601


class Refusing(SimulatedTransport):
    """The peer answers 400 to every delta that holds one of these keys, as some nodes do for one bad record."""

    def __init__(self, network, sender, keys) -> None:  # type: ignore[no-untyped-def]
        super().__init__(network, sender)
        self._keys = keys

    async def exchange(self, peer, inner, **bounds):  # type: ignore[no-untyped-def]
        if inner["type"] == "delta" and any(
            item["key"] in self._keys for records in json.loads(inner["data"]).values() for item in records
        ):
            self._network.messages["delta"] += 1
            raise PeerRefused(400, "bad_request", None)
        return await super().exchange(peer, inner, **bounds)


class Fatal(SimulatedTransport):
    """The message with this number is the last: the caller is cancelled before or after it is answered."""

    def __init__(self, network, sender, scope, fatal, *, answered) -> None:  # type: ignore[no-untyped-def]
        super().__init__(network, sender)
        self._scope, self._fatal, self._answered = scope, fatal, answered

    async def exchange(self, peer, inner, **bounds):  # type: ignore[no-untyped-def]
        self._fatal -= 1
        if self._fatal == 0 and not self._answered:
            self._scope.cancel()
            await anyio.lowlevel.checkpoint()
        answer = await super().exchange(peer, inner, **bounds)
        if self._fatal == 0:
            self._scope.cancel()
            await anyio.lowlevel.checkpoint()
        return answer


class TestTheTask:
    async def test_peers_take_turns_and_one_that_is_out_of_reach_is_passed_over(self) -> None:
        network = SimulatedNetwork(4)
        network.introduce()
        first, _, third, _ = network.nodes
        asked: list[str] = []

        class Listening(SimulatedTransport):
            async def exchange(self, peer, inner, **bounds):  # type: ignore[no-untyped-def]
                asked.append(peer.wallet[-1])
                return await super().exchange(peer, inner, **bounds)

        first.anti_entropy._transport = Listening(network, first)
        for _ in range(4):
            await first.anti_entropy.run_once()
        network.separate([third])
        for _ in range(3):
            await first.anti_entropy.run_once()
        assert "".join(asked) == "2342" + "34" + "2" + "34"

    async def test_nothing_happens_while_unavailable_or_cut_off_for_long(self) -> None:
        network = SimulatedNetwork(2)
        network.introduce()
        one, other = network.nodes
        one.put(1, "k", b"v")
        before = network.messages.total()
        network.pass_time(43_200_001)
        await one.anti_entropy.run_once()
        assert network.messages.total() == before
        assert other.contents() == {}

    async def test_a_peer_without_the_extension_is_asked_for_a_snapshot_after_long_failures_only(self) -> None:
        network = SimulatedNetwork(2)
        network.extensions = (EXT_SNAPSHOT_PAGES,)
        one, other = network.nodes
        network.introduce()
        other.put(1, "k", b"v")
        await one.anti_entropy.run_once()
        assert one.contents() == {}
        network.separate([one])
        for _ in range(2):
            one.put(1, "of one", b"v")
            await one.push()
            await one.anti_entropy.run_once()
        network.heal()
        await one.push()
        await one.anti_entropy.run_once()
        assert one.contents() == {(1, "k"): b"v", (1, "of one"): b"v"}
        assert not network.messages["digest_request"]
        before = network.messages["snapshot_page_request"]
        await one.anti_entropy.run_once()
        assert network.messages["snapshot_page_request"] == before


@pytest.mark.parametrize("seed", range(12))
async def test_after_any_history_all_nodes_agree_within_two_rounds(seed: int) -> None:
    network = SimulatedNetwork(3 + seed % 3, seed=seed, skew_ms=SKEW_MS)
    rng = network.rng
    network.introduce()
    for _ in range(60):
        step = rng.random()
        if step < 0.1:
            network.separate(rng.sample(network.nodes, rng.randint(1, len(network.nodes) - 1)))
        elif step < 0.2:
            network.heal()
        elif step < 0.3:
            network.loss = rng.choice([0.0, 0.3, 0.8])
        for node in network.nodes:
            for _ in range(rng.randint(0, 8)):
                live_through(node, rng)
            if rng.random() < 0.5:
                await node.push()
            if rng.random() < 0.2:
                await node.anti_entropy.run_once()
            await node.sweeper.run_once()
        if rng.random() < 0.08:
            await restart(rng.choice(network.nodes), network)
        network.pass_time(rng.choice([10, 1_000, 10_000]))
    network.heal()
    for node in network.nodes:
        if not node.replica.complete:
            assert await node.join()
    network.pass_time(20_000)
    network.introduce()
    await run_round(network)
    await run_round(network)
    assert same(network)
    before = network.messages.total()
    await run_round(network)
    assert network.messages.total() - before == len(network.nodes) * (len(network.nodes) - 1)


def live_through(node: SimulatedNode, rng) -> None:  # type: ignore[no-untyped-def]
    if not node.availability.available:
        return
    app_id, key = rng.randint(0, 3), f"key {rng.randint(0, 30)}"
    if rng.random() < 0.7:
        node.put(app_id, key, rng.randbytes(4), rng.choice([0, 0, 0, 5_000]))
    else:
        try:
            node.delete(app_id, key)
        except Rejected:
            assert node.replica.get(app_id, key) is None


async def restart(node: SimulatedNode, network: SimulatedNetwork) -> None:
    """Its memory is gone. The last that has the data does not restart: that would be the end of it."""
    if sum(other.replica.complete for other in network.nodes) > 1:
        node.start()
        await node.join()
