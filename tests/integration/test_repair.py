"""What is repaired later: deletions that a peer missed, and data that no push brings (store §1, §5)."""

import time

import pytest

from tests.support import wire
from tests.support.cluster import Cluster, eventually
from tests.support.local_chain import ACTIVE, STOPPED
from tests.support.scenarios import acknowledged, agree, know_each_other, peer_of_our_own

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("repair")]

RETENTION_MS = 1000
SHORT_RETENTION = {"TOMBSTONE_RETENTION_MS": str(RETENTION_MS)}
# Half of it is more than a node takes to notice that another one is back.
LONGER_RETENTION_MS = 8000
LONGER_RETENTION = {"TOMBSTONE_RETENTION_MS": str(LONGER_RETENTION_MS)}
# What is to be reclaimed is looked for once a second.
SWEEP_S = 2.5
ANTI_ENTROPY_S = 2
# Two rounds, as long as they may take on a busy machine.
TWO_ROUNDS_S = 8.0


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
        time.sleep(RETENTION_MS / 1000 + SWEEP_S)
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
        nova = cluster.add_nova("nova", env=LONGER_RETENTION)
        away = cluster.add_nova("away", env=LONGER_RETENTION, proxied=True)
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
        time.sleep(LONGER_RETENTION_MS / 1000 + SWEEP_S)
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
        time.sleep(3 * ANTI_ENTROPY_S)  # two rounds of ours, wherever the first one begins, each a little late
        for node in (nova, legacy):
            node.proxy.heal()
        eventually(lambda: at_legacy.get("of ours") == b"x")
        eventually(lambda: at_nova.get("lost by the older peer") == b"y", TWO_ROUNDS_S)
