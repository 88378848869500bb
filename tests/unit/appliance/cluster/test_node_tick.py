"""`node_tick`, step by step: what it concludes, what it touches, and what a cancellation leaves behind (node §2)."""

from collections.abc import Callable

import anyio
import anyio.lowlevel
import pytest

from appliance.chain.kms_registry import ClaimOutcome
from appliance.chain.types import ChainError
from kmscore.errors import InvariantBroken, Unavailable
from tests.support import wire
from tests.support.cluster_bench import (
    APP_ID,
    KMS_APP_ID,
    OTHER_SECRET,
    REFRESH_S,
    SECRET,
    TTL_S,
    UNSET,
    Bench,
    FakePeer,
    Gate,
    cancelled_at,
    record,
)

pytestmark = pytest.mark.anyio

TTL_MS = int(TTL_S * 1000)
HASH, OTHER_HASH = wire.keccak256(SECRET), wire.keccak256(OTHER_SECRET)
APP = str(APP_ID)


async def tick(bench: Bench) -> str | None:
    """One run; the reason not to serve, None when the node serves."""
    await bench.node_tick.run_once()
    return None if bench.availability.reason is None else bench.availability.reason.value


def peer_with(number: int, *keys: str, **options: object) -> FakePeer:
    peer = FakePeer(number, **options)  # type: ignore[arg-type]
    peer.records = {APP: [record(key, b"value", secret=peer.secret) for key in keys]}
    return peer


async def fail_to_read() -> None:
    raise ChainError("unreadable")


class TestMembership:
    async def test_a_chain_that_was_never_read(self, bench: Bench) -> None:
        bench.registry.before_read = fail_to_read
        assert bench.availability.reason == "initializing"
        assert await tick(bench) == "peer cache refresh failed"

    async def test_a_node_that_is_not_listed_touches_nothing(self, bench: Bench) -> None:
        await bench.register(ourselves=False)
        assert await tick(bench) == "self not in KMS node list"
        assert bench.kms_registry.claims == []
        assert not bench.keys.initialized

    async def test_a_foreign_key_under_our_wallet(self, bench: Bench) -> None:
        await bench.register(ourselves=False)
        instance_id = await bench.register_ourselves()
        await bench.registry.set_tee_pubkey(instance_id, wire.TeeKey().der)
        bench.hold_secret()
        assert await tick(bench) == "local teePubkey mismatch with registry"
        assert bench.kms_registry.claims == []

    async def test_our_own_key_as_a_point_is_our_own_key(self, bench: Bench) -> None:
        await bench.register(ourselves=False)
        instance_id = await bench.register_ourselves()
        await bench.registry.set_tee_pubkey(instance_id, bench.identity.tee_pubkey.sec1)
        bench.hold_secret()
        assert await tick(bench) is None

    async def test_a_node_that_is_taken_out_stops_and_one_that_is_taken_back_serves(self, bench: Bench) -> None:
        await bench.register()
        bench.hold_secret()
        assert await tick(bench) is None
        await bench.registry.set_app_status(KMS_APP_ID, 1)
        assert await tick(bench) == "self not in KMS node list"
        await bench.registry.set_app_status(KMS_APP_ID, 0)
        assert await tick(bench) is None
        assert bench.keys.require_confirmed().matches(SECRET)


class TestChainOutage:
    async def test_a_confirmed_node_goes_on_within_the_ttl_and_stops_after(self, bench: Bench) -> None:
        await bench.register()
        bench.hold_secret()
        assert await tick(bench) is None
        bench.registry.before_read = fail_to_read
        bench.kms_registry.read_error = ChainError("unreadable")
        bench.clock.elapsed_ms += TTL_MS
        assert await tick(bench) is None
        bench.clock.elapsed_ms += 1
        assert await tick(bench) == "peer cache refresh failed"
        bench.registry.before_read = None
        assert await tick(bench) == "cannot read master secret hash"
        bench.kms_registry.read_error = None
        assert await tick(bench) is None
        assert bench.keys.require_confirmed().matches(SECRET)

    async def test_a_node_that_was_never_confirmed_waits(self, bench: Bench) -> None:
        await bench.register()
        bench.kms_registry.read_error = ChainError("unreadable")
        assert await tick(bench) == "cannot read master secret hash"
        assert not bench.keys.initialized

    async def test_an_outage_makes_no_incomplete_copy_complete(self, bench: Bench) -> None:
        peer = peer_with(1, "kept")
        peer.refusals = [503] * 10
        await bench.register(peer)
        bench.kms_registry.hash32 = HASH
        peer.refusals = []
        peer.alter["snapshot_request"] = lambda answer: {**answer, "data": 7}
        assert await tick(bench) == "master secret sync failed"
        bench.kms_registry.read_error = ChainError("unreadable")
        assert await tick(bench) is not None


class TestClaiming:
    async def test_a_claim_is_served_only_when_it_is_read_back(self, bench: Bench) -> None:
        await bench.register()
        assert await tick(bench) == "awaiting on-chain master secret hash"
        assert bench.kms_registry.claims == [bench.keys.secret_hash]
        assert not bench.keys.confirmed
        assert await tick(bench) is None
        assert bench.keys.state == "generated"

    async def test_two_nodes_do_not_make_the_same_secret(self, bench: Bench) -> None:
        other = Bench()
        for each in (bench, other):
            await each.register()
            await tick(each)
        assert bench.keys.secret_hash != other.keys.secret_hash
        await other.aclose()

    @pytest.mark.parametrize("outcome", [ClaimOutcome.ALREADY_SET, ClaimOutcome.PENDING])
    async def test_a_lost_or_pending_claim_waits_for_the_chain(self, bench: Bench, outcome: ClaimOutcome) -> None:
        await bench.register()
        bench.kms_registry.outcome = outcome
        assert await tick(bench) == "awaiting on-chain master secret hash"
        assert not bench.keys.confirmed

    async def test_who_may_not_claim_says_so(self, bench: Bench) -> None:
        await bench.register()
        bench.kms_registry.outcome = ClaimOutcome.NOT_AUTHORIZED
        assert await tick(bench) == "failed to set master secret hash"

    async def test_a_claim_that_fails_is_tried_again_with_the_same_secret(self, bench: Bench) -> None:
        await bench.register()
        bench.kms_registry.claim_error = ChainError("no money")
        assert await tick(bench) == "failed to set master secret hash"
        made = bench.keys.secret_hash
        bench.kms_registry.claim_error = None
        assert await tick(bench) == "awaiting on-chain master secret hash"
        assert bench.kms_registry.claims == [made]
        assert await tick(bench) is None

    async def test_the_owners_reset_makes_nodes_claim_what_they_have_and_keep_their_data(self, bench: Bench) -> None:
        await bench.register()
        bench.hold_secret()
        assert await tick(bench) is None
        bench.put("kept", b"x")
        bench.kms_registry.hash32 = UNSET
        assert await tick(bench) == "awaiting on-chain master secret hash"
        assert not bench.keys.confirmed, "what the chain does not show is never handed on"
        assert bench.kms_registry.claims == [HASH]
        assert await tick(bench) is None
        assert bench.contents() == {"kept": b"x"}

    async def test_a_reset_while_the_copy_is_incomplete_makes_no_copy_complete(self, bench: Bench) -> None:
        peer = peer_with(1, "kept")
        peer.alter["snapshot_request"] = lambda answer: {**answer, "data": 7}
        await bench.register(peer)
        bench.kms_registry.hash32 = HASH
        assert await tick(bench) == "master secret sync failed"
        bench.kms_registry.hash32 = UNSET
        await tick(bench)
        assert bench.kms_registry.claims == [HASH]
        assert await tick(bench) == "master secret sync failed"

    async def test_a_secret_that_lost_is_dropped_when_another_hash_appears(self, bench: Bench) -> None:
        await bench.register()
        bench.kms_registry.outcome = ClaimOutcome.ALREADY_SET
        await tick(bench)
        assert bench.keys.initialized
        bench.kms_registry.hash32 = OTHER_HASH
        assert await tick(bench) == "master secret sync failed"
        assert not bench.keys.initialized, "node §2.4: if another node's hash appears, drop ours"


class TestJoining:
    async def test_secret_and_snapshot_from_one_peer(self, bench: Bench) -> None:
        peer = peer_with(1, "kept")
        await bench.register(peer)
        bench.kms_registry.hash32 = HASH
        assert await tick(bench) is None
        assert (bench.keys.state, bench.keys.synced_from) == ("synced", peer.address)
        assert bench.contents() == {"kept": b"value"}
        assert peer.kinds() == ["master_secret_request", "snapshot_request"]

    async def test_a_liar_is_passed_over_and_its_secret_is_never_held(self, bench: Bench) -> None:
        liar, honest = peer_with(1, "lie", secret=OTHER_SECRET), peer_with(2, "kept")
        await bench.register(liar, honest)
        bench.kms_registry.hash32 = HASH
        held: list[bytes] = []
        adopt = bench.keys.adopt

        def watch(*arguments: object) -> None:
            adopt(*arguments)  # type: ignore[arg-type]
            held.append(bench.keys.secret_hash)

        bench.keys.adopt = watch  # type: ignore[method-assign] # to see each secret that is ever held
        assert await tick(bench) is None
        assert held == [HASH]
        assert liar.kinds() == ["master_secret_request"]
        assert bench.keys.synced_from == honest.address
        assert bench.contents() == {"kept": b"value"}

    async def test_only_a_liar(self, bench: Bench) -> None:
        await bench.register(peer_with(1, secret=OTHER_SECRET))
        bench.kms_registry.hash32 = HASH
        assert await tick(bench) == "synced master secret hash mismatch"
        assert not bench.keys.initialized

    async def test_nobody_to_ask(self, bench: Bench) -> None:
        await bench.register()
        bench.kms_registry.hash32 = HASH
        assert await tick(bench) == "master secret sync failed"

    async def test_the_node_never_asks_itself(self, bench: Bench) -> None:
        ourselves = FakePeer(9)
        ourselves.url = "https://ourselves.example"
        bench.reach(ourselves)
        await bench.register()
        bench.kms_registry.hash32 = HASH
        await tick(bench)
        assert ourselves.asked == []

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda _: None,
            lambda sealed: {**sealed, "encrypted_data": "00" * 48},
            lambda sealed: {**sealed, "ephemeral_pubkey": "00"},
            lambda sealed: {**sealed, "nonce": "zz"},
            lambda _: "text",
        ],
    )
    async def test_a_hand_over_that_does_not_open(self, bench: Bench, spoil: Callable[[object], object]) -> None:
        peer = peer_with(1)
        peer.alter["master_secret_request"] = lambda answer: {**answer, "sealed": spoil(answer["sealed"])}
        await bench.register(peer)
        bench.kms_registry.hash32 = HASH
        assert await tick(bench) == "master secret sync failed"

    async def test_a_peer_that_gives_the_secret_and_no_snapshot_is_not_enough(self, bench: Bench) -> None:
        broken, good = peer_with(1), peer_with(2, "kept")
        broken.alter["snapshot_request"] = lambda answer: {**answer, "data": None}
        await bench.register(broken)
        bench.kms_registry.hash32 = HASH
        assert await tick(bench) == "master secret sync failed"
        assert not bench.availability.available
        assert not bench.replica.complete
        await bench.add(good)
        assert await tick(bench) is None
        assert bench.contents() == {"kept": b"value"}

    @pytest.mark.parametrize("readable", [True, False])
    async def test_the_membership_is_read_again_while_a_snapshot_takes_long(self, bench: Bench, readable: bool) -> None:
        peer = peer_with(1, "kept")
        peer.gates["snapshot_request"] = gate = Gate()
        await bench.register(peer)
        bench.kms_registry.hash32 = HASH
        async with anyio.create_task_group() as group:
            group.start_soon(bench.node_tick.run_once)
            await gate.reached.wait()
            await bench.wake.reached.wait()
            bench.clock.elapsed_ms += int(REFRESH_S * 1000)
            bench.registry.before_read = None if readable else fail_to_read
            bench.wake.open()
            with anyio.fail_after(5):
                while len(bench.pauses) < 2:
                    await anyio.lowlevel.checkpoint()
            bench.clock.elapsed_ms += TTL_MS
            assert (bench.peers.get(peer.address) is not None) is readable
            assert not bench.availability.available
            gate.open()
        assert bench.pauses == [REFRESH_S, REFRESH_S]
        assert bench.contents() == {"kept": b"value"}

    async def test_a_replaced_secret_drops_the_store_it_cannot_read(self, bench: Bench) -> None:
        peer = peer_with(1, "new", secret=OTHER_SECRET)
        await bench.register(peer)
        bench.hold_secret()
        await tick(bench)
        bench.put("old", b"x")
        bench.kms_registry.hash32 = OTHER_HASH
        assert await tick(bench) is None
        assert bench.contents() == {"new": b"value"}
        assert bench.keys.derive(APP_ID, "disk", "", 32) == wire.derive_key(OTHER_SECRET, APP_ID, "disk")

    async def test_a_foreign_hash_that_nobody_hands_over_keeps_the_old_data_and_serves_nothing(
        self, bench: Bench
    ) -> None:
        await bench.register()
        bench.hold_secret()
        await tick(bench)
        bench.put("old", b"x")
        bench.kms_registry.hash32 = OTHER_HASH
        assert await tick(bench) == "master secret sync failed"
        assert not bench.keys.confirmed


class TestTroubleOfOurOwn:
    async def test_changed_keys_end_the_process(self, bench: Bench) -> None:
        await bench.register()
        await bench.tee.aclose()
        with pytest.raises(InvariantBroken):
            await tick(bench)

    async def test_a_provider_that_does_not_answer_ends_nothing(self, bench: Bench) -> None:
        async def fail() -> None:
            raise Unavailable("the runtime is away")

        await bench.register()
        bench.hold_secret()
        await tick(bench)
        bench.tee.refresh_identity = fail  # type: ignore[assignment, method-assign] # as a provider in another process
        assert await tick(bench) is None, "requests fail by what they need; membership is looked after all the same"


class TestCancellation:
    """SIGTERM may come at any await: what was true stays true, and a second run completes."""

    async def test_in_the_refresh(self, bench: Bench) -> None:
        gate = Gate()
        await bench.register()
        bench.hold_secret()
        bench.registry.before_read = gate.wait
        await cancelled_at(gate, bench.node_tick.run_once)
        assert bench.availability.reason == "initializing"
        assert await tick(bench) is None

    async def test_in_reading_the_hash(self, bench: Bench) -> None:
        await bench.register()
        bench.hold_secret()
        bench.kms_registry.read_gate = gate = Gate()
        await cancelled_at(gate, bench.node_tick.run_once)
        assert bench.keys.confirmed
        assert await tick(bench) is None

    async def test_in_the_claim(self, bench: Bench) -> None:
        await bench.register()
        bench.kms_registry.claim_gate = gate = Gate()
        await cancelled_at(gate, bench.node_tick.run_once)
        made = bench.keys.secret_hash
        assert not bench.keys.confirmed
        await tick(bench)
        assert bench.kms_registry.claims == [made], "the secret of the first attempt, not a second one"

    @pytest.mark.parametrize("place", ["/nonce", "master_secret_request"])
    async def test_in_the_hand_over(self, bench: Bench, place: str) -> None:
        peer = peer_with(1, "kept")
        await bench.register(peer)
        bench.kms_registry.hash32 = HASH
        peer.gates[place] = gate = Gate()
        await cancelled_at(gate, bench.node_tick.run_once)
        assert not bench.keys.initialized
        assert await tick(bench) is None

    async def test_in_the_snapshot(self, bench: Bench) -> None:
        peer = peer_with(1, "kept")
        await bench.register(peer)
        bench.kms_registry.hash32 = HASH
        peer.gates["snapshot_request"] = gate = Gate()
        await cancelled_at(gate, bench.node_tick.run_once)
        assert not bench.replica.complete
        assert not bench.availability.available
        assert await tick(bench) is None
        assert bench.contents() == {"kept": b"value"}

    async def test_in_the_probes_the_decision_has_been_made(self, bench: Bench) -> None:
        peer = peer_with(1)
        await bench.register(peer)
        bench.hold_secret()
        peer.gates["/status"] = gate = Gate()
        await cancelled_at(gate, bench.node_tick.run_once)
        assert bench.availability.available
