"""The first secret of a cluster: who may claim it, who wins, and what it takes until it counts (node §2, chain §2)."""

import pytest

from tests.support import wire
from tests.support.cluster import Cluster, eventually
from tests.support.local_chain import DEPRECATED, ETHER, KMS_APP_ID
from tests.support.scenarios import (
    UNAVAILABLE,
    await_reason,
    peer_of_our_own,
    register,
    start_together,
    started_and_admitted,
)

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("seeding")]

UNSET = bytes(32)


def test_a_lone_node_claims_a_secret_of_its_own_and_serves_with_it(cluster: Cluster) -> None:
    app = cluster.register_app()
    node = cluster.nova("node")
    node.start()
    assert node.await_status()["node"]["service_available"] is False
    refused = cluster.app_at(app, node).send("POST", "/kms/derive", {"path": "disk"})
    assert (refused.status, refused.code) == (503, UNAVAILABLE)
    assert int(refused.response.headers["Retry-After"]) >= 1
    await_reason(node, "self not in KMS node list")
    assert cluster.chain.master_secret_hash() == UNSET, "a node that is not registered claims nothing"

    cluster.admit(node)
    cluster.await_available(node)
    described = node.status()["node"]
    assert described["master_secret"] == {"state": "generated", "synced_from": None}
    assert described["master_secret_initialized"] is True
    assert described["is_operator"] is True
    _, secret = peer_of_our_own(cluster, node)
    assert wire.keccak256(secret) == cluster.chain.master_secret_hash()
    assert cluster.app_at(app, node).derive("disk", "v1", 48) == wire.derive_key(secret, app.app_id, "disk", "v1", 48)


def test_three_claims_in_one_block_end_with_one_secret(cluster: Cluster) -> None:
    chain = cluster.chain
    nodes = [cluster.nova(f"node-{number}") for number in range(3)]
    for node in nodes:
        node.start()
    described = [node.await_status()["node"] for node in nodes]
    for node in nodes:
        node.freeze()
    for node, identity in zip(nodes, described, strict=True):
        register(cluster, node, identity)
    # All claims wait in the pool together: whichever is mined first, the others are reverted in the same block.
    chain.rpc("evm_setAutomine", False)
    for node in nodes:
        node.thaw()
    eventually(lambda: int(chain.rpc("txpool_status")["pending"], 16) == 3)
    chain.rpc("evm_mine")
    chain.rpc("evm_setAutomine", True)
    won = chain.master_secret_hash()
    assert won != UNSET

    cluster.await_available(*nodes)
    assert chain.master_secret_hash() == won
    assert sorted(node.status()["node"]["master_secret"]["state"] for node in nodes) == [
        "generated",
        *["synced"] * 2,
    ]
    app = cluster.register_app()
    assert len({cluster.app_at(app, node).derive("disk") for node in nodes}) == 1
    _, secret = peer_of_our_own(cluster, nodes[0])
    assert wire.keccak256(secret) == won


def test_two_nodes_that_start_together_end_with_one_secret(cluster: Cluster) -> None:
    nodes = [cluster.nova(f"node-{number}", env={"KMS_NODE_TICK_SECONDS": "0.3"}) for number in range(2)]
    start_together(cluster, *nodes)
    cluster.await_available(*nodes)
    app = cluster.register_app()
    assert len({cluster.app_at(app, node).derive("disk") for node in nodes}) == 1


def test_a_node_of_a_deprecated_version_runs_but_does_not_seed(cluster: Cluster) -> None:
    chain = cluster.chain
    old_version = chain.kms_version
    chain.set_version_status(KMS_APP_ID, old_version, DEPRECATED)
    old = started_and_admitted(cluster, cluster.nova("old"))
    await_reason(old, "failed to set master secret hash")
    assert chain.master_secret_hash() == UNSET

    chain.kms_version = chain.enroll_version(KMS_APP_ID)
    new = cluster.add_nova("new")
    cluster.await_available(old)
    assert new.status()["node"]["master_secret"]["state"] == "generated"
    assert old.status()["node"]["master_secret"] == {
        "state": "synced",
        "synced_from": new.status()["node"]["tee_wallet"],
    }
    app = cluster.register_app()
    assert cluster.app_at(app, old).derive("disk") == cluster.app_at(app, new).derive("disk")


def test_a_node_without_money_says_that_it_cannot_claim_and_claims_once_it_has_some(cluster: Cluster) -> None:
    node = cluster.nova("poor")
    node.start()
    identity = node.await_status()["node"]
    register(cluster, node, identity, wei=0)
    await_reason(node, "failed to set master secret hash")
    assert cluster.chain.master_secret_hash() == UNSET
    assert node.status()["node"]["service_available"] is False
    cluster.chain.fund(identity["tee_wallet"], ETHER)
    cluster.await_available(node)


def test_a_claim_counts_only_when_it_is_read_back_behind_the_confirmations(cluster: Cluster) -> None:
    node = cluster.nova("node", env={"CHAIN_CONFIRMATIONS": "3"})
    node.start()
    cluster.admit(node)
    cluster.chain.rpc("anvil_mine", "0x3")
    await_reason(node, "awaiting on-chain master secret hash")
    # The reason is said before the claim is sent.
    eventually(lambda: cluster.chain.master_secret_hash() != UNSET)
    won = cluster.chain.master_secret_hash()
    app = cluster.register_app()
    cluster.chain.rpc("anvil_mine", "0x3")
    cluster.await_available(node)
    cluster.app_at(app, node).derive("disk")
    assert cluster.chain.master_secret_hash() == won


def test_a_secret_that_lost_the_race_is_dropped_even_when_nobody_hands_over_the_winner(cluster: Cluster) -> None:
    loser = cluster.nova("loser")
    loser.start()
    register(cluster, loser, loser.await_status()["node"], wei=0)
    await_reason(loser, "failed to set master secret hash")
    assert loser.status()["node"]["master_secret"]["state"] == "generated"
    loser.freeze()
    winner = cluster.add_legacy("winner")
    cluster.retire(winner)
    loser.thaw()
    await_reason(loser, "master secret sync failed")
    described = loser.status()["node"]
    assert described["master_secret"]["state"] == "uninitialized", "node §2.4: drop ours and go on with 5"
    assert described["master_secret_initialized"] is False
