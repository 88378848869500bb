"""The store as its callers see it, on the compiled store and on its slow twin (store §1, §2, §4)."""

import dataclasses

import pytest

from kmscore import store as compiled
from kmscore.errors import Reason, Rejected
from kmscore.store_types import MergeOutcome, QuotaPolicy, StoreLimits
from tests.reference import store as twin

NOW = 1_000_000
DAY = 86_400_000
LIMITS = StoreLimits()
EVICT = StoreLimits(quota_policy=QuotaPolicy.EVICT, max_app_bytes=500)
MAX = 1 << 62


@pytest.fixture(params=[compiled, twin], ids=["compiled", "twin"])
def module(request):
    return request.param


@pytest.fixture
def new_store(module):
    return lambda limits=LIMITS, writer="me": module.Store(writer, limits, seed=bytes(range(16)))


def everything(store, seq=0, **options):
    return store.since(seq, limit_records=1000, limit_bytes=1 << 40, **options)


def reason_of(call, *arguments):
    with pytest.raises(Rejected) as rejection:
        call(*arguments)
    return rejection.value.reason


def test_records_merged_together_fare_as_one_by_one():
    limits = StoreLimits(max_app_bytes=700)
    together, alone = (compiled.Store("me", limits, seed=bytes(16)) for _ in range(2))
    records = [
        compiled.Record(
            f"k{number % 5}", bytes(9 * number), {"w": 1 + number % 3, f"x{number % 2}": 1}, NOW + number % 4
        )
        for number in range(30)
    ]
    expected = [alone.evaluate(1, record, NOW) for record in records]
    assert together.evaluate_each(1, records, NOW) == expected
    expected = [alone.merge(1, record, NOW, source="peer", snapshot=True) for record in records]
    assert together.merge_each(1, records, NOW, "peer", True) == expected
    assert len(set(expected)) > 3
    for options in ({}, {"exclude_source": "peer"}, {"exclude_snapshot": True}):
        assert everything(together, **options) == everything(alone, **options)
    assert reason_of(together.merge_each, 1 << 256, records, NOW) is Reason.BAD_FIELD
    assert reason_of(together.evaluate_each, -1, records, NOW) is Reason.BAD_FIELD


# --- own writes ---


def test_a_put_can_be_read_back_under_its_app_only(new_store):
    store = new_store()
    assert store.put(1, "k", b"v", 0, NOW) == NOW
    record = store.get(1, "k", NOW)
    assert (record.key, record.value, record.version, record.updated_at_ms) == ("k", b"v", {"me": NOW}, NOW)
    assert store.get(2, "k", NOW) is None
    assert store.get(1, "l", NOW) is None
    assert store.keys(1, NOW) == ["k"]
    assert store.keys(2, NOW) == []


def test_a_later_write_has_a_later_time_and_counter_even_when_the_clock_stands_or_runs_back(new_store):
    store = new_store()
    assert [store.put(1, "k", b"v", 0, now_ms) for now_ms in (NOW, NOW, NOW - 50)] == [NOW, NOW + 1, NOW + 2]
    assert store.get(1, "k", NOW).version == {"me": NOW + 2}
    assert store.delete(1, "k", NOW - 50) == NOW + 3
    assert store.put(1, "k", b"w", 0, NOW) == NOW + 4


def test_a_write_keeps_the_other_writers_of_its_version(module, new_store):
    store = new_store()
    store.merge(1, module.Record("k", b"v", {"a": 3, "z": 4}, NOW + 9), NOW)
    assert store.put(1, "k", b"w", 0, NOW) == NOW + 10
    assert store.get(1, "k", NOW).version == {"a": 3, "me": NOW, "z": 4}


def test_a_deleted_key_is_gone_and_its_tombstone_stays(new_store):
    store = new_store()
    store.put(1, "k", b"v", 0, NOW)
    store.delete(1, "k", NOW + 1)
    assert store.get(1, "k", NOW + 1) is None
    assert store.keys(1, NOW + 1) == []
    assert reason_of(store.delete, 1, "k", NOW + 2) is Reason.NOT_FOUND
    ((_, _, tombstone),) = everything(store).records
    assert tombstone.tombstone


def test_a_record_expires_after_its_ttl_and_not_before(new_store):
    store = new_store()
    store.put(1, "k", b"v", 10, NOW)
    assert store.get(1, "k", NOW + 10) is not None
    assert store.get(1, "k", NOW + 11) is None
    assert store.keys(1, NOW + 11) == []
    assert reason_of(store.delete, 1, "k", NOW + 11) is Reason.NOT_FOUND
    assert store.stats(NOW + 11).total_keys == 0


def test_a_write_over_an_expired_record_supersedes_it(new_store):
    store = new_store()
    store.put(1, "k", b"v", 1, NOW)
    store.put(1, "k", b"w", 0, NOW)
    store.put(1, "l", b"v", 1, NOW + 50)
    assert store.put(1, "l", b"w", 0, NOW + 10) == NOW + 51


BAD_WRITES = [
    ("app id negative", (-1, "k", b"", 0), Reason.BAD_FIELD),
    ("app id too large", (1 << 256, "k", b"", 0), Reason.BAD_FIELD),
    ("app id a boolean", (True, "k", b"", 0), Reason.BAD_FIELD),
    ("key no text", (1, b"k", b"", 0), Reason.BAD_FIELD),
    ("key empty", (1, "", b"", 0), Reason.BAD_FIELD),
    ("key too long", (1, "ü" * 513, b"", 0), Reason.BAD_FIELD),
    ("key a lone surrogate", (1, "\udfff", b"", 0), Reason.BAD_FIELD),
    ("ttl a boolean", (1, "k", b"", True), Reason.BAD_FIELD),
    ("ttl a float", (1, "k", b"", 1.0), Reason.BAD_FIELD),
    ("ttl negative", (1, "k", b"", -1), Reason.BAD_FIELD),
    ("ttl above 2^62", (1, "k", b"", MAX + 1), Reason.BAD_FIELD),
    ("ttl above 2^64", (1, "k", b"", 1 << 70), Reason.BAD_FIELD),
    ("value too large", (1, "k", bytes((1 << 20) + 29), 0), Reason.VALUE_TOO_LARGE),
]


@pytest.mark.parametrize(("arguments", "reason"), [row[1:] for row in BAD_WRITES], ids=[row[0] for row in BAD_WRITES])
def test_a_bad_write_is_refused_and_changes_nothing(new_store, arguments, reason):
    store = new_store()
    assert reason_of(store.put, *arguments, NOW) is reason
    assert everything(store).next_seq == 0


def test_the_longest_key_and_ttl_are_fine(new_store):
    store = new_store()
    store.put(2**256 - 1, "ü" * 512, b"v", MAX, NOW)
    assert store.get(2**256 - 1, "ü" * 512, MAX).ttl_ms == MAX


def test_counters_and_times_that_are_used_up_are_refused(module, new_store):
    store = new_store()
    store.merge(1, module.Record("k", b"v", {"me": MAX}, 5), NOW)
    assert reason_of(store.put, 1, "k", b"v", 0, NOW) is Reason.BAD_FIELD
    assert reason_of(store.delete, 1, "k", NOW) is Reason.BAD_FIELD
    assert reason_of(store.put, 1, "l", b"v", 0, MAX + 1) is Reason.BAD_FIELD


def test_a_version_does_not_grow_beyond_what_peers_accept(module, new_store):
    store = new_store()
    store.merge(1, module.Record("k", b"v", {f"a{i}": 1 for i in range(1024)}, 5), NOW)
    assert reason_of(store.put, 1, "k", b"v", 0, NOW) is Reason.BAD_FIELD
    other = module.Record("k", b"w", {"b": 1}, 6)
    assert store.evaluate(1, other, NOW) is MergeOutcome.REFUSED_CLOCK
    assert store.merge(1, other, NOW) is MergeOutcome.REFUSED_CLOCK
    assert store.get(1, "k", NOW).value == b"v"


def test_the_writer_and_the_seed_are_checked(new_store, module):
    new_store(writer="w" * 128)
    with pytest.raises(Rejected):
        new_store(writer="w" * 129)
    with pytest.raises(Rejected):
        module.Store("w", LIMITS, seed=bytes(15))


# --- quota ---


def test_a_put_that_fills_the_namespace_fits_and_one_byte_more_does_not(new_store):
    store = new_store(dataclasses.replace(LIMITS, max_app_bytes=400))
    store.put(1, "a", bytes(71), 0, NOW)
    assert reason_of(store.put, 1, "b", bytes(72), 0, NOW) is Reason.QUOTA
    assert reason_of(store.plan_put, 1, "b", 72, 0, NOW) is Reason.QUOTA
    assert store.plan_put(1, "b", 71, 0, NOW) == NOW
    assert store.last_seq == 1
    store.put(1, "b", bytes(71), 0, NOW)
    store.put(1, "a", bytes(71), 0, NOW)
    store.put(2, "a", bytes(71), 0, NOW)


def test_the_store_limit_counts_every_namespace_and_tombstones(new_store):
    store = new_store(dataclasses.replace(LIMITS, max_store_bytes=400))
    store.put(1, "a", bytes(71), 0, NOW)
    store.delete(1, "a", NOW)
    store.put(2, "a", bytes(142), 0, NOW)
    assert reason_of(store.put, 3, "a", b"", 0, NOW) is Reason.QUOTA
    assert store.stats(NOW).namespaces == 1


def test_expired_records_give_way_before_a_put_is_refused(new_store):
    store = new_store(dataclasses.replace(LIMITS, max_app_bytes=400))
    store.put(1, "later", bytes(60), 20, NOW)
    store.put(1, "first", bytes(60), 10, NOW)
    assert reason_of(store.put, 1, "new", bytes(60), 0, NOW) is Reason.QUOTA
    store.put(1, "new", bytes(60), 0, NOW + 30)
    assert [record.key for _, _, record in everything(store).records] == ["later", "new"]


def test_deletes_stop_at_the_cap_on_tombstones(new_store):
    store = new_store(dataclasses.replace(LIMITS, max_tombstones_per_app=1))
    for key in "ab":
        store.put(1, key, b"v", 0, NOW)
    store.delete(1, "a", NOW)
    assert reason_of(store.plan_delete, 1, "b", NOW) is Reason.QUOTA
    assert reason_of(store.delete, 1, "b", NOW) is Reason.QUOTA
    assert store.get(1, "b", NOW) is not None


def test_with_evict_a_put_drops_the_oldest_records_and_comes_after_all_of_them(module, new_store):
    store = new_store(EVICT)
    store.merge(1, module.Record("ahead", bytes(100), {"p": 1}, NOW + 3_000), NOW)
    store.put(1, "old", bytes(100), 0, NOW)
    assert store.put(1, "new", bytes(100), 0, NOW) == NOW + 3_001
    assert store.keys(1, NOW) == ["ahead", "new"]
    store.delete(1, "new", NOW)
    assert store.merge(1, module.Record("old", b"", {"p": 1}, NOW), NOW) is MergeOutcome.REFUSED_EVICTED
    assert store.merge(1, module.Record("olds", b"", {"p": 1}, NOW), NOW) is MergeOutcome.INSERTED


def test_with_evict_tombstones_stay(new_store):
    store = new_store(EVICT)
    store.put(1, "gone", b"", 0, NOW)
    store.delete(1, "gone", NOW)
    for key in "abcdef":
        store.put(1, key, bytes(100), 0, NOW)
    assert [record.key for _, _, record in everything(store).records] == ["gone", "e", "f"]


def test_a_record_that_can_never_fit_pushes_nothing_out(module, new_store):
    store = new_store(EVICT)
    store.put(1, "a", bytes(100), 0, NOW)
    assert reason_of(store.put, 1, "b", bytes(500), 0, NOW) is Reason.QUOTA
    huge = module.Record("b", bytes(500), {"p": 1}, NOW)
    assert store.merge(1, huge, NOW) is MergeOutcome.REFUSED_CAPACITY
    assert store.keys(1, NOW) == ["a"]


def test_records_of_peers_are_refused_when_the_store_is_full_and_nothing_is_lost(module, new_store):
    store = new_store(dataclasses.replace(LIMITS, max_store_bytes=300, max_app_bytes=10))
    first = module.Record("a", bytes(100), {"p": 1}, NOW)
    second = module.Record("b", bytes(100), {"p": 1}, NOW)
    assert store.merge(1, first, NOW) is MergeOutcome.INSERTED
    assert store.merge(1, second, NOW) is MergeOutcome.REFUSED_CAPACITY
    assert store.merge(2, second, NOW) is MergeOutcome.REFUSED_CAPACITY
    assert store.keys(1, NOW) == ["a"]
    assert store.merge(1, module.Record("a", None, {"p": 2}, NOW), NOW) is MergeOutcome.REPLACED_BY_VERSION
    assert store.merge(1, second, NOW) is MergeOutcome.REFUSED_CAPACITY


# --- records of peers ---


def test_a_record_from_the_future_is_refused(module, new_store):
    store = new_store()
    late = module.Record("k", b"v", {"p": 1}, NOW + 5_001)
    assert store.merge(1, late, NOW) is MergeOutcome.REFUSED_FUTURE
    assert store.merge(1, late, NOW + 1) is MergeOutcome.INSERTED


def test_equal_versions_with_different_payloads_are_issued_anew_by_whoever_notices(module, new_store):
    store = new_store()
    store.merge(1, module.Record("k", b"v", {"p": 1}, NOW), NOW)
    outcome = store.merge(1, module.Record("k", b"u", {"p": 1}, NOW), NOW + 7)
    assert outcome is MergeOutcome.IGNORED_CONCURRENT_TIE_BREAK
    assert store.get(1, "k", NOW) == module.Record("k", b"v", {"me": NOW + 7, "p": 1}, NOW)
    assert everything(store, 1).next_seq == 2


def test_a_record_whose_expiry_is_long_past_is_not_taken_in_anew(module, new_store):
    store = new_store()
    stale = module.Record("k", b"v", {"p": 1}, NOW, 10)
    assert store.merge(1, stale, NOW + 11 + DAY) is MergeOutcome.IGNORED_EXPIRED
    assert store.merge(1, stale, NOW + 10 + DAY) is MergeOutcome.INSERTED
    assert store.get(1, "k", NOW + 10 + DAY) is None


def test_an_older_version_does_not_resurrect_what_has_expired(module, new_store):
    store = new_store()
    store.merge(1, module.Record("k", b"v", {"p": 2}, NOW, 10), NOW)
    older = module.Record("k", b"u", {"p": 1}, NOW - 1)
    assert store.merge(1, older, NOW + 50) is MergeOutcome.IGNORED_EXISTING_NEWER_VERSION


def test_bad_app_ids_and_sources_of_peers_are_refused(module, new_store):
    store = new_store()
    record = module.Record("k", b"v", {"p": 1}, NOW)
    assert reason_of(store.merge, -1, record, NOW) is Reason.BAD_FIELD
    assert reason_of(store.evaluate, 1 << 256, record, NOW) is Reason.BAD_FIELD
    assert everything(store).next_seq == 0


# --- the change log ---


def test_since_gives_each_record_once_at_its_newest_change(new_store):
    store = new_store()
    for key in "aba":
        store.put(1, key, b"v", 0, NOW)
    batch = everything(store)
    assert [(seq, record.key) for _, seq, record in batch.records] == [(2, "b"), (3, "a")]
    assert (batch.next_seq, batch.done) == (3, True)
    assert everything(store, 3).records == []


def test_batches_join_up_to_the_whole_log(new_store):
    store = new_store()
    for i in range(50):
        store.put(i % 3, f"k{i}", bytes(i), 0, NOW)
    seen, seq, done = [], 0, False
    while not done:
        batch = store.since(seq, limit_records=7, limit_bytes=600)
        assert len(batch.records) <= 7
        seen += batch.records
        seq, done = batch.next_seq, batch.done
    assert seen == everything(store).records
    assert [app_id for app_id, _, _ in seen] == [i % 3 for i in range(50)]


def test_a_record_over_the_byte_limit_comes_alone(new_store):
    store = new_store()
    for key in "abc":
        store.put(1, key, bytes(100), 0, NOW)
    assert len(store.since(0, limit_records=9, limit_bytes=1).records) == 1
    assert len(store.since(0, limit_records=9, limit_bytes=458).records) == 2


def test_what_a_peer_sent_is_not_sent_back_until_it_changes_here(module, new_store):
    store = new_store()
    record = module.Record("k", b"v", {"p": 1}, NOW)
    store.merge(1, record, NOW, "p")
    assert everything(store, exclude_source="p").records == []
    assert len(everything(store, exclude_source="q").records) == 1
    store.merge(1, record, NOW, "q")
    assert everything(store, exclude_source="p").records == []
    store.merge(1, module.Record("k", b"u", {"q": 1}, NOW - 1), NOW, "q")
    assert len(everything(store, exclude_source="p").records) == 1
    assert len(everything(store, exclude_source="q").records) == 1


def test_what_came_by_snapshot_is_not_pushed_until_it_changes_here(module, new_store):
    store = new_store()
    store.merge(1, module.Record("k", b"v", {"p": 1}, NOW), NOW, "p", snapshot=True)
    batch = everything(store, exclude_snapshot=True)
    assert (batch.records, batch.next_seq, batch.done) == ([], 1, True)
    store.put(1, "k", b"w", 0, NOW)
    assert len(everything(store, exclude_snapshot=True).records) == 1


def test_one_call_looks_at_a_bounded_part_of_the_log():
    store = compiled.Store("me", LIMITS, seed=bytes(16))
    for i in range(10_001):
        store.merge(1, compiled.Record(f"k{i}", b"v", {"p": 1}, NOW), NOW, "p")
    batch = everything(store, exclude_source="p")
    assert (batch.records, batch.next_seq, batch.done) == ([], 10_000, False)
    assert everything(store, batch.next_seq, exclude_source="p").done


# --- upkeep ---


def test_tombstones_go_when_they_are_old_and_acknowledged(new_store):
    store = new_store()
    store.put(1, "k", b"v", 0, NOW)
    store.delete(1, "k", NOW)
    assert store.sweep(NOW + DAY - 1, 2) == 0
    assert store.sweep(NOW + DAY, 1) == 0
    assert store.stats(NOW).tombstones == 1
    assert store.sweep(NOW + DAY, 2) == 1
    assert everything(store).records == []


def test_expired_records_go_when_acknowledged_or_long_expired(new_store):
    store = new_store()
    store.put(1, "a", b"v", 1, NOW)
    store.put(1, "b", b"v", 1, NOW)
    assert store.sweep(NOW + 1, 2) == 0
    assert store.sweep(NOW + 2, 1) == 1
    assert [record.key for _, _, record in everything(store).records] == ["b"]
    assert store.sweep(NOW + 1 + DAY, 1) == 0
    assert store.sweep(NOW + 2 + DAY, 1) == 1


def test_a_sweep_stops_at_its_budget(new_store):
    store = new_store()
    for i in range(30):
        store.put(1, f"k{i}", b"v", 1, NOW)
    assert [store.sweep(NOW + 10, 30, budget=20) for _ in range(3)] == [20, 10, 0]


def test_clear_forgets_records_and_floors_but_not_the_count_of_changes(module, new_store):
    store = new_store(EVICT)
    for key in "abcdef":
        store.put(1, key, bytes(100), 0, NOW)
    store.clear()
    assert everything(store).records == []
    assert store.last_seq == 6
    assert store.stats(NOW).total_keys == 0
    assert store.merge(1, module.Record("a", b"v", {"p": 1}, NOW), NOW) is MergeOutcome.INSERTED
    assert store.last_seq == 7


def test_a_table_that_grows_and_shrinks_keeps_every_key(new_store, module):
    store = new_store()
    size = 14_000 if module is compiled else 60  # the deletes stay below the cap on tombstones
    for i in range(size):
        store.put(1, f"k{i}", b"v", 0, NOW)
    for i in range(0, size, 3):
        store.delete(1, f"k{i}", NOW)
    while store.sweep(NOW + DAY, store.last_seq) > 0:
        pass
    kept = [f"k{i}" for i in range(size) if i % 3]
    assert store.keys(1, NOW) == sorted(kept)
    assert all(store.get(1, key, NOW) is not None for key in kept)
    for key in kept:
        store.delete(1, key, NOW)
    while store.sweep(NOW + DAY, store.last_seq) > 0:
        pass
    assert everything(store).records == []


def test_counts_stay_right_when_records_leave_the_middle_of_the_queue_for_expiry(new_store):
    store = new_store()
    expected = {}
    for i in range(600):
        key = f"k{i * i * 7 % 311}"
        if i % 3 == 2 and key in expected:
            store.delete(1, key, NOW)
            del expected[key]
        else:
            ttl_ms = i * 7_919 % 997 + 1
            expected[key] = store.put(1, key, b"v", ttl_ms, NOW) + ttl_ms
    for now_ms in range(NOW, NOW + 1_050, 7):
        assert store.stats(now_ms).total_keys == sum(now_ms <= expires_ms for expires_ms in expected.values())
