"""Two older peers on their own: the second implementation is sound before anything is proven with it."""

import secrets
import time
from collections.abc import Iterator

import pytest

from tests.support import wire
from tests.support.cluster import AppHandle, Cluster, Node, eventually
from tests.support.raw_client import PEER, Caller, pop_headers, request, seal

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("legacy_pair")]


class Pair:
    """A seeding peer, a joining peer that writes everything differently, and an app."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.seed: Node = cluster.add_legacy("seed")
        self.joiner: Node = cluster.add_legacy(
            "joiner", env={"LEGACY_SIGNATURE_V": "27", "LEGACY_SIGNATURE_PREFIX": "", "LEGACY_HEX": "0x"}
        )
        self.app: AppHandle = cluster.register_app()
        self.at_seed = cluster.app_at(self.app, self.seed)
        self.at_joiner = cluster.app_at(self.app, self.joiner)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with Cluster(tmp_path_factory.mktemp("pair")) as cluster:
        yield Pair(cluster)


def test_one_generates_the_secret_and_the_other_takes_it_over(pair: Pair) -> None:
    seed, joiner = pair.seed.status()["node"], pair.joiner.status()["node"]
    assert seed["master_secret"] == {"state": "generated", "synced_from": None}
    assert joiner["master_secret"] == {"state": "synced", "synced_from": seed["tee_wallet"]}
    assert pair.cluster.chain.master_secret_hash() != bytes(32)


def test_both_derive_the_same_key(pair: Pair) -> None:
    assert pair.at_seed.derive("disk", "v1", 48) == pair.at_joiner.derive("disk", "v1", 48)
    assert pair.at_seed.derive("disk") != pair.at_seed.derive("disk", "v1")


def test_writes_and_deletes_replicate_in_both_directions(pair: Pair) -> None:
    pair.at_seed.put("from/seed", b"one")
    pair.at_joiner.put("from joiner", b"two")
    assert eventually(lambda: pair.at_joiner.get("from/seed")) == b"one"
    assert eventually(lambda: pair.at_seed.get("from joiner")) == b"two"
    assert pair.at_joiner.delete("from/seed")
    eventually(lambda: pair.at_seed.get("from/seed") is None)
    assert not pair.at_joiner.delete("from/seed")
    assert "from joiner" in pair.at_joiner.keys()  # noqa: SIM118 - an endpoint, not a mapping


def test_a_value_expires_on_both(pair: Pair) -> None:
    pair.at_seed.put("short", b"lived", ttl_ms=1500)
    assert eventually(lambda: pair.at_joiner.get("short")) == b"lived"
    eventually(lambda: pair.at_joiner.get("short") is None and pair.at_seed.get("short") is None)


def test_a_body_over_two_mebibytes_is_refused(pair: Pair) -> None:
    answer = pair.at_seed.send(
        "PUT", "/kms/data", {"key": "big", "value": wire.encode_base64(secrets.token_bytes(800_000))}
    )
    assert (answer.status, answer.code) == (413, "payload_too_large")


def test_a_stranger_gets_nothing(pair: Pair) -> None:
    stranger = Caller(pair.cluster.register_app().identity, pair.seed.target(), PEER)
    answer = stranger.send("POST", "/sync", {"type": "snapshot_request", "sender_wallet": stranger.identity.address})
    assert answer.status == 403


def test_a_nonce_is_good_once_and_a_proof_names_its_receiver_and_time(pair: Pair) -> None:
    nonce = request("GET", pair.seed.url + "/nonce").json()["nonce"]
    assert pair.at_seed.send("GET", "/kms/data", nonce=nonce).status == 200
    assert pair.at_seed.send("GET", "/kms/data", nonce=nonce).status == 403
    assert pair.at_seed.send("GET", "/kms/data", receiver=pair.at_joiner.target.wallet).status == 403
    assert pair.at_seed.send("GET", "/kms/data", timestamp=int(time.time()) - 200).status == 403
    assert pair.at_seed.send("GET", "/kms/data", nonce="AAAA").status == 403


def test_a_sync_request_needs_the_mac_unless_it_asks_for_the_secret(pair: Pair) -> None:
    identity = pair.cluster.register_peer()
    peer = pair.cluster.peer_at(identity, pair.seed)
    eventually(
        lambda: peer.sync({"type": "master_secret_request", "ecdh_pubkey": wire.TeeKey().der.hex()}, None).status == 200
    )
    secret = peer.fetch_master_secret()
    assert wire.keccak256(secret) == pair.cluster.chain.master_secret_hash()
    assert peer.sync({"type": "snapshot_request"}, None).status == 403
    assert peer.sync({"type": "snapshot_request"}, bytes(32)).status == 403
    assert isinstance(peer.snapshot(wire.derive_sync_key(secret)), dict)


def test_an_envelope_of_another_key_is_refused(pair: Pair) -> None:
    inner = {"path": "disk"}
    other = seal(pair.cluster.register_app().identity, pair.at_seed.target.tee_pubkey, inner)
    assert pair.at_seed.send("POST", "/kms/derive", envelope=other).status == 403


def test_a_wrong_hint_is_refused(pair: Pair) -> None:
    target, identity = pair.at_seed.target, pair.app.identity
    nonce = request("GET", target.url + "/nonce").json()["nonce"]
    headers = pop_headers(identity, pair.at_seed.flow, nonce, target.wallet, hint=target.wallet)
    assert request("GET", target.url + "/kms/data", headers=headers).status_code == 403


def test_an_older_peer_loses_what_it_pushed_into_an_outage(cluster: Cluster) -> None:
    """The weakness that store.md §4 describes is really there: the tests with our node rely on it."""
    first = cluster.add_legacy("first")
    second = cluster.add_legacy("second", proxied=True)
    app = cluster.register_app()
    at_first, at_second = cluster.app_at(app, first), cluster.app_at(app, second)
    second.proxy.cut()
    at_first.put("lost", b"x")
    eventually(lambda: "is lost" in first.log_tail())
    second.proxy.heal()
    at_first.put("later", b"y")
    assert eventually(lambda: at_second.get("later")) == b"y"
    assert at_second.get("lost") is None


def test_a_lying_peer_is_not_believed(cluster: Cluster) -> None:
    cluster.add_legacy("liar", env={"LEGACY_LIE_SECRET": "1"})
    joiner = cluster.legacy("joiner")
    joiner.start()
    cluster.admit(joiner)
    eventually(lambda: joiner.unavailable_reason() == "synced master secret hash mismatch")
