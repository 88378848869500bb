"""Our node beside older peers that are away, restarted, broken or lying (node §2, store §4)."""

from collections.abc import Callable, Iterator

import pytest

from tests.support.chaos import ChaosProxy
from tests.support.cluster import AppHandle, Cluster, Node, eventually

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("interop_faults")]

OTHER_DIALECT = {"LEGACY_SIGNATURE_V": "27", "LEGACY_SIGNATURE_PREFIX": "", "LEGACY_HEX": "upper"}


class Host:
    """One node of ours that holds the secret, and an app; broken peers come and go beside it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.nova: Node = cluster.add_nova("nova")
        self.app: AppHandle = cluster.register_app()
        self.at_nova = cluster.app_at(self.app, self.nova)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with Cluster(tmp_path_factory.mktemp("host")) as cluster:
        yield Host(cluster)


@pytest.fixture(scope="module")
def away(host: Host) -> Node:
    """An older peer beside the host, behind a line that can fail."""
    return host.cluster.add_legacy("away", proxied=True)


class TestOutages:
    def test_what_was_written_while_an_older_peer_was_away_arrives_later(self, cluster: Cluster) -> None:
        nova = cluster.add_nova("nova")
        legacy = cluster.add_legacy("legacy", proxied=True)
        app = cluster.register_app()
        at_nova, at_legacy = cluster.app_at(app, nova), cluster.app_at(app, legacy)
        at_nova.put("deleted", b"x")
        eventually(lambda: at_legacy.get("deleted"))
        legacy.proxy.cut()
        at_nova.put("written", b"y")
        at_nova.delete("deleted")
        eventually(lambda: legacy.proxy.refused >= 2)
        assert nova.available()
        legacy.proxy.heal()
        assert eventually(lambda: at_legacy.get("written")) == b"y"
        eventually(lambda: at_legacy.get("deleted") is None)

    @pytest.mark.parametrize(
        "fail",
        [
            lambda proxy: proxy.cut(),
            lambda proxy: proxy.blackhole(),
            lambda proxy: proxy.corrupt_answers(),
            lambda proxy: proxy.drop_requests(3),
            lambda proxy: proxy.lose_answers(3),
            lambda proxy: proxy.delay(0.3),
        ],
        ids=["cut", "blackhole", "corrupt", "drop requests", "lose answers", "delay"],
    )
    def test_a_bad_line_to_an_older_peer_loses_nothing(
        self, host: Host, away: Node, fail: Callable[[ChaosProxy], None]
    ) -> None:
        at_away = host.cluster.app_at(host.app, away)
        host.at_nova.put("overwritten", b"before")
        host.at_nova.put("deleted", b"before")
        eventually(lambda: at_away.get("overwritten") == at_away.get("deleted") == b"before")
        tried = away.proxy.attempts
        fail(away.proxy)
        host.at_nova.put("overwritten", b"after")
        assert host.at_nova.delete("deleted")
        eventually(lambda: away.proxy.attempts > tried + 1)
        assert host.nova.available()
        away.proxy.heal()
        eventually(lambda: at_away.get("overwritten") == b"after" and at_away.get("deleted") is None, timeout_s=30.0)

    def test_a_short_silence_of_the_chain_stops_neither_apps_nor_replication(self, cluster: Cluster) -> None:
        legacy = cluster.add_legacy("legacy")
        nova = cluster.add_nova("nova")
        app = cluster.register_app()
        at_nova, at_legacy = cluster.app_at(app, nova), cluster.app_at(app, legacy)
        at_nova.derive("known to the cache")
        at_legacy.derive("known to the cache")
        cluster.chain.anvil.pause()
        try:
            for number in range(10):
                at_nova.put(f"in silence {number}", b"x")
                eventually(lambda key=f"in silence {number}": at_legacy.get(key))
            assert nova.available()
        finally:
            cluster.chain.anvil.resume()
        cluster.await_available(nova, legacy)

    def test_a_restarted_older_peer_gets_everything_again(self, cluster: Cluster) -> None:
        nova = cluster.add_nova("nova")
        legacy = cluster.add_legacy("legacy")
        app = cluster.register_app()
        at_nova = cluster.app_at(app, nova)
        at_nova.put("kept", b"x")
        at_nova.put("gone", b"x")
        at_nova.delete("gone")
        legacy.kill()
        legacy.start()
        cluster.readmit(legacy)
        cluster.await_available(legacy)
        assert cluster.app_at(app, legacy).contents() == {"kept": b"x"}

    def test_our_restarted_node_gets_everything_from_an_older_peer(self, cluster: Cluster) -> None:
        legacy = cluster.add_legacy("legacy")
        nova = cluster.add_nova("nova")
        app = cluster.register_app()
        at_nova, at_legacy = cluster.app_at(app, nova), cluster.app_at(app, legacy)
        at_nova.put("of nova", b"x")
        at_legacy.put("of legacy", b"y")
        eventually(lambda: at_legacy.get("of nova"))
        assert nova.stop() == 0
        nova.start()
        cluster.readmit(nova)
        cluster.await_available(nova)
        assert cluster.app_at(app, nova).contents() == {"of nova": b"x", "of legacy": b"y"}

    def test_three_way_clusters_agree(self, cluster: Cluster) -> None:
        nodes = [
            cluster.add_legacy("legacy-1"),
            cluster.add_nova("nova"),
            cluster.add_legacy("legacy-2", env=OTHER_DIALECT),
        ]
        eventually(lambda: all(node.status()["cluster"]["total_instances"] == 3 for node in nodes))
        app = cluster.register_app()
        clients = [cluster.app_at(app, node) for node in nodes]
        for round_number in range(3):
            for place, client in enumerate(clients):
                client.put("contested", f"{place}-{round_number}".encode())
                client.put(f"own-{place}", bytes([round_number]))

        def agreed() -> bool:
            contents = [client.contents() for client in clients]
            assert contents[0] == contents[1] == contents[2]
            return len(contents[0]) == 4

        eventually(agreed)


class TestSeeding:
    def test_a_race_to_seed_ends_with_one_secret(self, cluster: Cluster) -> None:
        nodes = [cluster.nova("nova-1"), cluster.legacy("legacy"), cluster.nova("nova-2")]
        for node in nodes:
            node.start()
        for node in nodes:
            cluster.admit(node)
        cluster.await_available(*nodes)
        states = sorted(str(node.status()["node"]["master_secret"]["state"]) for node in nodes)
        assert states == ["generated", "synced", "synced"]
        app = cluster.register_app()
        assert len({cluster.app_at(app, node).derive("disk") for node in nodes}) == 1

    def test_a_reset_hash_is_claimed_again_with_the_same_secret(self, cluster: Cluster) -> None:
        legacy = cluster.add_legacy("legacy")
        nova = cluster.add_nova("nova")
        app = cluster.register_app()
        cluster.app_at(app, nova).put("kept", b"x")
        before = cluster.chain.master_secret_hash()
        cluster.chain.reset_master_secret_hash()
        eventually(lambda: cluster.chain.master_secret_hash() == before)
        cluster.await_available(nova, legacy)
        assert cluster.app_at(app, nova).contents() == {"kept": b"x"}

    @pytest.mark.parametrize("offset_ms", [-3000, 3000])
    def test_clocks_that_differ_within_bounds_change_no_outcome(self, cluster: Cluster, offset_ms: int) -> None:
        nova = cluster.add_nova("nova")
        legacy = cluster.add_legacy("legacy", env={"LEGACY_CLOCK_OFFSET_MS": str(offset_ms)})
        app = cluster.register_app()
        at_nova, at_legacy = cluster.app_at(app, nova), cluster.app_at(app, legacy)
        for writer, reader, value in (
            (at_nova, at_legacy, b"1"),
            (at_legacy, at_nova, b"2"),
            (at_nova, at_legacy, b"3"),
            (at_legacy, at_nova, b"4"),
        ):
            writer.put("passed on", value)
            eventually(lambda reader=reader, value=value: reader.get("passed on") == value)
        assert at_legacy.delete("passed on")
        eventually(lambda: at_nova.get("passed on") is None)


class TestFaultyPeers:
    """For each row an older peer that answers wrongly for a while."""

    # A refusal of the batch itself (400, 413) is met by halving it, so that one is enough; a single record that is
    # refused again would be parked for longer than a test may take.
    @pytest.mark.parametrize(
        ("fault", "times"),
        [
            ("400", 1),
            ("413", 1),
            ("403", 2),
            ("429", 2),
            ("500", 2),
            ("503", 2),
            ("unsigned", 2),
            ("wrong_signature", 2),
            ("garbage", 2),
        ],
    )
    def test_a_push_that_is_not_acknowledged_is_sent_again(self, host: Host, fault: str, times: int) -> None:
        keys = [f"through {fault}: {name}" for name in ("one", "two", "three")]
        for key in keys:
            host.at_nova.put(key, b"arrives")
        broken = host.cluster.add_legacy(f"push-{fault}", env={"LEGACY_DELTA": f"{fault}*{times}"})
        host.at_nova.put("after " + fault, b"arrives")
        at_broken = host.cluster.app_at(host.app, broken)
        eventually(lambda: len(broken.journal("delta")) > times)
        eventually(lambda: at_broken.get("after " + fault) == b"arrives")
        assert [at_broken.get(key) for key in keys] == [b"arrives"] * len(keys)
        host.cluster.retire(broken)

    def test_a_passing_error_of_the_peer_is_no_refusal_of_the_record(self, cluster: Cluster) -> None:
        """The first push to a peer tries other labels after a 500; what those are answered is not about the record."""
        nova = cluster.add_nova("nova")
        legacy = cluster.add_legacy("legacy", env={"LEGACY_DELTA": "500*1"})
        app = cluster.register_app()
        cluster.app_at(app, nova).put("only one", b"x")
        at_legacy = cluster.app_at(app, legacy)
        eventually(lambda: at_legacy.get("only one") == b"x", timeout_s=12.0)

    @pytest.mark.parametrize("fault", ["500", "garbage", "wrong_type", "unsigned", "wrong_signature"])
    def test_a_joiner_waits_for_a_complete_snapshot(self, cluster: Cluster, fault: str) -> None:
        legacy = cluster.add_legacy("legacy", env={"LEGACY_SNAPSHOT": f"{fault}*4"})
        app = cluster.register_app()
        cluster.app_at(app, legacy).put("kept", b"x")
        nova = cluster.nova("nova")
        nova.start()
        cluster.admit(nova)
        eventually(lambda: nova.unavailable_reason() == "master secret sync failed")
        cluster.await_available(nova)
        assert cluster.app_at(app, nova).contents() == {"kept": b"x"}

    def test_a_secret_that_the_chain_does_not_confirm_is_never_adopted(self, cluster: Cluster) -> None:
        cluster.add_legacy("liar", env={"LEGACY_LIE_SECRET": "1"})
        nova = cluster.nova("nova")
        nova.start()
        cluster.admit(nova)
        eventually(lambda: nova.unavailable_reason() == "synced master secret hash mismatch")
        assert nova.status()["node"]["master_secret_initialized"] is False
        app = cluster.register_app()
        answer = cluster.app_at(app, nova).send("POST", "/kms/derive", {"path": "disk"})
        assert (answer.status, answer.code) == (503, "service_unavailable")
        assert "Retry-After" in answer.response.headers

    def test_an_honest_peer_beside_a_liar_is_found(self, cluster: Cluster) -> None:
        honest = cluster.add_legacy("honest")
        cluster.add_legacy("liar", env={"LEGACY_LIE_SECRET": "1"})
        nova = cluster.add_nova("nova")
        assert nova.status()["node"]["master_secret"]["synced_from"] == honest.status()["node"]["tee_wallet"]
