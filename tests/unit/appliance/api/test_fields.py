"""Members of inner objects, keys of paths and queries: what is read, what is refused (protocol §4)."""

import base64
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.api.kms import base64_member, integer_member, key_of_query, keys_of_path, text_member
from kmscore.errors import Reason, Rejected

PREFIX = b"/kms/data/"

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
values = scalars | st.lists(st.none()) | st.dictionaries(st.text(), st.none())
any_key = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


def refused(read: object, *arguments: object, **named: object) -> None:
    with pytest.raises(Rejected) as error:
        read(*arguments, **named)
    assert error.value.reason is Reason.BAD_FIELD


class TestText:
    def test_a_member_is_required_and_not_empty_unless_it_has_a_default(self) -> None:
        assert text_member({"path": "p"}, "path") == "p"
        assert text_member({}, "context", default="") == ""
        assert text_member({"context": ""}, "context", default="") == ""
        refused(text_member, {}, "path")
        refused(text_member, {"path": ""}, "path")

    @given(values.filter(lambda value: not isinstance(value, str)))
    def test_nothing_else_is_text(self, value: object) -> None:
        refused(text_member, {"path": value}, "path")
        refused(text_member, {"path": value}, "path", default="")


class TestIntegers:
    @given(st.integers())
    def test_an_integer_is_itself(self, number: int) -> None:
        assert integer_member({"n": number}, "n", 7) == number
        assert integer_member({}, "n", number) == number

    @given(values.filter(lambda value: type(value) is not int))
    def test_nothing_else_is_one(self, value: object) -> None:
        refused(integer_member, {"n": value}, "n", 7)

    @pytest.mark.parametrize(("text", "number"), [("0", 0), ("32", 32), ("1024", 1024), ("9" * 19, 10**19 - 1)])
    def test_decimal_text_is_one_where_it_is_allowed(self, text: str, number: int) -> None:
        assert integer_member({"n": text}, "n", 7, decimal_text=True) == number
        refused(integer_member, {"n": text}, "n", 7)

    @pytest.mark.parametrize(
        "text", ["", " 1", "1 ", "+1", "-1", "1.0", "1e2", "0x1", "1_0", "٣", "²", "1" * 20, "one"]
    )
    def test_other_text_is_none(self, text: str) -> None:
        refused(integer_member, {"n": text}, "n", 7, decimal_text=True)


class TestBase64:
    @given(st.binary(max_size=100))
    def test_it_is_read_in_its_one_form(self, data: bytes) -> None:
        text = base64.b64encode(data).decode()
        assert base64_member({"value": text}, "value") == data
        for other in (text.rstrip("="), text + "=", text + "\n", " " + text, text.replace("+", "-").replace("/", "_")):
            if other != text:
                refused(base64_member, {"value": other}, "value")

    @given(st.text(max_size=12))
    def test_one_value_has_one_text(self, text: str) -> None:
        try:
            data = base64_member({"value": text}, "value")
        except Rejected:
            return
        assert base64.b64encode(data).decode() == text

    @given(values.filter(lambda value: not isinstance(value, str)))
    def test_nothing_else_is_base64(self, value: object) -> None:
        refused(base64_member, {"value": value}, "value")
        refused(base64_member, {}, "value")


class TestKeysOfPaths:
    @given(any_key)
    def test_every_key_is_found_in_its_percent_encoding(self, key: str) -> None:
        assert keys_of_path(PREFIX + quote(key, safe="").encode())[0] == key
        assert keys_of_path(PREFIX + quote(key, safe="/").encode())[0] == key

    @given(any_key)
    def test_every_key_is_found_as_a_form_writes_it(self, key: str) -> None:
        assert keys_of_path(PREFIX + quote_plus(key).encode())[-1] == key

    @pytest.mark.parametrize(
        ("path", "keys"),
        [
            (b"a+b", ["a+b", "a b"]),
            (b"a%2Bb", ["a+b"]),
            (b"a%2Bb+c", ["a+b+c", "a+b c"]),
            (b"a%20b", ["a b"]),
            (b"a/b//", ["a/b//"]),
            (b"/", ["/"]),
            (b"%25", ["%"]),
            (b"%252F", ["%2F"]),
        ],
    )
    def test_plus_is_literal_first_and_a_space_then(self, path: bytes, keys: list[str]) -> None:
        assert keys_of_path(PREFIX + path) == keys

    @pytest.mark.parametrize("path", [b"", b"%FF", b"%C3", b"%C0%AF", b"%ED%A0%80", b"a%80b"])
    def test_what_is_no_key_is_refused(self, path: bytes) -> None:
        refused(keys_of_path, PREFIX + path)


class TestKeysOfQueries:
    @given(any_key)
    def test_every_key_is_found(self, key: str) -> None:
        assert key_of_query(b"key=" + quote_plus(key).encode()) == key
        assert key_of_query(b"key=" + quote(key, safe="").encode()) == key

    @pytest.mark.parametrize("query", [b"", b"other=1", b"KEY=a", b"&&", b"keys=a"])
    def test_without_one_there_is_none(self, query: bytes) -> None:
        assert key_of_query(query) is None

    @pytest.mark.parametrize(
        "query", [b"key=", b"key", b"key=a&key=a", b"key=a&key", b"key=%FF", b"\xe9", b"key=\xff", b"a=1&" * 100]
    )
    def test_what_is_no_key_is_refused(self, query: bytes) -> None:
        refused(key_of_query, query)

    @given(st.text(st.characters(max_codepoint=127, exclude_characters="%&"), min_size=1, max_size=30))
    def test_a_plain_query_is_read_like_any_other(self, text: str) -> None:
        query = b"key=" + text.encode()
        assert key_of_query(query) == key_of_query(b"&" + query)

    @given(st.binary(max_size=60))
    def test_no_query_is_a_bug(self, query: bytes) -> None:
        try:
            key_of_query(query)
        except Rejected:
            return
