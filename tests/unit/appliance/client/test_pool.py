"""Which node is asked next."""

import random
from typing import cast

import pytest

from appliance.client.discovery import NodeFacts
from appliance.client.errors import FailureKind, NodeFailure
from appliance.client.pool import COOL_DOWN_MS, MAX_REST_S, NodePool
from appliance.client.session import NodeSession
from kmscore.envelope import TeePublicKey, parse_tee_pubkey
from tests.support import wire
from tests.support.client_bench import InOrder
from tests.support.fake_node import FakeClock

KEY = parse_tee_pubkey(wire.TeeKey(5).der)


class Session:
    """What the pool sees of a session."""

    def __init__(self, node: NodeFacts) -> None:
        self.node = node


def node(number: int, *, url: str = "https://node.example", key: TeePublicKey = KEY) -> NodeFacts:
    return NodeFacts(url, wallet(number), key)


def wallet(number: int) -> str:
    return f"0x{number:040x}"


def failure(number: int, retry_after_s: float | None = None) -> NodeFailure:
    return NodeFailure("https://node.example", wallet(number), FailureKind.UNAVAILABLE, "why", retry_after_s)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def pool(clock: FakeClock) -> NodePool:
    pool = NodePool(lambda facts: cast(NodeSession, Session(facts)), rng=InOrder(), clock=clock)
    pool.update([node(1), node(2), node(3)])
    return pool


def order_of(pool: NodePool) -> list[int]:
    """The order in which one call would go through the nodes."""
    asked: list[str] = []
    while (session := pool.pick(asked)) is not None:
        asked.append(session.node.wallet)
    return [int(address, 16) for address in asked]


def test_the_order_is_drawn_once_for_each_node(clock: FakeClock) -> None:
    orders = set()
    for seed in range(20):
        pool = NodePool(lambda facts: cast(NodeSession, Session(facts)), rng=random.Random(seed), clock=clock)  # noqa: S311
        pool.update([node(1), node(2), node(3)])
        assert order_of(pool) == order_of(pool)
        orders.add(tuple(order_of(pool)))
    assert len(orders) == 6


def test_the_node_that_answered_last_comes_first(pool: NodePool) -> None:
    pool.succeeded(wallet(3))
    assert order_of(pool) == [3, 1, 2]


def test_a_failed_node_comes_last_until_it_has_cooled_down(pool: NodePool, clock: FakeClock) -> None:
    pool.succeeded(wallet(1))
    pool.failed(failure(1))
    assert order_of(pool) == [2, 3, 1]
    clock.elapsed_ms += COOL_DOWN_MS
    assert order_of(pool) == [1, 2, 3]


def test_an_answer_ends_a_cool_down(pool: NodePool) -> None:
    pool.failed(failure(1))
    pool.succeeded(wallet(1))
    assert order_of(pool) == [1, 2, 3]


def test_a_node_that_asked_for_patience_is_not_asked_before_its_time(pool: NodePool, clock: FakeClock) -> None:
    pool.failed(failure(1, retry_after_s=20))
    assert order_of(pool) == [2, 3]
    assert list(pool.resting()) == [wallet(1)]
    assert pool.rest_ends_in_s() == 20
    clock.elapsed_ms += 20_000
    assert order_of(pool) == [1, 2, 3]
    assert pool.rest_ends_in_s() is None


@pytest.mark.parametrize(("asked_s", "rested_s"), [(0, 1), (0.5, 1), (3600, MAX_REST_S)])
def test_patience_has_a_least_and_a_most(pool: NodePool, asked_s: float, rested_s: float) -> None:
    pool.failed(failure(1, retry_after_s=asked_s))
    assert pool.rest_ends_in_s() == rested_s


def test_a_node_the_registry_still_lists_keeps_its_session_and_one_with_new_facts_does_not(pool: NodePool) -> None:
    before = {number: pool.pick([wallet(other) for other in (1, 2, 3) if other != number]) for number in (1, 2, 3)}
    pool.update([node(1), node(2, key=parse_tee_pubkey(wire.TeeKey(6).der)), node(4)])
    after = {number: pool.pick([wallet(other) for other in (1, 2, 4) if other != number]) for number in (1, 2, 4)}
    assert after[1] is before[1]
    assert after[2] is not before[2]
    assert 3 not in order_of(pool)


def test_news_of_a_node_that_is_gone_change_nothing(pool: NodePool) -> None:
    pool.failed(failure(9))
    pool.succeeded(wallet(9))
    assert order_of(pool) == [1, 2, 3]
