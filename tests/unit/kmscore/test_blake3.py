import copy
import json
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kmscore.blake3
import tests.reference.blake3
from kmscore.errors import InvariantBroken
from kmscore.secret import SecretBytes

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "blake3.json").read_text())
KEY = VECTORS["key"].encode()
CONTEXT = VECTORS["context_string"]
ROWS = [pytest.param(row, id=f"{row['input_len']} bytes") for row in VECTORS["rows"]]


def counting(size: int) -> bytes:
    return bytes(i % 251 for i in range(size))


@pytest.fixture(scope="module", params=[kmscore.blake3, tests.reference.blake3], ids=["cython", "twin"])
def b3(request):
    return request.param


@pytest.mark.parametrize("row", ROWS)
def test_every_official_vector_at_its_full_length(b3, row):
    data = counting(row["input_len"])
    assert b3.blake3(data, 131).hex() == row["hash"]
    assert b3.blake3_keyed(KEY, data, 131).hex() == row["keyed_hash"]
    assert b3.blake3_derive_key(CONTEXT, data, 131).hex() == row["derive_key"]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("step", [1, 63, 64, 65, 1023, 1024, 1025, 9000])
def test_data_in_pieces_hashes_like_the_whole(row, step):
    data = counting(row["input_len"])
    for options, expected in (({}, "hash"), ({"key32": KEY}, "keyed_hash"), ({"context": CONTEXT}, "derive_key")):
        hasher = kmscore.blake3.Blake3Hasher(**options)
        for at in range(0, len(data), step):
            hasher.update(data[at : at + step])
        assert hasher.digest(131).hex() == row[expected]


def test_the_hasher_of_the_twin_agrees(b3):
    hasher = b3.Blake3Hasher(key32=SecretBytes(KEY))
    hasher.update(counting(1000))
    early = hasher.digest()
    hasher.update(b"")
    assert hasher.digest() == early == b3.blake3_keyed(KEY, counting(1000))
    hasher.update(counting(600))
    assert hasher.digest(70) == b3.blake3_keyed(SecretBytes(KEY), counting(1000) + counting(600), 70)


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 63, 64, 65, 128, 1000, 20_000])
def test_a_shorter_output_is_the_beginning_of_a_longer_one(b3, length):
    longest = kmscore.blake3.blake3(b"output", 20_001)
    assert b3.blake3(b"output", length) == longest[:length]


def test_the_default_output_has_32_bytes(b3):
    assert b3.blake3(b"") == b3.blake3(b"", 32)
    assert (
        len(b3.blake3_keyed(KEY, b"")) == len(b3.blake3_derive_key("c", b"")) == len(b3.Blake3Hasher().digest()) == 32
    )


def test_the_three_modes_share_no_output(b3):
    outputs = {
        b3.blake3(b"data"),
        b3.blake3_keyed(KEY, b"data"),
        b3.blake3_keyed(bytes(32), b"data"),
        b3.blake3_derive_key(CONTEXT, b"data"),
        b3.blake3_derive_key("", b"data"),
    }
    assert len(outputs) == 5


@given(st.lists(st.binary(max_size=1500), max_size=5), st.integers(0, 200))
@settings(max_examples=50, deadline=None)
def test_any_pieces_and_length_agree_with_the_twin(pieces, length):
    hasher = kmscore.blake3.Blake3Hasher()
    for piece in pieces:
        hasher.update(piece)
    assert hasher.digest(length) == tests.reference.blake3.blake3(b"".join(pieces), length)


REFUSED = [
    pytest.param(lambda b3: b3.blake3(b"", -1), id="negative length"),
    pytest.param(lambda b3: b3.Blake3Hasher().digest(-1), id="negative length of a hasher"),
    pytest.param(lambda b3: b3.blake3_keyed(bytes(31), b""), id="31-byte key"),
    pytest.param(lambda b3: b3.blake3_keyed(SecretBytes(bytes(33)), b""), id="33-byte secret"),
    pytest.param(lambda b3: b3.Blake3Hasher(key32=b""), id="empty key of a hasher"),
    pytest.param(lambda b3: b3.Blake3Hasher(key32=KEY, context="c"), id="key and context"),
    pytest.param(lambda b3: b3.blake3_derive_key("\ud800", b""), id="context that UTF-8 cannot hold"),
]


@pytest.mark.parametrize("call", REFUSED)
def test_a_call_that_only_a_bug_can_make_is_refused(b3, call):
    with pytest.raises(InvariantBroken):
        call(b3)


def test_a_wiped_key_is_refused(b3):
    key = SecretBytes(KEY)
    key.wipe()
    with pytest.raises(InvariantBroken):
        b3.blake3_keyed(key, b"")


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, pickle.dumps], ids=lambda f: f.__name__)
def test_a_hasher_cannot_be_copied(copier):
    with pytest.raises(TypeError):
        copier(kmscore.blake3.Blake3Hasher(key32=KEY))


def test_a_hasher_in_the_middle_of_an_update_refuses_another_thread():
    data = bytes(1 << 25)
    hasher = kmscore.blake3.Blake3Hasher()
    thread = threading.Thread(target=hasher.update, args=(data,))
    refused = False
    thread.start()
    while thread.is_alive() and not refused:
        try:
            hasher.digest()
        except InvariantBroken:
            refused = True
    thread.join()
    assert refused
    assert hasher.digest() == kmscore.blake3.blake3(data)


def test_finalisers_say_nothing_after_failures_and_at_exit():
    script = """
from kmscore.blake3 import Blake3Hasher
from kmscore.errors import InvariantBroken

try:
    Blake3Hasher(key32=b"short")
except InvariantBroken:
    pass
alive_at_exit = Blake3Hasher(context="c")
alive_at_exit.update(bytes(5000))
"""
    child = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60)
    assert (child.returncode, child.stdout, child.stderr) == (0, "", "")
