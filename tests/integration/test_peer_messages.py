"""Deltas and snapshots on `/sync`: what is refused, what is merged, what is handed on (protocol §5, store §2, §3)."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.support import wire
from tests.support.api_bench import BAD_REQUEST, ApiBench, assert_signed_refusal, open_bench
from tests.support.raw_client import RawApp, wire_record

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("peer_messages")]

Record = dict[str, object]

MAX_VALUE = 4096
SKEW_MS = 5000
MAX_COUNTER = 2**62
LONG_AGO_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiBench]:
    env = {"MAX_KV_VALUE_SIZE_BYTES": str(MAX_VALUE), "MAX_CLOCK_SKEW_MS": str(SKEW_MS)}
    with open_bench(tmp_path_factory.mktemp("peer-messages"), env) as bench:
        yield bench


@dataclass
class Namespace:
    """A new app's records, seen by the app and by the peer."""

    bench: ApiBench
    app_id: int
    app: RawApp
    data_key: bytes

    def sealed(self, value: bytes) -> bytes:
        return wire.encrypt_value(self.data_key, value)

    def record(self, key: str, value: bytes | None, version: dict[str, int], at_ms: int = LONG_AGO_MS) -> Record:
        return wire_record(key, None if value is None else self.sealed(value), version, at_ms)

    def push(self, *records: object) -> dict[str, object]:
        """The inner answer to a delta of these records."""
        return self.bench.peer.push(self.bench.sync_key, self.app_id, *records)

    def outcome(self, record: object) -> str:
        """What became of one record: "merged" or its skip reason."""
        answer = self.push(record)
        assert answer["total"] == 1
        assert answer["merged"] + answer["skipped"] + answer["rejected"] == 1
        if answer["merged"]:
            assert answer["skip_reasons"] == {}
            return "merged"
        (reason,) = answer["skip_reasons"]
        assert answer["skip_reasons"][reason] == 1
        return f"rejected: {reason}" if answer["rejected"] else reason

    def snapshot(self) -> dict[str, Record]:
        records = self.bench.peer.snapshot(self.bench.sync_key).get(str(self.app_id), [])
        return {record["key"]: record for record in records}


@pytest.fixture
def space(bench: ApiBench) -> Namespace:
    return new_namespace(bench)


@pytest.fixture(scope="module")
def shared(bench: ApiBench) -> Namespace:
    """One namespace for a long table: a registration costs more than a request."""
    return new_namespace(bench)


def new_namespace(bench: ApiBench) -> Namespace:
    handle = bench.cluster.register_app()
    data_key = wire.derive_data_key(bench.master_secret, handle.app_id)
    return Namespace(bench, handle.app_id, RawApp(handle.identity, bench.target), data_key)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def put(name: str, value: object) -> Callable[[Record], Record]:
    return lambda record: {**record, name: value}


def without(name: str) -> Callable[[Record], Record]:
    return lambda record: {member: value for member, value in record.items() if member != name}


def numbers(name: str) -> dict[str, Callable[[Record], object]]:
    return {
        f"{name} {why}": put(name, value)
        for why, value in (
            ("negative", -1),
            ("above 2^62", MAX_COUNTER + 1),
            ("2^64", 2**64),
            ("huge", 10**70),
            ("a fraction", 1.5),
            ("a float", 1.0),
            ("text", "1"),
            ("true", True),
            ("null", None),
            ("a list", [1]),
        )
    }


# What makes an honest record one that must be refused as malformed (store §2).
MALFORMED: dict[str, Callable[[Record], object]] = {
    "no object: null": lambda _: None,
    "no object: text": lambda _: "record",
    "no object: a number": lambda _: 7,
    "no object: a list": lambda record: [record],
    "empty": lambda _: {},
    **{f"no {name}": without(name) for name in ("key", "value", "version", "updated_at_ms", "tombstone")},
    "key empty": put("key", ""),
    "key null": put("key", None),
    "key a number": put("key", 7),
    "key a list": put("key", ["k"]),
    "value not hex": put("value", "zz" * 40),
    "value of an odd length": lambda record: {**record, "value": record["value"][:-1]},
    "value too short for nonce and tag": put("value", "00" * 27),
    "value empty": put("value", ""),
    "value a number": put("value", 7),
    "value a list": put("value", ["00" * 40]),
    "value with white space": lambda record: {**record, "value": " " + record["value"]},
    "value not ASCII": put("value", "é" * 80),
    "live without a value": put("value", None),
    "tombstone with a value": put("tombstone", True),
    "tombstone null": put("tombstone", None),
    "tombstone a number": put("tombstone", 0),
    "tombstone text": put("tombstone", "false"),
    **numbers("updated_at_ms"),
    **numbers("ttl_ms"),
    "version null": put("version", None),
    "version a list": put("version", [["w", 1]]),
    "version a number": put("version", 1),
    "version text": put("version", "w"),
    "counter negative": put("version", {"w": -1}),
    "counter above 2^62": put("version", {"w": MAX_COUNTER + 1}),
    "counter huge": put("version", {"w": 10**70}),
    "counter a fraction": put("version", {"w": 1.5}),
    "counter a float": put("version", {"w": 1.0}),
    "counter true": put("version", {"w": True}),
    "counter text": put("version", {"w": "1"}),
    "counter null": put("version", {"w": None}),
    "one bad counter of many": put("version", {"a": 1, "b": 2, "c": -3}),
    "version name of 129 bytes": put("version", {"w" * 129: 1}),
    "version name of 65 characters and 130 bytes": put("version", {"é" * 65: 1}),
}


class TestRefusedRecords:
    @pytest.mark.parametrize("spoil", MALFORMED.values(), ids=MALFORMED)
    def test_a_malformed_record_refuses_itself_only(self, shared: Namespace, spoil: Callable[[Record], object]) -> None:
        before = shared.app.keys()
        bad = spoil(shared.record("bad", b"x", {"w": 1}))
        good = [shared.record(f"{len(before)} {name}", b"x", {"w": 1}) for name in ("one", "two")]
        answer = shared.push(good[0], bad, good[1])
        counts = {name: answer[name] for name in ("status", "total", "merged", "skipped", "rejected")}
        assert counts == {"status": "ok", "total": 3, "merged": 2, "skipped": 0, "rejected": 1}
        assert answer["skip_reasons"] == {"malformed": 1}
        assert shared.app.keys() == sorted([*before, good[0]["key"], good[1]["key"]])

    def test_a_ttl_may_be_absent(self, space: Namespace) -> None:
        assert space.outcome(without("ttl_ms")(space.record("k", b"x", {"w": 1}))) == "merged"
        assert space.snapshot()["k"]["ttl_ms"] == 0

    def test_a_value_over_the_limit_is_refused_and_one_of_the_limit_is_not(self, space: Namespace) -> None:
        over = space.outcome(space.record("over", bytes(MAX_VALUE + 1), {"w": 1}))
        assert over.startswith("rejected: ")
        assert "large" in over
        assert space.outcome(space.record("at", bytes(MAX_VALUE), {"w": 1})) == "merged"
        assert space.app.contents() == {"at": bytes(MAX_VALUE)}

    def test_a_time_beyond_the_skew_is_refused_and_one_within_is_not(self, space: Namespace) -> None:
        late = space.outcome(space.record("late", b"x", {"w": 1}, now_ms() + SKEW_MS + 5000))
        assert late.startswith("rejected: ")
        assert "future" in late
        assert space.outcome(space.record("soon", b"x", {"w": 1}, now_ms() + SKEW_MS - 2000)) == "merged"
        assert space.app.keys() == ["soon"]

    def test_a_tombstone_of_the_future_is_refused_too(self, space: Namespace) -> None:
        space.app.put("k", b"x")
        tombstone = space.record("k", None, {"w": MAX_COUNTER}, now_ms() + SKEW_MS + 5000)
        assert space.outcome(tombstone).startswith("rejected: ")
        assert space.app.get("k") == b"x"

    @pytest.mark.parametrize("how", ["random", "of another app", "of another secret", "with a byte changed"])
    def test_a_value_that_does_not_decrypt_is_refused(self, space: Namespace, how: str) -> None:
        secret = space.bench.master_secret
        changed = bytearray(space.sealed(b"x"))
        changed[20] ^= 1
        ciphertext = {
            "random": bytes(40),
            "of another app": wire.encrypt_value(wire.derive_data_key(secret, space.app_id + 1000), b"x"),
            "of another secret": wire.encrypt_value(wire.derive_data_key(bytes(32), space.app_id), b"x"),
            "with a byte changed": bytes(changed),
        }[how]
        outcome = space.outcome(wire_record("k", ciphertext, {"w": 1}, LONG_AGO_MS))
        assert outcome.startswith("rejected: ")
        assert "decrypt" in outcome
        assert space.app.keys() == []

    def test_a_key_of_64_kib_is_taken_from_a_peer_and_a_longer_one_is_not(self, space: Namespace) -> None:
        assert space.outcome(space.record("k" * 65_536, b"x", {"w": 1})) == "merged"
        assert space.outcome(space.record("k" * 65_537, b"x", {"w": 1})).startswith("rejected: ")
        assert space.outcome(space.record("é" * 32_769, b"x", {"w": 1})).startswith("rejected: ")
        assert space.app.keys() == ["k" * 65_536]

    def test_reasons_are_counted_each(self, space: Namespace) -> None:
        answer = space.push(
            space.record("a", b"x", {"w": 1}),
            space.record("a", b"x", {"w": 1}, LONG_AGO_MS - 1),
            None,
            7,
            wire_record("b", bytes(40), {"w": 1}, LONG_AGO_MS),
            space.record("c", b"x", {"w": 1}, now_ms() + 10**6),
        )
        assert (answer["total"], answer["merged"] + answer["skipped"] + answer["rejected"]) == (6, 6)
        assert answer["rejected"] == 4
        assert sum(answer["skip_reasons"].values()) == answer["skipped"] + answer["rejected"]
        assert answer["skip_reasons"]["malformed"] == 2


BAD_DATA: dict[str, object] = {
    "null": None,
    "a list": [],
    "text": "101",
    "a number": 7,
    "an app id that is no number": {"app": []},
    "an app id with a sign": {"-1": []},
    "an app id with a plus": {"+1": []},
    "an app id with a space": {" 1": []},
    "an app id in hex": {"0x1": []},
    "an app id in other digits": {"١": []},
    "an app id empty": {"": []},
    "an app id above 256 bits": {str(2**256): []},
    "an app id of 5000 digits": {"1" * 5000: []},
    "records an object": {"1": {}},
    "records null": {"1": None},
    "records text": {"1": "records"},
}


class TestDeltas:
    @pytest.mark.parametrize("data", BAD_DATA.values(), ids=BAD_DATA)
    def test_data_of_another_shape_is_refused_and_nothing_of_it_is_merged(self, space: Namespace, data: object) -> None:
        good = {str(space.app_id): [space.record("k", b"x", {"w": 1})]}
        shaped = {**good, **data} if isinstance(data, dict) else data
        answer = space.bench.peer.sync({"type": "delta", "data": shaped}, space.bench.sync_key)
        assert_signed_refusal(answer, space.bench.peer, BAD_REQUEST)
        assert space.app.keys() == []

    def test_data_is_required(self, bench: ApiBench) -> None:
        answer = bench.peer.sync({"type": "delta"}, bench.sync_key)
        assert_signed_refusal(answer, bench.peer, BAD_REQUEST)

    @pytest.mark.parametrize("data", [{}, {"1": []}], ids=["no app", "no records"])
    def test_an_empty_delta_is_answered(self, bench: ApiBench, data: dict[str, object]) -> None:
        inner = bench.peer.sync({"type": "delta", "data": data}, bench.sync_key).inner
        assert (inner["status"], inner["total"], inner["merged"], inner["skip_reasons"]) == ("ok", 0, 0, {})

    def test_several_apps_in_one_delta(self, bench: ApiBench, space: Namespace) -> None:
        other_key = wire.derive_data_key(bench.master_secret, 2**256 - 1)
        other = wire_record("k", wire.encrypt_value(other_key, b"theirs"), {"w": 1}, LONG_AGO_MS)
        data = {str(space.app_id): [space.record("k", b"mine", {"w": 1})], str(2**256 - 1): [other]}
        inner = bench.peer.sync({"type": "delta", "data": data}, bench.sync_key).inner
        assert (inner["total"], inner["merged"]) == (2, 2)
        assert space.app.contents() == {"k": b"mine"}
        assert bench.peer.snapshot(bench.sync_key)[str(2**256 - 1)] == [other]

    def test_answers_announce_what_this_node_can_do(self, bench: ApiBench) -> None:
        answers = [
            bench.peer.sync({"type": "delta", "data": {}}, bench.sync_key).inner,
            bench.peer.sync({"type": "snapshot_request"}, bench.sync_key).inner,
            bench.peer.sync({"type": "master_secret_request", "ecdh_pubkey": wire.TeeKey().der.hex()}, None).inner,
        ]
        assert all(isinstance(name, str) for answer in answers for name in answer["ext"])
        assert len({answer["boot_id"] for answer in answers}) == 1
        assert len(answers[0]["boot_id"]) >= 16


class TestMerging:
    """Store §3 row by row, seen from outside. Times are long past, so that none of them is refused."""

    def test_a_new_key_is_inserted(self, space: Namespace) -> None:
        assert space.outcome(space.record("k", b"x", {"w": 1})) == "merged"
        assert space.app.contents() == {"k": b"x"}

    def test_a_newer_version_replaces_even_with_an_earlier_time(self, space: Namespace) -> None:
        space.push(space.record("k", b"old", {"w": 1, "v": 1}))
        assert space.outcome(space.record("k", b"new", {"w": 2, "v": 1}, LONG_AGO_MS - 1000)) == "merged"
        assert space.app.get("k") == b"new"

    def test_an_older_version_is_ignored_even_with_a_later_time(self, space: Namespace) -> None:
        space.push(space.record("k", b"new", {"w": 2}))
        outcome = space.outcome(space.record("k", b"old", {"w": 1}, LONG_AGO_MS + 1000))
        assert outcome == "ignored_existing_newer_version"
        assert space.app.get("k") == b"new"

    def test_the_same_record_again_is_ignored(self, space: Namespace) -> None:
        record = space.record("k", b"x", {"w": 1})
        space.push(record)
        assert space.outcome(record) == "ignored_equal_version"
        assert space.snapshot()["k"] == record

    @pytest.mark.parametrize("later_first", [True, False])
    def test_of_concurrent_records_the_later_wins_under_both_versions(
        self, space: Namespace, later_first: bool
    ) -> None:
        earlier = space.record("k", b"earlier", {"a": 3, "b": 1})
        later = space.record("k", b"later", {"a": 1, "c": 2}, LONG_AGO_MS + 1)
        first, second = (later, earlier) if later_first else (earlier, later)
        space.push(first)
        outcome = space.outcome(second)
        assert outcome == ("ignored_concurrent_tie_break" if later_first else "merged")
        assert space.app.get("k") == b"later"
        assert space.snapshot()["k"] == {**later, "version": {"a": 3, "b": 1, "c": 2}}

    @pytest.mark.parametrize("larger_first", [True, False])
    def test_at_one_time_the_larger_ciphertext_wins(self, space: Namespace, larger_first: bool) -> None:
        small, large = sorted((space.sealed(b"one"), space.sealed(b"two")))
        records = [wire_record("k", small, {"a": 1}, LONG_AGO_MS), wire_record("k", large, {"b": 1}, LONG_AGO_MS)]
        for record in reversed(records) if larger_first else records:
            space.push(record)
        assert space.snapshot()["k"] == {**records[1], "version": {"a": 1, "b": 1}}

    @pytest.mark.parametrize("tombstone_first", [True, False])
    def test_at_one_time_a_value_wins_over_a_tombstone(self, space: Namespace, tombstone_first: bool) -> None:
        records = [space.record("k", b"x", {"a": 1}), space.record("k", None, {"b": 1})]
        for record in reversed(records) if tombstone_first else records:
            space.push(record)
        assert space.app.get("k") == b"x"
        assert space.snapshot()["k"]["version"] == {"a": 1, "b": 1}

    def test_a_later_tombstone_hides_a_value(self, space: Namespace) -> None:
        space.push(space.record("k", b"x", {"a": 1}))
        assert space.outcome(space.record("k", None, {"b": 1}, LONG_AGO_MS + 1)) == "merged"
        assert space.app.get("k") is None
        assert space.app.keys() == []
        assert not space.app.delete("k")
        assert space.snapshot()["k"]["tombstone"] is True
        assert space.snapshot()["k"]["value"] is None

    def test_an_equal_version_with_another_payload_is_merged_as_concurrent_and_issued_anew(
        self, space: Namespace
    ) -> None:
        space.push(space.record("k", b"one", {"w": 5}))
        outcome = space.outcome(space.record("k", b"two", {"w": 5}, LONG_AGO_MS + 1))
        assert outcome == "merged"
        assert space.app.get("k") == b"two"
        version = space.snapshot()["k"]["version"]
        assert version["w"] == 5
        assert version[space.bench.target.wallet] > 0

    def test_an_equal_version_with_a_losing_payload_is_issued_anew_too(self, space: Namespace) -> None:
        space.push(space.record("k", b"one", {"w": 5}))
        space.push(space.record("k", b"two", {"w": 5}, LONG_AGO_MS - 1))
        assert space.app.get("k") == b"one"
        assert space.snapshot()["k"]["version"][space.bench.target.wallet] > 0

    def test_an_app_s_write_is_newer_than_what_peers_sent(self, space: Namespace) -> None:
        ahead_ms = now_ms() + SKEW_MS - 1000
        theirs = space.record("k", b"theirs", {"w": 7}, ahead_ms)
        space.push(theirs)
        assert space.app.put("k", b"ours") > ahead_ms
        assert space.outcome(theirs) == "ignored_existing_newer_version"
        stored = space.snapshot()["k"]
        assert stored["version"]["w"] == 7
        assert stored["version"][space.bench.target.wallet] >= now_ms() - 60_000
        assert space.app.get("k") == b"ours"

    def test_an_app_s_deletion_is_newer_than_what_peers_sent(self, space: Namespace) -> None:
        theirs = space.record("k", b"theirs", {"w": 7})
        space.push(theirs)
        assert space.app.delete("k")
        assert space.outcome(theirs) == "ignored_existing_newer_version"
        assert space.app.get("k") is None

    def test_version_names_are_opaque_and_come_back_byte_for_byte(self, space: Namespace) -> None:
        version = {
            wire.checksum_wallet(space.bench.peer.identity.address): 1,
            space.bench.peer.identity.address: 2,
            "w" * 128: 3,
            "é" * 64: 4,
            "": 5,
            "e\u0301\x00": MAX_COUNTER,
        }
        assert space.outcome(space.record("k", b"x", version)) == "merged"
        assert space.snapshot()["k"]["version"] == version

    def test_a_peer_s_value_expires_by_its_own_time(self, space: Namespace) -> None:
        gone = {**space.record("gone", b"x", {"w": 1}, now_ms() - 2000), "ttl_ms": 1000}
        kept = {**space.record("kept", b"x", {"w": 1}, now_ms() - 2000), "ttl_ms": 600_000}
        space.push(gone, kept)
        assert space.app.contents() == {"kept": b"x"}

    def test_two_records_of_one_key_in_one_delta_are_merged_in_turn(self, space: Namespace) -> None:
        answer = space.push(space.record("k", b"old", {"w": 1}), space.record("k", b"new", {"w": 2}))
        assert answer["total"] == 2
        assert space.app.get("k") == b"new"


class TestSnapshots:
    def test_a_snapshot_is_every_record_as_it_was_sent(self, space: Namespace) -> None:
        records = [
            space.record("live", b"x", {"w": 1}),
            space.record("dead", None, {"w": 1}),
            {**space.record("with ttl", b"x", {"w": 1}, now_ms()), "ttl_ms": 600_000},
        ]
        space.push(*records)
        assert space.snapshot() == {record["key"]: record for record in records}

    def test_pages_lead_to_the_same_records(self, space: Namespace) -> None:
        space.push(*(space.record(f"key {number}", b"x", {"w": 1}) for number in range(50)))
        bench, after, pages = space.bench, 0, []
        while True:
            inner = bench.peer.sync({"type": "snapshot_page_request", "after": after}, bench.sync_key).inner
            pages.append(inner)
            if inner["done"]:
                break
            assert inner["next"] > after
            after = inner["next"]
        paged = [
            (app_id, record["key"]) for page in pages for app_id, records in page["data"].items() for record in records
        ]
        whole = bench.peer.snapshot(bench.sync_key)
        assert sorted(paged) == sorted((app_id, record["key"]) for app_id in whole for record in whole[app_id])

    def test_a_page_past_the_end_is_empty_and_the_last(self, bench: ApiBench) -> None:
        inner = bench.peer.sync({"type": "snapshot_page_request", "after": 2**62}, bench.sync_key).inner
        assert (inner["data"], inner["done"]) == ({}, True)

    @pytest.mark.parametrize(
        "members",
        [{"after": after} for after in (-1, 2**63, 2**64, 10**70, 1.0, "0", True, None, [])] + [{}],
        ids=["negative", "2^63", "2^64", "huge", "float", "text", "true", "null", "list", "absent"],
    )
    def test_a_page_from_nowhere_is_refused(self, bench: ApiBench, members: dict[str, object]) -> None:
        answer = bench.peer.sync({"type": "snapshot_page_request", **members}, bench.sync_key)
        assert_signed_refusal(answer, bench.peer, BAD_REQUEST)
