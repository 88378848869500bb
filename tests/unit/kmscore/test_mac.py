"""MACs over canonical bodies and hex, on ours and on the twin."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmscore import _mac, mac
from kmscore.errors import InvariantBroken, Reason, Rejected
from kmscore.json import canonical_json
from kmscore.mac import MacVerdict
from kmscore.secret import SecretBytes
from tests.reference import mac as twin

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "sync_mac.json").read_text())
KEY = SecretBytes(bytes.fromhex(VECTORS["sync_key"]))
MAC = mac.sign_canonical(KEY, b"{}")

both = pytest.mark.parametrize("impl", [mac, twin], ids=["ours", "twin"])
both_hex = pytest.mark.parametrize("impl", [_mac, twin], ids=["ours", "twin"])
relaxed = settings(deadline=None)


@both
@pytest.mark.parametrize("row", VECTORS["rows"], ids=lambda row: row["mac"][:8])
def test_the_vectors_have_the_macs_they_should(impl, row):
    canonical = canonical_json(row["envelope"])
    assert canonical == row["canonical"].encode()
    assert impl.sign_json(KEY, row["envelope"]) == impl.sign_canonical(KEY, canonical) == row["mac"]
    for form in (row["mac"], row["mac"].upper(), "0x" + row["mac"]):
        assert impl.check_mac(KEY, canonical, form) is MacVerdict.VALID
    assert impl.check_mac(KEY, canonical + b" ", row["mac"]) is MacVerdict.WRONG


NOT_THE_MAC = {
    "empty": "",
    "prefix only": "0x",
    "one digit short": MAC[:-1],
    "one byte short": MAC[:-2],
    "one byte long": MAC + "00",
    "twice": MAC + MAC,
    "upper-case prefix": "0X" + MAC,
    "two prefixes": "0x0x" + MAC,
    "prefix in place of a byte": "0x" + MAC[2:],
    "white space": MAC + " ",
    "a letter that is no digit": "g" + MAC[1:],
    "a full-width digit": "\uff11" + MAC[1:],
    "a lone surrogate": "\ud800" + MAC[1:],
    "the first bit": f"{int(MAC[0], 16) ^ 8:x}" + MAC[1:],
    "the last bit": MAC[:-1] + f"{int(MAC[-1], 16) ^ 1:x}",
    "zeros": "0" * 64,
}


@both
@pytest.mark.parametrize("text", NOT_THE_MAC.values(), ids=NOT_THE_MAC)
def test_any_other_text_is_a_wrong_mac(impl, text):
    assert impl.check_mac(KEY, b"{}", MAC) is MacVerdict.VALID
    assert impl.check_mac(KEY, b"{}", text) is MacVerdict.WRONG


@both
def test_no_mac_is_absent_whatever_the_body(impl):
    assert impl.check_mac(KEY, b"", None) is MacVerdict.ABSENT


@relaxed
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=300))
def test_macs_are_hmac_sha256(key, body):
    secret = SecretBytes(key)
    assert mac.hmac_sha256(secret, body) == twin.hmac_sha256(secret, body)
    assert mac.sign_canonical(secret, body) == twin.sign_canonical(secret, body)


@pytest.mark.parametrize("size", [0, 63, 64, 65, 16_383, 16_384, 1_000_000])
def test_macs_of_all_sizes_are_hmac_sha256(size):
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert mac.sign_canonical(KEY, body) == twin.sign_canonical(KEY, body)
    assert mac.check_mac(KEY, body, twin.sign_canonical(KEY, body)) is MacVerdict.VALID


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_key_of_another_length_is_a_bug(size):
    with pytest.raises(InvariantBroken):
        mac.sign_canonical(SecretBytes(bytes(size)), b"{}")


@pytest.mark.parametrize("size", [2, 20_000])
def test_a_wiped_key_is_never_used_as_zeros(size):
    key = SecretBytes(bytes(32))
    key.wipe()
    for use in (
        lambda: mac.sign_canonical(key, bytes(size)),
        lambda: mac.check_mac(key, bytes(size), MAC),
        lambda: mac.hmac_sha256(key, bytes(size)),
    ):
        with pytest.raises(InvariantBroken):
            use()


@both_hex
@relaxed
@given(data=st.binary(max_size=100))
def test_hex_of_either_case_with_or_without_a_prefix_is_read(impl, data):
    for text in (data.hex(), data.hex().upper(), "0x" + data.hex()):
        assert impl.parse_hex(text) == data


@pytest.mark.parametrize("size", [2047, 2048, 2049, 4096, 100_001])
def test_long_hex_is_read_across_the_blocks_of_the_decoder(size):
    data = bytes(i * 31 % 256 for i in range(size))
    assert _mac.parse_hex(data.hex()) == data
    for at in (0, size, 2 * size - 1):
        with pytest.raises(Rejected):
            _mac.parse_hex(data.hex()[:at] + "g" + data.hex()[at + 1 :])


@both_hex
@pytest.mark.parametrize("code", range(256))
def test_every_character_is_a_digit_or_refused_in_both_places(impl, code):
    character = chr(code)
    for text in (character + "0", "0" + character):
        if character in "0123456789abcdefABCDEF" or text == "0x":
            assert impl.parse_hex(text) == bytes.fromhex(text.removeprefix("0x"))
        else:
            with pytest.raises(Rejected):
                impl.parse_hex(text)


@both_hex
@pytest.mark.parametrize("value", ["0", "0X00", "00 ", "é0", "\ud800", "０0", None, 7, b"00", ["00"]])
def test_what_is_not_hex_is_malformed(impl, value):
    with pytest.raises(Rejected) as caught:
        impl.parse_hex(value)
    assert caught.value.reason is Reason.MALFORMED
