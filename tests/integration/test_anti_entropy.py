"""What no push brings comes by comparison (store §5), between real processes."""

import pytest

from tests.support import wire
from tests.support.cluster import Cluster, Node, eventually
from tests.support.raw_client import wire_record
from tests.support.scenarios import know_each_other, peer_of_our_own, started_and_admitted

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("anti-entropy")]


def test_a_record_that_only_a_snapshot_brought_to_a_survivor_arrives_everywhere(cluster: Cluster) -> None:
    writer = cluster.add_nova("writer")
    third = cluster.add_nova("third", proxied=True)
    know_each_other(writer, third)
    app = cluster.register_app()
    at_writer, at_third = cluster.app_at(app, writer), cluster.app_at(app, third)
    at_writer.put("known", b"to all")
    eventually(lambda: at_third.get("known") == b"to all")

    # Out of reach, and asking nobody: what is written now is not for it.
    third.proxy.cut()
    third.freeze()
    values = {f"missed/{number}": f"value {number}".encode() for number in range(40)}
    for key, value in values.items():
        at_writer.put(key, value)
    at_writer.delete("known")
    survivor = started_and_admitted(cluster, cluster.nova("survivor"))
    cluster.await_available(survivor)
    at_survivor = cluster.app_at(app, survivor)
    assert at_survivor.contents() == values

    writer.kill()
    cluster.retire(writer)
    third.proxy.heal()
    third.thaw()
    eventually(lambda: at_third.contents() == values, 30.0)
    assert at_survivor.contents() == values


def test_a_stranger_to_the_extension_is_told_of_it_and_refused_what_it_asks_wrongly(cluster: Cluster) -> None:
    node = cluster.add_nova("node")
    app = cluster.register_app()
    peer, secret = peer_of_our_own(cluster, node)
    sync_key = wire.derive_sync_key(secret)
    cluster.app_at(app, node).put("k", b"v")
    answer = peer.sync({"type": "digest_request", "ranges": [[None, ""]]}, sync_key)
    assert "anti_entropy" in answer.inner["ext"]
    [[named, digest]] = answer.inner["ranges"][0]["items"]
    assert (named, len(digest)) == (str(app.app_id), 32)
    asked = {"type": "records_request", "keys": [[named, "unknown"], [named, "k"]]}
    found = peer.sync(asked, sync_key).inner
    assert [record["key"] for record in found["data"][named]] == ["k"]
    assert found["count"] == 2
    assert peer.sync(asked, bytes(32)).code == "forbidden"
    assert peer.sync({"type": "digest_request", "ranges": [["1", "xyz"]]}, sync_key).code == "bad_request"
    assert peer.sync({"type": "records_request", "keys": [[1, "k"]]}, sync_key).code == "bad_request"


def test_nodes_that_agree_say_so_in_one_message(cluster: Cluster) -> None:
    nodes = [cluster.add_nova(f"node-{number}") for number in range(2)]
    know_each_other(*nodes)
    app = cluster.register_app()
    peer, secret = peer_of_our_own(cluster, nodes[0])
    data_key = wire.derive_data_key(secret, app.app_id)
    records = [wire_record(f"key {number}", wire.encrypt_value(data_key, b"v"), {"by hand": 1}) for number in range(90)]
    peer.push(wire.derive_sync_key(secret), app.app_id, *records)
    clients = [cluster.app_at(app, node) for node in nodes]
    eventually(lambda: all(len(client.keys()) == 90 for client in clients))

    def root(node: Node) -> str:
        asked = {"type": "digest_request", "ranges": [[str(app.app_id), ""]]}
        answer = cluster.peer_at(peer.identity, node).sync(asked, wire.derive_sync_key(secret))
        assert answer.inner is not None, "the node has not heard of this peer yet"
        return answer.inner["ranges"][0]["children"][0]

    assert len({eventually(lambda node=node: root(node)) for node in nodes}) == 1
