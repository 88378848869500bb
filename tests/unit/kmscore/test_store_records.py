"""Records: what is taken from a peer's JSON and what is refused, and the merge rule on worked rows (store §1 to §3)."""

import copy
import gc
import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmscore import store as compiled
from kmscore._store import siphash24
from kmscore.errors import Reason, Rejected
from kmscore.store_types import MergeOutcome, RecordRefused, StoreLimits
from tests.reference import store as twin

IMPLEMENTATIONS = pytest.mark.parametrize("store", [compiled, twin], ids=["compiled", "twin"])
NUMBERS = st.integers(1, 1 << 62)
MERGE_ROWS = json.loads((Path(__file__).parents[2] / "vectors" / "merge.json").read_text())["rows"]
LIMITS = StoreLimits(max_value_bytes=64, max_peer_key_bytes=100)
VALUE = "ab" * 30
WIRE = {
    "key": "a/ключ",
    "value": VALUE,
    "version": {"0xB": 2, "0xA": 1, "zero": 0},
    "updated_at_ms": 5,
    "tombstone": False,
    "ttl_ms": 9,
}


def without(name):
    return {member: value for member, value in WIRE.items() if member != name}


@IMPLEMENTATIONS
def test_a_record_comes_back_as_it_was_sent_less_its_zero_counters(store):
    record = store.parse_record(WIRE, LIMITS)
    assert (record.key, record.value, record.updated_at_ms, record.ttl_ms) == (
        "a/ключ",
        bytes.fromhex(VALUE),
        5,
        9,
    )
    assert not record.tombstone
    assert list(record.version.items()) == [("0xA", 1), ("0xB", 2)]
    assert store.encode_record(record) == WIRE | {"version": {"0xA": 1, "0xB": 2}}


@IMPLEMENTATIONS
@pytest.mark.parametrize(
    "obj",
    [
        without("ttl_ms") | {"unknown": [1]},
        WIRE | {"value": "0x" + VALUE.upper()},
        WIRE | {"value": "0X" + VALUE},
        WIRE | {"value": "00" * 92},
        WIRE | {"value": "00" * 28},
        WIRE | {"value": None, "tombstone": True},
        WIRE | {"updated_at_ms": 1 << 62, "ttl_ms": 1 << 62, "version": {"": 1 << 62}},
        WIRE | {"key": "k" * 100},
        WIRE | {"version": {"n" * 128: 1}},
        WIRE | {"version": {str(i): 1 for i in range(1024)}},
    ],
)
def test_everything_within_the_format_is_taken(store, obj):
    assert store.parse_record(store.encode_record(store.parse_record(obj, LIMITS)), LIMITS) == store.parse_record(
        obj, LIMITS
    )


REFUSED = [
    ("not an object", [WIRE], "malformed"),
    *[(f"no {name}", without(name), "malformed") for name in WIRE if name != "ttl_ms"],
    ("key no text", WIRE | {"key": 7}, "malformed"),
    ("key empty", WIRE | {"key": ""}, "malformed"),
    ("key a lone surrogate", WIRE | {"key": "\ud800"}, "malformed"),
    ("key too long", WIRE | {"key": "ü" * 51}, "key_too_large"),
    ("tombstone no boolean", WIRE | {"tombstone": 0}, "malformed"),
    ("tombstone with value", WIRE | {"tombstone": True}, "malformed"),
    ("live without value", WIRE | {"value": None}, "malformed"),
    ("value no text", WIRE | {"value": b"ab" * 30}, "malformed"),
    ("value odd", WIRE | {"value": VALUE + "a"}, "malformed"),
    ("value no hex", WIRE | {"value": VALUE + "ag"}, "malformed"),
    ("value with a space", WIRE | {"value": VALUE + " a"}, "malformed"),
    ("value not ASCII", WIRE | {"value": VALUE + "é"}, "malformed"),
    ("value only a prefix", WIRE | {"value": "0x"}, "malformed"),
    ("value too short to be sealed", WIRE | {"value": "00" * 27}, "malformed"),
    ("value too large", WIRE | {"value": "00" * 93}, "value_too_large"),
    ("time a boolean", WIRE | {"updated_at_ms": True}, "malformed"),
    ("time a float", WIRE | {"updated_at_ms": 5.0}, "malformed"),
    ("time text", WIRE | {"updated_at_ms": "5"}, "malformed"),
    ("time negative", WIRE | {"updated_at_ms": -1}, "malformed"),
    ("time above 2^62", WIRE | {"updated_at_ms": (1 << 62) + 1}, "malformed"),
    ("time above 2^64", WIRE | {"updated_at_ms": 1 << 70}, "malformed"),
    ("ttl null", WIRE | {"ttl_ms": None}, "malformed"),
    ("ttl negative", WIRE | {"ttl_ms": -1}, "malformed"),
    ("version no object", WIRE | {"version": [1]}, "malformed"),
    ("version empty", WIRE | {"version": {}}, "malformed"),
    ("version all zero", WIRE | {"version": {"a": 0}}, "malformed"),
    ("version too long", WIRE | {"version": {str(i): 1 for i in range(1025)}}, "malformed"),
    ("writer too long", WIRE | {"version": {"ü" * 65: 1}}, "malformed"),
    ("writer a lone surrogate", WIRE | {"version": {"\ud800": 1}}, "malformed"),
    ("counter a boolean", WIRE | {"version": {"a": True}}, "malformed"),
    ("counter negative", WIRE | {"version": {"a": 1, "b": -1}}, "malformed"),
    ("counter above 2^62", WIRE | {"version": {"a": (1 << 62) + 1}}, "malformed"),
    ("counter a float", WIRE | {"version": {"a": 1.0}}, "malformed"),
]


@IMPLEMENTATIONS
@pytest.mark.parametrize(("obj", "word"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_anything_else_is_refused_with_its_word(store, obj, word):
    with pytest.raises(RecordRefused) as refusal:
        store.parse_record(obj, LIMITS)
    assert refusal.value.skip_reason == word
    assert refusal.value.reason is (Reason.VALUE_TOO_LARGE if word == "value_too_large" else Reason.MALFORMED)


def test_records_are_parsed_in_steps_and_leave_their_list():
    items = [
        WIRE,
        WIRE | {"value": VALUE + "ag"},
        compiled.parse_record(WIRE, LIMITS),
        7,
        WIRE | {"key": "k" * 101},
        WIRE,
    ]
    records, refusals, following, left = compiled.parse_records(items, 1, LIMITS, 1 << 20)
    assert records == [compiled.parse_record(WIRE, LIMITS)] * 2
    assert refusals == ["malformed", "malformed", "key_too_large"]
    assert following == 6
    assert 0 < left < 1 << 20
    assert items == [WIRE, None, None, None, None, None]


@pytest.mark.parametrize(
    ("item", "step_bytes", "expected"),
    [
        (compiled.parse_record(WIRE, LIMITS), 1000, [2, 2, 1]),
        (compiled.Record("k", None, {str(writer): 1 for writer in range(1000)}, 5), 100_000, [2, 2, 1]),
        (WIRE, 5000, [2, 2, 1]),
        ([[]] * 2000, 4097, [2, 2, 1]),
    ],
    ids=["records", "clocks", "JSON", "no records"],
)
def test_a_step_counts_values_and_clocks_and_what_is_costly_to_free(item, step_bytes, expected):
    items = [item] * 5
    steps = []
    first = 0
    while first < len(items):
        records, refusals, following, left = compiled.parse_records(items, first, LIMITS, step_bytes)
        assert (left > 0) is (following == 5)
        assert len(records) + len(refusals) == following - first
        steps.append(following - first)
        first = following
    assert steps == expected


def test_a_record_says_how_many_entries_its_clock_has():
    assert compiled.parse_record(WIRE, LIMITS).entries == 2


def test_outcomes_are_counted():
    outcomes = [MergeOutcome.INSERTED, MergeOutcome.REFUSED_CLOCK, MergeOutcome.INSERTED]
    assert compiled.count_outcomes(outcomes) == {MergeOutcome.INSERTED: 2, MergeOutcome.REFUSED_CLOCK: 1}
    assert compiled.count_outcomes([]) == {}


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.fixed_dictionaries({}, optional={name: JSON_VALUES | st.just(value) for name, value in WIRE.items()}))
def test_both_parsers_agree_on_any_object(obj):
    answers = []
    for store in (compiled, twin):
        try:
            answers.append(store.encode_record(store.parse_record(obj, LIMITS)))
        except RecordRefused as refusal:
            answers.append(refusal.skip_reason)
    assert answers[0] == answers[1]


AWKWARD = st.text(st.sampled_from('k"\\\b\t\n\f\r\x00\x1f\x7fé€\U0001f511/'), min_size=1, max_size=20)


@given(
    AWKWARD,
    st.none() | st.binary(max_size=40),
    st.dictionaries(AWKWARD, NUMBERS, min_size=1, max_size=4),
    NUMBERS,
    NUMBERS,
)
def test_the_length_on_the_wire_is_known_without_encoding(key, value, version, updated_at_ms, ttl_ms):
    lengths = {
        module.encoded_bytes(module.Record(key, value, version, updated_at_ms, ttl_ms)) for module in (compiled, twin)
    }
    assert len(lengths) == 1


@IMPLEMENTATIONS
@pytest.mark.parametrize("row", MERGE_ROWS, ids=lambda row: row["name"])
def test_the_worked_rows_of_the_merge_come_out(store, row):
    def record(wire):
        if wire is None:
            return None
        value = None if wire["value"] is None else bytes.fromhex(wire["value"])
        return store.Record(wire["key"], value, wire["version"], wire["updated_at_ms"], wire["ttl_ms"])

    outcome, result = store.merge_records(record(row["ours"]), record(row["theirs"]))
    assert outcome == row["outcome"]
    assert result == record(row["result"])


@IMPLEMENTATIONS
def test_a_merge_that_would_join_too_many_writers_keeps_ours(store):
    ours = store.Record("k", b"v", {f"a{i}": 1 for i in range(1024)}, 5)
    assert store.merge_records(ours, store.Record("k", b"w", {"b": 1}, 6)) == (MergeOutcome.REFUSED_CLOCK, ours)


@IMPLEMENTATIONS
def test_records_are_equal_by_content(store):
    record = store.Record("k", b"v", {"a": 1, "b": 2}, 5, 9)
    assert record == store.Record("k", b"v", {"b": 2, "a": 1, "c": 0}, 5, 9)
    assert hash(record) == hash(store.Record("k", b"v", {"b": 2, "a": 1}, 5, 9))
    others = [
        store.Record("l", b"v", {"a": 1, "b": 2}, 5, 9),
        store.Record("k", b"w", {"a": 1, "b": 2}, 5, 9),
        store.Record("k", None, {"a": 1, "b": 2}, 5, 9),
        store.Record("k", b"v", {"a": 1, "b": 3}, 5, 9),
        store.Record("k", b"v", {"a": 1}, 5, 9),
        store.Record("k", b"v", {"a": 1, "b": 2}, 6, 9),
        store.Record("k", b"v", {"a": 1, "b": 2}, 5, 8),
    ]
    assert record not in [*others, "k", None]


def test_a_record_cannot_be_changed_copied_by_pickle_or_left_empty():
    record = compiled.Record("k", b"v", {"a": 1}, 5)
    for name in ("key", "value", "version", "updated_at_ms", "ttl_ms", "tombstone"):
        with pytest.raises(AttributeError):
            setattr(record, name, getattr(record, name))
    with pytest.raises(TypeError):
        record.__init__("k", b"v", {"a": 2}, 5)
    with pytest.raises(TypeError):
        pickle.dumps(record)
    with pytest.raises(TypeError):
        copy.deepcopy(record)
    hollow = compiled.Record.__new__(compiled.Record)
    with pytest.raises(TypeError):
        compiled.merge_records(record, hollow)
    with pytest.raises(TypeError):
        compiled.Store("me", LIMITS, seed=bytes(16)).merge(1, hollow, 1)


def test_a_failed_construction_leaves_nothing_behind():
    with pytest.raises(Rejected):
        compiled.Record("k", b"v", {"a": 1, "b": -1}, 5)
    with pytest.raises(Rejected):
        compiled.Record("k", bytearray(b"v"), {"a": 1}, 5)


def test_the_repr_of_a_record_shows_neither_key_nor_value():
    assert repr(compiled.Record("secret", b"hush", {"a": 1}, 5)) == "<Record 4 bytes, 1 writers>"
    assert repr(compiled.Record("secret", None, {"a": 1, "b": 1}, 5)) == "<Record tombstone, 2 writers>"


def test_the_collector_does_not_track_records():
    """The store relies on it: making a record must never run other code while it holds pointers."""
    assert not gc.is_tracked(compiled.Record("k", b"v", {"a": 1}, 5))


@pytest.mark.parametrize(
    ("size", "digest"),
    [(0, 0x726FDB47DD0E0E31), (1, 0x74F839C593DC67FD), (8, 0x93F5F5799A932462), (15, 0xA129CA6149BE45E5)],
)
def test_the_hash_of_the_tables_is_siphash(size, digest):
    """Vectors of the SipHash paper and its reference implementation: key 00 01 .. 0f, input 00 01 .."""
    assert siphash24(bytes(range(16)), bytes(range(size))) == digest
