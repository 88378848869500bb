"""What the chain says of a node decides whether it serves and whether its peers listen (node §1, §2, chain §3)."""

from collections.abc import Callable, Iterator

import pytest

from tests.support import wire
from tests.support.cluster import AppHandle, Cluster, Node, eventually
from tests.support.local_chain import ACTIVE, ENROLLED, FAILED, KMS_APP_ID, REVOKED, STOPPED, LocalChain
from tests.support.scenarios import (
    UNAVAILABLE,
    agree,
    await_reason,
    know_each_other,
    peer_of_our_own,
    started_and_admitted,
)

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("membership")]

QUICK = {"KMS_NODE_TICK_SECONDS": "0.3"}
NOT_LISTED = "self not in KMS node list"
UNKNOWN_STATUS = 9
# The code of a contract that reverts whatever it is asked.
REVERTS = "0x60006000fd"


class Duo:
    """Two nodes of ours, the second one under a version of its own, and an app."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.chain = cluster.chain
        self.steady: Node = cluster.add_nova("steady", env=QUICK)
        self.own_version = self.chain.kms_version = self.chain.enroll_version(KMS_APP_ID)
        self.changing: Node = cluster.add_nova("changing", env=QUICK)
        self.app: AppHandle = cluster.register_app()
        self.at_steady = cluster.app_at(self.app, self.steady)
        self.at_changing = cluster.app_at(self.app, self.changing)
        know_each_other(self.steady, self.changing)


@pytest.fixture(scope="module")
def duo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Duo]:
    with Cluster(tmp_path_factory.mktemp("duo")) as cluster:
        yield Duo(cluster)


def set_status(status: int) -> Callable[[LocalChain, Duo], None]:
    return lambda chain, duo: chain.set_instance_status(duo.changing.instance_id, status)


def set_version(status: int) -> Callable[[LocalChain, Duo], None]:
    return lambda chain, duo: chain.set_version_status(KMS_APP_ID, duo.own_version, status)


def set_zk(verified: bool) -> Callable[[LocalChain, Duo], None]:
    return lambda chain, duo: chain.set_zk_verified(duo.changing.instance_id, verified)


def set_lookup(known: bool) -> Callable[[LocalChain, Duo], None]:
    def change(chain: LocalChain, duo: Duo) -> None:
        instance_id = duo.changing.instance_id if known else 0
        wallet = duo.at_changing.target.wallet
        chain.transact(chain.app_registry, "setInstanceOfWallet(address,uint256)", wallet, instance_id)

    return change


def set_url(text: str | None) -> Callable[[LocalChain, Duo], None]:
    return lambda chain, duo: chain.set_instance_url(
        duo.changing.instance_id, duo.changing.public_url if text is None else text
    )


ONE_NODE_OUT = [
    pytest.param(set_status(STOPPED), set_status(ACTIVE), id="instance stopped"),
    pytest.param(set_status(FAILED), set_status(ACTIVE), id="instance failed"),
    pytest.param(set_status(UNKNOWN_STATUS), set_status(ACTIVE), id="instance status unknown"),
    pytest.param(set_zk(False), set_zk(True), id="not verified"),
    pytest.param(set_version(REVOKED), set_version(ENROLLED), id="version revoked"),
    pytest.param(set_version(UNKNOWN_STATUS), set_version(ENROLLED), id="version status unknown"),
    pytest.param(set_lookup(False), set_lookup(True), id="listed but not found"),
    pytest.param(set_url("ftp://elsewhere"), set_url(None), id="unusable URL"),
]


class TestOneNodeOut:
    @pytest.mark.parametrize(("take_out", "take_back"), ONE_NODE_OUT)
    def test_a_node_that_is_no_longer_eligible_stops_serving_and_catches_up_on_its_return(
        self,
        duo: Duo,
        take_out: Callable[[LocalChain, Duo], None],
        take_back: Callable[[LocalChain, Duo], None],
    ) -> None:
        duo.at_steady.put("deleted meanwhile", b"x")
        eventually(lambda: duo.at_changing.get("deleted meanwhile") == b"x")
        take_out(duo.chain, duo)
        await_reason(duo.changing, NOT_LISTED)
        answer = duo.at_changing.send("POST", "/kms/derive", {"path": "disk"})
        assert (answer.status, answer.code) == (503, UNAVAILABLE)
        assert answer.response.json()["message"] == NOT_LISTED
        eventually(lambda: duo.steady.status()["cluster"]["total_instances"] == 1)
        assert duo.steady.available()
        assert duo.changing.status()["node"]["is_operator"] is False
        duo.at_steady.put("written meanwhile", b"y")
        assert duo.at_steady.delete("deleted meanwhile")

        take_back(duo.chain, duo)
        duo.cluster.await_available(duo.changing)
        eventually(lambda: duo.at_changing.get("written meanwhile") == b"y")
        eventually(lambda: duo.at_changing.get("deleted meanwhile") is None)
        assert duo.at_steady.delete("written meanwhile")
        assert agree(duo.at_steady, duo.at_changing) == {}

    def test_a_foreign_key_on_chain_is_not_ours(self, duo: Duo) -> None:
        own = duo.at_changing.target.tee_pubkey
        duo.chain.set_tee_pubkey(duo.changing.instance_id, wire.TeeKey().der)
        await_reason(duo.changing, "local teePubkey mismatch with registry")
        assert duo.at_changing.send("POST", "/kms/derive", {"path": "disk"}).status == 503
        duo.chain.set_tee_pubkey(duo.changing.instance_id, wire.parse_tee_pubkey(own)[-97:])
        duo.cluster.await_available(duo.changing)  # the same key as a SEC1 point is the same key (protocol §1)
        duo.chain.set_tee_pubkey(duo.changing.instance_id, b"no key at all")
        await_reason(duo.changing, NOT_LISTED)
        duo.chain.set_tee_pubkey(duo.changing.instance_id, own)
        duo.cluster.await_available(duo.changing)


class TestWhomPeersListenTo:
    def test_a_peer_is_refused_as_soon_as_the_chain_takes_it_out_or_names_another_key(self, duo: Duo) -> None:
        peer, secret = peer_of_our_own(duo.cluster, duo.steady)
        sync_key = wire.derive_sync_key(secret)
        asked = {"type": "snapshot_request"}
        assert peer.sync(asked, sync_key).status == 200
        instance_id = duo.chain.view(
            duo.chain.app_registry,
            "getInstancesForVersion(uint256,uint256)",
            "uint256[]",
            KMS_APP_ID,
            duo.chain.kms_version,
        )[-1]
        duo.chain.set_tee_pubkey(instance_id, wire.TeeKey().der)
        eventually(lambda: peer.sync(asked, sync_key).status == 403)
        duo.chain.set_tee_pubkey(instance_id, peer.identity.tee.der)
        eventually(lambda: peer.sync(asked, sync_key).status == 200)
        duo.chain.set_instance_status(instance_id, STOPPED)
        eventually(lambda: peer.sync(asked, sync_key).status == 403)

    def test_the_node_itself_is_no_peer_of_its_own(self, duo: Duo) -> None:
        app_as_peer = duo.cluster.peer_at(duo.app.identity, duo.steady)
        request = {"type": "master_secret_request", "ecdh_pubkey": wire.TeeKey().der.hex()}
        assert app_as_peer.sync(request, None).status == 403, "an app is no peer either"


class TestEverybodyOut:
    @pytest.mark.parametrize("status", [1, REVOKED, UNKNOWN_STATUS])
    def test_nobody_serves_while_the_kms_app_is_not_active(self, duo: Duo, status: int) -> None:
        duo.at_steady.put("kept", b"x")
        eventually(lambda: duo.at_changing.get("kept") == b"x")
        duo.chain.set_app_status(KMS_APP_ID, status)
        for node in (duo.steady, duo.changing):
            await_reason(node, NOT_LISTED)
        duo.chain.set_app_status(KMS_APP_ID, ACTIVE)
        duo.cluster.await_available(duo.steady, duo.changing)
        assert agree(duo.at_steady, duo.at_changing)["kept"] == b"x"

    def test_a_hash_that_cannot_be_read_stops_joiners_and_not_those_that_were_confirmed(self, duo: Duo) -> None:
        code = duo.chain.rpc("eth_getCode", duo.chain.kms_registry, "latest")
        duo.chain.rpc("anvil_setCode", duo.chain.kms_registry, REVERTS)
        joiner = duo.cluster.nova("joiner")
        joiner.start()
        identity = joiner.await_status()["node"]
        duo.chain.rpc("anvil_setCode", duo.chain.kms_registry, code)  # the registration has to reach the contract
        duo.chain.fund(identity["tee_wallet"])
        joiner.freeze()
        joiner.instance_id = duo.chain.register_instance(
            KMS_APP_ID,
            duo.chain.kms_version,
            joiner.url,
            wire.parse_hex(identity["tee_pubkey"]),
            identity["tee_wallet"],
        )
        duo.chain.rpc("anvil_setCode", duo.chain.kms_registry, REVERTS)
        joiner.thaw()
        await_reason(joiner, "cannot read master secret hash")
        assert duo.steady.available()
        assert duo.changing.available()
        duo.at_steady.put("replicated meanwhile", b"x")
        eventually(lambda: duo.at_changing.get("replicated meanwhile") == b"x")
        duo.chain.rpc("anvil_setCode", duo.chain.kms_registry, code)
        duo.cluster.await_available(joiner)
        duo.cluster.retire(joiner)

    def test_a_registry_that_reverts_is_an_outage_and_not_an_empty_list(self, cluster: Cluster) -> None:
        node = cluster.nova("node", env={"PEER_CACHE_TTL_SECONDS": "3"})
        cluster.await_available(started_and_admitted(cluster, node))
        code = cluster.chain.rpc("eth_getCode", cluster.chain.app_registry, "latest")
        cluster.chain.rpc("anvil_setCode", cluster.chain.app_registry, REVERTS)
        await_reason(node, "peer cache refresh failed")
        cluster.chain.rpc("anvil_setCode", cluster.chain.app_registry, code)
        cluster.await_available(node)


class TestOwnersReset:
    def test_nodes_claim_the_same_secret_again_and_lose_nothing(self, duo: Duo) -> None:
        duo.at_steady.put("before the reset", b"x")
        eventually(lambda: duo.at_changing.get("before the reset") == b"x")
        derived, claimed = duo.at_steady.derive("disk"), duo.chain.master_secret_hash()
        duo.chain.reset_master_secret_hash()
        eventually(lambda: duo.chain.master_secret_hash() == claimed)
        duo.cluster.await_available(duo.steady, duo.changing)
        assert agree(duo.at_steady, duo.at_changing)["before the reset"] == b"x"
        assert duo.at_changing.derive("disk") == duo.at_steady.derive("disk") == derived
        duo.at_changing.put("after the reset", b"y")
        eventually(lambda: duo.at_steady.get("after the reset") == b"y")

    def test_a_foreign_secret_replaces_the_old_one_and_its_store(self, duo: Duo) -> None:
        """Last in this module: the old data is gone for good."""
        duo.at_steady.put("of the old secret", b"x")
        eventually(lambda: duo.at_changing.get("of the old secret") == b"x")
        derived = duo.at_steady.derive("disk")
        for node in (duo.steady, duo.changing):
            node.freeze()
        duo.chain.reset_master_secret_hash()
        foreign = duo.cluster.add_legacy("foreign")
        at_foreign = duo.cluster.app_at(duo.app, foreign)
        at_foreign.put("of the new secret", b"y")
        for node in (duo.steady, duo.changing):
            node.thaw()
        eventually(lambda: duo.at_steady.derive("disk") == at_foreign.derive("disk") != derived)
        duo.cluster.await_available(duo.steady, duo.changing)
        assert agree(duo.at_steady, duo.at_changing, at_foreign) == {"of the new secret": b"y"}
        assert "store dropped" in duo.steady.log_tail(400), "node §2.5: dropped loudly"
        duo.at_steady.put("written after", b"z")
        eventually(lambda: at_foreign.get("written after") == b"z")
