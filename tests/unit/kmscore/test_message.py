"""Records read from a message and written to it, held to the JSON reader, `parse_record` and `encode_record`."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmscore._message import read_message, records_bytes, take_records
from kmscore.errors import Reason, Rejected
from kmscore.json import MAX_DEPTH, MAX_ITEMS, parse_json_object
from kmscore.store import Record, RecordRefused, StoreLimits, encode_record, parse_record

LIMITS = StoreLimits(max_value_bytes=64, max_peer_key_bytes=100)
VALUE = "ab" * 30
RECORD = {
    "key": "a/ключ",
    "value": VALUE,
    "version": {"0xB": 2, "0xA": 1},
    "updated_at_ms": 5,
    "tombstone": False,
    "ttl_ms": 9,
}
relaxed = settings(deadline=None)

TEXT = st.text(max_size=8) | st.sampled_from(["0xabc", "e\u0301", "\\", '"', "\x7f", "\x1f\n\t\r\b\f"])
NUMBERS = st.sampled_from([0, 1, 5, 1 << 62, (1 << 62) + 1, 1 << 64, 10**19 - 1, -1, 5.0, True, None, "5"])
VALUES = st.sampled_from(
    [
        None,
        VALUE,
        "0x" + VALUE,
        "0X" + VALUE.upper(),
        VALUE + "a",
        VALUE + "ag",
        "00" * 27,
        "00" * 28,
        "00" * 93,
        "é",
        5,
    ]
)
VERSIONS = st.dictionaries(TEXT | st.just("w" * 129), NUMBERS, max_size=3) | st.sampled_from(
    [{}, [], {str(number): 1 for number in range(70)}, {str(number): 1 for number in range(1025)}]
)
PLAIN = st.fixed_dictionaries(
    {
        "key": st.text(st.characters(codec="utf-8"), min_size=1, max_size=8) | st.just("k" * 101),
        "value": st.just(VALUE),
        "version": st.dictionaries(st.text("0xaé", max_size=4), st.integers(1, 1 << 62), min_size=1, max_size=3),
        "updated_at_ms": st.integers(0, 1 << 62),
        "tombstone": st.just(False),
    },
    optional={"ttl_ms": st.integers(0, 1 << 62)},
)
ODD = st.fixed_dictionaries(
    {},
    optional={
        "key": TEXT | st.integers(),
        "value": VALUES,
        "version": VERSIONS,
        "updated_at_ms": NUMBERS,
        "tombstone": st.sampled_from([True, False, None, 0]),
        "ttl_ms": NUMBERS,
        "more": st.just([{"a": 1}]),
    },
)
RECORDS = PLAIN | st.builds(lambda plain, odd: plain | odd, PLAIN, ODD) | ODD | st.sampled_from([7, [], "x", None])
STYLES = st.sampled_from(
    [
        {"separators": (",", ":"), "ensure_ascii": False},
        {"separators": (",", ":")},
        {},
        {"indent": 1, "ensure_ascii": False, "sort_keys": True},
    ]
)


def encode(value: object, style: dict[str, object]) -> bytes:
    return json.dumps(value, **style).encode("utf-8", "surrogatepass")


def message(document: bytes, *, max_depth: int = MAX_DEPTH, max_items: int = MAX_ITEMS, step_bytes: int = 1 << 20):
    *steps, members = read_message(document, max_depth, max_items, step_bytes)
    assert steps == [None] * len(steps)
    return members


def taken(item: object) -> object:
    """What a node takes an element for: its record, or the word it refuses it with."""
    try:
        return parse_record(item, LIMITS)
    except RecordRefused as refusal:
        return refusal.skip_reason


def judged(read, document: bytes) -> object:
    try:
        members = read(document)
    except Rejected as error:
        return error.reason
    data = members.get("data")
    if isinstance(data, dict):
        members["data"] = {
            app: list(map(taken, items)) if isinstance(items, list) else items for app, items in data.items()
        }
    return list(members), repr({**members, "data": None}), members.get("data")


def same_judgement(document: bytes, **limits: int) -> None:
    ours = judged(lambda text: message(text, step_bytes=64, **limits), document)
    assert ours == judged(lambda text: parse_json_object(text, **limits), document)


@relaxed
@given(st.lists(RECORDS, max_size=4), STYLES, st.integers(2, 8))
def test_records_are_what_the_json_reader_and_the_record_check_say(records, style, max_depth):
    document = encode({"type": "delta", "data": {"1": records, "2": [], "3": 7}, "n": [1.5]}, style)
    same_judgement(document)
    same_judgement(document, max_depth=max_depth)


@relaxed
@given(st.lists(PLAIN, min_size=1, max_size=3), st.integers(0, 40))
def test_items_are_counted_in_records_too(records, max_items):
    same_judgement(encode({"data": {"1": records}}, {}), max_items=max_items)


@relaxed
@given(st.lists(PLAIN | ODD, min_size=1, max_size=2), STYLES, st.data())
def test_a_damaged_message_is_judged_alike(records, style, data):
    text = bytearray(encode({"data": {"1": records}, "pop_nonce": "ab"}, style))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.sampled_from(
                [b"", b"0", b'"', b",", b":", b"{", b"}", b"]", b"\\", b"\\u0041", b"\x00", b"\xff", b"-", b"e1", b" "]
            )
        )
    same_judgement(bytes(text))


MEMBERS = encode(RECORD, {"separators": (",", ":"), "ensure_ascii": False}).decode()[1:-1]
ODDLY_WRITTEN = {
    "a member twice": MEMBERS + ',"ttl_ms":9',
    "a member twice, one escaped": MEMBERS + ',"ttl\\u005fms":9',
    "a writer twice": MEMBERS.replace('"0xA"', '"0xB"'),
    "a writer twice, one escaped": MEMBERS.replace('"0xA"', '"0x\\u0042"'),
    "a writer twice, once with nothing": MEMBERS.replace('"0xA":1', '"0xB":0'),
    "a counter of nothing": MEMBERS.replace('"0xA":1', '"0xA":0'),
    "a leading zero": MEMBERS.replace(":9", ":09"),
    "a minus": MEMBERS.replace(":9", ":-9"),
    "minus zero": MEMBERS.replace(":9", ":-0"),
    "a float": MEMBERS.replace(":9", ":9.0"),
    "an exponent": MEMBERS.replace(":9", ":9e0"),
    "79 digits": MEMBERS.replace(":9", ":" + "9" * 79),
    "no comma": MEMBERS.replace(",", " ", 1),
    "two commas": MEMBERS.replace(",", ",,", 1),
    "a comma at the end": MEMBERS + ",",
    "nothing": "",
    "half a surrogate pair": MEMBERS.replace("a/", "\\ud800"),
    "a control character": MEMBERS.replace("a/", "\n"),
    "a word cut off": MEMBERS.replace("false", "fals"),
    "a word too long": MEMBERS.replace("false", "falsey"),
}


@pytest.mark.parametrize("members", ODDLY_WRITTEN.values(), ids=ODDLY_WRITTEN)
def test_a_record_that_is_oddly_written_is_judged_alike(members):
    same_judgement(b'{"data":{"1":[{%b},{%b}]}}' % (MEMBERS.encode(), members.encode()))


@pytest.mark.parametrize("record", [RECORD, RECORD | {"value": None, "tombstone": True}], ids=["live", "tombstone"])
def test_a_plainly_written_record_comes_as_a_record(record):
    compact = encode({"data": {"5001": [record]}}, {"separators": (",", ":"), "ensure_ascii": False})
    spaced = encode({"data": {"5001": [record]}}, {"indent": 2, "ensure_ascii": False, "sort_keys": True})
    for document in (compact, spaced):
        (read,) = message(document)["data"]["5001"]
        assert isinstance(read, Record)
        assert read == parse_record(record, LIMITS)
        assert read.version == {"0xA": 1, "0xB": 2}


def test_a_record_that_was_read_is_held_to_the_sizes_of_the_node():
    (read,) = message(encode({"data": {"1": [RECORD | {"value": "00" * 93, "key": "k" * 101}]}}, {}))["data"]["1"]
    assert taken(read) == "key_too_large"
    (read,) = message(encode({"data": {"1": [RECORD | {"value": "00" * 93}]}}, {}))["data"]["1"]
    assert taken(read) == "value_too_large"


def test_only_the_data_of_the_message_holds_records():
    members = message(
        encode({"date": {"1": [RECORD]}, "data": {"1": {"1": [RECORD]}}, "x": {"data": {"1": [RECORD]}}}, {})
    )
    assert members == {"date": {"1": [RECORD]}, "data": {"1": {"1": [RECORD]}}, "x": {"data": {"1": [RECORD]}}}


def test_a_message_is_read_in_steps_of_about_so_many_bytes():
    document = encode({"data": {"1": [RECORD] * 100}}, {})
    steps = list(read_message(document, MAX_DEPTH, MAX_ITEMS, 1000))
    assert len(document) / 1300 < len(steps) < len(document) / 1000 + 1


STEP_ITEMS = 8192
MANY = 100_000


@pytest.mark.parametrize(
    ("items", "count"), [(b"[]", 2 * MANY), (b"{}", 2 * MANY), (b"0", MANY), (b'"k"', MANY), (b"[0,[]]", 4 * MANY)]
)
def test_a_step_holds_no_more_items_than_that_whatever_they_are(items, count):
    document = b'{"data":{"1":[%b]}}' % b",".join([items] * MANY)
    steps = list(read_message(document, MAX_DEPTH, MAX_ITEMS, 1 << 30))
    assert count / STEP_ITEMS - 1 < len(steps) < count / STEP_ITEMS + 2
    assert steps[-1] == parse_json_object(document)


def test_a_message_of_many_apps_is_read_in_steps_too():
    document = b'{"data":{%b}}' % b",".join(b'"%d":[]' % app for app in range(20_000))
    steps = list(read_message(document, MAX_DEPTH, MAX_ITEMS, 1 << 30))
    assert len(steps) == 40_000 // STEP_ITEMS + 1
    assert len(list(read_message(document, MAX_DEPTH, MAX_ITEMS, 1000))) > len(document) / 1100
    assert steps[-1] == parse_json_object(document)


OTHER_ITEMS = 65536
RECORD_ITEMS = 2048
# What is read in one step, up to the bound; the objects and lists around it are items too.
ITEMS_IN_ONE = {
    "a member": (b'{"type":"delta","x":[%b]}', b"0", OTHER_ITEMS - 2),
    "a member behind the data": (b'{"data":{"1":[7,7,7]},"x":[%b]}', b"0", OTHER_ITEMS - 4),
    "data that is a list": (b'{"data":[%b]}', b"0", OTHER_ITEMS - 1),
    "an app that has no list": (b'{"data":{"1":{"x":[%b]}}}', b"0", OTHER_ITEMS - 3),
    "apps": (b'{"data":{%b}}', b'"%d":[]', OTHER_ITEMS // 2 - 1),
    "a record": (b'{"data":{"1":[{"x":[%b]}]}}', b"0", RECORD_ITEMS - 1),
    "a record's version": (b'{"data":{"1":[7,{"version":{%b}}]}}', b'"%d":1', RECORD_ITEMS - 1),
    "a record that is a list": (b'{"data":{"1":[[%b],7]}}', b"0", RECORD_ITEMS - 1),
}


@pytest.mark.parametrize(("document", "item", "most"), ITEMS_IN_ONE.values(), ids=ITEMS_IN_ONE)
def test_what_is_read_in_one_step_is_bounded(document, item, most):
    def of(count: int) -> bytes:
        return document % b",".join([item.replace(b"%d", b"%d" % number) for number in range(count)])

    assert message(of(most)) == parse_json_object(of(most))
    assert parse_json_object(of(most + 1))
    with pytest.raises(Rejected) as caught:
        message(of(most + 1))
    assert caught.value.reason is Reason.MALFORMED


def test_records_take_nothing_of_what_other_members_may_have():
    document = b'{"data":{"1":[%b]},"x":[%b]}' % (b",".join([b"[0]"] * MANY), b",".join([b"0"] * (OTHER_ITEMS - 10)))
    assert message(document, max_items=2 * MANY + OTHER_ITEMS) == parse_json_object(document)
    same_judgement(document, max_items=2 * MANY + OTHER_ITEMS - 10)
    assert parse_json_object(document, max_items=2 * MANY + OTHER_ITEMS - 6)
    assert message(document, max_items=2 * MANY + OTHER_ITEMS - 6)
    with pytest.raises(Rejected):
        message(document, max_items=2 * MANY + OTHER_ITEMS - 8)


@pytest.mark.parametrize(
    "document", [b"[]", b"7", b"", b" ", b'{"data":{}} 1', b'{"data":{"1":[]},"data":{}}', b'{"data":{"1":[],"1":[]}}']
)
def test_what_is_no_object_of_members_is_malformed(document):
    with pytest.raises(Rejected) as caught:
        message(document)
    assert caught.value.reason is Reason.MALFORMED
    assert caught.value.__context__ is None


RECORD_OBJECTS = st.builds(
    Record,
    TEXT.filter(lambda text: text.isprintable() or text.isascii()).map(lambda text: text + "k"),
    st.none() | st.binary(max_size=40),
    st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=6), st.integers(1, 1 << 62), min_size=1, max_size=3),
    st.integers(0, 1 << 62),
    st.integers(0, 1 << 62),
)


@relaxed
@given(st.lists(RECORD_OBJECTS, max_size=4))
def test_records_are_written_as_the_encoder_of_their_json_would(records):
    expected = json.dumps(list(map(encode_record, records)), separators=(",", ":"), ensure_ascii=False)
    assert records_bytes(records) == len(expected.encode()) - 2
    assert b"[%b]" % take_records(records, 1 << 20) == expected.encode()
    assert records == []


@relaxed
@given(st.lists(RECORD_OBJECTS, max_size=6), st.integers(0, 400))
def test_records_are_taken_from_the_end_as_many_as_fit_and_at_least_one(records, limit_bytes):
    left, taken = list(records), []
    while left:
        before = len(left)
        text = take_records(left, limit_bytes)
        count = before - len(left)
        assert count == 1 or len(text) <= limit_bytes
        assert not left or records_bytes([left[-1], *records[len(left) : before]]) > limit_bytes
        taken = json.loads(b"[%b]" % text) + taken
    assert taken == list(map(encode_record, records))
    assert take_records([], limit_bytes) == b""
