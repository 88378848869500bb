"""The chain or the signing service goes away and comes back: what is still served, what is refused (node §1, §2)."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import wire
from tests.support.cluster import AppHandle, Cluster, Node, eventually
from tests.support.raw_client import RawApp, wire_record
from tests.support.scenarios import (
    UNAVAILABLE,
    Runtime,
    agree,
    await_reason,
    know_each_other,
    peer_of_our_own,
    restore_chain,
    started_and_admitted,
)

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("outages")]

PEER_TTL_S = 8
APP_TTL_S = 4
SHORT_TTLS = {"PEER_CACHE_TTL_SECONDS": str(PEER_TTL_S), "REGISTRY_CACHE_TTL_SECONDS": str(APP_TTL_S)}


class Pair:
    """Two nodes that believe the chain for seconds only, an app that both know and one that neither has seen."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.nodes: list[Node] = [cluster.add_nova(f"node-{number}", env=SHORT_TTLS) for number in range(2)]
        know_each_other(*self.nodes)
        self.app: AppHandle = cluster.register_app()
        self.clients = [cluster.app_at(self.app, node) for node in self.nodes]
        self.unseen = [cluster.app_at(cluster.register_app(), node) for node in self.nodes]

    def all_available(self) -> bool:
        return all(node.available() for node in self.nodes)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with Cluster(tmp_path_factory.mktemp("pair")) as cluster:
        yield Pair(cluster)


def refused(client: RawApp) -> tuple[int, str | None]:
    answer = client.send("POST", "/kms/derive", {"path": "disk"})
    return answer.status, answer.code


class TestChain:
    def test_a_chain_that_hangs_for_a_moment_is_no_outage_of_the_kms(self, pair: Pair) -> None:
        for client in pair.clients:
            client.derive("disk")
        pair.cluster.chain.anvil.pause()
        try:
            derived = pair.clients[0].derive("disk")
            pair.clients[0].put("while the chain hangs", b"x")
            assert pair.clients[1].derive("disk") == derived
            assert pair.all_available()
        finally:
            pair.cluster.chain.anvil.resume()
        eventually(lambda: pair.clients[1].get("while the chain hangs") == b"x")
        pair.cluster.await_available(*pair.nodes)

    def test_a_dead_chain_is_survived_as_long_as_what_it_said_may_be_believed(self, pair: Pair) -> None:
        chain, (first, second) = pair.cluster.chain, pair.clients
        first.put("before", b"x")
        assert eventually(lambda: second.get("before")) == b"x"
        derived = first.derive("disk")
        state = chain.rpc("anvil_dumpState")
        chain.anvil.kill()
        died = time.monotonic()

        first.put("without a chain", b"y")
        assert second.derive("disk") == derived
        assert refused(pair.unseen[0]) == (403, "forbidden"), "what cannot be read is a refusal (chain §3)"
        eventually(lambda: second.get("without a chain") == b"y", APP_TTL_S)
        assert pair.all_available()

        time.sleep(max(0.0, died + APP_TTL_S + 0.5 - time.monotonic()))
        if time.monotonic() < died + PEER_TTL_S - 1.5:
            assert pair.all_available()
            assert refused(first) == (403, "forbidden"), "node §1: a stale entry is served for at most its TTL"
        for node in pair.nodes:
            await_reason(node, "peer cache refresh failed")
        assert refused(first) == (503, UNAVAILABLE)

        restore_chain(chain, state)
        pair.cluster.await_available(*pair.nodes)
        found = agree(first, second)
        assert found["before"] == b"x"
        assert found["without a chain"] == b"y"
        assert second.derive("disk") == derived
        pair.unseen[0].derive("disk")

    def test_a_node_that_starts_without_a_chain_waits_for_it(self, cluster: Cluster) -> None:
        state = cluster.chain.rpc("anvil_dumpState")
        cluster.chain.anvil.kill()
        node = cluster.nova("early")
        node.start()
        node.await_status()
        eventually(lambda: "node_tick" in node.log_tail())
        assert not node.available()
        restore_chain(cluster.chain, state)
        cluster.admit(node)
        cluster.await_available(node)

    def test_a_wrong_chain_ends_the_start_with_one_sentence(self, cluster: Cluster) -> None:
        node = cluster.nova("elsewhere", env={"CHAIN_ID": "84532"})
        node.start()
        eventually(lambda: node.exit_code() is not None)
        assert node.exit_code() == 2
        said = [line for line in node.log.read_text().splitlines() if line.startswith("nova-kms: ")]
        assert len(said) == 1
        assert "31337" in said[0]
        assert "84532" in said[0]
        assert "Traceback" not in node.log.read_text()


class OnRuntime:
    """One node whose keys belong to an emulated platform runtime, and an app."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.runtime = Runtime(cluster)
        self.node: Node = cluster.add_nova("node", env=self.runtime.environment)
        self.client = cluster.app_at(cluster.register_app(), self.node)


@pytest.fixture(scope="module")
def on_runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnRuntime]:
    with Cluster(tmp_path_factory.mktemp("runtime")) as cluster:
        on_runtime = OnRuntime(cluster)
        yield on_runtime
        on_runtime.runtime.stop()


def cut(runtime: Runtime) -> None:
    runtime.line.cut()


def cannot_seal(runtime: Runtime) -> None:
    runtime.emulator.faults.drop_after["/v1/encryption/encrypt"] = 1000


def cannot_sign(runtime: Runtime) -> None:
    runtime.emulator.faults.drop_before["/v1/eth/sign"] = 1000


def heal(runtime: Runtime) -> None:
    runtime.line.heal()
    runtime.emulator.faults.drop_after.clear()
    runtime.emulator.faults.drop_before.clear()


class TestSigningService:
    @pytest.mark.parametrize("trouble", [cut, cannot_seal, cannot_sign])
    def test_requests_fail_and_change_nothing_until_it_is_back(
        self, on_runtime: OnRuntime, trouble: Callable[[Runtime], None]
    ) -> None:
        client, runtime = on_runtime.client, on_runtime.runtime
        client.put("kept", b"before")
        trouble(runtime)
        try:
            written = {"key": "never", "value": wire.encode_base64(b"stored")}
            overwritten = {"key": "kept", "value": wire.encode_base64(b"over")}
            answers = [
                client.send("PUT", "/kms/data", written),
                client.send("PUT", "/kms/data", overwritten),
                client.send("DELETE", "/kms/data", {"key": "kept"}),
                client.send("GET", "/kms/data/kept"),
                client.send("POST", "/kms/derive", {"path": "disk"}),
            ]
        finally:
            heal(runtime)
        assert {(answer.status, answer.code) for answer in answers} == {(503, UNAVAILABLE)}
        assert all("Retry-After" in answer.response.headers for answer in answers)
        eventually(lambda: client.contents() == {"kept": b"before"})
        assert on_runtime.node.available()

    def test_a_write_that_waits_for_a_hanging_service_in_vain_is_not_stored(self, on_runtime: OnRuntime) -> None:
        client, runtime = on_runtime.client, on_runtime.runtime
        runtime.line.blackhole()
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(client.send, "PUT", "/kms/data", {"key": "in vain", "value": "AAAA"})
            time.sleep(1.0)
            assert not waiting.done()
            heal(runtime)  # what was on the line is lost with it
            assert waiting.result(20.0).status == 503
        assert client.get("in vain") is None

    def test_a_delta_that_cannot_be_answered_is_not_merged(self, on_runtime: OnRuntime) -> None:
        app = on_runtime.cluster.register_app()
        peer, secret = peer_of_our_own(on_runtime.cluster, on_runtime.node)
        value = wire.encrypt_value(wire.derive_data_key(secret, app.app_id), b"x")
        delta = {"type": "delta", "data": {str(app.app_id): [wire_record("pushed", value, {"by hand": 1})]}}
        cannot_seal(on_runtime.runtime)
        try:
            assert peer.sync(delta, wire.derive_sync_key(secret)).status == 503
        finally:
            heal(on_runtime.runtime)
        client = on_runtime.cluster.app_at(app, on_runtime.node)
        assert client.contents() == {}
        assert peer.sync(delta, wire.derive_sync_key(secret)).inner["merged"] == 1
        assert client.contents() == {"pushed": b"x"}

    def test_a_node_that_starts_before_it_waits_for_it(self, cluster: Cluster) -> None:
        runtime = Runtime(cluster)
        runtime.line.cut()
        node = cluster.nova("early", env=runtime.environment)
        node.start()
        eventually(lambda: "waiting for the TEE provider" in node.log_tail())
        runtime.line.heal()
        cluster.admit(node)
        cluster.await_available(node)
        runtime.stop()

    def test_other_keys_after_its_restart_end_the_process(self, cluster: Cluster) -> None:
        runtime = Runtime(cluster)
        node = started_and_admitted(cluster, cluster.nova("orphan", env=runtime.environment))
        cluster.await_available(node)
        runtime.emulator.restart()
        eventually(lambda: node.exit_code() is not None)
        assert node.exit_code() not in (0, 2)
        assert "CRITICAL" in node.log_tail()
        assert "Traceback" not in node.log.read_text()
        runtime.stop()
