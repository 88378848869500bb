"""Replication between nodes of ours: what was written anywhere is everywhere once lines and nodes are back (store)."""

import time
from collections.abc import Iterator

import pytest

from tests.support.cluster import AppHandle, Cluster, Node, eventually
from tests.support.scenarios import acknowledged, agree, know_each_other, push_progress

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("replication")]

TICK_S = 0.5
SHORT_OUTAGE_S = 0.3
LONG_OUTAGE_S = 3.0
# A push that nobody holds up: some ticks, and what a busy machine adds. Well below a peer's deadline.
PROMPT_S = 6.0


class Trio:
    """Three nodes of ours behind lines that can fail, and an app."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.nodes: list[Node] = [cluster.add_nova(f"node-{number}", proxied=True) for number in range(3)]
        know_each_other(*self.nodes)
        self.app: AppHandle = cluster.register_app()
        self.clients = [cluster.app_at(self.app, node) for node in self.nodes]

    def everywhere(self, key: str, value: bytes | None) -> None:
        for client in self.clients:
            eventually(lambda client=client: client.get(key) == value)


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    with Cluster(tmp_path_factory.mktemp("trio")) as cluster:
        yield Trio(cluster)


class TestInPeace:
    def test_what_any_node_takes_arrives_everywhere(self, trio: Trio) -> None:
        for place, client in enumerate(trio.clients):
            client.put(f"of {place}", bytes([place]))
        for place in range(3):
            trio.everywhere(f"of {place}", bytes([place]))

    def test_overwrites_and_deletes_by_other_nodes_arrive_everywhere(self, trio: Trio) -> None:
        first, second, third = trio.clients
        first.put("passed on", b"one")
        trio.everywhere("passed on", b"one")
        second.put("passed on", b"two")
        trio.everywhere("passed on", b"two")
        assert third.delete("passed on")
        trio.everywhere("passed on", None)
        first.put("passed on", b"three")
        trio.everywhere("passed on", b"three")

    def test_concurrent_writes_to_one_key_end_equal_everywhere(self, trio: Trio) -> None:
        for round_number in range(5):
            for place, client in enumerate(trio.clients):
                client.put("contested", f"{place} in round {round_number}".encode())
                client.put(f"contested {round_number}", f"of {place}".encode())
        found = agree(*trio.clients)
        assert found["contested"].endswith(b"in round 4")
        assert all(found[f"contested {number}"].startswith(b"of ") for number in range(5))

    def test_a_concurrent_write_and_delete_end_equal_everywhere(self, trio: Trio) -> None:
        trio.clients[0].put("fought over", b"old")
        trio.everywhere("fought over", b"old")
        trio.clients[1].delete("fought over")
        trio.clients[2].put("fought over", b"new")
        agree(*trio.clients)

    def test_a_value_expires_on_all_nodes(self, trio: Trio) -> None:
        trio.clients[0].put("short", b"lived", ttl_ms=3000)
        trio.everywhere("short", b"lived")
        for client in trio.clients:
            eventually(lambda client=client: client.get("short") is None and "short" not in client.keys())  # noqa: SIM118


class TestOutages:
    @pytest.mark.parametrize("outage_s", [SHORT_OUTAGE_S, LONG_OUTAGE_S])
    def test_a_node_that_stood_still_catches_up(self, trio: Trio, outage_s: float) -> None:
        name = f"frozen for {outage_s}"
        trio.clients[0].put(name, b"before")
        trio.everywhere(name, b"before")
        trio.nodes[2].freeze()
        trio.clients[0].put(name, b"meanwhile")
        trio.clients[1].put(name + ", of another", b"x")
        time.sleep(outage_s)
        trio.nodes[2].thaw()
        trio.everywhere(name, b"meanwhile")
        trio.everywhere(name + ", of another", b"x")
        agree(*trio.clients)

    def test_a_node_that_was_cut_off_for_long_neither_lost_nor_missed_anything(self, trio: Trio) -> None:
        first, second, apart = trio.clients
        first.put("deleted meanwhile", b"x")
        first.put("written on both sides", b"x")
        trio.everywhere("deleted meanwhile", b"x")
        trio.everywhere("written on both sides", b"x")
        for node in trio.nodes:
            node.proxy.cut()
        for round_number in range(3):
            for place, client in enumerate(trio.clients):
                client.put(f"round {round_number} of {place}", b"y")
            time.sleep(LONG_OUTAGE_S / 3)
        second.delete("deleted meanwhile")
        first.put("written on both sides", b"first")
        apart.put("written on both sides", b"apart")
        assert all(node.available() for node in trio.nodes), "peers that are away are no reason not to serve"
        for node in trio.nodes:
            node.proxy.heal()
        found = agree(*trio.clients)
        assert "deleted meanwhile" not in found
        assert found["written on both sides"] in (b"first", b"apart")
        assert all(found[f"round {number} of {place}"] == b"y" for number in range(3) for place in range(3))

    def test_requests_and_answers_that_are_lost_lose_no_record(self, trio: Trio) -> None:
        for node in trio.nodes:
            node.proxy.drop_requests(3)
            node.proxy.lose_answers(3)
        for number in range(5):
            for place, client in enumerate(trio.clients):
                client.put(f"over a bad line {number} {place}", b"x")
            time.sleep(TICK_S / 2)
        found = agree(*trio.clients)
        assert sum(key.startswith("over a bad line") for key in found) == 15
        for node in trio.nodes:
            node.proxy.heal()

    def test_a_line_that_corrupts_answers_acknowledges_nothing(self, trio: Trio) -> None:
        writer, reader = trio.nodes[0], trio.nodes[1]
        eventually(lambda: acknowledged(writer, reader))
        reader.proxy.corrupt_answers()
        trio.clients[0].put("through corruption", b"x")
        eventually(lambda: push_progress(writer, reader)["last_error"] is not None)
        assert not acknowledged(writer, reader)
        reader.proxy.heal()
        eventually(lambda: acknowledged(writer, reader))
        trio.everywhere("through corruption", b"x")

    @pytest.mark.parametrize("trouble", ["frozen", "slow", "black hole"])
    def test_one_peer_in_trouble_delays_no_other(self, trio: Trio, trouble: str) -> None:
        """node §3: one slow or dead peer delays no other."""
        troubled = trio.nodes[2]
        if trouble == "frozen":
            troubled.freeze()
        elif trouble == "slow":
            troubled.proxy.delay(1.0)
        else:
            troubled.proxy.blackhole()
        try:
            trio.clients[0].put(f"{trouble}: for the troubled one", b"x")
            time.sleep(2 * TICK_S)  # a push to the troubled peer is under way now
            trio.clients[0].put(f"{trouble}: for the other one", b"x")
            eventually(lambda: trio.clients[1].get(f"{trouble}: for the other one") == b"x", PROMPT_S)
        finally:
            troubled.thaw()
            troubled.proxy.heal()
        agree(*trio.clients, timeout_s=40.0)


class TestReplacement:
    def test_a_node_that_is_killed_and_replaced_loses_the_cluster_nothing(self, trio: Trio) -> None:
        """Last in this module: the first node is gone for good."""
        trio.clients[0].put("of the killed one", b"x")
        trio.everywhere("of the killed one", b"x")
        before = agree(*trio.clients)
        trio.nodes[0].kill()
        trio.clients[1].put("while it is dead", b"y")
        trio.clients[2].delete("of the killed one")
        trio.cluster.retire(trio.nodes[0])
        replacement = trio.cluster.add_nova("replacement")
        clients = [*trio.clients[1:], trio.cluster.app_at(trio.app, replacement)]
        found = agree(*clients)
        expected = {**before, "while it is dead": b"y"}
        del expected["of the killed one"]
        assert found == expected
        clients[2].put("of the replacement", b"z")
        for client in clients:
            eventually(lambda client=client: client.get("of the replacement") == b"z")
