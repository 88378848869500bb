"""Our node and older peers in one cluster: secrets, keys and records cross both ways (protocol, store §2-§4)."""

import secrets
from collections.abc import Iterator
from functools import cached_property

import pytest

from tests.support import wire
from tests.support.cluster import AppHandle, Cluster, Node, eventually
from tests.support.raw_client import RawApp, RawPeer, request, wire_record

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("interop")]

# protocol §7: what an older peer accepts, and what one push may therefore weigh.
LEGACY_BODY_BYTES = 2 << 20
PUSH_BODY_BYTES = 3 << 19
PUSH_RECORDS = 500

DIALECTS = {
    "legacy seeds": {"LEGACY_SIGNATURE_V": "27", "LEGACY_SIGNATURE_PREFIX": "", "LEGACY_HEX": "upper"},
    "nova seeds": {"LEGACY_SIGNATURE_V": "0", "LEGACY_SIGNATURE_PREFIX": "0x", "LEGACY_HEX": "0x"},
}
DIRECTIONS = [("nova", "legacy"), ("legacy", "nova")]


class Mixed:
    """Our node, an older peer in one of the dialects of protocol's conventions, and an app that talks to both."""

    def __init__(self, cluster: Cluster, seeding: str) -> None:
        self.cluster = cluster
        self.seeding = seeding
        if seeding == "legacy seeds":
            self.legacy: Node = cluster.add_legacy("legacy", env=DIALECTS[seeding])
            self.nova: Node = cluster.add_nova("nova")
        else:
            self.nova = cluster.add_nova("nova")
            self.legacy = cluster.add_legacy("legacy", env=DIALECTS[seeding])
        self.app: AppHandle = cluster.register_app()
        self.at: dict[str, RawApp] = {
            "nova": cluster.app_at(self.app, self.nova),
            "legacy": cluster.app_at(self.app, self.legacy),
        }

    @cached_property
    def peer(self) -> RawPeer:
        """A hand-made peer that our node already knows."""
        peer = self.cluster.peer_at(self.cluster.register_peer(), self.nova)
        eventually(peer.fetch_master_secret)
        return peer

    @cached_property
    def master_secret(self) -> bytes:
        return self.peer.fetch_master_secret()

    @property
    def sync_key(self) -> bytes:
        return wire.derive_sync_key(self.master_secret)


@pytest.fixture(scope="module", params=list(DIALECTS))
def mixed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixed]:
    with Cluster(tmp_path_factory.mktemp("mixed")) as cluster:
        yield Mixed(cluster, request.param)


class TestMixedCluster:
    def test_the_joiner_takes_over_the_secret_of_the_seed(self, mixed: Mixed) -> None:
        seed, joiner = (mixed.legacy, mixed.nova) if mixed.seeding == "legacy seeds" else (mixed.nova, mixed.legacy)
        seed_status, joiner_status = seed.status()["node"], joiner.status()["node"]
        assert seed_status["master_secret"]["state"] == "generated"
        assert joiner_status["master_secret"]["state"] == "synced"
        assert wire.parse_wallet(joiner_status["master_secret"]["synced_from"]) == seed_status["tee_wallet"]
        assert joiner_status["master_secret_initialized"] is True

    def test_derive_gives_the_same_bytes_on_both(self, mixed: Mixed) -> None:
        for path, context, length in [("disk", "", 32), ("m/0/1", "signing", 64), ("clé", "日本", 48), ("x", "", 1024)]:
            ours = mixed.at["nova"].derive(path, context, length)
            assert ours == mixed.at["legacy"].derive(path, context, length)

    @pytest.mark.parametrize(("writer", "reader"), DIRECTIONS)
    def test_a_write_its_overwrite_and_its_delete_replicate(self, mixed: Mixed, writer: str, reader: str) -> None:
        key = f"clé/{writer} + 日本"
        mixed.at[writer].put(key, b"one")
        assert eventually(lambda: mixed.at[reader].get(key)) == b"one"
        mixed.at[writer].put(key, b"two")
        eventually(lambda: mixed.at[reader].get(key) == b"two")
        assert mixed.at[writer].delete(key)
        eventually(lambda: mixed.at[reader].get(key) is None)
        assert not mixed.at[reader].delete(key)

    @pytest.mark.parametrize(("writer", "reader"), DIRECTIONS)
    def test_the_reader_may_overwrite_and_delete_what_it_received(self, mixed: Mixed, writer: str, reader: str) -> None:
        key = f"handed-over-{writer}"
        mixed.at[writer].put(key, b"first")
        eventually(lambda: mixed.at[reader].get(key) == b"first")
        mixed.at[reader].put(key, b"second")
        eventually(lambda: mixed.at[writer].get(key) == b"second")
        assert mixed.at[writer].delete(key)
        eventually(lambda: mixed.at[reader].get(key) is None)
        mixed.at[reader].put(key, b"risen")
        eventually(lambda: mixed.at[writer].get(key) == b"risen")

    def test_concurrent_writes_on_both_sides_end_in_one_map(self, mixed: Mixed) -> None:
        keys = [f"contested-{number}" for number in range(12)]
        for number, key in enumerate(keys):
            first, second = DIRECTIONS[number % 2]
            mixed.at[first].put(key, f"of {first}".encode())
            mixed.at[second].put(key, f"of {second}".encode())

        def agreed() -> bool:
            found = {name: [client.get(key) for key in keys] for name, client in mixed.at.items()}
            return None not in found["nova"] and found["nova"] == found["legacy"]

        eventually(agreed)
        # Each pair was written in this order within milliseconds; where clocks tie, either may win.
        assert all(mixed.at["nova"].get(key).startswith(b"of ") for key in keys)

    def test_a_concurrent_write_and_delete_end_in_one_map(self, mixed: Mixed) -> None:
        key = "written-and-deleted"
        mixed.at["nova"].put(key, b"old")
        eventually(lambda: mixed.at["legacy"].get(key) == b"old")
        mixed.at["legacy"].delete(key)
        mixed.at["nova"].put(key, b"new")
        eventually(lambda: mixed.at["nova"].get(key) == mixed.at["legacy"].get(key))

    @pytest.mark.parametrize(("writer", "reader"), DIRECTIONS)
    def test_a_value_with_a_time_to_live_expires_on_both(self, mixed: Mixed, writer: str, reader: str) -> None:
        key = f"short-{writer}"
        mixed.at[writer].put(key, b"lived", ttl_ms=2000)
        assert eventually(lambda: mixed.at[reader].get(key)) == b"lived"
        eventually(lambda: mixed.at[writer].get(key) is None and mixed.at[reader].get(key) is None)

    def test_a_value_of_700_kb_of_an_older_peer_arrives(self, mixed: Mixed) -> None:
        value = secrets.token_bytes(700_000)
        mixed.at["legacy"].put("big-of-legacy", value)
        assert eventually(lambda: mixed.at["nova"].get("big-of-legacy")) == value

    def test_a_value_too_big_for_an_older_peer_holds_up_nothing_else(self, mixed: Mixed) -> None:
        mixed.at["nova"].put("big-of-nova", secrets.token_bytes(700_000))
        mixed.at["nova"].put("small-after-big", b"arrives")
        assert eventually(lambda: mixed.at["legacy"].get("small-after-big")) == b"arrives"
        assert any(
            entry["body_bytes"] > LEGACY_BODY_BYTES for entry in eventually(lambda: mixed.legacy.journal("too_large"))
        )
        assert mixed.at["legacy"].get("big-of-nova") is None
        assert mixed.nova.available()
        nodes = request("GET", mixed.nova.url + "/nodes").json()["operators"]
        (legacy,) = [node for node in nodes if node["instance"]["tee_wallet"] == mixed.at["legacy"].target.wallet]
        assert legacy["push"]["parked_records"] == 1, "store §4: a parked record is shown in /nodes"

    def test_a_value_of_350_kb_goes_alone_and_arrives(self, mixed: Mixed) -> None:
        value = secrets.token_bytes(350_000)
        mixed.at["nova"].put("middling", value)
        assert eventually(lambda: mixed.at["legacy"].get("middling")) == value

    def test_many_records_are_split_into_batches_that_an_older_peer_accepts(self, mixed: Mixed) -> None:
        data_key = wire.derive_data_key(mixed.master_secret, mixed.app.app_id)
        before = len(mixed.legacy.journal("delta"))
        sizes = [20] * 1200 + [100_000] * 12
        records = [
            wire_record(f"many-{number}", wire.encrypt_value(data_key, bytes(size)), {"hand made": 1})
            for number, size in enumerate(sizes)
        ]
        answer = mixed.peer.push(mixed.sync_key, mixed.app.app_id, *records)
        assert (answer["status"], answer["merged"]) == ("ok", len(records))
        eventually(lambda: sum(entry["inner"]["records"] for entry in mixed.legacy.journal("delta")[before:]) >= 1212)
        deltas = mixed.legacy.journal("delta")[before:]
        assert all(entry["mac"] for entry in deltas)
        assert max(entry["inner"]["records"] for entry in deltas) <= PUSH_RECORDS
        assert max(entry["body_bytes"] for entry in deltas) <= PUSH_BODY_BYTES
        assert len(deltas) <= 16, "batches are filled, not one request a record"
        keys = mixed.at["legacy"].keys()
        assert sum(key.startswith("many-") for key in keys) == len(records)

    def test_version_names_of_an_older_peer_come_back_byte_for_byte(self, mixed: Mixed) -> None:
        mixed.at["legacy"].put("named", b"by legacy")
        eventually(lambda: mixed.at["nova"].get("named"))
        mixed.at["nova"].put("named", b"by nova")
        snapshot = mixed.peer.snapshot(mixed.sync_key)
        (record,) = [record for record in snapshot[str(mixed.app.app_id)] if record["key"] == "named"]
        checksummed = wire.checksum_wallet(mixed.at["legacy"].target.wallet)
        assert record["version"].keys() == {checksummed, mixed.at["nova"].target.wallet}
        assert record["version"][checksummed] == 1

    def test_what_an_older_peer_pushed_is_not_sent_back_to_it(self, mixed: Mixed) -> None:
        mixed.at["nova"].put("fence-before", b"x")
        eventually(lambda: mixed.at["legacy"].get("fence-before"))
        before = len(mixed.legacy.journal("delta"))
        mixed.at["legacy"].put("not sent back", b"x")
        eventually(lambda: mixed.at["nova"].get("not sent back"))
        mixed.at["nova"].put("fence-after", b"x")
        eventually(lambda: mixed.at["legacy"].get("fence-after"))
        assert sum(entry["inner"]["records"] for entry in mixed.legacy.journal("delta")[before:]) == 1

    def test_nodes_lists_both_by_their_wallets(self, mixed: Mixed) -> None:
        nodes = request("GET", mixed.nova.url + "/nodes").json()
        wallets = {client.target.wallet for client in mixed.at.values()}
        assert wallets <= {node["operator"] for node in nodes["operators"]}, "protocol §6: operator is the wallet"
        assert nodes["count"] == len(nodes["operators"])

    def test_no_extension_is_probed_at_a_peer_that_announces_none(self, mixed: Mixed) -> None:
        kinds = {entry["type"] for entry in mixed.legacy.journal()}
        assert kinds <= {"delta", "snapshot_request", "master_secret_request", "too_large", "undecryptable"}


@pytest.mark.parametrize(
    ("label", "refused_with"),
    [(wire.ENCLAVER_LABEL, "400"), (wire.ENCLAVER_LABEL, "500"), (wire.CAPSULE_API_LABEL, "400")],
)
def test_a_cluster_on_an_old_label_is_joinable_and_replicates(cluster: Cluster, label: str, refused_with: str) -> None:
    legacy = cluster.add_legacy("legacy", env={"E2E_LABEL": label, "LEGACY_BAD_LABEL_STATUS": refused_with})
    nova = cluster.add_nova("nova")
    app = cluster.register_app()
    at_nova, at_legacy = cluster.app_at(app, nova), cluster.app_at(app, legacy, label)
    assert at_nova.derive("disk") == at_legacy.derive("disk")
    at_nova.put("of nova", b"x")
    at_legacy.put("of legacy", b"y")
    eventually(lambda: at_legacy.get("of nova"))
    eventually(lambda: at_nova.get("of legacy"))
    refused = len(legacy.journal("undecryptable"))
    at_nova.put("again", b"z")
    eventually(lambda: at_legacy.get("again"))
    assert len(legacy.journal("undecryptable")) == refused, "protocol §3: the label a key last used is remembered"


def test_an_older_peer_on_an_old_label_joins_ours(cluster: Cluster) -> None:
    nova = cluster.add_nova("nova")
    legacy = cluster.add_legacy("legacy", env={"E2E_LABEL": wire.ENCLAVER_LABEL})
    app = cluster.register_app()
    at_nova, at_legacy = cluster.app_at(app, nova), cluster.app_at(app, legacy, wire.ENCLAVER_LABEL)
    at_legacy.put("of legacy", b"y")
    eventually(lambda: at_nova.get("of legacy"))
    at_nova.put("of nova", b"x")
    eventually(lambda: at_legacy.get("of nova"))
    assert at_nova.derive("disk") == at_legacy.derive("disk")


@pytest.mark.parametrize("label", wire.LABELS)
def test_an_app_is_answered_under_the_label_that_it_uses(mixed: Mixed, label: str) -> None:
    client = mixed.cluster.app_at(mixed.app, mixed.nova, label)
    assert client.send("POST", "/kms/derive", {"path": "disk"}).label == label
    assert client.send("GET", "/kms/data").label == label, "the label of the key's last request"
