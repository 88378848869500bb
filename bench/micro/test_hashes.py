"""Keccak-256 and BLAKE3, from one block to a mebibyte."""

import hashlib

import blake3 as wheel
import pytest
from Crypto.Hash import keccak
from eth_hash.auto import keccak as eth_hash_keccak

from kmscore.blake3 import blake3_keyed
from kmscore.keccak import keccak256
from tests.reference import blake3 as reference_blake3
from tests.reference import keccak as reference_keccak

KEY = b"\x02" * 32
KECCAK = pytest.mark.benchmark(group="Keccak-256")
BLAKE3 = pytest.mark.benchmark(group="BLAKE3, keyed")
EACH_SIZE = pytest.mark.parametrize(
    "data_bytes", [64, 320, 1024, 16_384, *(pytest.param(size, marks=pytest.mark.full) for size in (65_536, 1 << 20))]
)
SMALL = pytest.mark.parametrize("data_bytes", [64])


@KECCAK
@EACH_SIZE
def test_keccak256(ours, data_bytes):
    data = bytes(data_bytes)
    assert ours("kmscore", keccak256, data) == eth_hash_keccak(data)


@KECCAK
@EACH_SIZE
def test_sha3(floor, data_bytes):
    data = bytes(data_bytes)
    floor("SHA3-256 of hashlib", lambda: hashlib.sha3_256(data).digest())


@KECCAK
@EACH_SIZE
def test_pycryptodome(rival, data_bytes):
    data = bytes(data_bytes)
    rival("pycryptodome", lambda: keccak.new(digest_bits=256, data=data).digest())


@KECCAK
@EACH_SIZE
def test_eth_hash(rival, data_bytes):
    data = bytes(data_bytes)
    rival("eth-hash", eth_hash_keccak, data)


@KECCAK
@SMALL
def test_keccak_twin(twin, data_bytes):
    twin("Python twin", reference_keccak.keccak256, bytes(data_bytes))


@BLAKE3
@EACH_SIZE
def test_blake3(ours, data_bytes):
    data = bytes(data_bytes)
    assert ours("kmscore", blake3_keyed, KEY, data) == wheel.blake3(data, key=KEY).digest()


@BLAKE3
@EACH_SIZE
def test_blake3_wheel(rival, data_bytes):
    data = bytes(data_bytes)
    rival("blake3 wheel", lambda: wheel.blake3(data, key=KEY).digest())


@BLAKE3
@EACH_SIZE
def test_sha256(other, data_bytes):
    data = bytes(data_bytes)
    other("SHA-256 of hashlib", lambda: hashlib.sha256(data).digest())


@BLAKE3
@SMALL
def test_blake3_twin(twin, data_bytes):
    twin("Python twin", reference_blake3.blake3_keyed, KEY, bytes(data_bytes))
