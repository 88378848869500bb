"""What counts as acknowledged, and who has to be told everything anew: refusals and restarts (store §1, §4)."""

from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster, eventually
from tests.support.scenarios import (
    Runtime,
    acknowledged,
    agree,
    know_each_other,
    push_progress,
)

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("acknowledgement")]


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

    def test_an_answer_that_proves_nothing_acknowledges_nothing(self, cluster: Cluster) -> None:
        nova = cluster.add_nova("nova")
        broken = cluster.add_legacy("broken", env={"LEGACY_DELTA": "wrong_signature*4"})
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
