"""The registries' calls and answers as bytes: against eth_abi as the encoder and keccak for the selectors."""

import re
from pathlib import Path

import pytest
from eth_abi.abi import encode
from hypothesis import given
from hypothesis import strategies as st

from appliance.chain import abi
from appliance.chain.types import App, ChainError, Instance, Version
from kmscore.keccak import keccak256

APP = "(uint256,address,bytes32,address,string,uint256,uint256,uint8,address)"
VERSION = "(uint256,string,bytes32,string,string,string,string,uint8,uint256,address)"
INSTANCE = "(uint256,uint256,uint256,address,string,bytes,address,bool,uint8,uint256)"
RAW_INSTANCE = INSTANCE.replace("string", "bytes")

OWNER = "0x" + "0a" * 20
WALLET = "0x" + "0b" * 20
HASH = bytes(range(32))

UINTS = st.integers(min_value=0, max_value=2**256 - 1)
ADDRESSES = st.binary(min_size=20, max_size=20).map(lambda raw: "0x" + raw.hex())


def encode_instance(
    instance_id: int = 1, url: bytes = b"https://kms", tee_pubkey: bytes = b"key", status: int = 0
) -> bytes:
    fields = (instance_id, 49, 2, OWNER, url, tee_pubkey, WALLET, True, status, 1_700_000_000)
    return encode([RAW_INSTANCE], [fields])


def test_every_selector_is_the_hash_of_the_signature_beside_it() -> None:
    lines = re.findall(r'fromhex\("(\w{8})"\)  # (.+)', Path(abi.__file__).read_text(encoding="utf-8"))
    assert len(lines) == 8
    for selector, signature in lines:
        assert keccak256(signature.encode())[:4].hex() == selector, signature


def test_arguments_are_encoded_as_one_word_each() -> None:
    assert abi.encode_call(OWNER, b"\1\2\3\4", 5, WALLET, HASH) == abi.Call(
        OWNER, b"\1\2\3\4" + encode(["uint256", "address", "bytes32"], [5, WALLET, HASH])
    )


@given(UINTS, ADDRESSES, st.text(max_size=40), UINTS, st.integers(0, 255), ADDRESSES)
def test_an_app_is_read_as_it_was_encoded(
    app_id: int, owner: str, uri: str, latest: int, status: int, app_wallet: str
) -> None:
    data = encode([APP], [(app_id, owner, HASH, WALLET, uri, latest, 7, status, app_wallet)])
    assert abi.decode_app(data) == (App(app_id, owner, latest, status, app_wallet) if app_id else None)


@given(UINTS, st.text(max_size=40), st.binary(min_size=32, max_size=32), st.integers(0, 255))
def test_a_version_is_read_as_it_was_encoded(version_id: int, name: str, measurement: bytes, status: int) -> None:
    data = encode([VERSION], [(version_id, name, measurement, "a", "", "c" * 99, "d", status, 7, OWNER)])
    assert abi.decode_version(data) == (Version(version_id, name, measurement, status) if version_id else None)


def test_an_instance_is_read_as_it_was_encoded() -> None:
    assert abi.decode_instance(encode_instance(status=255)) == Instance(
        1, 49, 2, OWNER, "https://kms", b"key", WALLET, True, 255, 1_700_000_000
    )


def test_id_zero_is_nothing() -> None:
    assert abi.decode_instance(encode_instance(instance_id=0)) is None


def test_a_url_that_is_not_utf8_is_data() -> None:
    instance = abi.decode_instance(encode_instance(url=b"https://\xff\xfe"))
    assert instance is not None
    assert instance.instance_url == "https://\ufffd\ufffd"


def test_a_url_or_key_too_long_to_be_one_is_kept_as_nothing() -> None:
    instance = abi.decode_instance(encode_instance(url=b"u" * 2049, tee_pubkey=b"k" * 257))
    assert instance is not None
    assert (instance.instance_url, instance.tee_pubkey) == ("", b"")
    instance = abi.decode_instance(encode_instance(url=b"u" * 2048, tee_pubkey=b"k" * 256))
    assert instance is not None
    assert (len(instance.instance_url), len(instance.tee_pubkey)) == (2048, 256)


WELL_FORMED = encode_instance()
MALFORMED = {
    "nothing, as without a contract": b"",
    "cut short": WELL_FORMED[:-32],
    "an offset beyond the end": b"\xff" * 32 + WELL_FORMED[32:],
    "a text offset beyond the end": WELL_FORMED[: 5 * 32] + b"\xff" * 32 + WELL_FORMED[6 * 32 :],
    "a bool that is neither": WELL_FORMED[: 8 * 32] + (2).to_bytes(32, "big") + WELL_FORMED[9 * 32 :],
    "a status of more than eight bits": WELL_FORMED[: 9 * 32] + (256).to_bytes(32, "big") + WELL_FORMED[10 * 32 :],
    "an address of more than 160 bits": WELL_FORMED[: 4 * 32] + b"\xff" * 32 + WELL_FORMED[5 * 32 :],
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_an_answer_of_another_shape_is_a_chain_error(data: bytes) -> None:
    with pytest.raises(ChainError):
        abi.decode_instance(data)


@given(st.binary(max_size=800))
def test_no_bytes_make_a_decoder_raise_anything_but_a_chain_error(data: bytes) -> None:
    for decode in (abi.decode_app, abi.decode_version, abi.decode_instance, lambda d: abi.decode_wallets(d, 3)):
        try:
            decode(data)
        except ChainError:
            continue


@given(st.integers(0, len(WELL_FORMED) // 32 - 1), st.binary(min_size=32, max_size=32))
def test_no_changed_word_makes_the_decoder_raise_anything_but_a_chain_error(at: int, word: bytes) -> None:
    changed = WELL_FORMED[: at * 32] + word + WELL_FORMED[(at + 1) * 32 :]
    try:
        abi.decode_instance(changed)
    except ChainError:
        return


@pytest.mark.parametrize("count", [0, 1, 3, 4, 9])
def test_a_list_of_wallets_is_cut_at_the_limit(count: int) -> None:
    wallets = [f"0x{number:040x}" for number in range(count)]
    assert abi.decode_wallets(encode(["address[]"], [wallets]), 3) == wallets[:3]


def test_a_list_that_claims_to_be_longer_than_it_is_is_refused() -> None:
    data = encode(["address[]"], [[WALLET]])
    with pytest.raises(ChainError):
        abi.decode_wallets(data[:32] + b"\xff" * 32 + data[64:], 3)


@pytest.mark.parametrize("data", [b"", b"\0" * 31, b"\0" * 33])
def test_a_word_is_exactly_32_bytes(data: bytes) -> None:
    with pytest.raises(ChainError):
        abi.decode_bytes32(data)
    assert abi.decode_bytes32(HASH) == HASH
