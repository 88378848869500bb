"""The stores that are measured: operations leave them as they were, and cost checks divide the right sizes."""

import pytest

from bench.scale.records import BOUNDED, growth_checks
from bench.scale.stores import NOW_MS, SINCE_RECORDS, AgedStore


@pytest.fixture(scope="module")
def aged() -> AgedStore:
    return AgedStore(1_000, apps=10)


def total_keys(aged: AgedStore) -> int:
    return aged.store.stats(NOW_MS).total_keys


def test_a_filled_store_has_its_records_over_all_apps_and_a_log_without_gaps(aged: AgedStore) -> None:
    stats = aged.store.stats(NOW_MS)
    assert (stats.total_keys, stats.namespaces) == (1_000, 10)
    batch = aged.store.since(aged.store.last_seq - 1_000, limit_records=1_000, limit_bytes=1 << 40)
    assert [seq for _, seq, _ in batch.records] == list(range(1_001, 2_001))


def test_every_merge_is_news_and_keeps_three_clock_entries(aged: AgedStore) -> None:
    before = aged.store.last_seq
    aged.merges(300)()
    assert aged.store.last_seq == before + 300
    (_, _, record), *_ = aged.store.since(before, limit_records=1, limit_bytes=1).records
    assert len(record.version) == 3


def test_every_put_changes_a_record_and_keeps_one_clock_entry(aged: AgedStore) -> None:
    before = aged.store.last_seq
    aged.puts(300)()
    assert (aged.store.last_seq, total_keys(aged)) == (before + 300, 1_000)
    (_, _, record), *_ = aged.store.since(before, limit_records=1, limit_bytes=1).records
    assert len(record.version) == 1


def test_what_is_deleted_is_restored(aged: AgedStore) -> None:
    aged.deletes(250)()
    assert total_keys(aged) == 750
    aged.restore()
    assert total_keys(aged) == 1_000


def test_a_batch_of_the_log_is_full() -> None:
    fresh = AgedStore(1_000)
    starts = fresh.store.last_seq - SINCE_RECORDS
    assert len(fresh.store.since(starts, limit_records=SINCE_RECORDS, limit_bytes=1 << 40).records) == SINCE_RECORDS
    fresh.sinces(3)()


def test_growth_is_the_largest_store_divided_by_the_smaller_ones() -> None:
    costs = {name: {1_000: 1.0, 100_000: 2.5, 1_000_000: 4.5} for name in BOUNDED}
    checks = growth_checks(costs)
    assert len(checks) == 2 * len(BOUNDED)
    assert {(check.value, check.limit, check.passed, check.same_run) for check in checks} == {
        (1.8, 2.0, True, True),
        (4.5, 4.0, False, True),
    }
