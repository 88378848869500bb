"""`Pusher`: every peer gets what it has not acknowledged, and nothing counts that was not (store §1, §4)."""

import itertools

import anyio
import httpx
import pytest

from kmscore.store import StoreLimits
from tests.support import wire
from tests.support.cluster_bench import (
    APP_ID,
    ISOLATION_MS,
    Bench,
    FakePeer,
    Gate,
    cancelled_at,
    record,
)

pytestmark = pytest.mark.anyio

APP = str(APP_ID)
# store §4 and protocol §7: what one request may hold.
BATCH_RECORDS = 500
BODY_BYTES = 3 << 19


@pytest.fixture
async def peer(bench: Bench) -> FakePeer:
    peer = FakePeer(1, extensions=["snapshot_pages"], boot_id="first")
    bench.reach(peer)
    bench.hold_secret()
    return peer


def sent(peer: FakePeer) -> list[list[str]]:
    """The keys of each delta that the peer received; deltas without a record are left out."""
    deltas = [inner for inner in peer.received if inner["type"] == "delta"]
    keys = [[str(item["key"]) for item in delta["data"].get(APP, [])] for delta in deltas]  # type: ignore[attr-defined]
    return [names for names in keys if names]


def acknowledged(bench: Bench, peer: FakePeer) -> bool:
    progress = bench.pusher.progress_of(peer.address)
    return progress is not None and progress.settled_seq == bench.replica.store.last_seq


def parked(bench: Bench, peer: FakePeer) -> int:
    progress = bench.pusher.progress_of(peer.address)
    return 0 if progress is None else len(progress.parked)


def last_error(bench: Bench, peer: FakePeer) -> str | None:
    progress = bench.pusher.progress_of(peer.address)
    assert progress is not None
    return progress.last_error


class TestWhatIsSent:
    async def test_everything_once_and_oldest_first(self, bench: Bench, peer: FakePeer) -> None:
        for key in ("b", "a", "c"):
            bench.put(key, b"x")
        await bench.push(peer)
        await bench.push(peer)
        assert sent(peer) == [["b", "a", "c"]]
        assert acknowledged(bench, peer)
        bench.put("a", b"y")
        bench.replica.store.delete(APP_ID, "b", bench.clock.now_ms())
        await bench.push(peer)
        assert sent(peer)[1:] == [["a", "b"]]

    async def test_a_new_peer_gets_everything(self, bench: Bench, peer: FakePeer) -> None:
        bench.put("old", b"x")
        await bench.push(peer)
        bench.reach(late := FakePeer(2))
        await bench.push(peer, late)
        assert sent(late) == [["old"]]
        assert len(sent(peer)) == 1

    async def test_batches_stay_below_what_older_peers_accept(self, bench: Bench, peer: FakePeer) -> None:
        bodies: list[int] = []
        peer.spoil = lambda response: bodies.append(int(peer.headers.get("content-length", 0))) or response  # type: ignore[func-returns-value]
        for number in range(BATCH_RECORDS + 1):
            bench.put(f"small {number}", b"x")
        for number in range(6):
            bench.put(f"large {number}", bytes(200_000))
        await bench.push(peer)
        assert max(map(len, sent(peer))) <= BATCH_RECORDS
        assert max(bodies) <= BODY_BYTES
        assert sum(map(len, sent(peer))) == BATCH_RECORDS + 7
        assert acknowledged(bench, peer)

    async def test_a_record_larger_than_a_batch_goes_alone(self, bench: Bench, peer: FakePeer) -> None:
        bench.put("before", b"x")
        bench.put("huge", bytes(700_000))
        bench.put("after", b"x")
        await bench.push(peer)
        assert ["huge"] in sent(peer)
        assert acknowledged(bench, peer)

    async def test_what_a_peer_sent_is_not_sent_back_until_it_changes(self, bench: Bench, peer: FakePeer) -> None:
        bench.reach(other := FakePeer(2))
        incoming = await bench.replica.check_incoming({APP: [record("theirs", b"x", at_ms=bench.clock.now_ms())]})
        bench.replica.merge(incoming, peer.address)
        await bench.push(peer, other)
        assert sent(peer) == []
        assert sent(other) == [["theirs"]]
        bench.clock.elapsed_ms += 1
        bench.put("theirs", b"ours now")
        await bench.push(peer, other)
        assert sent(peer) == [["theirs"]]

    async def test_we_are_no_peer_of_ours(self, bench: Bench, peer: FakePeer) -> None:
        bench.put("key", b"x")
        own = FakePeer(9)
        own.wallet = wire.Wallet(b"\x77" * 32)
        bench.reach(own)
        await bench.push(own, peer)
        assert own.asked == []
        assert acknowledged(bench, peer)


class TestWhatCounts:
    @pytest.mark.parametrize("status", [403, 429, 500, 503])
    async def test_a_refusal_acknowledges_nothing(self, bench: Bench, peer: FakePeer, status: int) -> None:
        bench.put("key", b"x")
        peer.refusals = [status] * 3
        await bench.push(peer)
        assert not acknowledged(bench, peer)
        assert last_error(bench, peer)
        peer.refusals = []
        bench.clock.elapsed_ms += 600_000
        await bench.push(peer)
        assert acknowledged(bench, peer)
        assert last_error(bench, peer) is None

    async def test_a_wrong_signature_acknowledges_nothing(self, bench: Bench, peer: FakePeer) -> None:
        bench.put("key", b"x")

        def forge(response: httpx.Response) -> httpx.Response:
            if "X-KMS-Peer-Signature" in response.headers:
                response.headers["X-KMS-Peer-Signature"] = wire.Wallet().sign("something else")
            return response

        peer.spoil = forge
        await bench.push(peer)
        assert not acknowledged(bench, peer)
        peer.spoil = None
        await bench.push(peer)
        assert acknowledged(bench, peer)

    @pytest.mark.parametrize("rejected", [1, "0", None, True, -1, 0.5])
    async def test_an_answer_that_counts_rejections_acknowledges_no_single_record(
        self, bench: Bench, peer: FakePeer, rejected: object
    ) -> None:
        bench.put("key", b"x")
        peer.alter["delta"] = lambda answer: {**answer, "rejected": rejected}
        await bench.push(peer)
        assert not acknowledged(bench, peer)

    async def test_an_older_peers_answer_without_counts_is_enough(self, bench: Bench) -> None:
        bench.hold_secret()
        bench.reach(old := FakePeer(2))
        bench.put("key", b"x")
        old.alter["delta"] = lambda _: {"status": "ok", "merged": 1}
        await bench.push(old)
        assert acknowledged(bench, old)

    async def test_429_is_honoured(self, bench: Bench, peer: FakePeer) -> None:
        bench.put("key", b"x")
        peer.refusals, peer.refusal_headers = [429], {"Retry-After": "30"}
        await bench.push(peer)
        asked = len(peer.asked)
        bench.clock.elapsed_ms += 29_000
        await bench.push(peer)
        assert len(peer.asked) == asked
        bench.clock.elapsed_ms += 1_001
        await bench.push(peer)
        assert acknowledged(bench, peer)


class Picky:
    """A peer that refuses batches holding certain keys, with a status or by counting them."""

    def __init__(self, peer: FakePeer, *keys: str) -> None:
        self.keys = set(keys)
        peer.alter["delta"] = self._count
        self._peer = peer

    def _count(self, answer: dict[str, object]) -> dict[str, object]:
        names = {item["key"] for item in self._peer.received[-1]["data"].get(APP, [])}  # type: ignore[attr-defined]
        return {**answer, "rejected": len(names & self.keys)}


class TestParking:
    @pytest.mark.parametrize("status", [400, 413])
    async def test_the_batch_is_halved_until_the_refused_record_is_alone(
        self, bench: Bench, peer: FakePeer, status: int
    ) -> None:
        for number in range(8):
            bench.put(f"key {number}", b"x")
        await bench.push(peer)  # the label is known from now on
        bench.put("refused", b"x")
        peer.refusals = [status]
        await bench.push(peer)
        assert parked(bench, peer) == 1
        assert not acknowledged(bench, peer)
        bench.put("later", b"x")
        await bench.push(peer)
        assert ["later"] in sent(peer)
        assert parked(bench, peer) == 1

    @pytest.mark.parametrize("place", range(5))
    async def test_only_the_refused_record_is_parked_wherever_it_is(
        self, bench: Bench, peer: FakePeer, place: int
    ) -> None:
        Picky(peer, f"key {place}")
        for number in range(5):
            bench.put(f"key {number}", b"x")
        await bench.push(peer)
        progress = bench.pusher.progress_of(peer.address)
        assert progress is not None
        assert [key for _, key in progress.parked] == [f"key {place}"]

    async def test_a_parked_record_is_tried_again_with_growing_pauses(self, bench: Bench, peer: FakePeer) -> None:
        picky = Picky(peer, "refused")
        bench.put("refused", b"x")
        await bench.push(peer)
        attempts = []
        for minute in range(1, 60):
            bench.clock.elapsed_ms += 60_000
            before = len(sent(peer))
            await bench.push(peer)
            if len(sent(peer)) > before:
                attempts.append(minute)
        pauses = [later - earlier for earlier, later in itertools.pairwise(attempts)]
        assert len(attempts) >= 3
        assert pauses == sorted(pauses)
        assert pauses[-1] > pauses[0]
        picky.keys.clear()
        bench.clock.elapsed_ms += 3_600_001
        await bench.push(peer)
        assert acknowledged(bench, peer)

    async def test_a_parked_record_that_changes_goes_at_once(self, bench: Bench, peer: FakePeer) -> None:
        picky = Picky(peer, "refused")
        bench.put("refused", b"x")
        await bench.push(peer)
        picky.keys.clear()
        bench.clock.elapsed_ms += 1
        bench.put("refused", b"y")
        await bench.push(peer)
        assert sent(peer)[-1] == ["refused"]

    async def test_a_record_that_is_no_longer_refused_is_shown_as_parked_no_longer(
        self, bench: Bench, peer: FakePeer
    ) -> None:
        picky = Picky(peer, "refused")
        bench.put("refused", b"x")
        await bench.push(peer)
        picky.keys.clear()
        bench.clock.elapsed_ms += 1
        bench.put("refused", b"y")
        await bench.push(peer)
        assert parked(bench, peer) == 0, "the change that was parked is gone"
        assert acknowledged(bench, peer)

    async def test_a_peer_that_refuses_everything_is_left_alone(self, bench: Bench, peer: FakePeer) -> None:
        for number in range(200):
            bench.put(f"key {number}", b"x")
        Picky(peer, *(f"key {number}" for number in range(200)))
        await bench.push(peer)
        requests = len(peer.asked)
        assert requests < 200
        await bench.push(peer)
        assert len(peer.asked) == requests, "the pause holds"


class TestRestartsAndSnapshots:
    async def test_a_changed_boot_id_means_that_nothing_is_acknowledged(self, bench: Bench, peer: FakePeer) -> None:
        for key in ("one", "two"):
            bench.put(key, b"x")
        await bench.push(peer)
        peer.boot_id = "second"
        peer.received.clear()
        bench.put("three", b"x")
        await bench.push(peer)
        assert {key for keys in sent(peer) for key in keys} == {"one", "two", "three"}
        assert acknowledged(bench, peer)

    async def test_after_a_restart_the_peers_own_records_are_sent_back_to_it(
        self, bench: Bench, peer: FakePeer
    ) -> None:
        incoming = await bench.replica.check_incoming({APP: [record("theirs", b"x", at_ms=bench.clock.now_ms())]})
        bench.replica.merge(incoming, peer.address)
        bench.put("ours", b"x")
        await bench.push(peer)
        peer.boot_id = "second"
        bench.put("news", b"x")
        await bench.push(peer)
        assert "theirs" in {key for keys in sent(peer) for key in keys}

    async def test_what_came_by_snapshot_is_pushed_to_no_member_that_compares_but_deletions_are(
        self, bench: Bench, peer: FakePeer
    ) -> None:
        peer.extensions = ["anti_entropy"]
        giver, older = FakePeer(2), FakePeer(5)
        bench.reach(older)
        now_ms = bench.clock.now_ms()
        giver.records = {APP: [record("by snapshot", b"x", at_ms=now_ms), record("deleted", None, at_ms=now_ms)]}
        bench.reach(giver)
        await bench.snapshots.pull(giver.peer, frozenset(), keep_names=False)
        bench.pusher.note_snapshot(giver.peer, [giver.peer, peer.peer, older.peer])
        bench.put("own", b"x")
        bench.reach(late := FakePeer(3))
        await bench.push(peer, older, giver, late)
        assert [keys for keys in sent(peer) if keys] == [["deleted", "own"]]
        assert [keys for keys in sent(older) if keys] == [["by snapshot", "deleted", "own"]]
        assert [keys for keys in sent(giver) if keys] == [["own"]]
        assert sent(late) == [["by snapshot", "deleted", "own"]]

    async def test_a_departed_peer_is_forgotten_and_a_returning_one_gets_everything(
        self, bench: Bench, peer: FakePeer
    ) -> None:
        bench.put("key", b"x")
        await bench.push(peer)
        await bench.push()
        assert bench.pusher.progress_of(peer.address) is None
        await bench.push(peer)
        assert sent(peer) == [["key"], ["key"]]


class TestOthers:
    async def test_a_peer_that_hangs_delays_no_other_now_or_at_the_next_push(
        self, bench: Bench, peer: FakePeer
    ) -> None:
        hanging = FakePeer(2)
        hanging.gates["/nonce"] = gate = Gate()
        bench.reach(hanging)
        bench.put("first", b"x")
        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                await bench.pusher.push([hanging.peer, peer.peer], group)
                await gate.reached.wait()
                while not acknowledged(bench, peer):
                    await anyio.lowlevel.checkpoint()
                bench.put("second", b"x")
                await bench.pusher.push([hanging.peer, peer.peer], group)
                while not acknowledged(bench, peer):
                    await anyio.lowlevel.checkpoint()
                assert hanging.asked == ["/nonce"], "a push that still runs is not begun a second time"
                group.cancel_scope.cancel()

    async def test_a_run_that_takes_too_long_says_so(self, bench: Bench, peer: FakePeer) -> None:
        peer.gates["delta"] = Gate()
        bench.put("key", b"x")
        async with anyio.create_task_group() as group:
            await bench.pusher.push([peer.peer], group, deadline_s=0.05)
        assert last_error(bench, peer)
        assert not acknowledged(bench, peer)

    async def test_all_peers_count_for_what_is_settled(self, bench: Bench, peer: FakePeer) -> None:
        bench.reach(away := FakePeer(2))
        bench.put("key", b"x")
        del bench.network.peers[away.url]
        await bench.push(peer, away)
        members = [peer.peer, away.peer]
        assert bench.pusher.settled_seq(members) == 0
        assert bench.pusher.settled_seq([peer.peer]) == bench.replica.store.last_seq
        assert bench.pusher.settled_seq([]) == bench.replica.store.last_seq
        bench.reach(away)
        await bench.push(peer, away)
        assert bench.pusher.settled_seq(members) == bench.replica.store.last_seq


class TestCancellation:
    @pytest.mark.parametrize("place", ["/nonce", "/sync", "delta"])
    async def test_a_cancelled_push_acknowledges_nothing_and_can_be_done_again(
        self, bench: Bench, peer: FakePeer, place: str
    ) -> None:
        bench.put("key", b"x")
        peer.gates[place] = gate = Gate()
        await cancelled_at(gate, lambda: bench.push(peer))
        assert not acknowledged(bench, peer)
        await bench.push(peer)
        assert acknowledged(bench, peer)
        assert sent(peer)[-1] == ["key"]

    async def test_a_push_cancelled_in_its_second_batch_keeps_the_first(self, bench: Bench, peer: FakePeer) -> None:
        for number in range(BATCH_RECORDS + 1):
            bench.put(f"key {number}", b"x")
        gate = Gate()

        def hold_the_next(answer: dict[str, object]) -> dict[str, object]:
            peer.gates["delta"] = gate
            return answer

        peer.alter["delta"] = hold_the_next
        await cancelled_at(gate, lambda: bench.push(peer))
        peer.received.clear()
        await bench.push(peer)
        assert sum(map(len, sent(peer))) == 1
        assert acknowledged(bench, peer)

    async def test_a_push_cancelled_in_the_snapshot_after_isolation_pulls_again(
        self, bench: Bench, peer: FakePeer
    ) -> None:
        bench.put("key", b"x")
        await bench.push(peer)
        bench.clock.elapsed_ms += ISOLATION_MS + 1
        kind = "snapshot_page_request"
        peer.gates[kind] = gate = Gate()
        await cancelled_at(gate, lambda: bench.push(peer))
        await bench.push(peer)
        assert peer.kinds().count(kind) >= 2


class TestIsolation:
    """A node that was alone for long pulls before it pushes, and does not bring back what was forgotten (store §1)."""

    @pytest.fixture
    async def returned(self, bench: Bench, peer: FakePeer) -> FakePeer:
        """Two records were acknowledged by the peer, a third was written alone; then nobody was heard of for long."""
        bench.put("deleted there", b"x")
        bench.put("kept there", b"x")
        await bench.push(peer)
        bench.put("written alone", b"x")
        snapshot = {item["key"]: item for item in peer.received[0]["data"][APP]}  # type: ignore[index]
        peer.records = {APP: [snapshot["kept there"], record("theirs", b"value", at_ms=bench.clock.now_ms())]}
        bench.clock.elapsed_ms += ISOLATION_MS + 1
        peer.received.clear()
        return peer

    async def test_it_pulls_before_it_pushes(self, bench: Bench, returned: FakePeer) -> None:
        await bench.push(returned)
        await bench.push(returned)
        kinds = returned.kinds()
        assert kinds.index("snapshot_page_request") < kinds.index("delta")
        assert bench.contents() == {"kept there": b"x", "written alone": b"x", "theirs": b"value"}
        assert ["written alone"] in sent(returned)
        assert all("deleted there" not in keys for keys in sent(returned))

    async def test_nothing_is_pushed_while_nobody_gives_a_snapshot(self, bench: Bench, returned: FakePeer) -> None:
        returned.alter["snapshot_page_request"] = lambda page: {**page, "data": 7}
        await bench.push(returned)
        await bench.push(returned)
        assert "delta" not in returned.kinds()
        assert "deleted there" in bench.contents()

    async def test_a_peer_that_restarted_has_not_deleted_what_it_lacks(self, bench: Bench, returned: FakePeer) -> None:
        returned.boot_id = "second"
        returned.records = {}
        await bench.push(returned)
        await bench.push(returned)
        assert set(bench.contents()) == {"deleted there", "kept there", "written alone"}
        assert {key for keys in sent(returned) for key in keys} == {"deleted there", "kept there", "written alone"}

    async def test_whoever_asks_for_a_push_does_not_wait_for_a_peer_that_hangs(
        self, bench: Bench, returned: FakePeer
    ) -> None:
        returned.gates["snapshot_page_request"] = gate = Gate()
        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                await bench.pusher.push([returned.peer], group)
                await gate.reached.wait()
                await bench.pusher.push([returned.peer], group)
                assert returned.kinds() == ["snapshot_page_request"], "a snapshot on its way is not asked for again"
                gate.open()
        assert "deleted there" not in bench.contents()

    async def test_nothing_is_pushed_to_a_peer_that_left_while_a_snapshot_came(
        self, bench: Bench, returned: FakePeer
    ) -> None:
        bench.reach(leaving := FakePeer(2))
        async with anyio.create_task_group() as group:
            await bench.pusher.push([returned.peer, leaving.peer], group)
        await bench.push(returned)
        assert leaving.asked == []
        assert ["written alone"] in sent(returned)

    async def test_contact_from_the_other_side_does_not_undo_it(self, bench: Bench, returned: FakePeer) -> None:
        bench.pusher.note_contact()
        await bench.push(returned)
        assert "deleted there" not in bench.contents()

    async def test_who_is_the_only_member_is_not_isolated(self, bench: Bench, peer: FakePeer) -> None:
        """Else it would take back from a peer that returns what it alone knows to be deleted."""
        await bench.push(peer)
        for _ in range(4):
            bench.clock.elapsed_ms += ISOLATION_MS
            await bench.push()
        assert not bench.pusher.isolated
        await bench.push(peer)
        assert "snapshot_page_request" not in peer.kinds()

    async def test_who_was_cut_off_stays_so_when_the_others_leave(self, bench: Bench, returned: FakePeer) -> None:
        await bench.push()
        assert bench.pusher.isolated
        await bench.push(returned)
        assert "snapshot_page_request" in returned.kinds()

    async def test_a_short_absence_is_no_isolation(self, bench: Bench, peer: FakePeer) -> None:
        bench.put("key", b"x")
        await bench.push(peer)
        bench.clock.elapsed_ms += ISOLATION_MS
        await bench.push(peer)
        assert "snapshot_page_request" not in peer.kinds()


async def test_a_store_that_is_full_of_peers_records_stays_unacknowledged_on_their_side() -> None:
    bench = Bench(limits=StoreLimits(max_store_bytes=500))
    bench.hold_secret()
    items = [record(f"key {number}", b"x", at_ms=bench.clock.now_ms()) for number in range(9)]
    incoming = await bench.replica.check_incoming({APP: items})
    report = bench.replica.merge(incoming, FakePeer(1).address)
    assert report.rejected > 0
    assert report.merged + report.rejected == 9
    assert report.skip_reasons == {"store_full": report.rejected}
    await bench.aclose()


async def test_a_long_delta_is_judged_and_merged_in_slices_between_which_others_run() -> None:
    bench = Bench()
    bench.hold_secret()
    items = [record(f"key {number}", b"x", at_ms=bench.clock.now_ms()) for number in range(2_600)]
    items[7] = {"key": "no record"}
    incoming = await bench.replica.check_incoming({APP: items})
    counts: list[int] = []

    async def others() -> None:
        while True:
            counts.append(len(bench.contents()))
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(others)
        planned = await bench.replica.evaluate(incoming)
        assert set(counts) == {0}
        assert len(counts) >= 4
        done = await bench.replica.take_in(incoming, FakePeer(1).address)
        group.cancel_scope.cancel()
    assert planned == done
    assert (done.total, done.merged, done.rejected, done.skip_reasons) == (2_600, 2_599, 1, {"malformed": 1})
    assert len(bench.contents()) == 2_599
    assert len(set(counts)) >= 4
    assert not incoming.accepted
    await bench.aclose()
