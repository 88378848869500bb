"""Records merged, written, read and listed; what grows with the store, and what does not."""

import functools
import itertools

import blake3
import pytest

from bench.micro.records import (
    APP_ID,
    LIMITS,
    NOW_MS,
    SEALED_BYTES,
    VALUE,
    WRITER,
    WRITERS,
    fill,
    new_store,
    record,
)
from kmscore.secret import SecretBytes
from kmscore.store import Record
from tests.reference import store as reference

BATCH = 500
MERGE = pytest.mark.benchmark(group="merge of prepared records, each")
MERGE_AT_SIZE = pytest.mark.benchmark(group="merge of a record, by size of the store")
GET = pytest.mark.benchmark(group="get, by size of the store")
PUT = pytest.mark.benchmark(group="put, by size of the store")
SINCE = pytest.mark.benchmark(group="since, each of 500 records, by size of the store")
DIGESTS = pytest.mark.benchmark(group="digests of 500 changed records, each")

EACH_SIZE = pytest.mark.parametrize(
    "stored_records", [1_000, 10_000, 100_000, pytest.param(1_000_000, marks=pytest.mark.full)]
)
SMALL = pytest.mark.parametrize("stored_records", [1_000])
EACH_BATCH = pytest.mark.parametrize(
    ("batch", "entries"),
    [(1, 3), pytest.param(10, 3, marks=pytest.mark.full), (500, 1), (500, 3), (500, 20)],
)
# The twin looks at all it holds in every merge, so it is given as little to hold as can be.
TWIN_BATCH = pytest.mark.parametrize(("batch", "entries"), [(1, 3)])

counters = itertools.count(2)


@pytest.fixture(scope="session")
def stores():
    """A store of so many records with so many clock entries, made once."""
    return functools.cache(lambda stored, entries=3: fill(new_store(), stored, entries))


@pytest.fixture(scope="session")
def twins():
    return functools.cache(
        lambda stored: fill(reference.Store(WRITER, LIMITS, seed=bytes(16)), stored, kind=reference.Record)
    )


def merge(store, records):
    for incoming in records:
        store.merge(APP_ID, incoming, NOW_MS + 10)


def merge_batches(store, batches):
    for batch in batches:
        merge(store, batch)


def newer(stored_records: int, records: int, entries: int = 3, kind=Record):
    """A later version of `records` records spread over a store."""
    counter = next(counters)
    return [record(number * (stored_records // records), counter, entries, kind) for number in range(records)]


def assert_merged(store, records):
    """The store took these very records in, rather than refusing them at less cost."""
    assert [store.get(APP_ID, incoming.key, NOW_MS) for incoming in records] == records


def in_batches(records, batch: int):
    return [records[start : start + batch] for start in range(0, len(records), batch)]


# --- merge -----------------------------------------------------------------------------------------------------------


@MERGE
@EACH_BATCH
def test_merge(ours, stores, batch, entries):
    store = stores(1_000, entries)
    _, batches = ours.batch(
        "kmscore", lambda: (store, in_batches(newer(1_000, BATCH, entries), batch)), merge_batches, per=BATCH
    )
    assert_merged(store, batches[-1])


@MERGE
@EACH_BATCH
def test_copy(floor, batch, entries):
    """The bytes of these records, key, ciphertext and clock: copied, and nothing looked up, decided or ordered."""
    source = bytes(batch * (len("key-500") + SEALED_BYTES + entries * (len(WRITER) + 8)))
    target = memoryview(bytearray(len(source)))

    def copy():
        for _ in range(BATCH // batch):
            target[:] = source

    floor("memcpy of the same bytes", copy, per=BATCH)


@MERGE
@EACH_BATCH
def test_merge_in_a_dict(rival, batch, entries):
    """A dict and the twin's decision: no limits, no expiry, no log of changes, no digests."""
    held = {item.key: item for item in newer(1_000, BATCH, entries, reference.Record)}

    def merge_into_dict(batches):
        for records in batches:
            for incoming in records:
                _, held[incoming.key] = reference.merge_records(held.get(incoming.key), incoming)

    (batches,) = rival.batch(
        "dict and decision in Python",
        lambda: (in_batches(newer(1_000, BATCH, entries, reference.Record), batch),),
        merge_into_dict,
        per=BATCH,
    )
    assert all(held[incoming.key] is incoming for incoming in batches[-1])


@MERGE
@EACH_BATCH
def test_copies_in_a_dict(other, batch, entries):
    """A dict that takes a copy of each value and clock, whoever is newer."""
    held = {}

    def copy(batches):
        for records in batches:
            for incoming in records:
                held[incoming.key] = (bytes(memoryview(incoming.value)), dict(incoming.version))

    batches = in_batches([record(number, 1, entries, reference.Record) for number in range(BATCH)], batch)
    other("dict of copies, nothing decided", copy, batches, per=BATCH)


@MERGE
@TWIN_BATCH
def test_merge_in_the_twin(twin, batch, entries):
    store = fill(reference.Store(WRITER, LIMITS, seed=bytes(16)), batch, entries, reference.Record)

    def prepare():
        return store, [newer(batch, batch, entries, reference.Record) for _ in range(BATCH)]

    _, batches = twin.batch("Python twin", prepare, merge_batches, per=BATCH)
    assert_merged(store, batches[-1])


@MERGE_AT_SIZE
@EACH_SIZE
def test_merge_into(ours, stores, stored_records):
    store = stores(stored_records)
    _, records = ours.batch("kmscore", lambda: (store, newer(stored_records, BATCH)), merge, per=BATCH)
    assert_merged(store, records)


# --- one operation ---------------------------------------------------------------------------------------------------


def spread(stored: int) -> list[str]:
    """500 keys from all over a store."""
    return [f"key-{number * (stored // BATCH)}" for number in range(BATCH)]


def get_each(store, keys):
    for key in keys:
        store.get(APP_ID, key, NOW_MS)


def put_each(store, keys):
    for key in keys:
        store.put(APP_ID, key, VALUE, 0, NOW_MS)


@GET
@EACH_SIZE
def test_get(ours, stores, stored_records):
    ours("kmscore", get_each, stores(stored_records), spread(stored_records), per=BATCH)


@GET
@SMALL
def test_get_in_the_twin(twin, twins, stored_records):
    twin("Python twin", get_each, twins(stored_records), spread(stored_records)[:3], per=3)


@PUT
@EACH_SIZE
def test_put(ours, stores, stored_records):
    ours("kmscore", put_each, stores(stored_records), spread(stored_records), per=BATCH)


@PUT
@SMALL
def test_put_in_the_twin(twin, twins, stored_records):
    twin("Python twin", put_each, twins(stored_records), spread(stored_records)[:3], per=3)


@SINCE
@EACH_SIZE
def test_since(ours, stores, stored_records):
    store = stores(stored_records)
    after = store.last_seq - stored_records // 2 - BATCH
    ours("kmscore", lambda: store.since(after, limit_records=BATCH, limit_bytes=1 << 30), per=BATCH)


@SINCE
@SMALL
def test_since_in_the_twin(twin, twins, stored_records):
    store = twins(stored_records)
    twin("Python twin", lambda: store.since(300, limit_records=BATCH, limit_bytes=1 << 30), per=BATCH)


# --- digests ---------------------------------------------------------------------------------------------------------


@DIGESTS
def test_refresh_digests(ours):
    store = fill(new_store(), 1_000)
    store.track_digests(SecretBytes(bytes(32)))
    while not store.refresh_digests(NOW_MS):
        pass

    def prepare():
        merge(store, newer(1_000, BATCH))
        return (store,)

    def refresh(store):
        while not store.refresh_digests(NOW_MS):
            pass

    ours.batch("kmscore", prepare, refresh, per=BATCH)


@DIGESTS
def test_digests_with_the_wheel(rival):
    """The hashes of the records alone, from Python, without the tree above them."""
    clock = {writer.encode(): 2 for writer in WRITERS[:3]}
    keys = [f"key-{number}".encode() for number in range(BATCH)]
    key32 = bytes(32)

    def digest(key: bytes) -> bytes:
        writers = b"".join(b"%c%b%b" % (len(name), name, count.to_bytes(8, "big")) for name, count in clock.items())
        head = b"\x02%b%b%b" % (APP_ID.to_bytes(32, "big"), len(key).to_bytes(4, "big"), key)
        times = (NOW_MS + 2).to_bytes(8, "big") + bytes(8)
        entries = len(clock).to_bytes(4, "big")
        return blake3.blake3(head + times + entries + writers + b"\1" + VALUE, key=key32).digest(16)

    rival("blake3 wheel from Python", lambda: [digest(key) for key in keys], per=BATCH)
