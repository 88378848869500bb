import pytest
from eth_utils import keccak as eth_keccak
from hypothesis import given
from hypothesis import strategies as st

import kmscore.keccak
import tests.reference.keccak

KNOWN_ANSWERS = [
    pytest.param(b"", "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470", id="empty"),
    pytest.param(b"abc", "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45", id="abc"),
    pytest.param(
        b"The quick brown fox jumps over the lazy dog",
        "4d741b6f1eb29cb2a9b9911c82f56fa8d73b04959d3d9d222895df6c0b28aa15",
        id="fox",
    ),
]


@pytest.fixture(scope="module", params=[kmscore.keccak, tests.reference.keccak], ids=["cython", "twin"])
def keccak256(request):
    return request.param.keccak256


@pytest.mark.parametrize(("data", "digest"), KNOWN_ANSWERS)
def test_known_answers(keccak256, data, digest):
    assert keccak256(data).hex() == digest


@pytest.mark.parametrize("size", [1, 7, 8, 9, 134, 135, 136, 137, 143, 144, 271, 272, 273, 4095, 4096, 4097])
def test_every_side_of_a_lane_and_a_block_agrees_with_the_library_that_wallets_use(keccak256, size):
    data = bytes(i % 251 for i in range(size))
    assert keccak256(data) == eth_keccak(data)


@given(st.binary(max_size=700))
def test_any_data_hashes_like_the_twin(data):
    assert kmscore.keccak.keccak256(data) == tests.reference.keccak.keccak256(data)


@pytest.mark.parametrize("data", [None, "text", bytearray(b"x"), 1], ids=lambda v: type(v).__name__)
def test_only_bytes_are_hashed(data):
    with pytest.raises(TypeError):
        kmscore.keccak.keccak256(data)
