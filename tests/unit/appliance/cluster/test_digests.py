"""Digest and record requests: what is refused of a peer, and how much is answered at most (store §5)."""

import json

import pytest

from appliance.cluster.digests import (
    ANSWER_BYTES,
    MAX_KEYS,
    MAX_RANGES,
    Range,
    encode_range,
    parse_keys,
    parse_range_answers,
    parse_ranges,
)
from kmscore.errors import Reason, Rejected, Unavailable
from tests.support.simulated_cluster import SimulatedNetwork

pytestmark = pytest.mark.anyio

DIGEST = "0" * 32
CHILDREN = [DIGEST] * 16

BAD_RANGES = {
    "absent": None,
    "an object": {},
    "none at all": [],
    "too many": [[None, ""]] * (MAX_RANGES + 1),
    "not a pair": [[None]],
    "text": [None, ""],
    "three": [[None, "", ""]],
    "a number for the prefix": [[None, 1]],
    "upper case": [[None, "A"]],
    "other digits": [["1", "g"]],
    "digits of another script": [["1", "\u0660"]],
    "a newline": [["1", "0\n"]],
    "too long": [["1", "0" * 17]],
    "an app that is a number": [[1, ""]],
    "an app with leading zeros": [["01", ""]],
    "an app out of range": [[str(2**256), ""]],
    "an app that is text": [["one", ""]],
}
BAD_KEYS = {
    "absent": None,
    "none at all": [],
    "too many": [["1", "k"]] * (MAX_KEYS + 1),
    "not a pair": ["k"],
    "no app": [[None, "k"]],
    "no key": [["1", ""]],
    "a key that is a number": [["1", 1]],
    "too long": [["1", "\u00fc" * 32_769]],
}
BAD_ANSWERS = {
    "absent": None,
    "none at all": [],
    "more than asked": [{"items": []}] * 2,
    "not an object": [[]],
    "neither": [{}],
    "too few children": [{"children": CHILDREN[1:]}],
    "too many children": [{"children": [*CHILDREN, DIGEST]}],
    "a short digest": [{"children": [*CHILDREN[1:], "00"]}],
    "an upper-case digest": [{"children": [*CHILDREN[1:], "A" * 32]}],
    "no digest": [{"items": [["k", None]]}],
    "too many items": [{"items": [[f"{number}", DIGEST] for number in range(33)]}],
    "an item that is no pair": [{"items": ["k"]}],
    "an empty key": [{"items": [["", DIGEST]]}],
}


def reason_of(call, *arguments):
    with pytest.raises(Rejected) as refusal:
        call(*arguments)
    return refusal.value.reason


@pytest.mark.parametrize("ranges", BAD_RANGES.values(), ids=BAD_RANGES.keys())
def test_ranges_of_another_form_are_refused(ranges: object) -> None:
    assert reason_of(parse_ranges, ranges) is Reason.BAD_FIELD


@pytest.mark.parametrize("keys", BAD_KEYS.values(), ids=BAD_KEYS.keys())
def test_keys_of_another_form_are_refused(keys: object) -> None:
    assert reason_of(parse_keys, keys) is Reason.BAD_FIELD


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
def test_answers_of_another_form_are_refused(answer: object) -> None:
    assert reason_of(parse_range_answers, answer, [Range(1, "")]) is Reason.BAD_FIELD


def test_a_range_of_sixteen_digits_has_no_parts_and_a_namespace_is_named_by_its_number() -> None:
    assert reason_of(parse_range_answers, [{"children": CHILDREN}], [Range(1, "0" * 16)]) is Reason.BAD_FIELD
    assert reason_of(parse_range_answers, [{"items": [["k", DIGEST]]}], [Range(None, "")]) is Reason.BAD_FIELD
    [answer] = parse_range_answers([{"items": [["7", DIGEST]]}], [Range(None, "")])
    assert answer.items == {"7": bytes(16)}


def test_ranges_survive_the_wire() -> None:
    ranges = [Range(None, ""), Range(0, "0f"), Range(2**256 - 1, "0" * 16)]
    assert parse_ranges([encode_range(of) for of in ranges]) == ranges


async def test_long_names_shorten_an_answer_and_never_to_nothing() -> None:
    network = SimulatedNetwork(1)
    [node] = network.nodes
    for number in range(600):
        key = f"{number} " + "k" * 1_000
        node.replica.store.put(1, key, node.replica.encrypt(1, b"v"), 0, node.clock.now_ms())
    answer = await node.digests.ranges({"ranges": [["1", f"{number:02x}"] for number in range(256)]})
    assert 1 <= len(answer["ranges"]) < 256
    named = [item for part in answer["ranges"] for item in part["items"]]
    assert ANSWER_BYTES < sum(len(name) + 40 for name, _ in named) < ANSWER_BYTES + 33 * 1_100


async def test_large_records_shorten_an_answer_and_never_to_nothing() -> None:
    network = SimulatedNetwork(1)
    [node] = network.nodes
    for number in range(4):
        node.put(1, f"{number}", bytes(700_000))
    keys = [["1", f"{number}"] for number in range(4)]
    for asked in (keys, [["1", "unknown"], *keys]):
        answer = node.digests.records({"keys": asked})
        assert [record["key"] for record in json.loads(answer["data"])["1"]] == ["0"]
        assert answer["count"] == len(asked) - 3
    assert node.digests.records({"keys": [["1", "unknown"]]}) == {"status": "ok", "data": b"{}", "count": 1}


async def test_without_a_confirmed_secret_there_are_no_digests() -> None:
    network = SimulatedNetwork(1)
    [node] = network.nodes
    node.keys.unconfirm()
    with pytest.raises(Unavailable):
        await node.digests.ranges({"ranges": [[None, ""]]})
