"""The strict subset of CBOR: what it reads, what it refuses, and that nothing else ever comes out of it."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from appliance.tee.attestation.cbor import MAX_ITEMS, decode_cbor, encode_cbor
from kmscore.errors import InvariantBroken, Reason, Rejected

# Encoded, decoded: examples of RFC 8949 appendix A that are in the subset, and the module's own forms.
READ = [
    ("00", 0),
    ("17", 23),
    ("1818", 24),
    ("18ff", 255),
    ("190100", 256),
    ("1a000f4240", 1_000_000),
    ("1bffffffffffffffff", 2**64 - 1),
    ("20", -1),
    ("3822", -35),
    ("3bffffffffffffffff", -(2**64)),
    ("f4", False),
    ("f5", True),
    ("f6", None),
    ("40", b""),
    ("4401020304", b"\1\2\3\4"),
    ("60", ""),
    ("62c3bc", "ü"),
    ("80", []),
    ("83010203", [1, 2, 3]),
    ("9f01820203ff", [1, [2, 3]]),
    ("9fff", []),
    ("a0", {}),
    ("a201020304", {1: 2, 3: 4}),
    ("bf61610161629f0203ffff", {"a": 1, "b": [2, 3]}),
    ("bfff", {}),
    ("84818181f6f6f6f6", [[[[None]]], None, None, None]),
    ("a2000161300a", {0: 1, "0": 10}),
]

REFUSED = {
    "nothing": "",
    "a head without its number": "18",
    "a number cut short": "1a0001",
    "a number in two bytes that fits the head": "1817",
    "a number in three bytes that fits two": "1900ff",
    "a number in five bytes that fits three": "1a0000ffff",
    "a number in nine bytes that fits five": "1b00000000ffffffff",
    "a negative number in two bytes that fits the head": "3817",
    "a length in two bytes that fits the head": "5800",
    "a map's length in two bytes that fits the head": "b800",
    "a reserved length, 28": "1c",
    "a reserved length, 29": "3d",
    "a reserved length, 30": "5e",
    "an indefinite number": "1f",
    "an indefinite negative number": "3f",
    "an indefinite byte string": "5f4100ff",
    "an indefinite text": "7f6161ff",
    "an indefinite tag": "df",
    "a half float": "f93c00",
    "a float": "fa47c35000",
    "a double": "fb3ff199999999999a",
    "not a number": "f97e00",
    "undefined": "f7",
    "an unassigned simple value": "f0",
    "a simple value in two bytes": "f8ff",
    "false in two bytes": "f814",
    "a break alone": "ff",
    "a break in a definite list": "82f6ff",
    "a break where a value belongs": "bf00ff",
    "a tag": "c000",
    "a tag inside": "81d81800",
    "bytes after the end": "0000",
    "a second list": "8080",
    "bytes cut short": "4201",
    "a text cut short": "6261",
    "a list cut short": "8201",
    "an indefinite list without end": "9f01",
    "a map without its last value": "a10100a1",
    "a map with a key and no value": "a101",
    "a text that is not UTF-8": "61ff",
    "a text with half a surrogate pair": "63eda080",
    "a text with a long form": "62c080",
    "a key twice": "a2010201f6",
    "a key twice in an indefinite map": "bf010201f6ff",
    "a key that is bytes": "a14100f6",
    "a key that is a list": "a180f6",
    "a key that is a map": "a1a0f6",
    "a key that is true": "a1f5f6",
    "a key that is null": "a1f6f6",
    "five levels": "8181818180",
    "five levels of maps": "a100a100a100a100a0",
    "a list as long as it says, which is too long": "9bffffffffffffffff",
    "a string as long as it says, which is too long": "5bffffffffffffffff",
}


@pytest.mark.parametrize(("encoded", "value"), READ)
def test_it_reads_what_the_module_writes(encoded: str, value: Any) -> None:
    decoded = decode_cbor(bytes.fromhex(encoded))

    assert decoded == value
    assert type(decoded) is type(value)


@pytest.mark.parametrize("encoded", REFUSED.values(), ids=REFUSED)
def test_what_two_readers_could_read_differently_is_refused(encoded: str) -> None:
    with pytest.raises(Rejected) as refusal:
        decode_cbor(bytes.fromhex(encoded))

    assert refusal.value.reason is Reason.MALFORMED
    assert refusal.value.__cause__ is None


@pytest.mark.parametrize("head", [b"\x9f", b"\x99\x01\x01"], ids=["indefinite", "definite"])
def test_an_array_of_more_items_than_anything_has_is_refused(head: bytes) -> None:
    items = b"\xf6" * (MAX_ITEMS + 1)

    with pytest.raises(Rejected):
        decode_cbor(head + items + (b"\xff" if head == b"\x9f" else b""))


def test_as_many_items_as_allowed_are_read() -> None:
    assert decode_cbor(b"\x9f" + b"\xf6" * MAX_ITEMS + b"\xff") == [None] * MAX_ITEMS


@pytest.mark.parametrize("number", [2**64, -(2**64) - 1])
def test_numbers_beyond_64_bits_are_our_bug(number: int) -> None:
    with pytest.raises(InvariantBroken):
        encode_cbor(number)


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**64), 2**64 - 1), st.binary(max_size=300), st.text(max_size=100)
)
KEYS = st.one_of(st.integers(-(2**64), 2**64 - 1), st.text(max_size=40))


def nested(levels: int) -> st.SearchStrategy[Any]:
    if levels == 0:
        return SCALARS
    inner = nested(levels - 1)
    return st.one_of(SCALARS, st.lists(inner, max_size=5), st.dictionaries(KEYS, inner, max_size=5))


@given(nested(4))
def test_what_is_encoded_is_decoded_again(value: Any) -> None:
    assert decode_cbor(encode_cbor(value)) == value


@given(nested(4), st.data())
def test_every_encoding_has_one_length(value: Any, data: st.DataObject) -> None:
    encoded = encode_cbor(value)
    cut = data.draw(st.integers(0, len(encoded) - 1))

    with pytest.raises(Rejected):
        decode_cbor(encoded[:cut])
    with pytest.raises(Rejected):
        decode_cbor(encoded + data.draw(st.binary(min_size=1, max_size=4)))


@given(st.binary(max_size=400))
@example(b"\x9f" * 400)
@example(b"\xbf\x00" * 200)
def test_any_bytes_are_read_or_rejected(data: bytes) -> None:
    try:
        value = decode_cbor(data)
    except Rejected:
        return
    assert decode_cbor(encode_cbor(value)) == value
