"""The digests of what is live: equal maps have equal digests, and only equal ones (store §5)."""

import dataclasses
import json
import random
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kmscore import store as compiled
from kmscore.errors import Reason, Rejected
from kmscore.kdf import derive_digest_key
from kmscore.secret import SecretBytes
from kmscore.store_types import QuotaPolicy, StoreLimits
from tests.reference import store as twin

NOW = 1_000_000
KEY = bytes(range(32))
LIMITS = StoreLimits(tombstone_retention_ms=1_000)
VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "digest.json").read_text(encoding="utf-8"))
RECORD = {"value": b"v" * 30, "version": {"a": 1, "b": 2}, "updated_at_ms": NOW, "ttl_ms": 0}


@pytest.fixture(params=[compiled, twin], ids=["compiled", "twin"])
def module(request):
    return request.param


@pytest.fixture
def new_store(module):
    def make(limits=LIMITS, seed=bytes(16), key=KEY):
        store = module.Store("me", limits, seed=seed)
        store.track_digests(SecretBytes(key))
        return store

    return make


def refreshed(store, now_ms=NOW, budget=10**9):
    while not store.refresh_digests(now_ms, budget):
        pass
    return store


def root(store, now_ms=NOW):
    return refreshed(store, now_ms).digest_children(None, "")


def walk(store, app_id, prefix=""):
    """Every range down to its leaves, with all that can be asked about it."""
    items = store.digest_items(app_id, prefix)
    found = {prefix: None if items is None else sorted(items)}
    if len(prefix) < 16:
        found[prefix, "children"] = store.digest_children(app_id, prefix)
    if items is None:
        for digit in "0123456789abcdef":
            found |= walk(store, app_id, prefix + digit)
    return found


def fill(module, store, numbers, **changes):
    for number in numbers:
        fields = {**RECORD, **changes}
        store.merge(number % 3, module.Record(f"key {number}", **fields), NOW)


def test_the_worked_examples(module, new_store):
    store = new_store(dataclasses.replace(LIMITS, max_clock_skew_ms=1 << 62), key=bytes.fromhex(VECTORS["digest_key"]))
    for row in VECTORS["records"]:
        wire = row["record"]
        value, numbers = bytes.fromhex(wire["value"]), (wire["updated_at_ms"], wire["ttl_ms"])
        store.merge(int(row["app_id"]), module.Record(wire["key"], value, wire["version"], *numbers), 1)
    refreshed(store, 1)
    for row in VECTORS["records"]:
        at_position = store.digest_items(int(row["app_id"]), row["position"])
        assert at_position == [(row["record"]["key"], bytes.fromhex(row["digest"]))]
    for row in VECTORS["namespaces"]:
        assert store.digest_items(None, row["position"]) == [(int(row["app_id"]), bytes.fromhex(row["digest"]))]
    assert [digest.hex() for digest in store.digest_children(None, "")] == VECTORS["children_of_all"]


def test_the_worked_example_of_a_tree_with_branches(module, new_store):
    store = new_store(key=bytes.fromhex(VECTORS["digest_key"]))
    for n in range(100):
        store.merge(0, module.Record(f"key {n}", bytes([n]), {"w": n + 1}, n, 0), NOW)
    refreshed(store)
    assert [digest.hex() for digest in store.digest_children(0, "")] == VECTORS["hundred"]["children"]
    assert store.digest_items(None, "")[0][1].hex() == VECTORS["hundred"]["digest"]


def test_the_key_of_digests_is_derived_from_the_sync_key():
    key = derive_digest_key(SecretBytes(bytes.fromhex(VECTORS["sync_key"])))
    assert key.reveal().hex() == VECTORS["digest_key"]


def test_an_empty_store_and_an_unknown_namespace_are_zeros_all_over(new_store):
    store = refreshed(new_store())
    assert store.digest_children(None, "") == store.digest_children(7, "abc") == [bytes(16)] * 16
    assert store.digest_items(None, "") == store.digest_items(7, "0" * 16) == []


@pytest.mark.parametrize("count", [1, 32, 33, 100, 1000])
def test_the_order_of_arrival_and_the_seed_of_the_tables_do_not_matter(module, new_store, count):
    one, other = new_store(), new_store(seed=bytes(range(16)))
    numbers = list(range(count))
    fill(module, one, numbers)
    random.Random(count).shuffle(numbers)  # noqa: S311
    fill(module, other, numbers)
    assert root(one) == root(other) != [bytes(16)] * 16
    for app_id in range(3):
        assert walk(one, app_id) == walk(other, app_id)


@pytest.mark.parametrize(
    "changes",
    [
        {"value": b"w" * 30},
        {"value": b"v" * 31},
        {"value": None},
        {"version": {"a": 1, "b": 3}},
        {"version": {"a": 1}},
        {"version": {"a": 1, "b": 2, "c": 1}},
        {"version": {"a": 1, "B": 2}},
        {"updated_at_ms": NOW - 1},
        {"ttl_ms": 10**9},
    ],
    ids=str,
)
@pytest.mark.parametrize("count", [1, 40, 700])
def test_any_difference_in_one_record_changes_the_root(module, new_store, count, changes):
    one, other = new_store(), new_store()
    fill(module, one, range(count))
    fill(module, other, range(1, count))
    fill(module, other, [0], **changes)
    assert root(one) != root(other)


def test_a_large_value_counts_by_every_byte_of_it(module, new_store):
    value = bytes(513)
    roots = set()
    for place in (None, 0, 256, 512):
        changed = value if place is None else value[:place] + b"x" + value[place + 1 :]
        store = new_store()
        fill(module, store, [0], value=changed)
        roots.add(tuple(root(store)))
        fill(module, store, [0], value=changed, version={"a": 9, "b": 9})
        roots.add(tuple(root(store)))
    assert len(roots) == 8


def test_the_same_record_under_another_app_is_a_difference(module, new_store):
    roots = []
    for app_id in (1, 2):
        store = new_store()
        store.merge(app_id, module.Record("key", **RECORD), NOW)
        roots.append((root(store), refreshed(store).digest_items(app_id, "")))
    assert roots[0][0] != roots[1][0]
    assert roots[0][1] != roots[1][1]


def test_digests_are_keyed_and_a_new_key_counts_everything_again(module, new_store):
    store, fresh = new_store(key=bytes(32)), new_store()
    for filled in (store, fresh):
        fill(module, filled, range(200))
    assert root(store) != root(fresh)
    store.track_digests(SecretBytes(KEY))
    assert root(store) == root(fresh)


def test_what_is_deleted_or_expired_is_as_if_it_had_never_been(module, new_store):
    store, never = new_store(), new_store()
    for filled in (store, never):
        fill(module, filled, range(50))
    fill(module, store, range(50, 200), ttl_ms=10)
    assert root(store) != root(never)
    assert root(store, NOW + 11) == root(never, NOW + 11)
    store.put(9, "k", b"v", 0, NOW)
    assert root(store) != root(never)
    store.delete(9, "k", NOW)
    assert root(store) == root(never)
    assert store.find(9, "k").tombstone
    assert store.find(0, "key 51").value == RECORD["value"]
    assert store.find(0, "key 1000") is None


def test_what_was_evicted_forgotten_or_cleared_is_not_counted(module, new_store):
    store, never = (
        new_store(dataclasses.replace(LIMITS, quota_policy=QuotaPolicy.EVICT, max_app_bytes=200)) for _ in range(2)
    )
    store.put(1, "old", b"v" * 30, 0, NOW - 1)
    root(store)
    for filled in (store, never):
        filled.put(1, "new", b"v" * 30, 0, NOW)
    assert store.find(1, "old") is None
    assert root(store) == root(never)
    store.forget(store.last_seq)
    assert root(store) == [bytes(16)] * 16
    store.put(1, "new", b"v" * 30, 0, NOW)
    root(store)
    store.clear()
    assert root(store) == [bytes(16)] * 16


@pytest.mark.parametrize("prefix", ["g", "A", "0x", " ", "0" * 17, "\u0660"])
def test_a_prefix_that_is_none_is_refused(new_store, prefix):
    store = refreshed(new_store())
    for call in (store.digest_children, store.digest_items):
        with pytest.raises(Rejected) as refusal:
            call(None, prefix)
        assert refusal.value.reason is Reason.BAD_FIELD
    with pytest.raises(Rejected):
        store.digest_children(None, "0" * 16)


def test_digests_need_a_key_of_32_bytes():
    store = compiled.Store("me", LIMITS, seed=bytes(16))
    with pytest.raises(Rejected):
        store.refresh_digests(NOW)
    with pytest.raises(Rejected):
        store.track_digests(SecretBytes(bytes(31)))


def test_a_small_budget_gets_there_in_many_steps_and_finds_the_same():
    small, large = (compiled.Store("me", LIMITS, seed=bytes(16)) for _ in range(2))
    for store in (small, large):
        store.track_digests(SecretBytes(KEY))
        fill(compiled, store, range(2_000))
    steps = 1
    while not small.refresh_digests(NOW, 100):
        steps += 1
    assert steps > 100
    assert small.digest_children(None, "") == root(large)


def test_with_nothing_changed_a_refresh_costs_nothing_and_with_one_change_it_costs_one_path():
    store = compiled.Store("me", LIMITS, seed=bytes(16))
    store.track_digests(SecretBytes(KEY))
    fill(compiled, store, range(5_000))
    root(store)
    assert store.refresh_digests(NOW, 1)
    store.put(1, "key 1", b"w", 0, NOW)
    assert not store.refresh_digests(NOW, 1)
    steps = 1
    while not store.refresh_digests(NOW, 300):
        steps += 1
    assert steps <= 3


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 120), st.booleans()), min_size=1, max_size=8))
def test_whatever_came_and_went_the_digests_are_those_of_what_is_there(steps):
    store = compiled.Store("me", LIMITS, seed=bytes(16))
    store.track_digests(SecretBytes(KEY))
    for start, count, writes in steps:
        for number in range(start, start + count):
            if writes:
                store.put(1, f"key {number}", b"v", 0, NOW)
            elif store.get(1, f"key {number}", NOW):
                store.delete(1, f"key {number}", NOW)
        root(store)
    fresh = compiled.Store("other", LIMITS, seed=bytes(range(16)))
    fresh.track_digests(SecretBytes(KEY))
    for app_id, _, record in store.since(0, limit_records=10**6, limit_bytes=10**9).records:
        fresh.merge(app_id, record, NOW)
    refreshed(fresh)
    assert walk(store, 1) == walk(fresh, 1)
    assert walk(store, None) == walk(fresh, None)


class Machine(RuleBasedStateMachine):
    """The compiled tree, kept up to date in slices, against the twin that computes everything afresh."""

    @initialize(evict=st.booleans())
    def start(self, evict):
        policy = QuotaPolicy.EVICT if evict else QuotaPolicy.REJECT
        limits = dataclasses.replace(LIMITS, quota_policy=policy, max_app_bytes=20_000)
        self.stores = [module.Store("me", limits, seed=bytes(16)) for module in (compiled, twin)]
        self.now_ms = NOW
        for store in self.stores:
            store.track_digests(SecretBytes(KEY))

    @rule(
        app_id=st.integers(0, 40),
        start=st.integers(0, 60),
        count=st.integers(1, 60),
        ttl_ms=st.sampled_from([0, 0, 5, 500]),
        size=st.sampled_from([1, 512, 513]),
    )
    def put(self, app_id, start, count, ttl_ms, size):
        for store in self.stores:
            for number in range(start, start + count):
                with suppress(Rejected):  # a full namespace
                    store.put(app_id % 7 and 1, f"key {number}", b"v" * size, ttl_ms, self.now_ms)
                    store.put(app_id, "one", b"v", ttl_ms, self.now_ms)

    @rule(start=st.integers(0, 60), count=st.integers(1, 60))
    def delete(self, start, count):
        for store in self.stores:
            for number in range(start, start + count):
                if store.get(1, f"key {number}", self.now_ms) is not None:
                    store.delete(1, f"key {number}", self.now_ms)

    @rule(step_ms=st.sampled_from([1, 10, 600]), budget=st.sampled_from([1, 1000]))
    def pass_time(self, step_ms, budget):
        self.now_ms += step_ms
        for store in self.stores:
            store.sweep(self.now_ms, 0, budget)

    @rule()
    def clear(self):
        for store in self.stores:
            store.clear()

    @rule(budget=st.sampled_from([1, 50, 2_000]))
    def refresh_a_little(self, budget):
        self.stores[0].refresh_digests(self.now_ms, budget)

    @rule(key=st.binary(min_size=32, max_size=32))
    def change_key(self, key):
        for store in self.stores:
            store.track_digests(SecretBytes(key))

    @invariant()
    def both_know_the_same(self):
        for store in self.stores:
            refreshed(store, self.now_ms, 500)
        assert self.stores[0].digest_children(None, "") == self.stores[1].digest_children(None, "")

    @rule(app_id=st.integers(0, 40))
    def walk(self, app_id):
        assert walk(self.stores[0], app_id) == walk(self.stores[1], app_id)
        assert walk(self.stores[0], None) == walk(self.stores[1], None)


TestMachine = Machine.TestCase
TestMachine.settings = settings(deadline=None, max_examples=25, stateful_step_count=15)
