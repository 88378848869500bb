"""Strict JSON and its canonical form: deltas of 256-byte values."""

import json

import pytest

from bench.micro.records import delta, record
from kmscore.json import canonical_json, parse_json_object
from kmscore.message import read_message, write_data
from kmscore.store import StoreLimits, encode_record, parse_record, parse_records
from tests.reference import json as reference
from tests.reference import store as reference_store

PARSE = pytest.mark.benchmark(group="strict JSON of a delta, parsed")
CANONICAL = pytest.mark.benchmark(group="canonical JSON of a delta")
PARSE_RECORDS = pytest.mark.benchmark(group="records out of parsed JSON, each")
ENCODE_RECORDS = pytest.mark.benchmark(group="records to JSON values, each")
READ_MESSAGE = pytest.mark.benchmark(group="a delta's JSON to checked records, each")
WRITE_DATA = pytest.mark.benchmark(group="records to a message's JSON, each")
EACH_COUNT = pytest.mark.parametrize("records", [1, 10, 500])
ONE = pytest.mark.parametrize("records", [1])
LIMITS = StoreLimits()

DEPTH = 16
MAX_DIGITS = 78


def _unique(pairs):
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is repeated")
    return members


def _refuse(text):
    raise ValueError(text)


def _bounded(text):
    if len(text) > MAX_DIGITS:
        raise ValueError("a number is too long")
    return int(text)


def _finite(text):
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError("a number is infinite")
    return number


def _shallow(value, depth=DEPTH):
    if isinstance(value, dict):
        return depth > 0 and all(_shallow(item, depth - 1) for item in value.values())
    if isinstance(value, list):
        return depth > 0 and all(_shallow(item, depth - 1) for item in value)
    return not isinstance(value, float)


def parse_in_python(data):
    """The same guarantees with the standard library, with short cuts for what is usual."""
    text = data.decode()
    value = json.loads(text, object_pairs_hook=_unique, parse_int=_bounded, parse_float=_finite, parse_constant=_refuse)
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()  # raises for half of a surrogate pair
    if not _shallow(value):
        raise ValueError("nested too deep")
    return value


def canonical_in_python(value):
    if not _shallow(value):
        raise ValueError("no canonical form")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@PARSE
@EACH_COUNT
def test_parse(ours, records):
    body = canonical_json(delta(records))
    assert ours("kmscore", parse_json_object, body) == delta(records)


@PARSE
@EACH_COUNT
def test_lenient_parse(floor, records):
    floor("json.loads, lenient", json.loads, canonical_json(delta(records)))


@PARSE
@EACH_COUNT
def test_parse_in_python(rival, records):
    assert rival("json.loads with checks in Python", parse_in_python, canonical_json(delta(records))) == delta(records)


@PARSE
@ONE
def test_parse_of_the_twin(twin, records):
    twin("Python twin", reference.parse_json, canonical_json(delta(records)))


@CANONICAL
@EACH_COUNT
def test_canonical(ours, records):
    value = delta(records)
    assert ours("kmscore", canonical_json, value) == canonical_in_python(value)


@CANONICAL
@EACH_COUNT
def test_lenient_dumps(floor, records):
    value = delta(records)
    floor("json.dumps, lenient", lambda: json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


@CANONICAL
@EACH_COUNT
def test_canonical_in_python(rival, records):
    rival("json.dumps with checks in Python", canonical_in_python, delta(records))


@CANONICAL
@ONE
def test_canonical_of_the_twin(twin, records):
    twin("Python twin", reference.canonical_json, delta(records))


@PARSE_RECORDS
@EACH_COUNT
def test_parse_records(ours, records):
    values = delta(records)["data"]["7"]
    ours("kmscore", lambda: [parse_record(value, LIMITS) for value in values], per=records)


@PARSE_RECORDS
@EACH_COUNT
def test_decode_hex_alone(floor, records):
    values = delta(records)["data"]["7"]
    floor("bytes.fromhex of the values", lambda: [bytes.fromhex(value["value"]) for value in values], per=records)


@PARSE_RECORDS
@EACH_COUNT
def test_parse_records_of_the_twin(rival, records):
    values = delta(records)["data"]["7"]
    rival("Python twin", lambda: [reference_store.parse_record(value, LIMITS) for value in values], per=records)


@ENCODE_RECORDS
@EACH_COUNT
def test_encode_records(ours, records):
    held = [record(number, 1) for number in range(records)]
    ours("kmscore", lambda: [encode_record(item) for item in held], per=records)


@ENCODE_RECORDS
@EACH_COUNT
def test_encode_hex_alone(floor, records):
    held = [record(number, 1).value for number in range(records)]
    floor("hex of the values", lambda: [value.hex() for value in held], per=records)


@ENCODE_RECORDS
@EACH_COUNT
def test_encode_records_of_the_twin(rival, records):
    held = [record(number, 1, kind=reference_store.Record) for number in range(records)]
    rival("Python twin", lambda: [reference_store.encode_record(item) for item in held], per=records)


def read_records(body):
    *_, message = read_message(body)
    return parse_records(message["data"]["7"], 0, LIMITS, 1 << 30)[0]


def read_records_in_python(body):
    return [reference_store.parse_record(value, LIMITS) for value in parse_in_python(body)["data"]["7"]]


@READ_MESSAGE
@EACH_COUNT
def test_read_message(ours, records):
    body = canonical_json(delta(records))
    assert len(ours("kmscore", read_records, body, per=records)) == records


@READ_MESSAGE
@EACH_COUNT
def test_lenient_parse_of_a_message(floor, records):
    floor("json.loads, lenient, and no records", json.loads, canonical_json(delta(records)), per=records)


@READ_MESSAGE
@EACH_COUNT
def test_read_message_in_python(rival, records):
    body = canonical_json(delta(records))
    assert len(rival("json.loads with checks, then the twin", read_records_in_python, body, per=records)) == records


@WRITE_DATA
@EACH_COUNT
def test_write_data(ours, records):
    held = [(7, number, record(number, 1)) for number in range(records)]
    assert json.loads(ours("kmscore", write_data, held, per=records)).keys() == {"7"}


@WRITE_DATA
@EACH_COUNT
def test_hex_of_the_values_alone(floor, records):
    held = [record(number, 1).value for number in range(records)]
    floor("hex of the values", lambda: [value.hex() for value in held], per=records)


@WRITE_DATA
@EACH_COUNT
def test_write_data_in_python(rival, records):
    held = [record(number, 1, kind=reference_store.Record) for number in range(records)]
    encoder = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)
    rival(
        "the twin's values and json",
        lambda: encoder.encode({"7": [reference_store.encode_record(item) for item in held]}).encode(),
        per=records,
    )
