"""Snapshots: complete or not at all, from peers of either kind, and what a node gives away itself (protocol §5)."""

import json
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import anyio
import pytest

from appliance.cluster.snapshot import SnapshotServer, WholeData
from appliance.cluster.transport import PeerError, PeerUntrusted
from kmscore.errors import Reason, Rejected, Unavailable
from kmscore.store import Record, StoreLimits
from tests.support.cluster_bench import APP_ID, OTHER_SECRET, Bench, FakePeer, Gate, cancelled_at, record

pytestmark = pytest.mark.anyio

PAGES = frozenset({"snapshot_pages"})
APP = str(APP_ID)


@pytest.fixture
async def peer(bench: Bench) -> FakePeer:
    """A peer with five records, in pages of two."""
    peer = FakePeer(1, extensions=["snapshot_pages"], boot_id="first")
    peer.records = {APP: [record(f"key {number}", b"value") for number in range(4)] + [record("gone", None)]}
    bench.reach(peer)
    bench.hold_secret()
    return peer


async def pull(bench: Bench, peer: FakePeer, extensions: frozenset[str] = PAGES) -> object:
    return await bench.snapshots.pull(peer.peer, extensions, keep_names=False)


async def whole(server: SnapshotServer) -> dict[str, list[dict[str, object]]]:
    async with server.whole() as data:
        text = b"".join(data.parts)
    assert len(text) == data.size_bytes
    return json.loads(text)  # type: ignore[no-any-return]


class TestPulling:
    async def test_pages_are_walked_to_their_end(self, bench: Bench, peer: FakePeer) -> None:
        await pull(bench, peer)
        assert bench.contents() == {f"key {number}": b"value" for number in range(4)}
        assert [inner["after"] for inner in peer.received] == [0, 2, 4]
        assert bench.replica.store.stats(bench.clock.now_ms()).tombstones == 1

    async def test_an_older_peer_gives_all_at_once(self, bench: Bench, peer: FakePeer) -> None:
        await pull(bench, peer, frozenset())
        assert len(bench.contents()) == 4
        assert peer.kinds() == ["snapshot_request"]

    @pytest.mark.parametrize(
        "alter",
        [
            lambda page: {**page, "next": 0},
            lambda page: {**page, "next": -1},
            lambda page: {**page, "next": "2"},
            lambda page: {**page, "next": True},
            lambda page: {name: value for name, value in page.items() if name not in ("next", "done")},
            lambda page: {**page, "done": 1, "next": None},
            lambda page: {**page, "data": []},
            lambda page: {**page, "data": {APP: {}}},
            lambda page: {**page, "data": {"seven": []}},
            lambda page: {name: value for name, value in page.items() if name != "data"},
        ],
    )
    async def test_a_page_that_does_not_lead_on_ends_the_walk(
        self, bench: Bench, peer: FakePeer, alter: Callable[[dict[str, object]], dict[str, object]]
    ) -> None:
        peer.alter["snapshot_page_request"] = alter
        with pytest.raises(PeerUntrusted):
            await pull(bench, peer)

    async def test_a_walk_that_breaks_off_is_no_snapshot_but_what_came_stays(
        self, bench: Bench, peer: FakePeer
    ) -> None:
        served = 0

        def fail_later(page: dict[str, object]) -> dict[str, object]:
            nonlocal served
            served += 1
            if served == 2:
                peer.refusals = [503]
            return page

        peer.alter["snapshot_page_request"] = fail_later
        with pytest.raises(PeerError):
            await pull(bench, peer)
        assert set(bench.contents()) == {f"key {number}" for number in range(4)}

    async def test_records_that_cannot_be_read_refuse_themselves_only(self, bench: Bench, peer: FakePeer) -> None:
        peer.records[APP].append(record("of another secret", b"x", secret=OTHER_SECRET))
        peer.records[APP].append({"key": "malformed"})
        await pull(bench, peer)
        assert len(bench.contents()) == 4

    @pytest.mark.parametrize("extensions", [PAGES, frozenset()])
    async def test_a_store_that_does_not_fit_is_no_snapshot(self, peer: FakePeer, extensions: frozenset[str]) -> None:
        small = Bench(limits=StoreLimits(max_store_bytes=600))
        small.reach(peer)
        small.hold_secret()
        with pytest.raises(PeerUntrusted):
            await pull(small, peer, extensions)
        await small.aclose()

    @pytest.mark.parametrize("extensions", [PAGES, frozenset()])
    async def test_a_cancelled_pull_can_be_done_again(
        self, bench: Bench, peer: FakePeer, extensions: frozenset[str]
    ) -> None:
        kind = "snapshot_page_request" if extensions else "snapshot_request"
        peer.gates[kind] = gate = Gate()
        await cancelled_at(gate, lambda: pull(bench, peer, extensions))
        assert bench.contents() == {}
        bench.put("lock is free", b"x")
        await pull(bench, peer, extensions)
        assert len(bench.contents()) == 5

    async def test_a_pull_is_cancelled_while_it_waits_for_the_write_lock(self, bench: Bench, peer: FakePeer) -> None:
        gate = Gate()

        def about_to_merge(page: dict[str, object]) -> dict[str, object]:
            gate.reached.set()
            return page

        peer.alter["snapshot_page_request"] = about_to_merge
        async with bench.replica.writing():
            await cancelled_at(gate, lambda: pull(bench, peer))
        assert bench.contents() == {}
        await pull(bench, peer)
        assert len(bench.contents()) == 4


class TestServing:
    async def test_pages_together_are_the_whole_store(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("appliance.cluster.snapshot.PAGE_RECORDS", 3)
        bench.hold_secret()
        for number in range(8):
            bench.put(f"key {number}", b"value")
        server = SnapshotServer(bench.replica, max_answer_bytes=1 << 20)
        names: list[str] = []
        after, done = 0, False
        while not done:
            page = await server.page({"after": after})
            names += [str(item["key"]) for item in json.loads(page["data"]).get(APP, [])]
            assert int(str(page["next"])) > after or page["done"]
            after, done = int(str(page["next"])), page["done"] is True
        assert sorted(names) == [f"key {number}" for number in range(8)]
        assert sorted(item["key"] for item in (await whole(server))[APP]) == sorted(names)

    @pytest.mark.parametrize("after", [None, -1, True, "0", 1.0, 2**63, []])
    async def test_a_position_that_is_none_is_refused(self, bench: Bench, after: object) -> None:
        with pytest.raises(Rejected) as refusal:
            await SnapshotServer(bench.replica, max_answer_bytes=1 << 20).page({"after": after})
        assert refusal.value.reason is Reason.BAD_FIELD

    async def test_a_position_beyond_the_end_is_the_end(self, bench: Bench) -> None:
        page = await SnapshotServer(bench.replica, max_answer_bytes=1 << 20).page({"after": 10**9})
        assert (page["data"], page["done"]) == (b"{}", True)

    async def test_a_store_too_large_for_one_answer_is_joined_by_pages(self, bench: Bench) -> None:
        bench.hold_secret()
        bench.put("large", bytes(10_000))
        server = SnapshotServer(bench.replica, max_answer_bytes=1000)
        with pytest.raises(Rejected) as refusal:
            await whole(server)
        assert refusal.value.reason is Reason.TOO_LARGE
        assert (await server.page({"after": 0}))["done"] is True

    async def test_an_empty_store_is_an_empty_object(self, bench: Bench) -> None:
        assert await whole(SnapshotServer(bench.replica, max_answer_bytes=100)) == {}

    async def test_the_bound_is_what_the_data_takes_in_hex(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("appliance.cluster.snapshot.PAGE_RECORDS", 3)
        clock = {f"writer {number}": 1 for number in range(1000)}
        for app_id in (1, 2**256 - 1):
            for number in range(10):
                bench.replica.store.merge(app_id, Record(f"ключ {number}", None, clock, 1), bench.clock.now_ms())
        async with SnapshotServer(bench.replica, max_answer_bytes=1 << 30).whole() as data:
            body_bytes = 2 * data.size_bytes
        assert len(await whole(SnapshotServer(bench.replica, max_answer_bytes=body_bytes))) == 2
        with pytest.raises(Rejected):
            await whole(SnapshotServer(bench.replica, max_answer_bytes=body_bytes - 1))

    async def test_whole_data_is_written_in_parts_that_let_its_records_go(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("appliance.cluster.snapshot.PART_BYTES", 2000)
        data = WholeData()
        for app_id in range(1, 30):
            data.add([(app_id, number, Record(f"key {number}", bytes(100), {"w": 1}, 1)) for number in range(app_id)])
        left = [sum(range(1, 30))]
        parts: list[bytes] = []
        for part in data.parts():
            parts.append(part)
            left.append(sum(map(len, data._lists.values())))
        assert left[-1] == 0
        assert all(0 <= before - after < 30 for before, after in pairwise(left))
        assert max(map(len, parts)) < 3 * 2000
        assert len(parts) > data.size_bytes // 3000
        held = json.loads(b"".join(parts))
        assert {app: len(records) for app, records in held.items()} == {str(app): app for app in range(1, 30)}

    async def test_one_whole_store_at_a_time_until_its_answer_is_sent(self, bench: Bench) -> None:
        bench.hold_secret()
        bench.put("key", b"x")
        server = SnapshotServer(bench.replica, max_answer_bytes=1 << 20)
        for error in (Unavailable("the TEE provider does not answer"), None):
            with suppress(Unavailable):
                async with server.whole():
                    with pytest.raises(Unavailable, match="another snapshot"):
                        await whole(server)
                    if error is not None:
                        raise error
            assert len((await whole(server))[APP]) == 1

    async def test_a_whole_store_is_let_go_when_it_is_cancelled_or_refused(self, bench: Bench) -> None:
        bench.hold_secret()
        bench.put("key", bytes(1000))
        server = SnapshotServer(bench.replica, max_answer_bytes=6000)
        gate = Gate()

        async def seal() -> None:
            async with server.whole():
                await gate.wait()

        await cancelled_at(gate, seal)
        assert len((await whole(server))[APP]) == 1
        with anyio.CancelScope() as scope:
            scope.cancel()
            await whole(server)
        assert len((await whole(server))[APP]) == 1
        bench.put("another", bytes(1000))
        for _ in range(2):
            with pytest.raises(Rejected):
                await whole(server)
