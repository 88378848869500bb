"""Joining a cluster: secret and snapshot from whoever gives both, nothing from whoever lies (node §2, protocol §5)."""

import pytest

from tests.support import wire
from tests.support.cluster import AVAILABLE_TIMEOUT_S, Cluster, eventually
from tests.support.raw_client import wire_record
from tests.support.scenarios import (
    UNAVAILABLE,
    await_reason,
    fill,
    peer_of_our_own,
    start_together,
    started_and_admitted,
)

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("joining")]

RECORDS = 2500
# A black hole costs a joiner one request's deadline, and a status probe.
BLACK_HOLE_S = 30.0


class TestFromOurOwnNodes:
    def test_a_joiner_takes_secret_and_data_and_derives_the_same_keys(self, cluster: Cluster) -> None:
        seed = cluster.add_nova("seed")
        app = cluster.register_app()
        at_seed = cluster.app_at(app, seed)
        at_seed.put("kept", b"one")
        at_seed.put("gone", b"two")
        at_seed.delete("gone")
        joiner = cluster.add_nova("joiner")
        assert joiner.status()["node"]["master_secret"] == {
            "state": "synced",
            "synced_from": seed.status()["node"]["tee_wallet"],
        }
        at_joiner = cluster.app_at(app, joiner)
        assert at_joiner.contents() == {"kept": b"one"}
        assert at_joiner.derive("disk") == at_seed.derive("disk")
        peer, secret = peer_of_our_own(cluster, joiner)
        records = {record["key"]: record for record in peer.snapshot(wire.derive_sync_key(secret))[str(app.app_id)]}
        assert records["gone"]["tombstone"] is True, "a snapshot brings the tombstones too"

    def test_several_nodes_join_at_once_and_take_thousands_of_records_by_pages(self, cluster: Cluster) -> None:
        seed = cluster.add_nova("seed")
        app = cluster.register_app()
        peer, secret = peer_of_our_own(cluster, seed)
        values = fill(peer, secret, app, RECORDS)
        page = peer.sync({"type": "snapshot_page_request", "after": 0}, wire.derive_sync_key(secret)).inner
        assert page["done"] is False, "the store must not fit into one page"

        joiners = [cluster.nova(f"joiner-{number}") for number in range(2)]
        start_together(cluster, *joiners)
        cluster.await_available(*joiners)
        for joiner in joiners:
            assert joiner.status()["data_store"]["total_keys"] == RECORDS
            client = cluster.app_at(app, joiner)
            assert client.keys() == sorted(values)
            assert client.get("filled/02499") == values["filled/02499"]

    def test_a_joiner_misses_nothing_that_is_written_while_it_joins(self, cluster: Cluster) -> None:
        seed = cluster.add_nova("seed")
        app = cluster.register_app()
        peer, secret = peer_of_our_own(cluster, seed)
        fill(peer, secret, app, 1500)
        at_seed = cluster.app_at(app, seed)
        joiner = started_and_admitted(cluster, cluster.nova("joiner"))
        written = 0
        while not joiner.available():
            at_seed.put(f"meanwhile/{written}", b"x")
            at_seed.put("filled/00000", f"changed {written}".encode())
            written += 1
        at_joiner = cluster.app_at(app, joiner)
        eventually(lambda: at_joiner.keys() == at_seed.keys())
        eventually(lambda: at_joiner.get("filled/00000") == at_seed.get("filled/00000"))


class TestFromOlderPeers:
    def test_a_whole_snapshot_of_an_older_peer(self, cluster: Cluster) -> None:
        legacy = cluster.add_legacy("legacy")
        app = cluster.register_app()
        peer, secret = peer_of_our_own(cluster, legacy)
        values = fill(peer, secret, app, 1200, batch=400)
        key = wire.derive_data_key(secret, app.app_id)
        peer.push(
            wire.derive_sync_key(secret),
            app.app_id,
            wire_record("big", wire.encrypt_value(key, bytes(300_000)), {"by hand": 1}),
        )
        nova = cluster.add_nova("nova")
        client = cluster.app_at(app, nova)
        assert client.keys() == sorted([*values, "big"])
        assert client.get("big") == bytes(300_000)
        asked = [entry["type"] for entry in legacy.journal() if entry["sender"] == client.target.wallet]
        joined = asked.index("snapshot_request") + 1
        assert set(asked[:joined]) == {"master_secret_request", "snapshot_request"}
        assert set(asked[joined:]) <= {"delta"}, "once it serves it pushes, as to any peer, and asks for nothing more"

    def test_liars_beside_an_honest_peer_are_passed_over(self, cluster: Cluster) -> None:
        honest = cluster.add_legacy("honest")
        app = cluster.register_app()
        cluster.app_at(app, honest).put("kept", b"x")
        liars = [cluster.add_legacy(f"liar-{number}", env={"LEGACY_LIE_SECRET": "1"}) for number in range(2)]
        nova = started_and_admitted(cluster, cluster.nova("nova"))
        cluster.await_available(nova)
        assert nova.status()["node"]["master_secret"]["synced_from"] == honest.status()["node"]["tee_wallet"]
        client = cluster.app_at(app, nova)
        assert client.derive("disk") == cluster.app_at(app, honest).derive("disk")
        assert client.contents() == {"kept": b"x"}
        asked = [entry for liar in liars for entry in liar.journal() if entry.get("sender") == client.target.wallet]
        # Once it serves it pushes, as to any peer.
        assert {entry["type"] for entry in asked} <= {"master_secret_request", "delta"}, "no snapshot of a liar"

    def test_the_only_peer_lies(self, cluster: Cluster) -> None:
        cluster.add_legacy("liar", env={"LEGACY_LIE_SECRET": "1"})
        nova = started_and_admitted(cluster, cluster.nova("nova"))
        await_reason(nova, "synced master secret hash mismatch")
        described = nova.status()["node"]
        assert (described["master_secret_initialized"], described["service_available"]) == (False, False)
        peer = cluster.peer_at(cluster.register_peer(), nova)
        request = {"type": "master_secret_request", "ecdh_pubkey": wire.TeeKey().der.hex()}
        assert peer.sync(request, None).status == 503, "what the chain does not confirm is never handed on"

    def test_a_peer_whose_snapshot_fails_makes_nobody_serve_an_empty_store(self, cluster: Cluster) -> None:
        legacy = cluster.add_legacy("legacy", env={"LEGACY_SNAPSHOT": "500"})
        app = cluster.register_app()
        cluster.app_at(app, legacy).put("kept", b"x")
        nova = started_and_admitted(cluster, cluster.nova("nova"))
        await_reason(nova, "master secret sync failed")
        eventually(lambda: len(legacy.journal("snapshot_request")) >= 3)
        assert not nova.available()
        answer = cluster.app_at(app, nova).send("GET", "/kms/data/kept")
        assert (answer.status, answer.code) == (503, UNAVAILABLE)

        # It has the secret, which the chain confirms, but a copy that nobody else must take for the cluster's.
        peer, secret = peer_of_our_own(cluster, nova)
        sync_key = wire.derive_sync_key(secret)
        assert peer.sync({"type": "snapshot_request"}, sync_key).status == 503
        assert peer.sync({"type": "snapshot_page_request", "after": 0}, sync_key).status == 503


class TestWithoutHelp:
    def test_dead_peers_are_passed_over(self, cluster: Cluster) -> None:
        seed = cluster.add_nova("seed")
        app = cluster.register_app()
        cluster.app_at(app, seed).put("kept", b"x")
        hole = cluster.proxy(seed.port)
        hole.blackhole()
        cluster.register_peer()
        cluster.register_peer(hole.url)
        joiner = started_and_admitted(cluster, cluster.nova("joiner"))
        cluster.await_available(joiner, timeout_s=AVAILABLE_TIMEOUT_S + BLACK_HOLE_S)
        assert cluster.app_at(app, joiner).contents() == {"kept": b"x"}

    def test_a_hash_whose_secret_nobody_has_waits_for_the_owner(self, cluster: Cluster) -> None:
        lost = cluster.add_legacy("lost")
        cluster.retire(lost)
        claimed = cluster.chain.master_secret_hash()
        alone = started_and_admitted(cluster, cluster.nova("alone"))
        await_reason(alone, "master secret sync failed")
        cluster.register_peer()
        eventually(lambda: alone.status()["cluster"]["total_instances"] == 2)
        await_reason(alone, "master secret sync failed")
        assert cluster.chain.master_secret_hash() == claimed, "only the owner may reset a claim"

        cluster.chain.reset_master_secret_hash()
        cluster.await_available(alone)
        assert cluster.chain.master_secret_hash() not in (claimed, bytes(32))
        app = cluster.register_app()
        client = cluster.app_at(app, alone)
        client.put("begun", b"anew")
        assert client.get("begun") == b"anew"
