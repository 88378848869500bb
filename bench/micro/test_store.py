"""Merging, writing and reading records, at sizes where memory latency starts to count: `make bench`."""

import pytest

from kmscore.store import Record, Store, StoreLimits
from tests.reference.store import Store as TwinStore

NOW_MS = 1_700_000_000_000
WRITER = "0x" + "aa" * 20
OTHERS = ["0x" + "bb" * 20, "0x" + "cc" * 20, "0x" + "dd" * 20]
LIMITS = StoreLimits(max_app_bytes=1 << 40, max_store_bytes=1 << 40)
VALUE = b"\x05" * 284  # 256 bytes sealed
SIZES = [1_000, 100_000]


def record(number: int, counter: int) -> Record:
    return Record(f"key-{number}", VALUE, dict.fromkeys(OTHERS, counter), NOW_MS + counter)


def filled(size: int) -> Store:
    store = Store(WRITER, LIMITS, seed=bytes(16))
    for number in range(size):
        store.merge(7, record(number, 1), NOW_MS)
    return store


def merge_newer(store, batch):
    for incoming in batch:
        store.merge(7, incoming, NOW_MS + 10)


@pytest.mark.benchmark(group="merge 500 records with 3 clock entries")
@pytest.mark.parametrize("size", SIZES)
def test_merge(benchmark, size):
    counters = iter(range(2, 1 << 30))

    def newer_batch():
        counter = next(counters)
        return (store, [record(number * (size // 500), counter) for number in range(500)]), {}

    store = filled(size)
    benchmark.pedantic(merge_newer, setup=newer_batch, rounds=50)


@pytest.mark.benchmark(group="merge 500 records with 3 clock entries")
def test_merge_in_the_twin(benchmark):
    def fresh():
        store = TwinStore(WRITER, LIMITS, seed=bytes(16))
        for number in range(500):
            store.merge(7, record(number, 1), NOW_MS)
        return (store, [record(number, 2) for number in range(500)]), {}

    benchmark.pedantic(merge_newer, setup=fresh, rounds=3)


@pytest.mark.benchmark(group="one operation")
@pytest.mark.parametrize("size", SIZES)
def test_get(benchmark, size):
    store = filled(size)
    benchmark(store.get, 7, f"key-{size // 2}", NOW_MS)


@pytest.mark.benchmark(group="one operation")
@pytest.mark.parametrize("size", SIZES)
def test_put(benchmark, size):
    store = filled(size)
    benchmark(store.put, 7, f"key-{size // 2}", VALUE, 0, NOW_MS)


@pytest.mark.benchmark(group="one operation")
@pytest.mark.parametrize("size", SIZES)
def test_since_500(benchmark, size):
    store = filled(size)
    benchmark(store.since, size // 3, limit_records=500, limit_bytes=1 << 40)
