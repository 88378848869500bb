"""JSON and fields of app requests: what is malformed is refused as such and is never a 500 (protocol §4, §7)."""

import json
from collections.abc import Iterator

import pytest

from tests.support import wire
from tests.support.api_bench import (
    BAD_REQUEST,
    NOT_FOUND,
    ApiBench,
    assert_signed_refusal,
    open_bench,
)
from tests.support.raw_client import RawApp, seal

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("app_bodies")]

# A marker that no sentence for people contains, to see that nothing of the input comes back.
MARK = "xyzzy-4711"
VALUE = wire.encode_base64(b"value")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiBench]:
    with open_bench(tmp_path_factory.mktemp("app-bodies")) as bench:
        yield bench


@pytest.fixture(scope="module")
def app(bench: ApiBench) -> Iterator[RawApp]:
    """An app with one value, which must still be there in the end, whatever was refused."""
    app = bench.new_app()
    app.put("mine", b"untouched")
    yield app
    assert app.get("mine") == b"untouched"


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


# What is not one JSON object in UTF-8 that two readers could not understand differently; {} stands for honest members.
BROKEN_JSON: dict[str, bytes] = {
    "nothing": b"",
    "a lone brace": b"{",
    "no comma": b'{%s "a":1}',
    "a trailing comma": b"{%s,}",
    "a comment": b"{%s/* x */}",
    "a second document": b"{%s}{}",
    "single quotes": b"{'a':1,%s}",
    "an unquoted name": b"{a:1,%s}",
    "NaN": b'{%s,"a":NaN}',
    "Infinity": b'{%s,"a":Infinity}',
    "minus Infinity": b'{%s,"a":-Infinity}',
    "a float that overflows": b'{%s,"a":1e999}',
    "an integer of 100 digits": b'{%s,"a":' + b"9" * 100 + b"}",
    "an integer of 5000 digits": b'{%s,"a":' + b"9" * 5000 + b"}",
    "a leading zero": b'{%s,"a":007}',
    "half a surrogate pair": b'{%s,"a":"\\ud800"}',
    "the other half": b'{%s,"a":"\\udc00 x"}',
    "surrogates in the wrong order": b'{%s,"a":"\\udc00\\ud800"}',
    "half a surrogate pair in a name": b'{%s,"\\ud800":1}',
    "a surrogate in UTF-8": b'{%s,"a":"\xed\xa0\x80"}',
    "invalid UTF-8": b'{%s,"a":"\xff\xfe"}',
    "overlong UTF-8": b'{%s,"a":"\xc0\xaf"}',
    "a control character": b'{%s,"a":"\x01"}',
    "a name twice": b'{%s,"a":1,"a":1}',
    "an escaped name twice": b'{%s,"a":1,"\\u0061":1}',
    "a name twice further in": b'{%s,"a":{"b":1,"b":2}}',
    "100 levels": b'{%s,"a":' + deep(100).encode() + b"}",
    "100000 levels": b'{%s,"a":' + deep(100_000).encode() + b"}",
    "100000 levels that never end": b'{%s,"a":' + b"[" * 100_000,
    "100000 objects": b'{%s,"a":' + b'{"a":' * 100_000,
}


class TestJson:
    @pytest.mark.parametrize("template", BROKEN_JSON.values(), ids=BROKEN_JSON)
    def test_broken_json_inside_the_envelope_is_refused(self, app: RawApp, template: bytes) -> None:
        plaintext = template.replace(b"%s", b'"path":"disk"')
        envelope = wire.seal(app.identity.tee, app.target.tee_pubkey, wire.CAPSULE_LABEL, plaintext)
        assert_signed_refusal(app.send("POST", "/kms/derive", envelope=envelope), app, BAD_REQUEST)

    @pytest.mark.parametrize("template", BROKEN_JSON.values(), ids=BROKEN_JSON)
    def test_broken_json_as_the_body_is_refused(self, app: RawApp, template: bytes) -> None:
        members = json.dumps(seal(app.identity, app.target.tee_pubkey, {"path": "disk"}))[1:-1]
        body = template.replace(b"%s", members.encode())
        assert_signed_refusal(app.send("POST", "/kms/derive", body=body), app, BAD_REQUEST)

    def test_members_that_nobody_knows_are_ignored(self, app: RawApp) -> None:
        inner = {"path": "disk", "unknown": [1.5, None, {"a": "\U0001f600"}], "": "", "type": "delta"}
        assert app.send("POST", "/kms/derive", inner).status == 200


def derive_row(**members: object) -> dict[str, object]:
    return {"path": MARK, **members}


# Inner objects of POST /kms/derive that must be answered 400.
BAD_DERIVE: dict[str, dict[str, object]] = {
    "no path": {"context": MARK},
    "path empty": {"path": ""},
    **{
        f"path {why}": {"path": value}
        for why, value in (
            ("null", None),
            ("a number", 1),
            ("true", True),
            ("a list", [MARK]),
            ("an object", {"a": MARK}),
        )
    },
    **{
        f"context {why}": derive_row(context=value)
        for why, value in (("null", None), ("a number", 0), ("false", False), ("a list", []), ("an object", {}))
    },
    **{
        f"length {why}": derive_row(length=value)
        for why, value in (
            ("0", 0),
            ("negative", -1),
            ("1025", 1025),
            ("huge", 10**70),
            ("negative and huge", -(10**70)),
            ("2^63", 2**63),
            ("true", True),
            ("false", False),
            ("1.0", 1.0),
            ("32.5", 32.5),
            ("null", None),
            ("a list", [32]),
            ("an object", {"value": 32}),
            ("text", MARK),
            ("empty text", ""),
            ("text with a space", " 32"),
            ("text with a sign", "+32"),
            ("text with a minus", "-32"),
            ("text with an underscore", "1_0"),
            ("text in hex", "0x20"),
            ("text with a fraction", "32.0"),
            ("text with an exponent", "1e2"),
            ("text 0", "0"),
            ("text 1025", "1025"),
            ("text of 5000 digits", "1" * 5000),
            ("text in other digits", "٣٢"),
            ("text in superscript", "²"),
        )
    },
}


class TestDerive:
    @pytest.mark.parametrize("inner", BAD_DERIVE.values(), ids=BAD_DERIVE)
    def test_a_bad_field_is_refused(self, app: RawApp, inner: dict[str, object]) -> None:
        answer = app.send("POST", "/kms/derive", inner)
        assert_signed_refusal(answer, app, BAD_REQUEST)
        assert MARK not in answer.response.text

    @pytest.mark.parametrize(("length", "size"), [(1, 1), (1024, 1024), ("1", 1), ("64", 64), ("1024", 1024)], ids=str)
    def test_a_length_is_an_integer_or_its_decimal_text(self, app: RawApp, length: object, size: int) -> None:
        answer = app.send("POST", "/kms/derive", {"path": "disk", "length": length})
        assert answer.status == 200
        assert answer.inner["length"] == size
        assert type(answer.inner["length"]) is int
        assert len(wire.parse_base64(answer.inner["key"])) == size

    def test_context_and_length_have_defaults(self, app: RawApp) -> None:
        plain = app.send("POST", "/kms/derive", {"path": "disk"})
        spelled = app.send("POST", "/kms/derive", {"path": "disk", "context": "", "length": 32})
        assert plain.inner["key"] == spelled.inner["key"]
        assert plain.inner["length"] == 32


# base64 texts that are not standard base64 with padding of anything.
BAD_BASE64 = {
    "without padding": "QQ",
    "with half the padding": "QQ=",
    "with too much padding": "QQ===",
    "with padding only": "====",
    "with padding in the middle": "QQ==QQ==",
    "for URLs": "-_-_",
    "with a space": "QU JD",
    "with a space in front": " QUJD",
    "with a line feed": "QUJD\n",
    "with a line feed in the middle": "QU\nJD",
    "of an odd length": "QUJDQ",
    "not ASCII": "QUJDé===",
    "of other digits": "٣٢٣٢",
    "with a NUL": "QUJD\x00",
    "with bits left over": "QR==",
}

# Inner objects of PUT /kms/data that must be answered 400.
BAD_PUT: dict[str, dict[str, object]] = {
    "no key": {"value": VALUE},
    **{
        f"key {why}": {"key": value, "value": VALUE}
        for why, value in (
            ("empty", ""),
            ("null", None),
            ("a number", 7),
            ("true", True),
            ("a list", [MARK]),
            ("an object", {MARK: 1}),
            ("of 1025 bytes", "k" * 1025),
            ("of 513 characters and 1026 bytes", "é" * 513),
            ("of 257 characters and 1028 bytes", "\U0001f600" * 257),
            ("of a million bytes", "k" * 1_000_000),
        )
    },
    "no value": {"key": MARK},
    **{
        f"value {why}": {"key": MARK, "value": value}
        for why, value in (
            ("null", None),
            ("a number", 7),
            ("true", True),
            ("a list", [VALUE]),
            ("an object", {"a": 1}),
        )
    },
    **{f"value {why}": {"key": MARK, "value": text} for why, text in BAD_BASE64.items()},
    **{
        f"ttl_ms {why}": {"key": MARK, "value": VALUE, "ttl_ms": value}
        for why, value in (
            ("negative", -1),
            ("true", True),
            ("false", False),
            ("1.0", 1.0),
            ("1.5", 1.5),
            ("text", "100"),
            ("null", None),
            ("a list", [100]),
            ("an object", {}),
            ("2^63", 2**63),
            ("2^64", 2**64),
            ("huge", 10**70),
            ("negative and huge", -(10**70)),
        )
    },
}

BAD_DELETE: dict[str, dict[str, object]] = {
    "nothing": {},
    **{
        f"key {why}": {"key": value}
        for why, value in (
            ("empty", ""),
            ("null", None),
            ("a number", 7),
            ("true", True),
            ("a list", ["mine"]),
            ("an object", {"mine": 1}),
        )
    },
}


class TestData:
    @pytest.mark.parametrize("inner", BAD_PUT.values(), ids=BAD_PUT)
    def test_a_bad_field_of_a_put_is_refused_and_changes_nothing(self, app: RawApp, inner: dict[str, object]) -> None:
        before = app.keys()
        answer = app.send("PUT", "/kms/data", inner)
        assert_signed_refusal(answer, app, BAD_REQUEST)
        assert MARK not in answer.response.text
        assert app.keys() == before

    @pytest.mark.parametrize("inner", BAD_DELETE.values(), ids=BAD_DELETE)
    def test_a_bad_field_of_a_delete_is_refused_and_changes_nothing(
        self, app: RawApp, inner: dict[str, object]
    ) -> None:
        before = app.keys()
        assert_signed_refusal(app.send("DELETE", "/kms/data", inner), app, BAD_REQUEST)
        assert app.keys() == before

    def test_deleting_what_is_not_there_is_not_found(self, app: RawApp) -> None:
        answer = app.send("DELETE", "/kms/data", {"key": MARK + " absent"})
        assert_signed_refusal(answer, app, NOT_FOUND)
        assert MARK not in answer.response.text

    @pytest.mark.parametrize(
        "key",
        ["k" * 1024, "é" * 512, "\U0001f600" * 256, "\x00", "\u2028", " ", "a/b", "e\u0301", "é", "\ufeff"],
        ids=[
            "1024 letters",
            "512 of two bytes",
            "256 of four",
            "NUL",
            "separator",
            "space",
            "slash",
            "nfd",
            "nfc",
            "bom",
        ],
    )
    def test_any_text_of_up_to_1024_bytes_is_a_key(self, app: RawApp, key: str) -> None:
        app.put(key, b"value")
        assert app.get(key) == b"value"
        assert app.keys().count(key) == 1
        assert app.delete(key)
        assert app.get(key) is None

    def test_a_value_of_a_mebibyte_fits_and_a_byte_more_does_not(self, app: RawApp) -> None:
        """Within the default limits of bodies, although it is 2.7 times as long on the wire."""
        app.put("large", bytes(1 << 20))
        assert app.get("large") == bytes(1 << 20)
        too_large = wire.encode_base64(bytes((1 << 20) + 1))
        answer = app.send("PUT", "/kms/data", {"key": "too large", "value": too_large})
        assert_signed_refusal(answer, app, BAD_REQUEST)
        assert app.delete("large")

    @pytest.mark.parametrize("value", [b"", b"\x00", bytes(range(256))], ids=["empty", "one byte", "every byte"])
    def test_any_bytes_are_a_value(self, app: RawApp, value: bytes) -> None:
        app.put("value", value)
        assert app.get("value") == value
        assert app.delete("value")
