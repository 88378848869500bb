"""Nodes that have seen the same records hold the same map, whatever the order (store §3)."""

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmscore import store as compiled
from kmscore.errors import Rejected
from kmscore.store_types import QuotaPolicy, StoreLimits
from tests.reference import store as twin

IMPLEMENTATIONS = pytest.mark.parametrize("module", [compiled, twin], ids=["compiled", "twin"])
UNHURRIED = settings(deadline=None)  # the twin is slow, and machines are shared
APP = 1
NODES = ["n0", "n1", "n2"]
START = 1_000_000
LIMITS = StoreLimits(tombstone_retention_ms=10_000, max_clock_skew_ms=5_000)

KEYS = st.sampled_from("abc")
NODE = st.integers(0, len(NODES) - 1)
VALUES = st.sampled_from([b"", b"v", b"w"])


def put(ttls):
    return st.tuples(st.just("put"), NODE, KEYS, VALUES, ttls)


DELETE = st.tuples(st.just("delete"), NODE, KEYS)
PUSH = st.tuples(st.just("push"), NODE, NODE)
SWEEP = st.tuples(st.just("sweep"), NODE)
WAIT = st.tuples(st.just("wait"), st.sampled_from([1, 40, 2_000]))
SKEWS = st.tuples(*[st.integers(-2_000, 2_000)] * len(NODES))


class Cluster:
    """Nodes with clocks that are off by a constant, and what each has acknowledged of each other's change log."""

    def __init__(self, module, skews_ms, limits=LIMITS):
        self.now_ms = START
        self.skews_ms = skews_ms
        self.stores = [module.Store(name, limits, seed=bytes(16)) for name in NODES]
        self.acked = dict.fromkeys(itertools.permutations(range(len(NODES)), 2), 0)
        self.seen = []

    def clock(self, node):
        return self.now_ms + self.skews_ms[node]

    def run(self, history):
        for verb, *arguments in history:
            getattr(self, verb)(*arguments)

    def wait(self, ms):
        self.now_ms += ms

    def put(self, node, key, value, ttl_ms):
        self.stores[node].put(APP, key, value, ttl_ms, self.clock(node))
        self.remember(node)

    def delete(self, node, key):
        try:
            self.stores[node].delete(APP, key, self.clock(node))
        except Rejected:
            return
        self.remember(node)

    def remember(self, node):
        self.seen += [record for _, _, record in self.log(node)]

    def log(self, node, seq=0, **options):
        return self.stores[node].since(seq, limit_records=100, limit_bytes=1 << 30, **options).records

    def push(self, source, target):
        if source == target:
            return 0
        self.now_ms += 1
        changes = 0
        for _, seq, record in self.log(source, self.acked[source, target], exclude_source=NODES[target]):
            before = self.stores[target].last_seq
            outcome = self.stores[target].merge(APP, record, self.clock(target), NODES[source])
            assert not outcome.refused
            changes += self.stores[target].last_seq - before
            self.acked[source, target] = seq
        return changes

    def sweep(self, node):
        acked = min(seq for (source, _), seq in self.acked.items() if source == node)
        self.stores[node].sweep(self.clock(node), acked)

    def settle(self):
        """Everybody pushes to everybody until nothing changes any more."""
        for _ in range(20):
            if sum(self.push(*pair) for pair in self.acked) == 0:
                return
        pytest.fail("the nodes keep changing each other")

    def maps(self):
        return [
            {
                record.key: (record.value, record.updated_at_ms, record.ttl_ms, record.version)
                for _, _, record in self.log(node)
            }
            for node in range(len(NODES))
        ]

    def live_maps(self, now_ms):
        return [{key: store.get(APP, key, now_ms).value for key in store.keys(APP, now_ms)} for store in self.stores]


@IMPLEMENTATIONS
@UNHURRIED
@given(skews=SKEWS, history=st.lists(st.one_of(put(st.just(0)), DELETE, PUSH, WAIT), max_size=25))
def test_nodes_converge_to_one_map(module, skews, history):
    cluster = Cluster(module, skews)
    cluster.run(history)
    cluster.settle()
    first, *others = cluster.maps()
    assert others == [first, first]


@IMPLEMENTATIONS
@UNHURRIED
@given(
    skews=SKEWS,
    history=st.lists(st.one_of(put(st.sampled_from([0, 1, 50, 2_000])), DELETE, PUSH, SWEEP, WAIT), max_size=25),
)
def test_nodes_converge_to_one_live_map_when_records_expire_and_are_swept(module, skews, history):
    cluster = Cluster(module, skews)
    cluster.run(history)
    cluster.settle()
    first, *others = cluster.live_maps(cluster.now_ms + 3_000)
    assert others == [first, first]


@UNHURRIED
@given(skews=SKEWS, history=st.lists(st.one_of(put(st.just(0)), DELETE, PUSH), min_size=3, max_size=15))
def test_the_merge_is_commutative_associative_and_idempotent_for_our_histories(skews, history):
    cluster = Cluster(compiled, skews)
    cluster.run(history)
    cluster.remember(0)
    for key in "abc":
        versions = list(dict.fromkeys(record for record in cluster.seen if record.key == key))[:6]
        for a, b, c in itertools.product(versions, repeat=3):
            ab = compiled.merge_records(a, b)[1]
            assert ab == compiled.merge_records(b, a)[1]
            assert compiled.merge_records(ab, c)[1] == compiled.merge_records(a, compiled.merge_records(b, c)[1])[1]
            assert compiled.merge_records(ab, a)[1] == ab


LEGACY = st.lists(
    st.tuples(
        NODE,
        KEYS,
        st.none() | VALUES,
        st.dictionaries(st.sampled_from(["n0", "n1", "x", "y"]), st.integers(1, 3), min_size=1),
        st.integers(0, 3),
        st.sampled_from([0, 0, 1 << 40]),
    ),
    max_size=14,
)


@IMPLEMENTATIONS
@UNHURRIED
@given(legacy=LEGACY, history=st.lists(st.one_of(put(st.just(0)), DELETE, PUSH), max_size=8))
def test_histories_with_records_of_older_nodes_converge_in_the_end(module, legacy, history):
    """Any version with any time: later writes with an earlier time, clocks of the winner only, equal versions."""
    cluster = Cluster(module, (0, 0, 0))
    steps = [
        lambda row=row: cluster.stores[row[0]].merge(
            APP, module.Record(row[1], row[2], row[3], START - row[4], row[5]), cluster.now_ms
        )
        for row in legacy
    ]
    steps[len(steps) // 2 : len(steps) // 2] = [lambda: cluster.run(history)]
    for step in steps:
        step()
    cluster.settle()
    first, *others = cluster.maps()
    assert others == [first, first]


@IMPLEMENTATIONS
@UNHURRIED
@given(
    records=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 300), st.booleans()),
        max_size=10,
    ),
    orders=st.tuples(st.randoms(use_true_random=False), st.randoms(use_true_random=False)),
)
def test_what_eviction_leaves_does_not_depend_on_the_order_of_arrival(module, records, orders):
    limits = dataclasses.replace(LIMITS, quota_policy=QuotaPolicy.EVICT, max_app_bytes=700)
    made = [
        module.Record(f"k{i}", None if tombstone else bytes(size), {"p": 1}, START + ms)
        for i, (ms, size, tombstone) in enumerate(records)
    ]
    logs = []
    for order in orders:
        store = module.Store("me", limits, seed=bytes(16))
        arrivals = list(made)
        order.shuffle(arrivals)
        for record in arrivals + arrivals[:3]:
            outcome = store.evaluate(APP, record, START)
            assert store.merge(APP, record, START) is outcome
        batch = store.since(0, limit_records=99, limit_bytes=1 << 30)
        logs.append({record for _, _, record in batch.records})
    assert logs[0] == logs[1]


@IMPLEMENTATIONS
@UNHURRIED
@given(skews=SKEWS, history=st.lists(st.one_of(put(st.just(0)), PUSH, WAIT), max_size=25))
def test_nodes_that_evict_converge_when_records_have_one_size(module, skews, history):
    limits = dataclasses.replace(LIMITS, quota_policy=QuotaPolicy.EVICT, max_app_bytes=2 * 130)
    cluster = Cluster(module, skews, limits)
    cluster.push = lambda source, target: lossy_push(cluster, source, target)
    cluster.run([(step[0], *step[1:3], b"v", 0) if step[0] == "put" else step for step in history])
    for _ in range(3):
        for pair in cluster.acked:
            cluster.push(*pair)
    first, *others = cluster.live_maps(cluster.now_ms + 3_000)
    assert others == [first, first]


def lossy_push(cluster, source, target):
    """Everything, again and again: what a full namespace refuses stays unacknowledged."""
    cluster.now_ms += 1
    for _, _, record in cluster.log(source):
        cluster.stores[target].merge(APP, record, cluster.clock(target), NODES[source])
