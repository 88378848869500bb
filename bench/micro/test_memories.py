"""What a request is checked against and leaves behind: used nonces, token buckets, the time.

Each is as it is in a node that has been busy for a while: many callers known, the memory of each envelope key full.
"""

import os
import time
from collections import OrderedDict, deque

import pytest

from kmscore.clock import SystemClock
from kmscore.limits import RateLimiter
from kmscore.nonce import EnvelopeNonces, UsedNonces

BATCH = 1_000
CALLERS = [f"0x{number:040x}" for number in range(50)]
KEYS = [os.urandom(120) for _ in range(4)]
CLOCK = SystemClock()
PER_MINUTE = 100_000_000

USE = pytest.mark.benchmark(group="PoP nonce looked up and used")
REMEMBER = pytest.mark.benchmark(group="envelope nonce looked up and remembered")
COUNT = pytest.mark.benchmark(group="request counted and given back")
TIME = pytest.mark.benchmark(group="monotonic time in milliseconds")


def use_many(used, texts):
    for now_ms, (text, caller) in enumerate(texts):
        used.require_unused(text)
        used.consume(text, now_ms + 120_000, now_ms, caller)


def texts_of_callers():
    return [(os.urandom(32).hex(), CALLERS[number % len(CALLERS)]) for number in range(BATCH)]


@USE
def test_used_nonces(ours):
    used, _ = ours.batch("kmscore", lambda: (UsedNonces(), texts_of_callers()), use_many, BATCH)
    assert len(used) == BATCH


class UsedInPython:
    """Two sets and two counts, everything in the method that needs it."""

    def __init__(self):
        self.newer, self.older = set(), set()
        self.newer_counts, self.older_counts = {}, {}
        self.newer_expiry_ms = self.older_expiry_ms = 0

    def require_unused(self, text):
        if text in self.newer or text in self.older:
            raise ValueError("used")

    def consume(self, text, expires_ms, now_ms, owner):
        if now_ms >= expires_ms:
            raise ValueError("expired")
        if now_ms >= self.older_expiry_ms:
            self.older, self.older_counts, self.older_expiry_ms = self.newer, self.newer_counts, self.newer_expiry_ms
            self.newer, self.newer_counts, self.newer_expiry_ms = set(), {}, 0
        if text in self.newer or text in self.older:
            raise ValueError("used")
        count = self.newer_counts.get(owner, 0)
        if count + self.older_counts.get(owner, 0) >= 65_536:
            raise ValueError("too many")
        self.newer.add(text)
        self.newer_counts[owner] = count + 1
        if expires_ms > self.newer_expiry_ms:
            self.newer_expiry_ms = expires_ms


@USE
def test_used_nonces_in_python(rival):
    rival.batch("sets and dicts", lambda: (UsedInPython(), texts_of_callers()), use_many, BATCH)


def remember_many(nonces, fresh):
    for number, nonce in enumerate(fresh):
        key = KEYS[number & 3]
        if nonces.seen(key, nonce):
            raise ValueError("seen")
        nonces.remember(key, nonce)


def filled(nonces):
    for _ in range(65_536):
        for key in KEYS:
            nonces.remember(key, os.urandom(12))
    return nonces


def fresh_nonces():
    return [os.urandom(12) for _ in range(BATCH)]


@pytest.fixture(scope="module")
def busy_nonces():
    return filled(EnvelopeNonces())


@REMEMBER
def test_envelope_nonces(ours, busy_nonces):
    ours.batch("kmscore", lambda: (busy_nonces, fresh_nonces()), remember_many, BATCH)


class EnvelopesInPython:
    """A set and a queue for each key: five times the memory."""

    def __init__(self):
        self.memories = OrderedDict()

    def seen(self, sender, nonce):
        memory = self.memories.get(sender)
        return memory is not None and nonce in memory[0]

    def remember(self, sender, nonce):
        if len(nonce) != 12:
            raise ValueError("no nonce")
        memory = self.memories.get(sender)
        if memory is None:
            memory = self.memories[sender] = (set(), deque())
            if len(self.memories) > 1_024:
                self.memories.popitem(last=False)
        else:
            self.memories.move_to_end(sender)
        known, order = memory
        if nonce in known:
            raise ValueError("seen")
        if len(order) == 65_536:
            known.remove(order.popleft())
        known.add(nonce)
        order.append(nonce)


@pytest.fixture(scope="module")
def busy_nonces_in_python():
    return filled(EnvelopesInPython())


@REMEMBER
def test_envelope_nonces_in_python(rival, busy_nonces_in_python):
    rival.batch("a set and a queue", lambda: (busy_nonces_in_python, fresh_nonces()), remember_many, BATCH)


def count_many(limiter):
    for _ in range(BATCH // len(CALLERS)):
        for caller in CALLERS:
            limiter.take(caller)
            limiter.give_back(caller)


@COUNT
def test_rate_limiter(ours):
    ours.batch("kmscore", lambda: (RateLimiter(PER_MINUTE, CLOCK),), count_many, BATCH)


class LimiterInPython:
    """An ordered dictionary, everything in the method that needs it."""

    def __init__(self):
        self.capacity, self.per_ms = float(PER_MINUTE), PER_MINUTE / 60_000
        self.now_ms = CLOCK.monotonic_ms
        self.buckets = OrderedDict()

    def take(self, key):
        now_ms = self.now_ms()
        tokens, at_ms = self.buckets.get(key, (self.capacity, 0))
        tokens = min(self.capacity, tokens + (now_ms - at_ms) * self.per_ms)
        if tokens < 1:
            raise ValueError("too many")
        self.buckets[key] = (tokens - 1, now_ms)
        self.buckets.move_to_end(key)
        if len(self.buckets) > 65_536:
            self.buckets.popitem(last=False)

    def give_back(self, key):
        now_ms = self.now_ms()
        found = self.buckets.get(key)
        if found is not None:
            tokens, at_ms = found
            self.buckets[key] = (min(self.capacity, tokens + (now_ms - at_ms) * self.per_ms + 1), now_ms)
            self.buckets.move_to_end(key)


@COUNT
def test_rate_limiter_in_python(rival):
    rival.batch("an ordered dictionary", lambda: (LimiterInPython(),), count_many, BATCH)


@TIME
def test_clock(ours):
    assert ours("kmscore", CLOCK.monotonic_ms) <= time.monotonic_ns() // 1_000_000


@TIME
def test_monotonic_ns(floor):
    floor("time.monotonic_ns, in nanoseconds", time.monotonic_ns)


@TIME
def test_clock_in_python(rival):
    rival("time.monotonic_ns, divided", lambda: time.monotonic_ns() // 1_000_000)
