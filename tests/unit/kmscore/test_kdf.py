"""Derived keys, on ours and on the twin, and values at rest."""

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmscore import kdf as ours
from kmscore.errors import InvariantBroken, Reason, Rejected
from kmscore.kdf import DataCipher, derive_app_key, derive_data_key, derive_sync_key, master_secret_hash
from kmscore.secret import SecretBytes
from kmscore.store import Record
from tests.reference import kdf as twin

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "kdf.json").read_text())
MASTER = SecretBytes(bytes.fromhex(VECTORS["master_secret"]))
AT_REST = VECTORS["at_rest"]
CIPHERTEXT = bytes.fromhex(AT_REST["ciphertext"])

both = pytest.mark.parametrize("impl", [ours, twin], ids=["ours", "twin"])
relaxed = settings(deadline=None)
TEXT = st.text(st.characters(codec="utf-8"))


@both
@pytest.mark.parametrize("row", VECTORS["rows"], ids=lambda row: f"{row['app_id'][:6]}-{row['path']}-{row['length']}")
def test_the_vectors_derive_to_their_keys(impl, row):
    key = impl.derive_app_key(MASTER, int(row["app_id"]), row["path"], row["context"], row["length"])
    assert key.hex() == row["key"]


def test_the_reserved_keys_are_those_of_the_vectors():
    rows = {(row["app_id"], row["path"]): bytes.fromhex(row["key"]) for row in VECTORS["rows"]}
    assert derive_sync_key(MASTER).matches(rows["0", "sync_hmac_key"])
    assert derive_data_key(MASTER, 101).matches(rows["101", "data_key"])


def test_the_hash_of_the_master_secret_is_that_of_the_vectors():
    assert master_secret_hash(MASTER).hex() == VECTORS["master_secret_hash"]


@relaxed
@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**256 - 1), TEXT.filter(bool), TEXT, st.integers(1, 1024))
def test_keys_are_derived_as_the_rfc_says(master, app_id, path, context, length):
    secret = SecretBytes(master)
    expected = twin.derive_app_key(secret, app_id, path, context, length)
    assert derive_app_key(secret, app_id, path, context, length) == expected


def test_context_and_length_have_the_defaults_of_the_protocol():
    assert derive_app_key(MASTER, 49, "disk") == derive_app_key(MASTER, 49, "disk", "", 32)


def test_a_path_of_a_megabyte_derives():
    path = "p" * 1_000_000
    assert derive_app_key(MASTER, 1, path) == twin.derive_app_key(MASTER, 1, path)


REFUSED = {
    "negative app": (-1, "p", "", 32),
    "app above uint256": (2**256, "p", "", 32),
    "boolean app": (True, "p", "", 32),
    "text app": ("1", "p", "", 32),
    "empty path": (1, "", "", 32),
    "empty path with context": (1, "", "c", 32),
    "path of bytes": (1, b"p", "", 32),
    "null path": (1, None, "", 32),
    "number path": (1, 5, "", 32),
    "surrogate in path": (1, "p\ud800", "", 32),
    "surrogate in context": (1, "p", "\udc00", 32),
    "null context": (1, "p", None, 32),
    "number context": (1, "p", 0, 32),
    "zero length": (1, "p", "", 0),
    "negative length": (1, "p", "", -1),
    "length of 1025": (1, "p", "", 1025),
    "boolean length": (1, "p", "", True),
    "float length": (1, "p", "", 32.0),
    "text length": (1, "p", "", "32"),
    "null length": (1, "p", "", None),
}


@pytest.mark.parametrize("arguments", REFUSED.values(), ids=REFUSED)
def test_any_other_field_is_refused(arguments):
    with pytest.raises(Rejected) as caught:
        derive_app_key(MASTER, *arguments)
    assert caught.value.reason is Reason.BAD_FIELD
    assert caught.value.__context__ is None


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_master_secret_of_another_length_is_a_bug(size):
    with pytest.raises(InvariantBroken):
        derive_app_key(SecretBytes(bytes(size)), 1, "p")


# --- values at rest ---


def cipher_of(app_id: int) -> DataCipher:
    return DataCipher(derive_data_key(MASTER, app_id))


def test_the_value_at_rest_of_the_vectors_is_sealed_and_opened():
    cipher = cipher_of(int(AT_REST["app_id"]))
    plaintext = bytes.fromhex(AT_REST["plaintext"])
    assert cipher.seal(plaintext, bytes.fromhex(AT_REST["nonce"])) == CIPHERTEXT
    assert cipher.open(CIPHERTEXT) == plaintext
    cipher.check(CIPHERTEXT)


@relaxed
@given(st.binary(max_size=200), st.binary(min_size=12, max_size=12), st.data())
def test_a_value_opens_until_a_bit_of_it_is_flipped(plaintext, nonce, data):
    cipher = cipher_of(5)
    sealed = cipher.seal(plaintext, nonce)
    assert len(sealed) == len(plaintext) + 28
    assert cipher.open(sealed) == plaintext
    damaged = bytearray(sealed)
    damaged[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    for look in (cipher.open, cipher.check):
        with pytest.raises(Rejected) as caught:
            look(bytes(damaged))
        assert caught.value.reason is Reason.UNDECRYPTABLE


UNDECRYPTABLE = {
    "empty": b"",
    "nonce only": bytes(12),
    "one byte short of a tag": bytes(27),
    "zeros": bytes(28),
    "cut off": CIPHERTEXT[:-1],
    "extended": CIPHERTEXT + b"\x00",
    "of another app": cipher_of(102).seal(b"secret value", bytes(12)),
}


@pytest.mark.parametrize("ciphertext", UNDECRYPTABLE.values(), ids=UNDECRYPTABLE)
def test_anything_else_is_undecryptable(ciphertext):
    for look in (cipher_of(101).open, cipher_of(101).check):
        with pytest.raises(Rejected) as caught:
            look(ciphertext)
        assert caught.value.reason is Reason.UNDECRYPTABLE


@pytest.mark.parametrize("size", [0, 1, 256, 4096, 4097, 20_000])
def test_one_value_says_nothing_about_the_next(size):
    cipher = cipher_of(101)
    good = cipher.seal(bytes(size), bytes(range(12)))
    for position in (0, 12 + size // 2, len(good) - 1):
        bad = bytearray(good)
        bad[position] ^= 1
        cipher.check(good)
        for _ in range(2):
            with pytest.raises(Rejected):
                cipher.check(bytes(bad))
        cipher.check(good)
        assert cipher.open(good) == bytes(size)


@pytest.mark.parametrize("size", [0, 4096, 4097])
def test_records_are_readable_when_their_values_are(size):
    cipher = cipher_of(7)
    good = cipher.seal(bytes(size), bytes(12))
    bad = cipher_of(8).seal(bytes(size), bytes(12))
    records = [Record("k", value, {"w": 1}, 1) for value in (good, bad, None, good[:-1], b"", good)]
    assert cipher.readable(records) == [records[0], records[2], records[5]]
    assert cipher.readable([]) == []


@pytest.mark.parametrize("nonce", [b"", bytes(11), bytes(13)])
def test_sealing_a_value_under_a_nonce_of_another_length_is_a_bug(nonce):
    with pytest.raises(InvariantBroken):
        cipher_of(1).seal(b"", nonce)


def test_a_data_key_of_another_length_is_a_bug():
    with pytest.raises(InvariantBroken):
        DataCipher(SecretBytes(bytes(16)))


def test_a_data_cipher_is_not_pickled():
    with pytest.raises(TypeError):
        pickle.dumps(cipher_of(1))
