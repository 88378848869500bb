"""Keccak against published digests; the code measurement is over the three registers in order."""

import pytest

from enclave_image.keccak import keccak256
from enclave_image.measure import Measurements

DIGESTS = {
    b"": "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470",
    b"abc": "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45",
    b"The quick brown fox jumps over the lazy dog": "4d741b6f1eb29cb2a9b9911c82f56fa8d73b04959d3d9d222895df6c0b28aa15",
}


@pytest.mark.parametrize(("data", "digest"), DIGESTS.items())
def test_keccak_gives_the_published_digests(data, digest):
    assert keccak256(data).hex() == digest


@pytest.mark.parametrize("size", [134, 135, 136, 137, 271, 272])
def test_keccak_agrees_with_another_implementation_around_its_block_size(size):
    from eth_hash.auto import keccak

    data = bytes(index % 251 for index in range(size))
    assert keccak256(data) == keccak(data)


def test_the_code_measurement_hashes_the_registers_in_order():
    registers = [bytes([index]) * 48 for index in range(3)]
    assert Measurements(*registers).code_measurement == keccak256(b"".join(registers))
