"""The store and its slow twin, driven side by side through the same random life, agree on every answer."""

import dataclasses

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kmscore import store as compiled
from kmscore.errors import Rejected
from kmscore.store_types import QuotaPolicy, StoreLimits
from tests.reference import store as twin

LIMITS = StoreLimits(
    max_key_bytes=24,
    max_value_bytes=300,
    max_app_bytes=1_200,
    max_store_bytes=2_600,
    max_tombstones_per_app=3,
    tombstone_retention_ms=1_000,
    max_clock_skew_ms=60,
)
APPS = st.sampled_from([0, 7, 2**256 - 1])
KEYS = st.sampled_from(["a", "b", "ü", "k" * 24])
SIZES = st.integers(0, 328)
TTLS = st.sampled_from([0, 0, 1, 50, 700])
WRITERS = ["me", "p", "q"]
PEERS = st.sampled_from([None, "p", "q"])
ACKED = st.integers(0, 60)


def plain(answer):
    """The answer with records as tuples, so that the answers of both implementations compare."""
    if isinstance(answer, compiled.Record | twin.Record):
        return (answer.key, answer.value, answer.version, answer.updated_at_ms, answer.ttl_ms, answer.tombstone)
    if isinstance(answer, compiled.Batch):
        records = [(app_id, seq, plain(record)) for app_id, seq, record in answer.records]
        return (records, answer.next_seq, answer.done)
    return answer


class Machine(RuleBasedStateMachine):
    @initialize(evict=st.booleans(), start_ms=st.sampled_from([0, 1_000_000]))
    def start(self, evict, start_ms):
        policy = QuotaPolicy.EVICT if evict else QuotaPolicy.REJECT
        limits = dataclasses.replace(LIMITS, quota_policy=policy)
        self.store = compiled.Store("me", limits, seed=bytes(16))
        self.oracle = twin.Store("me", limits, seed=bytes(16))
        self.now_ms = start_ms

    def both(self, call):
        answers = []
        for module, store in ((compiled, self.store), (twin, self.oracle)):
            try:
                answers.append(plain(call(module, store)))
            except Rejected as error:
                answers.append(error.reason)
        assert answers[0] == answers[1]
        return answers[0]

    @rule(step_ms=st.sampled_from([1, 1, 10, 100, 900]))
    def pass_time(self, step_ms):
        self.now_ms += step_ms

    @rule(app_id=APPS, key=KEYS, size=SIZES, ttl_ms=TTLS)
    def put(self, app_id, key, size, ttl_ms):
        planned = self.both(lambda _, store: store.plan_put(app_id, key, size, ttl_ms, self.now_ms))
        assert self.both(lambda _, store: store.put(app_id, key, b"v" * size, ttl_ms, self.now_ms)) == planned

    @rule(app_id=APPS, key=KEYS)
    def delete(self, app_id, key):
        planned = self.both(lambda _, store: store.plan_delete(app_id, key, self.now_ms))
        assert self.both(lambda _, store: store.delete(app_id, key, self.now_ms)) == planned

    @rule(app_id=APPS, key=KEYS)
    def get(self, app_id, key):
        self.both(lambda _, store: store.get(app_id, key, self.now_ms))

    @rule(
        app_id=APPS,
        key=KEYS,
        value=st.none() | st.builds(lambda size, fill: fill * size, SIZES, st.sampled_from([b"v", b"w"])),
        version=st.dictionaries(st.sampled_from(WRITERS), st.integers(0, 4), min_size=1),
        age_ms=st.integers(-61, 61) | st.sampled_from([500, 1_500, 3_000]),
        ttl_ms=TTLS,
        source=PEERS,
        snapshot=st.booleans(),
    )
    def merge(self, app_id, key, value, version, age_ms, ttl_ms, source, snapshot):
        if not any(version.values()):
            version["p"] = 1
        numbers = (max(0, self.now_ms - age_ms), ttl_ms)

        def evaluate(module, store):
            return store.evaluate(app_id, module.Record(key, value, version, *numbers), self.now_ms)

        def merge(module, store):
            record = module.Record(key, value, version, *numbers)
            return store.merge(app_id, record, self.now_ms, source, snapshot)

        assert self.both(evaluate) == self.both(merge)

    @rule(app_id=APPS, picks=st.lists(st.integers(0, 30), min_size=1, max_size=3), source=PEERS)
    def merge_back(self, app_id, picks, source):
        """What the store itself holds, or held a moment ago under another app, comes in once more."""
        records = [plain(record) for _, _, record in self.store.since(0, limit_records=99, limit_bytes=10**9).records]
        for pick in picks:
            if records:
                fields = records[pick % len(records)][:5]
                self.both(
                    lambda module, store, fields=fields: store.merge(
                        app_id, module.Record(*fields), self.now_ms, source
                    )
                )

    @rule(acked_seq=ACKED, budget=st.sampled_from([1, 2, 1000]))
    def sweep(self, acked_seq, budget):
        self.both(lambda _, store: store.sweep(self.now_ms, acked_seq, budget))

    @rule(seq=st.integers(-1, 70))
    def forget(self, seq):
        self.both(lambda _, store: store.forget(seq))

    @rule(
        seq=st.integers(-1, 70),
        limit_records=st.integers(0, 6),
        limit_bytes=st.integers(0, 1_500),
        source=PEERS,
        snapshot=st.booleans(),
    )
    def since(self, seq, limit_records, limit_bytes, source, snapshot):
        self.both(
            lambda _, store: store.since(
                seq,
                limit_records=limit_records,
                limit_bytes=limit_bytes,
                exclude_source=source,
                exclude_snapshot=snapshot,
            )
        )

    @rule()
    def clear(self):
        self.both(lambda _, store: store.clear())

    @invariant()
    def the_whole_log_agrees(self):
        self.both(lambda _, store: store.since(0, limit_records=10_000, limit_bytes=10**9))
        self.both(lambda _, store: store.last_seq)

    @rule()
    def counts_agree(self):
        self.both(lambda _, store: store.stats(self.now_ms))
        for app_id in (0, 7, 2**256 - 1):
            self.both(lambda _, store, app_id=app_id: store.keys(app_id, self.now_ms))


Machine.TestCase.settings = settings(max_examples=120, stateful_step_count=60, deadline=None)
TestStoreAgreesWithItsTwin = pytest.mark.timeout(170)(Machine.TestCase)
