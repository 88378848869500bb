"""What counts as acknowledged, and what is kept until it is: parked records, restarts, tombstones (store §1-§5)."""

import time
from collections.abc import Iterator

import pytest

from tests.support import wire
from tests.support.cluster import Cluster, eventually
from tests.support.local_chain import ACTIVE, STOPPED
from tests.support.scenarios import (
    Runtime,
    acknowledged,
    agree,
    await_reason,
    fill,
    know_each_other,
    peer_of_our_own,
    push_progress,
)

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("acknowledgement")]

RETENTION_MS = 2000
SHORT_RETENTION = {"TOMBSTONE_RETENTION_MS": str(RETENTION_MS)}
ANTI_ENTROPY_S = 2
# What is to be reclaimed is looked for once a second.
SWEEP_S = 2.5
# Two rounds, as long as they may take on a busy machine.
TWO_ROUNDS_S = 12.0


@pytest.fixture
def runtime(cluster: Cluster) -> Iterator[Runtime]:
    runtime = Runtime(cluster)
    yield runtime
    runtime.stop()


class TestRefusals:
    def test_a_record_too_large_for_a_peer_is_parked_alone(self, cluster: Cluster) -> None:
        nova = cluster.add_nova("nova")
        legacy = cluster.add_legacy("legacy", env={"LEGACY_MAX_BODY_BYTES": "100000"})
        app = cluster.register_app()
        at_nova, at_legacy = cluster.app_at(app, nova), cluster.app_at(app, legacy)
        for number in range(5):
            at_nova.put(f"small/{number}", b"x")
        at_nova.put("large", bytes(60_000))
        for number in range(5, 10):
            at_nova.put(f"small/{number}", b"x")
        eventually(lambda: len(at_legacy.keys()) == 10)
        eventually(lambda: push_progress(nova, legacy).get("parked_records") == 1)
        assert at_legacy.get("large") is None
        at_nova.put("large", b"now small")
        assert eventually(lambda: at_legacy.get("large")) == b"now small"

    def test_a_single_record_that_a_peer_calls_bad_is_parked_and_the_rest_goes_on(self, cluster: Cluster) -> None:
        nova = cluster.add_nova("nova")
        legacy = cluster.add_legacy("legacy", env={"LEGACY_DELTA": "400*1"})
        app = cluster.register_app()
        at_nova, at_legacy = cluster.app_at(app, nova), cluster.app_at(app, legacy)
        know_each_other(nova, legacy)
        at_nova.put("refused", b"x")
        eventually(lambda: push_progress(nova, legacy).get("parked_records") == 1)
        at_nova.put("accepted", b"y")
        assert eventually(lambda: at_legacy.get("accepted")) == b"y"
        assert push_progress(nova, legacy)["parked_records"] == 1, "parked with backoff, not tried at every tick"
        assert at_legacy.get("refused") is None

    @pytest.mark.parametrize("fault", ["garbage", "wrong_signature"])
    def test_an_answer_that_proves_nothing_acknowledges_nothing(self, cluster: Cluster, fault: str) -> None:
        nova = cluster.add_nova("nova")
        broken = cluster.add_legacy("broken", env={"LEGACY_DELTA": f"{fault}*4"})
        app = cluster.register_app()
        know_each_other(nova, broken)
        cluster.app_at(app, nova).put("pushed", b"x")
        eventually(lambda: len(broken.journal("delta")) >= 2)
        progress = push_progress(nova, broken)
        assert progress["acknowledged_seq"] < progress["last_seq"]
        assert progress["last_error"]
        eventually(lambda: acknowledged(nova, broken))
        assert cluster.app_at(app, broken).get("pushed") == b"x"


class TestRestarts:
    def test_a_peer_that_restarts_under_the_same_wallet_gets_everything(
        self, cluster: Cluster, runtime: Runtime
    ) -> None:
        nova = cluster.add_nova("nova")
        again = cluster.add_nova("again", env=runtime.environment, proxied=True)
        app = cluster.register_app()
        at_nova, at_again = cluster.app_at(app, nova), cluster.app_at(app, again)
        know_each_other(nova, again)
        at_nova.put("of nova", b"x")
        at_again.put("of again", b"y")
        at_again.put("deleted later", b"y")
        agree(at_nova, at_again)
        eventually(lambda: acknowledged(nova, again))

        again.kill()
        at_nova.put("while it was dead", b"z")
        assert at_nova.delete("deleted later")
        again.start()  # the runtime kept the keys: the chain need not hear of it
        again.await_status()
        cluster.await_available(again)
        expected = {"of nova": b"x", "of again": b"y", "while it was dead": b"z"}
        assert agree(at_nova, at_again) == expected
        at_again.put("of again", b"newer")
        assert eventually(lambda: at_nova.get("of again") == b"newer"), "store §1: a restart makes no write look old"
        at_nova.put("afterwards", b"w")
        eventually(lambda: at_again.get("afterwards") == b"w")
        eventually(lambda: acknowledged(nova, again))

    def test_a_peer_that_comes_back_empty_gets_what_it_had_acknowledged(
        self, cluster: Cluster, runtime: Runtime
    ) -> None:
        """Its other peer brings it up with a store that lacks what only we have: our push must start from nothing."""
        nova = cluster.add_nova("nova", proxied=True)
        legacy = cluster.add_legacy("legacy", proxied=True)
        again = cluster.add_nova("again", env=runtime.environment)
        app = cluster.register_app()
        at_nova, at_again = cluster.app_at(app, nova), cluster.app_at(app, again)
        know_each_other(nova, legacy, again)
        legacy.proxy.cut()
        at_nova.put("only nova and again have it", b"x")
        assert eventually(lambda: at_again.get("only nova and again have it")) == b"x"
        eventually(lambda: acknowledged(nova, again))
        again.kill()
        nova.proxy.cut()
        legacy.proxy.heal()
        nova.freeze()  # so that it does not bring the older peer up to date meanwhile
        again.start()
        cluster.await_available(again)
        assert at_again.get("only nova and again have it") is None
        nova.thaw()
        nova.proxy.heal()
        at_nova.put("any news", b"y")
        eventually(lambda: at_again.get("only nova and again have it") == b"x")


class TestTombstones:
    def test_a_deletion_is_remembered_until_every_peer_has_acknowledged_it(self, cluster: Cluster) -> None:
        nova = cluster.add_nova("nova", env=SHORT_RETENTION)
        other = cluster.add_nova("other", env=SHORT_RETENTION)
        away = cluster.add_nova("away", proxied=True, env=SHORT_RETENTION)
        app = cluster.register_app()
        at_nova, at_other, at_away = (cluster.app_at(app, node) for node in (nova, other, away))
        know_each_other(nova, other, away)
        at_nova.put("deleted", b"x")
        eventually(lambda: at_other.get("deleted") == at_away.get("deleted") == b"x")
        eventually(lambda: all(acknowledged(nova, peer) for peer in (other, away)))
        away.proxy.cut()
        away.freeze()
        assert at_nova.delete("deleted")
        eventually(lambda: at_other.get("deleted") is None)
        time.sleep(2 * RETENTION_MS / 1000)
        peer, secret = peer_of_our_own(cluster, nova)
        sync_key = wire.derive_sync_key(secret)

        def tombstones() -> int:
            return sum(record["tombstone"] for record in peer.snapshot(sync_key).get(str(app.app_id), []))

        assert tombstones() == 1, "store §1: until every eligible peer has acknowledged it"
        away.proxy.heal()
        away.thaw()
        eventually(lambda: at_away.get("deleted") is None)
        assert agree(at_nova, at_other, at_away) == {}

    def test_a_node_that_was_alone_for_long_does_not_bring_back_what_was_forgotten(self, cluster: Cluster) -> None:
        nova = cluster.add_nova("nova", env=SHORT_RETENTION)
        away = cluster.add_nova("away", env=SHORT_RETENTION, proxied=True)
        app = cluster.register_app()
        at_nova, at_away = cluster.app_at(app, nova), cluster.app_at(app, away)
        know_each_other(nova, away)
        at_nova.put("forgotten", b"x")
        at_nova.put("kept", b"x")
        eventually(lambda: at_away.get("forgotten") == at_away.get("kept") == b"x")
        at_away.put("of the lonely one", b"acknowledged")
        eventually(lambda: at_nova.get("of the lonely one") == b"acknowledged")
        eventually(lambda: acknowledged(away, nova))

        away.freeze()
        # While it is no member its acknowledgement is not waited for: the deletion is forgotten after its retention.
        cluster.chain.set_instance_status(away.instance_id, STOPPED)
        eventually(lambda: nova.status()["cluster"]["total_instances"] == 1)
        assert at_nova.delete("forgotten")
        assert at_nova.delete("of the lonely one")
        time.sleep(RETENTION_MS / 1000 + SWEEP_S)
        cluster.chain.set_instance_status(away.instance_id, ACTIVE)
        eventually(lambda: nova.status()["cluster"]["total_instances"] == 2)
        away.thaw()
        cluster.await_available(away)
        at_nova.put("news", b"y")
        eventually(lambda: at_away.get("news") == b"y")
        assert away.exit_code() is None, away.log_tail()
        assert agree(at_nova, at_away) == {"kept": b"x", "news": b"y"}


class TestAntiEntropy:
    """Push repairs only what the pusher knows; the rest is found by comparing (store §5)."""

    def test_what_a_joiner_got_by_snapshot_from_a_node_that_died_reaches_the_others(self, cluster: Cluster) -> None:
        doomed = cluster.add_nova("doomed")
        away = cluster.add_nova("away", proxied=True)
        app = cluster.register_app()
        at_doomed, at_away = cluster.app_at(app, doomed), cluster.app_at(app, away)
        know_each_other(doomed, away)
        away.proxy.cut()
        away.freeze()
        at_doomed.put("passed on by snapshot only", b"x")
        joiner = cluster.add_nova("joiner", env={"ANTI_ENTROPY_INTERVAL_SECONDS": str(ANTI_ENTROPY_S)})
        assert cluster.app_at(app, joiner).get("passed on by snapshot only") == b"x"
        doomed.kill()
        cluster.retire(doomed)
        away.proxy.heal()
        away.thaw()
        eventually(lambda: at_away.get("passed on by snapshot only") == b"x", TWO_ROUNDS_S)

    def test_what_an_older_peer_lost_in_an_outage_is_pulled_from_it(self, cluster: Cluster) -> None:
        nova = cluster.add_nova("nova", proxied=True)
        legacy = cluster.add_legacy("legacy", proxied=True)
        app = cluster.register_app()
        at_nova, at_legacy = cluster.app_at(app, nova), cluster.app_at(app, legacy)
        know_each_other(nova, legacy)
        for node in (nova, legacy):
            node.proxy.cut()
        at_nova.put("of ours", b"x")
        at_legacy.put("lost by the older peer", b"y")
        eventually(lambda: "is lost" in legacy.log_tail())
        time.sleep(2 * ANTI_ENTROPY_S)
        for node in (nova, legacy):
            node.proxy.heal()
        eventually(lambda: at_legacy.get("of ours") == b"x")
        eventually(lambda: at_nova.get("lost by the older peer") == b"y", TWO_ROUNDS_S)


def test_a_store_that_does_not_fit_keeps_a_joiner_from_serving(cluster: Cluster) -> None:
    seed = cluster.add_nova("seed")
    app = cluster.register_app()
    peer, secret = peer_of_our_own(cluster, seed)
    fill(peer, secret, app, 300)
    small = cluster.nova("small", env={"MAX_STORE_BYTES": "16KiB"})
    small.start()
    cluster.admit(small)
    await_reason(small, "master secret sync failed")
    assert small.status()["node"]["service_available"] is False
