"""Values of apps: kept, replaced, listed, expired, bounded, nobody else's; and derived keys (protocol §4, store §1)."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import wire
from tests.support.api_bench import (
    BAD_REQUEST,
    NOT_FOUND,
    QUOTA_EXCEEDED,
    ApiBench,
    assert_signed_refusal,
    open_bench,
)
from tests.support.cluster import eventually
from tests.support.raw_client import Answer, RawApp, RawIdentity

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("app_values")]

MAX_VALUE = 4096
MAX_APP = 16_384
MAX_TOMBSTONES = 3
SEAL_BYTES = 28  # nonce and tag at rest (protocol §5)
RECORD_BYTES = 128  # what a record costs beside its key and ciphertext (store §1)

KDF_VECTORS = json.loads((Path(__file__).parents[1] / "vectors/kdf.json").read_text())


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiBench]:
    env = {
        "MAX_KV_VALUE_SIZE_BYTES": str(MAX_VALUE),
        "MAX_APP_STORAGE_BYTES": str(MAX_APP),
        "MAX_TOMBSTONES_PER_APP": str(MAX_TOMBSTONES),
    }
    with open_bench(tmp_path_factory.mktemp("app-values"), env) as bench:
        yield bench


@pytest.fixture
def app(bench: ApiBench) -> RawApp:
    return bench.new_app()


def store_of(bench: ApiBench) -> dict[str, object]:
    return bench.node.status()["data_store"]


def size_of(key: str, value_bytes: int) -> int:
    return len(key.encode()) + SEAL_BYTES + value_bytes + RECORD_BYTES


def put(app: RawApp, key: str, value: bytes) -> Answer:
    return app.send("PUT", "/kms/data", {"key": key, "value": wire.encode_base64(value)})


class TestKeeping:
    def test_what_was_put_is_got(self, app: RawApp) -> None:
        before = time.time_ns() // 1_000_000
        updated_at_ms = app.put("k", b"value")
        assert before - 1 <= updated_at_ms <= time.time_ns() // 1_000_000 + 1
        inner = app.send("GET", "/kms/data/k").inner
        assert inner["value"] == wire.encode_base64(b"value")
        assert inner["updated_at_ms"] == updated_at_ms

    def test_answers_have_the_members_of_the_protocol(self, app: RawApp) -> None:
        extensions = {"answer_to"}
        rows = (
            ("POST", "/kms/derive", {"path": "p"}, {"app_id", "path", "key", "length"}),
            ("PUT", "/kms/data", {"key": "k", "value": "QQ=="}, {"app_id", "key", "updated_at_ms"}),
            ("GET", "/kms/data/k", None, {"app_id", "key", "value", "updated_at_ms"}),
            ("GET", "/kms/data?key=k", None, {"app_id", "key", "value", "updated_at_ms"}),
            ("GET", "/kms/data", None, {"app_id", "keys", "count"}),
            ("DELETE", "/kms/data", {"key": "k"}, {"app_id", "key", "deleted"}),
        )
        for method, path, inner, members in rows:
            answer = app.send(method, path, inner)
            assert set(answer.inner) - extensions == members
            assert type(answer.inner["app_id"]) is int
        assert answer.inner["deleted"] is True

    def test_a_later_write_replaces_and_carries_a_later_time(self, app: RawApp) -> None:
        times = [app.put("k", bytes([number])) for number in range(10)]
        assert times == sorted(set(times))
        assert app.get("k") == b"\x09"
        assert app.keys() == ["k"]

    def test_a_deleted_key_is_gone_and_can_be_written_again(self, app: RawApp) -> None:
        first = app.put("k", b"one")
        assert app.delete("k")
        assert app.get("k") is None
        assert app.keys() == []
        assert not app.delete("k")
        assert app.put("k", b"two") > first + 1
        assert app.get("k") == b"two"

    def test_missing_deleted_and_expired_look_the_same(self, app: RawApp) -> None:
        app.put("deleted", b"x")
        app.delete("deleted")
        app.put("expired", b"x", ttl_ms=1)
        time.sleep(0.01)
        bodies = set()
        for key in ("missing", "deleted", "expired"):
            for method, path, inner in (("GET", f"/kms/data/{key}", None), ("DELETE", "/kms/data", {"key": key})):
                answer = app.send(method, path, inner)
                assert_signed_refusal(answer, app, NOT_FOUND)
                bodies.add((method, answer.response.content))
        assert len(bodies) == 2

    def test_keys_are_listed_with_their_count(self, app: RawApp) -> None:
        for key in ("b", "a", "é", "a/b"):
            app.put(key, b"")
        assert sorted(app.keys()) == sorted(("b", "a", "é", "a/b"))

    def test_two_apps_with_one_key_do_not_meet(self, bench: ApiBench, app: RawApp) -> None:
        other = bench.new_app()
        app.put("k", b"mine")
        assert other.get("k") is None
        other.put("k", b"theirs", ttl_ms=60_000)
        app.put("only mine", b"x")
        assert app.contents() == {"k": b"mine", "only mine": b"x"}
        assert other.contents() == {"k": b"theirs"}
        assert not other.delete("only mine")
        assert other.delete("k")
        assert app.get("k") == b"mine"

    def test_the_instances_of_one_app_share_its_values(self, bench: ApiBench) -> None:
        handle = bench.cluster.register_app()
        identity = RawIdentity()
        bench.cluster.chain.register_instance(handle.app_id, handle.version_id, "", identity.tee.der, identity.address)
        first, second = RawApp(handle.identity, bench.target), RawApp(identity, bench.target)
        first.put("k", b"shared")
        assert second.get("k") == b"shared"
        assert second.delete("k")
        assert first.get("k") is None

    def test_values_are_at_rest_under_the_app_s_own_key(self, bench: ApiBench) -> None:
        handle = bench.cluster.register_app()
        app = RawApp(handle.identity, bench.target)
        app.put("a", b"the same")
        app.put("b", b"the same")
        records = bench.peer.snapshot(bench.sync_key)[str(handle.app_id)]
        values = [wire.parse_hex(record["value"]) for record in records]
        assert values[0] != values[1]
        data_key = wire.derive_data_key(bench.master_secret, handle.app_id)
        assert [wire.decrypt_value(data_key, value) for value in values] == [b"the same"] * 2


class TestExpiry:
    def test_a_value_expires_after_its_ttl(self, app: RawApp) -> None:
        updated_at_ms = app.put("short", b"x", ttl_ms=700)
        app.put("long", b"x", ttl_ms=60_000)
        assert sorted(app.keys()) == ["long", "short"]
        assert app.get("short") == b"x"
        time.sleep(max(0.0, updated_at_ms / 1000 + 0.705 - time.time()))
        assert app.get("short") is None
        assert app.keys() == ["long"]
        assert not app.delete("short")

    def test_memory_is_reclaimed_without_being_asked(self, bench: ApiBench, app: RawApp) -> None:
        before = store_of(bench)
        app.put("short", bytes(3000), ttl_ms=300)
        during = store_of(bench)
        assert during["total_keys"] == before["total_keys"] + 1
        assert during["total_bytes"] == before["total_bytes"] + size_of("short", 3000)
        assert during["namespaces"] == before["namespaces"] + 1
        eventually(lambda: store_of(bench) == before, 5.0)

    def test_writing_again_starts_the_ttl_anew_or_ends_it(self, app: RawApp) -> None:
        first = app.put("k", b"x", ttl_ms=200)
        app.put("k", b"y", ttl_ms=60_000)
        app.put("l", b"x", ttl_ms=200)
        app.put("l", b"y")
        time.sleep(max(0.0, first / 1000 + 0.35 - time.time()))
        assert app.contents() == {"k": b"y", "l": b"y"}

    def test_a_write_after_expiry_is_later_than_what_expired(self, app: RawApp) -> None:
        first = app.put("k", b"x", ttl_ms=1)
        time.sleep(0.01)
        assert app.get("k") is None
        assert app.put("k", b"y") > first
        assert app.get("k") == b"y"

    def test_expiry_makes_room(self, app: RawApp) -> None:
        for number in range(3):
            app.put(f"short {number}", bytes(MAX_VALUE), ttl_ms=500)
        assert_signed_refusal(put(app, "long", bytes(MAX_VALUE)), app, QUOTA_EXCEEDED)
        assert eventually(lambda: put(app, "long", bytes(MAX_VALUE)).status == 200, 5.0)


class TestBounds:
    def test_a_value_of_the_limit_is_kept_and_a_byte_more_is_refused(self, app: RawApp) -> None:
        app.put("k", bytes(MAX_VALUE))
        assert_signed_refusal(put(app, "k", bytes(MAX_VALUE + 1)), app, BAD_REQUEST)
        assert_signed_refusal(put(app, "new", bytes(MAX_VALUE + 1)), app, BAD_REQUEST)
        assert app.contents() == {"k": bytes(MAX_VALUE)}

    def test_a_namespace_is_filled_to_the_byte(self, bench: ApiBench, app: RawApp) -> None:
        before = store_of(bench)["total_bytes"]
        for number in range(3):
            app.put(str(number), bytes(MAX_VALUE))
        left = MAX_APP - 3 * size_of("0", MAX_VALUE)
        value = bytes(left - size_of("3", 0))
        assert_signed_refusal(put(app, "3", value + b"\x00"), app, QUOTA_EXCEEDED)
        assert sorted(app.keys()) == ["0", "1", "2"]
        assert store_of(bench)["total_bytes"] == before + MAX_APP - left
        assert put(app, "3", value).status == 200
        assert store_of(bench)["total_bytes"] == before + MAX_APP
        assert_signed_refusal(put(app, "4", b""), app, QUOTA_EXCEEDED)

    def test_a_full_namespace_takes_what_is_no_larger_and_keeps_all_else(self, app: RawApp) -> None:
        contents = {str(number): bytes([number]) * 3900 for number in range(4)}
        for key, value in contents.items():
            app.put(key, value)
        assert_signed_refusal(put(app, "4", bytes(500)), app, QUOTA_EXCEEDED)
        assert_signed_refusal(put(app, "0", bytes(MAX_VALUE)), app, QUOTA_EXCEEDED)
        assert app.contents() == contents
        app.put("0", b"\xff" * 3900)
        assert app.contents() == {**contents, "0": b"\xff" * 3900}

    def test_a_deletion_makes_room(self, app: RawApp) -> None:
        for number in range(3):
            app.put(str(number), bytes(MAX_VALUE))
        assert_signed_refusal(put(app, "3", bytes(MAX_VALUE)), app, QUOTA_EXCEEDED)
        assert app.delete("1")
        assert put(app, "3", bytes(MAX_VALUE)).status == 200

    def test_a_full_namespace_is_nobody_else_s_matter(self, bench: ApiBench, app: RawApp) -> None:
        for number in range(3):
            app.put(str(number), bytes(MAX_VALUE))
        assert_signed_refusal(put(app, "3", bytes(MAX_VALUE)), app, QUOTA_EXCEEDED)
        assert put(bench.new_app(), "3", b"x").status == 200

    def test_deletions_are_bounded_and_a_refused_one_deletes_nothing(self, app: RawApp) -> None:
        keys = [str(number) for number in range(MAX_TOMBSTONES + 1)]
        for key in keys:
            app.put(key, b"x")
        for key in keys[:-1]:
            assert app.delete(key)
        last = keys[-1]
        assert_signed_refusal(app.send("DELETE", "/kms/data", {"key": last}), app, QUOTA_EXCEEDED)
        assert app.contents() == {last: b"x"}
        app.put(keys[0], b"again")  # a tombstone that became a value makes room for another one
        assert app.delete(last)


DERIVATIONS = [
    ("disk", "", 32),
    ("disk", "context", 32),
    ("disk:context", "", 32),
    ("é/\U0001f600", "ü", 32),
    ("a" * 5000, "b" * 5000, 32),
    ("disk", "", 1),
    ("disk", "", 1024),
    ("\x00", "\x00", 33),
]


class TestDerivation:
    @pytest.mark.parametrize(("path", "context", "length"), DERIVATIONS)
    def test_keys_are_those_of_the_protocol_s_hkdf(self, bench: ApiBench, path: str, context: str, length: int) -> None:
        expected = wire.derive_key(bench.master_secret, bench.app_handle.app_id, path, context, length)
        assert bench.app.derive(path, context, length) == expected

    def test_the_independent_hkdf_gives_the_vectors(self) -> None:
        secret = bytes.fromhex(KDF_VECTORS["master_secret"])
        for row in KDF_VECTORS["rows"]:
            key = wire.derive_key(secret, int(row["app_id"]), row["path"], row["context"], row["length"])
            assert key.hex() == row["key"]

    def test_apps_paths_and_contexts_have_different_keys(self, bench: ApiBench) -> None:
        other = bench.new_app()
        keys = [
            bench.app.derive("disk"),
            bench.app.derive("disk", "a"),
            bench.app.derive("disk", "b"),
            bench.app.derive("net"),
            other.derive("disk"),
        ]
        assert len(set(keys)) == len(keys)

    def test_a_key_is_the_same_every_time(self, bench: ApiBench) -> None:
        assert bench.app.derive("disk", "ctx", 64) == bench.app.derive("disk", "ctx", 64)

    def test_deriving_keeps_nothing(self, bench: ApiBench) -> None:
        before = store_of(bench)
        bench.new_app().derive("disk")
        assert store_of(bench) == before
