"""Strict JSON and its canonical form, on ours and on the twin."""

import http
import json
from collections import Counter, OrderedDict

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kmscore import json as ours
from kmscore.errors import Reason, Rejected
from tests.reference import json as twin

both = pytest.mark.parametrize("impl", [ours, twin], ids=["ours", "twin"])
relaxed = settings(deadline=None)

TEXT = st.text(st.characters(codec="utf-8"))
SCALARS = st.none() | st.booleans() | st.integers(-(10**78) + 1, 10**78 - 1) | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5), max_leaves=20
)
# Characters that JSON means something by, so that a random text is now and then almost a document.
ALMOST_JSON = st.text('{}[]",:\\/u0123456789abdefDCF-+.eE ntrlsNaIiy\n\x00\ufeffé', max_size=40).map(str.encode)


def same_verdict(data: bytes, max_depth: int, max_items: int) -> None:
    results = []
    for impl in (ours, twin):
        try:
            results.append(repr(impl.parse_json(data, max_depth=max_depth, max_items=max_items)))
        except Rejected as error:
            results.append(error.reason)
    assert results[0] == results[1]


REFUSED = {
    "empty": b"",
    "white space only": b" \n",
    "byte order mark": b'\xef\xbb\xbf{"a":1}',
    "invalid UTF-8": b'{"a":"\xff"}',
    "overlong UTF-8": b'"\xc0\xaf"',
    "surrogate in UTF-8": b'"\xed\xa0\x80"',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "trailing data": b"{} {}",
    "trailing comma": b"[1,]",
    "trailing zero byte": b"{}\x00",
    "unclosed object": b'{"a":1',
    "unclosed string": b'{"a":"b',
    "string that ends in an escaped quote": b'"\\"',
    "string that ends in a backslash": b'"\\',
    "closing bracket first": b"]",
    "closing bracket too many": b"[]]",
    "single quotes": b"{'a':1}",
    "bare word": b"nope",
    "repeated name": b'{"a":1,"a":1}',
    "repeated name, one escaped": b'{"a":1,"\\u0061":2}',
    "repeated name, deep": b'[{"b":{"a":1,"c":2,"a":3}}]',
    "NaN": b"[NaN]",
    "Infinity": b"[Infinity]",
    "-Infinity": b"[-Infinity]",
    "a number too large for a float": b"[1e999]",
    "a negative number too large for a float": b"[-1e999]",
    "79 digits": b"1" * 79,
    "5000 digits": b"[" + b"1" * 5000 + b"]",
    "79 digits behind the point": b"0." + b"1" * 79,
    "leading zero": b"01",
    "plus sign": b"+1",
    "lone high surrogate": b'"\\ud800"',
    "lone low surrogate": b'"\\udc00"',
    "upper-case lone surrogate": b'"\\uDABC"',
    "high surrogate twice": b'"\\ud800\\ud800\\udc00"',
    "low before high": b'"\\udc00\\ud800"',
    "high surrogate before another escape": b'"\\ud800\\n"',
    "high surrogate before a letter": b'"\\ud800x\\udc00"',
    "lone surrogate in a name": b'{"\\ud800":1}',
    "short escape": b'"\\u12"',
    "escape that is not hex": b'"\\u12g4"',
    "unknown escape": b'"\\x41"',
    "control character in a string": b'"a\nb"',
    "comment": b"{} // no",
    "17 levels": b"[" * 17 + b"]" * 17,
    "100,000 levels": b"[" * 100_000,
    "100,000 levels of objects": b'{"a":' * 100_000,
}


@both
@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_a_document_that_is_not_strict_json_is_malformed(impl, data):
    with pytest.raises(Rejected) as caught:
        impl.parse_json(data)
    assert caught.value.reason is Reason.MALFORMED


ACCEPTED = {
    "scalar": (b" 1 ", 1),
    "null": (b"null", None),
    "78 digits": (b"-" + b"9" * 78, -(10**78 - 1)),
    "a fraction": (b"[0.5, 1e3, -0.0]", [0.5, 1000.0, -0.0]),
    "a surrogate pair": (b'"\\ud83d\\ude00"', "😀"),
    "an upper-case surrogate pair": (b'"\\uD83D\\uDE00"', "😀"),
    "an escaped backslash before u": (b'"\\\\ud800"', "\\ud800"),
    "brackets and quotes in a string": (b'"[[[[{{{{\\"]]"', '[[[[{{{{"]]'),
    "digits in a string": (b'"' + b"1" * 200 + b'"', "1" * 200),
    "raw UTF-8": ('{"clé":"日本"}'.encode(), {"clé": "日本"}),
    "equal names in different objects": (b'[{"a":1},{"a":1}]', [{"a": 1}, {"a": 1}]),
    "names that differ in case": (b'{"a":1,"A":2}', {"a": 1, "A": 2}),
    "16 levels": (b"[" * 16 + b"]" * 16, [[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]),
    "many siblings": (b"[" + b"[]," * 100 + b"[]]", [[]] * 101),
}


@both
@pytest.mark.parametrize(("data", "value"), ACCEPTED.values(), ids=ACCEPTED)
def test_a_strict_document_is_what_it_says(impl, data, value):
    assert impl.parse_json(data) == value


@both
def test_depth_is_counted_in_brackets(impl):
    assert impl.parse_json(b"7", max_depth=0) == 7
    assert impl.parse_json(b"[{}]", max_depth=2) == [{}]
    with pytest.raises(Rejected):
        impl.parse_json(b"[{}]", max_depth=1)
    with pytest.raises(Rejected):
        impl.parse_json(b"[]", max_depth=0)


@both
@pytest.mark.parametrize("data", [b"[]", b"1", b'"a"', b"null"])
def test_a_document_that_must_be_an_object_is_refused_when_it_is_another_thing(impl, data):
    assert impl.parse_json_object(b'{"a":[]}') == {"a": []}
    with pytest.raises(Rejected) as caught:
        impl.parse_json_object(data)
    assert caught.value.reason is Reason.MALFORMED


def test_a_document_larger_than_the_gil_threshold_is_read_the_same():
    value = {"data": ["x" * 70_000, {"é": [1, 2, 3] * 5000}]}
    assert ours.parse_json(json.dumps(value).encode()) == value
    with pytest.raises(Rejected):
        ours.parse_json(b'["' + b"x" * 70_000 + b'\\ud800"]')


def test_a_refusal_keeps_nothing_of_the_document():
    with pytest.raises(Rejected) as caught:
        ours.parse_json(b'{"key":"hunter2",}')
    assert caught.value.__context__ is None
    assert "hunter2" not in str(caught.value)
    with pytest.raises(Rejected) as caught:
        ours.canonical_json({"key": "hunter2\ud800"})
    assert caught.value.__context__ is None


@relaxed
@given(VALUES)
def test_valid_documents_mean_what_the_standard_library_says(value):
    for text in (json.dumps(value), json.dumps(value, indent=1, ensure_ascii=False)):
        assert ours.parse_json(text.encode(), max_depth=32) == json.loads(text) == value


@relaxed
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_finite_floats_are_read_as_the_standard_library_reads_them(number):
    assert ours.parse_json(json.dumps(number).encode()) == number


@both
def test_items_are_counted_as_commas_and_opening_brackets(impl):
    assert impl.parse_json(b'[1,{"a":[]},",[,"]', max_items=5) == [1, {"a": []}, ",[,"]
    with pytest.raises(Rejected):
        impl.parse_json(b'[1,{"a":[]},",[,"]', max_items=4)


@relaxed
@given(st.binary(max_size=60) | ALMOST_JSON, st.integers(0, 5))
@example(b'"\\u00\\"d800"', 5)
def test_any_bytes_are_read_alike_by_ours_and_the_twin_or_refused_by_both(data, max_depth):
    same_verdict(data, max_depth, 1 << 22)


@relaxed
@given(VALUES, st.data())
def test_a_damaged_document_is_read_alike_by_ours_and_the_twin_or_refused_by_both(value, data):
    text = bytearray(json.dumps(value).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        text[at : at + data.draw(st.integers(0, 2))] = data.draw(ALMOST_JSON)[:3]
    same_verdict(bytes(text), 16, data.draw(st.integers(0, 30)))


@both
@relaxed
@given(value=VALUES)
def test_the_canonical_form_is_the_standard_librarys_sorted_compact_form(impl, value):
    expected = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert impl.canonical_json(value) == expected


@relaxed
@given(
    st.recursive(
        SCALARS | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(TEXT, inner),
        max_leaves=30,
    )
)
@example(
    {
        "a": '"\\/\b\f\n\r\t\x00\x1f\x7f\u2028é\U0001f600',
        "b": [-1, 2**63 - 1, 2**63, -(2**63), 10**78, True, False, None, 1e300],
    }
)
@example(["a" * 5000, "\x01" * 5000])
def test_what_is_sent_is_the_standard_librarys_compact_form(value):
    expected = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    assert ours.compact_json(value) == expected


@pytest.mark.parametrize(
    "value",
    [Reason.MALFORMED, http.HTTPStatus.OK, {Reason.POP: http.HTTPStatus.GONE}, Counter("aab"), OrderedDict(b=1, a=2)],
)
def test_what_is_more_than_a_text_number_or_object_is_sent_as_one(value):
    plain = json.loads(json.dumps(value))
    assert ours.parse_json(ours.compact_json(value)) == plain


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (float("nan"), ValueError),
        ([float("-inf")], ValueError),
        ("\ud800", ValueError),
        ({"\udfff": 1}, ValueError),
        ({1: 1}, TypeError),
        ({"a": b"b"}, TypeError),
        ({1, 2}, TypeError),
    ],
)
def test_what_json_has_no_form_for_is_not_sent(value, error):
    with pytest.raises(error):
        ours.compact_json(value)


def test_what_is_sent_is_bounded_in_depth():
    assert ours.parse_json(ours.compact_json(nested(64)), max_depth=64) == nested(64)
    with pytest.raises(RecursionError):
        ours.compact_json(nested(65))
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(RecursionError):
        ours.compact_json(endless)


@relaxed
@given(VALUES)
def test_the_canonical_form_survives_a_round_trip(value):
    canonical = ours.canonical_json(value)
    assert ours.parse_json(canonical, max_depth=32) == value
    assert ours.canonical_json(ours.parse_json(canonical, max_depth=32)) == canonical


@both
def test_names_sort_by_code_point(impl):
    assert impl.canonical_json({"\U00010000": 1, "\uffff": 2, "b": 3, "B": 4}) == (
        '{"B":4,"b":3,"\uffff":2,"\U00010000":1}'.encode()
    )


def nested(levels: int) -> object:
    value: object = None
    for _ in range(levels):
        value = {"a": value}
    return value


ENDLESS: list[object] = []
ENDLESS.append(ENDLESS)

NOT_CANONICAL = {
    "float": 1.0,
    "float inside": {"a": [1, 2.5]},
    "NaN": float("nan"),
    "bytes": b"a",
    "set": {1},
    "79 digits": 10**78,
    "79 digits, negative": [-(10**78)],
    "5000 digits": 10**5000,
    "integer name": {1: 2},
    "null name": {None: 2},
    "lone surrogate": "\ud800",
    "lone surrogate in a name": {"\udc00": 1},
    "17 levels": nested(17),
    "a list that contains itself": ENDLESS,
}


@both
@pytest.mark.parametrize("value", NOT_CANONICAL.values(), ids=NOT_CANONICAL)
def test_a_value_that_peers_could_write_differently_has_no_canonical_form(impl, value):
    with pytest.raises(Rejected) as caught:
        impl.canonical_json(value)
    assert caught.value.reason is Reason.MALFORMED


@both
def test_16_levels_have_a_canonical_form(impl):
    assert impl.canonical_json(nested(16)) == b'{"a":' * 16 + b"null" + b"}" * 16
