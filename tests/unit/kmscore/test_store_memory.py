"""What the store costs and that it gives it back; each hostile case in a process of its own."""

import random
import subprocess
import sys
import textwrap
from itertools import product
from pathlib import Path

import pytest

from kmscore.secret import SecretBytes
from kmscore.store import Record, Store
from kmscore.store_types import QuotaPolicy, StoreLimits

NOW = 1_000_000
WRITERS = [f"0x{digit * 40}" for digit in "abc"]
LIMITS = StoreLimits(max_app_bytes=1 << 40, max_store_bytes=1 << 40)
BUDGET = 250  # bytes a record may cost beyond key and ciphertext


def run_child(code):
    child = subprocess.run(
        [sys.executable, "-X", "dev", "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120
    )
    assert (child.stderr, child.returncode) == ("", 0)
    return child.stdout


@pytest.mark.parametrize("count", [1_000, 50_000])
def test_a_record_of_ours_costs_at_most_the_budget_with_its_bytes_object(count):
    store = Store(WRITERS[0], LIMITS, seed=bytes(16))
    for i in range(count):
        store.put(1, f"key-{i:06}", b"v", 0, NOW)
    assert store.memory_used() / count - 10 + sys.getsizeof(b"") <= BUDGET


def test_a_record_with_three_writers_and_a_ttl_costs_at_most_the_budget():
    store = Store(WRITERS[0], LIMITS, seed=bytes(16))
    for i in range(50_000):
        store.merge(1, Record(f"key-{i:06}", b"v", dict.fromkeys(WRITERS, 7), NOW, 60_000), NOW, WRITERS[1])
    assert store.memory_used() / 50_000 - 10 <= BUDGET


@pytest.mark.parametrize("count", [1_000, 70_000, 140_000])
def test_with_digests_of_everything_a_record_costs_at_most_the_budget(count):
    # The larger ones are about where most leaves have just become branches: the worst a tree can be.
    store = Store(WRITERS[0], LIMITS, seed=bytes(16))
    store.track_digests(SecretBytes(bytes(32)))
    for i in range(count):
        store.merge(1, Record(f"key-{i:06}", b"v", dict.fromkeys(WRITERS, 7), NOW), NOW, WRITERS[1])
    while not store.refresh_digests(NOW):
        pass
    assert store.memory_used() / count - 10 <= BUDGET


def test_memory_of_digests_is_given_back():
    store = Store(WRITERS[0], LIMITS, seed=bytes(16))
    empty = store.memory_used()
    for key in (bytes(32), bytes([1]) * 32):
        store.track_digests(SecretBytes(key))
        for i in range(20_000):
            store.put(i % 50, f"key-{i}", b"v" * (500 + i % 30), 1 + i % 9, NOW)
        while not store.refresh_digests(NOW):
            pass
    while store.sweep(NOW + 100, store.last_seq) > 0:
        pass
    assert store.memory_used() < empty + 4_096


def test_running_out_of_memory_for_digests_loses_nothing():
    out = run_child("""
        import resource
        from kmscore.secret import SecretBytes
        from kmscore.store import Store, StoreLimits

        def root(store):
            while not store.refresh_digests(1000):
                pass
            return store.digest_children(None, "")

        limits = StoreLimits(max_app_bytes=1 << 40, max_store_bytes=1 << 40)
        starved, fed = (Store("me", limits, seed=bytes(16)) for _ in range(2))
        for store in (starved, fed):
            store.track_digests(SecretBytes(bytes(32)))
            for i in range(40_000):
                store.put(i % 30, f"k{i}", b"v", 0, 1000)
        with open("/proc/self/statm") as statm:
            held = int(statm.read().split()[0]) * resource.getpagesize()
        limit = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (held, limit[1]))
        failures = 0
        for _ in range(1000):
            try:
                starved.refresh_digests(1000)
            except MemoryError:
                failures += 1
        resource.setrlimit(resource.RLIMIT_AS, limit)
        assert root(starved) == root(fed)
        print(failures)
    """)
    assert int(out) > 10


def test_memory_of_forgotten_records_is_given_back():
    store = Store(WRITERS[0], LIMITS, seed=bytes(16))
    empty = store.memory_used()
    for _ in range(2):
        for i in range(20_000):
            store.merge(i % 50, Record(f"key-{i}", b"v", {f"writer-{i}": 1}, NOW, 1 + i % 9), NOW, f"peer-{i % 70}")
        while store.sweep(NOW + 100, store.last_seq) > 0:
            pass
        assert store.stats(NOW + 100).total_keys == 0
        assert store.memory_used() < empty + 4_096
    store.put(1, "k", b"v", 0, NOW)
    store.clear()
    assert store.memory_used() < empty + 4_096


def test_clocks_that_outgrow_their_cell_and_large_values_are_kept_right_and_given_back():
    # A cell has room for the clock that it began with, and behind it for the digest of a value beyond 512 bytes.
    store = Store(WRITERS[0], LIMITS, seed=bytes(16))
    empty = store.memory_used()
    store.track_digests(SecretBytes(bytes(32)))
    for first, last, large_first in product(range(1, 7), range(1, 10), (False, True)):
        key = f"key-{first}-{last}-{large_first}"
        for step, writers in enumerate((first, max(first, last), max(first, last), max(first, last))):
            value = bytes([step]) * (600 if (step % 2 == 0) == large_first else 28)
            version = {f"writer-{i}": step + 1 for i in range(writers)}
            store.merge(1, Record(key, value, version, NOW + step, 0), NOW + step)
            while not store.refresh_digests(NOW + step):
                pass
            kept = store.get(1, key, NOW + step)
            assert (kept.value, kept.version) == (value, version)
    fresh = Store(WRITERS[1], LIMITS, seed=bytes(16))
    fresh.track_digests(SecretBytes(bytes(32)))
    for key in store.keys(1, NOW + 3):
        fresh.merge(1, store.get(1, key, NOW + 3), NOW + 3)
    while not fresh.refresh_digests(NOW + 3):
        pass
    assert fresh.digest_children(None, "") == store.digest_children(None, "")
    store.clear()
    assert store.memory_used() < empty + 4_096


@pytest.mark.parametrize("policy", QuotaPolicy)
def test_clocks_of_every_length_are_given_back_for_keys_of_every_length(policy):
    # A clock from the pool may lie where a cell without room for one ends.
    room = 40_000 if policy is QuotaPolicy.EVICT else 1 << 40
    limits = StoreLimits(
        quota_policy=policy, max_app_bytes=room, max_store_bytes=1 << 40, max_tombstones_per_app=1 << 40
    )
    store = Store(WRITERS[0], limits, seed=bytes(16))
    empty = store.memory_used()
    for key_size, writers in product(range(4, 45), range(1, 15)):
        for number in range(12):
            key = f"{number:x}".rjust(key_size, "k")
            version = {f"writer-{i}": 1 for i in range(writers)}
            time = NOW + key_size
            store.merge(writers, Record(key, b"v" * (number % 4 * 200), version, time, number % 3), time)
            if number % 4 == 0:
                store.put(writers, key, b"w", 0, time)
            elif number % 4 == 1:
                store.delete(writers, key, time)
    kept = len(store.keys(3, NOW + 50))
    assert 30 < kept < 150 if policy is QuotaPolicy.EVICT else kept > 200
    store.clear()
    assert store.memory_used() < empty + 4_096


def test_ciphertexts_are_shared_and_released():
    store = Store(WRITERS[0], LIMITS, seed=bytes(16))
    ciphertext = bytes(bytearray(1_000))
    before = sys.getrefcount(ciphertext)
    store.put(1, "k", ciphertext, 0, NOW)
    assert store.get(1, "k", NOW).value is ciphertext
    store.merge(1, store.get(1, "k", NOW), NOW)
    assert sys.getrefcount(ciphertext) == before + 1
    store.delete(1, "k", NOW)
    assert sys.getrefcount(ciphertext) == before


def test_stores_and_records_are_finalised_in_silence():
    run_child("""
        import gc
        from kmscore.store import Record, Store
        from kmscore.store_types import QuotaPolicy, StoreLimits
        from kmscore.errors import Rejected

        class Ring:
            pass

        for policy in QuotaPolicy:
            limits = StoreLimits(quota_policy=policy, max_app_bytes=20_000)
            ring = Ring()
            ring.store = store = Store("me", limits, seed=bytes(16))
            ring.itself = ring
            for i in range(300):
                try:
                    store.put(i % 3, f"k{i % 150}", b"v" * 50, i % 5 * 10, 1000 + i)
                except Rejected:
                    pass
                store.merge(i % 4, Record(f"k{i % 90}", b"w", {f"p{i % 9}": i + 1, "q": 1}, 1000), 1000, f"p{i % 3}")
            ring.record = store.since(0, limit_records=5, limit_bytes=10**6).records
            del ring, store
            gc.collect()
        for bad in [{"a": "x"}, {"a": 1, "b": -1}, {}]:
            try:
                Record("k", b"", bad, 1)
            except Rejected:
                pass
        try:
            Store("w" * 200, limits, seed=bytes(16))
        except Rejected:
            pass
        left_for_the_interpreter = Store("me", limits, seed=bytes(16))
        left_for_the_interpreter.put(1, "k", b"v", 5, 1)
    """)


def test_running_out_of_memory_changes_nothing():
    """Every write under a hard limit either happens or raises MemoryError and leaves the store as it was."""
    out = run_child("""
        import resource
        from kmscore.store import Record, Store
        from kmscore.store_types import QuotaPolicy, StoreLimits

        limits = StoreLimits(quota_policy=QuotaPolicy.EVICT, max_app_bytes=1 << 40, max_store_bytes=1 << 40)
        store = Store("me", limits, seed=bytes(16))
        # Every second clock has no room in its cell.
        others = [{"q": 2}, dict.fromkeys("qrstu", 2)]
        records = [
            Record(f"m{i}", b"w", {f"writer{i:0100}": 1, **others[i % 2]}, 1000, 5) for i in range(40_000)
        ]
        names = [f"k{i}" for i in range(40_000)]
        with open("/proc/self/statm") as statm:
            held = int(statm.read().split()[0]) * resource.getpagesize()
        limit = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (held + (8 << 20), limit[1]))
        stored = failures = 0
        before = 0
        value = b"v"
        for name, record in zip(names, records):
            try:
                store.put(1, name, value, 7, 1000)
                stored += 1
            except MemoryError:
                failures += 1
            try:
                store.merge(2, record, 1000, "peer")
                stored += 1
            except MemoryError:
                failures += 1
        resource.setrlimit(resource.RLIMIT_AS, limit)
        assert stored == store.last_seq == store.stats(1000).total_keys, (stored, store.last_seq)
        assert len(store.keys(1, 1000)) + len(store.keys(2, 1000)) == stored
        while store.sweep(2000, store.last_seq) > 0:
            pass
        assert store.memory_used() < 40_000, store.memory_used()
        print(failures)
    """)
    assert int(out) > 1_000


def test_records_are_found_while_tables_grow_and_shrink():
    rng = random.Random(7)  # noqa: S311
    store = Store(WRITERS[0], LIMITS, seed=bytes(16))
    values = {}
    for many, few in ((30_000, 5_000), (20_000, 0), (3_000, 100)):
        while len(values) < many:
            number = rng.randrange(60_000)
            values[number] = str(rng.random()).encode()
            # The longest ones have their cells from malloc, the others from pages.
            store.put(number % 3, f"key-{number}" * (1 + number % 90), values[number], 0, NOW)
        for number in rng.sample(sorted(values), len(values) - few):
            del values[number]
            store.delete(number % 3, f"key-{number}" * (1 + number % 90), NOW)
        store.sweep(NOW + LIMITS.tombstone_retention_ms, store.last_seq, 100_000)
        for number in range(0, 60_000, 7):
            record = store.get(number % 3, f"key-{number}" * (1 + number % 90), NOW)
            assert (record and record.value) == values.get(number)


def test_pages_of_a_large_store_may_be_huge_and_are_given_back():
    out = run_child("""
        from kmscore.store import Store, StoreLimits

        def mapped_bytes():
            with open("/proc/self/statm") as statm:
                return int(statm.read().split()[0]) * 4096

        def may_be_huge():
            with open("/proc/self/smaps") as smaps:
                return any(line.startswith("VmFlags:") and " hg" in line for line in smaps)

        store = Store("me", StoreLimits(max_app_bytes=1 << 40, max_store_bytes=1 << 40), seed=bytes(16))
        before = mapped_bytes()
        value = b"v"
        for i in range(1_000):
            store.put(1, f"key-{i}", value, 0, 1000)
        small = may_be_huge()
        for i in range(250_000):
            store.put(1, f"key-{i}", value, 0, 1000)
        large = may_be_huge()
        grown = mapped_bytes() - before
        store.clear()
        left = mapped_bytes() - before
        assert grown > 40 << 20 and left < 8 << 20, (grown, left)
        store.put(1, "key", value, 0, 1000)
        assert store.get(1, "key", 1000).value == value
        del store
        print(small, large)
    """)
    assert out == f"False {Path('/sys/kernel/mm/transparent_hugepage').exists()}\n"
