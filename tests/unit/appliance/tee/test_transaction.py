"""The encoding of EIP-1559 transactions against eth_account's, and the refusal of all that is not what was asked."""

import dataclasses

import pytest
import rlp
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st

from appliance.tee.port import Eip1559Transaction
from appliance.tee.transaction import (
    SECP256K1_ORDER,
    encode_signed_transaction,
    transaction_digest,
    verify_signed_transaction,
)
from kmscore.errors import InvariantBroken, Reason, Rejected
from kmscore.pop import WalletKey
from kmscore.secret import SecretBytes

KEY = bytes.fromhex("11" * 32)
TX = Eip1559Transaction(84532, 3, 1_000_000, 2_000_000_000, 100_000, "0x" + "6a" * 20, 0, b"\xca\xfe" + bytes(32))

wallets = st.binary(min_size=20, max_size=20).map(lambda raw: "0x" + raw.hex())
uint64 = st.integers(0, 2**64 - 1)
uint256 = st.integers(0, 2**256 - 1)


@pytest.fixture(scope="module")
def wallet_key() -> WalletKey:
    return WalletKey(SecretBytes(KEY))


def signed(tx: Eip1559Transaction, key: WalletKey) -> bytes:
    return encode_signed_transaction(tx, key.sign_digest(transaction_digest(tx)))


@given(
    st.builds(
        Eip1559Transaction,
        st.integers(1, 2**63),
        uint64,
        uint256,
        uint256,
        uint64,
        wallets,
        uint256,
        st.binary(max_size=80),
    )
)
def test_the_signed_bytes_are_those_of_eth_account(tx: Eip1559Transaction) -> None:
    theirs = Account.sign_transaction(
        {
            "type": 2,
            "chainId": tx.chain_id,
            "nonce": tx.nonce,
            "maxPriorityFeePerGas": tx.max_priority_fee_per_gas,
            "maxFeePerGas": tx.max_fee_per_gas,
            "gas": tx.gas_limit,
            "to": bytes.fromhex(tx.to[2:]),
            "value": tx.value,
            "data": tx.data,
            "accessList": [],
        },
        KEY,
    )
    key = WalletKey(SecretBytes(KEY))

    assert signed(tx, key) == bytes(theirs.raw_transaction)
    assert verify_signed_transaction(bytes(theirs.raw_transaction), tx, key.address) == bytes(theirs.raw_transaction)


@pytest.mark.parametrize(
    "change",
    [
        {"chain_id": 1},
        {"nonce": 4},
        {"max_priority_fee_per_gas": 0},
        {"max_fee_per_gas": 0},
        {"gas_limit": 99_999},
        {"to": "0x" + "6b" * 20},
        {"value": 1},
        {"data": b""},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_transaction_that_differs_in_one_field_is_refused(wallet_key: WalletKey, change: dict[str, object]) -> None:
    raw = signed(dataclasses.replace(TX, **change), wallet_key)

    with pytest.raises(Rejected) as refusal:
        verify_signed_transaction(raw, TX, wallet_key.address)
    assert refusal.value.reason is Reason.SIGNATURE


def fields_of(raw: bytes) -> list[object]:
    return list(rlp.decode(raw[1:]))


def raw_of(fields: list[object]) -> bytes:
    return b"\x02" + rlp.encode(fields)


def malleable(raw: bytes) -> bytes:
    *rest, v, r, s = fields_of(raw)
    return raw_of([*rest, b"" if v else b"\x01", r, (SECP256K1_ORDER - int.from_bytes(s)).to_bytes(32)])


MANGLED = {
    "nothing": (lambda _: b"", Reason.MALFORMED),
    "another type": (lambda raw: b"\x01" + raw[1:], Reason.MALFORMED),
    "only the type": (lambda raw: raw[:1], Reason.MALFORMED),
    "a byte too few": (lambda raw: raw[:-1], Reason.MALFORMED),
    "a byte too many": (lambda raw: raw + b"\x00", Reason.MALFORMED),
    "a string instead of a list": (lambda _: b"\x02" + rlp.encode(b"x" * 80), Reason.MALFORMED),
    "eleven fields": (lambda raw: raw_of(fields_of(raw)[:-1]), Reason.MALFORMED),
    "lists nested very deep": (lambda _: b"\x02" + b"\xc1" * 50_000 + b"\xc0", Reason.MALFORMED),
    "a list as signature": (lambda raw: raw_of([*fields_of(raw)[:-1], [b"x"]]), Reason.SIGNATURE),
    "an s of 33 bytes": (lambda raw: raw_of([*fields_of(raw)[:-1], b"\x01" * 33]), Reason.SIGNATURE),
    "v of 27": (lambda raw: raw_of([*fields_of(raw)[:9], b"\x1b", *fields_of(raw)[10:]]), Reason.SIGNATURE),
    "an r with a leading zero": (
        lambda raw: raw_of([*fields_of(raw)[:10], b"\x00" + bytes(fields_of(raw)[10])[:31], fields_of(raw)[11]]),
        Reason.SIGNATURE,
    ),
    "r and s of zero": (lambda raw: raw_of([*fields_of(raw)[:10], b"", b""]), Reason.SIGNATURE),
    "an r above the group order": (lambda raw: raw_of([*fields_of(raw)[:10], b"\xff" * 32, b"\x01"]), Reason.SIGNATURE),
    "an s in the upper half": (malleable, Reason.SIGNATURE),
}  # fmt: skip


@pytest.mark.parametrize(("mangle", "reason"), MANGLED.values(), ids=MANGLED)
def test_bytes_that_are_not_our_signed_transaction_are_refused(
    wallet_key: WalletKey, mangle: object, reason: Reason
) -> None:
    raw = mangle(signed(TX, wallet_key))  # type: ignore[operator]

    with pytest.raises(Rejected) as refusal:
        verify_signed_transaction(raw, TX, wallet_key.address)
    assert refusal.value.reason is reason


def test_a_transaction_of_another_wallet_is_refused(wallet_key: WalletKey) -> None:
    raw = signed(TX, WalletKey(SecretBytes(b"\x22" * 32)))

    with pytest.raises(Rejected) as refusal:
        verify_signed_transaction(raw, TX, wallet_key.address)
    assert refusal.value.reason is Reason.SIGNATURE


@given(st.binary(max_size=200).map(lambda tail: b"\x02" + tail) | st.binary(max_size=50))
def test_any_bytes_are_refused_with_a_reason(raw: bytes) -> None:
    with pytest.raises(Rejected):
        verify_signed_transaction(raw, TX, "0x" + "11" * 20)


@pytest.mark.parametrize(
    "change", [{"chain_id": 0}, {"nonce": -1}, {"value": 1 << 256}, {"to": "0x"}, {"to": ""}], ids=str
)
def test_a_transaction_that_cannot_exist_is_a_bug(change: dict[str, object]) -> None:
    with pytest.raises(InvariantBroken):
        transaction_digest(dataclasses.replace(TX, **change))


@pytest.mark.parametrize("sig65", [b"", bytes(64), bytes(66), bytes(64) + b"\x1b"], ids=len)
def test_a_signature_of_another_form_is_a_bug(sig65: bytes) -> None:
    with pytest.raises(InvariantBroken):
        encode_signed_transaction(TX, sig65)
