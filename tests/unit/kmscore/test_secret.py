import copy
import pickle
import subprocess
import sys
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmscore.errors import InvariantBroken
from kmscore.secret import SecretBytes, constant_time_equal

SECRET = b"correct horse battery staple"


def run_child(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60)


@given(st.binary(max_size=200))
def test_a_secret_reveals_the_bytes_it_was_made_from(data):
    secret = SecretBytes(data)
    assert secret.reveal() == data
    assert len(secret) == secret.size == len(data)


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_a_secret_matches_equal_bytes_only_in_either_type(a, b):
    assert SecretBytes(a).matches(a)
    assert SecretBytes(a).matches(SecretBytes(bytes(a)))
    assert SecretBytes(a).matches(b) is (a == b)
    assert SecretBytes(a).matches(SecretBytes(b)) is (a == b)
    assert constant_time_equal(a, b) is (a == b)


@pytest.mark.parametrize("position", [0, 1, 15, 30, 31])
def test_one_different_bit_anywhere_is_a_mismatch(position):
    data = bytes(range(32))
    other = bytearray(data)
    other[position] ^= 1
    assert not SecretBytes(data).matches(bytes(other))
    assert not constant_time_equal(data, bytes(other))


def test_secrets_are_equal_to_themselves_only():
    secret = SecretBytes(SECRET)
    assert secret == secret
    assert secret != SecretBytes(SECRET)
    assert secret != SECRET


@pytest.mark.parametrize("render", [repr, str, "{}".format, "{!r}".format, "%s".__mod__], ids=lambda f: f.__name__)
def test_printing_a_secret_shows_its_length_only(render):
    assert render(SecretBytes(SECRET)) == "SecretBytes(28 bytes)"


@pytest.mark.parametrize(
    "copier",
    [pytest.param(lambda s, p=p: pickle.dumps(s, p), id=f"pickle-{p}") for p in range(pickle.HIGHEST_PROTOCOL + 1)]
    + [copy.copy, copy.deepcopy, bytes, list, lambda s: s.__reduce__(), lambda s: s[0], memoryview],
)
def test_a_secret_cannot_be_copied_out_by_accident(copier):
    with pytest.raises(TypeError) as caught:
        copier(SecretBytes(SECRET))
    assert SECRET.decode() not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(len, id="len"),
        pytest.param(bool, id="bool"),
        pytest.param(lambda s: s.reveal(), id="reveal"),
        pytest.param(lambda s: s.matches(SECRET), id="matches"),
        pytest.param(lambda s: SecretBytes(SECRET).matches(s), id="matched by another"),
    ],
)
def test_a_wiped_secret_refuses_every_use(use):
    secret = SecretBytes(SECRET)
    secret.wipe()
    secret.wipe()
    with pytest.raises(InvariantBroken):
        use(secret)
    assert repr(secret) == "SecretBytes(wiped)"


@pytest.mark.parametrize("data", [None, "text", bytearray(b"x"), memoryview(b"x"), 7], ids=lambda v: type(v).__name__)
def test_a_secret_is_made_from_bytes_and_compared_with_bytes(data):
    with pytest.raises(TypeError):
        SecretBytes(data)
    with pytest.raises(TypeError):
        SecretBytes(b"x").matches(data)
    with pytest.raises(TypeError):
        constant_time_equal(b"x", data)


def test_the_class_cannot_be_extended():
    with pytest.raises(TypeError):
        type("Leaky", (SecretBytes,), {})


def test_the_memory_is_zero_after_a_wipe_and_after_the_object_is_gone():
    # The pointer to the memory follows the object's header and method table. The first 16 bytes of a freed block belong
    # to the allocator. The read of freed memory is why this runs in a process of its own.
    child = run_child(
        """
import ctypes
from kmscore.secret import SecretBytes

def data_of(secret):
    return ctypes.c_void_p.from_address(id(secret) + 3 * ctypes.sizeof(ctypes.c_void_p)).value

pattern = bytes(range(1, 65))
seen = ctypes.create_string_buffer(64)

wiped = SecretBytes(pattern)
assert ctypes.string_at(data_of(wiped), 64) == pattern
wiped.wipe()
assert ctypes.string_at(data_of(wiped), 64) == bytes(64)

gone = SecretBytes(pattern)
address = data_of(gone)
assert ctypes.string_at(address, 64) == pattern
del gone
ctypes.memmove(seen, address, 64)
assert seen.raw[16:] == bytes(48)
print("zero")
"""
    )
    assert (child.returncode, child.stdout, child.stderr) == (0, "zero\n", "")


def test_finalisers_say_nothing_in_cycles_after_failures_and_at_exit():
    child = run_child(
        """
import gc
from kmscore.secret import SecretBytes

for bad in (None, "text", 3):
    try:
        SecretBytes(bad)
    except TypeError:
        pass
    else:
        raise SystemExit("accepted")
cycle = [SecretBytes(b"a")]
cycle.append(cycle)
del cycle
gc.collect()
wiped = SecretBytes(b"b")
wiped.wipe()
del wiped
alive_at_exit = [SecretBytes(bytes(size)) for size in (0, 1, 32, 100000)]
"""
    )
    assert (child.returncode, child.stdout, child.stderr) == (0, "", "")
