"""The model of replication: what holds of it whatever its costs are."""

import dataclasses
import math

import pytest

from bench.scale.costs import Costs
from bench.scale.joining import simulate_joining
from bench.scale.model import simulate
from bench.scale.scenario import IDLE_DELTA_S, Outcome, Scenario, demand

COSTS = Costs(
    send_message_s=1e-3,
    receive_message_s=1e-3,
    send_record_s=15e-6,
    receive_record_s=20e-6,
    repeat_record_s=15e-6,
    ask_s=5e-4,
    answer_s=5e-4,
    agree_s=5e-4,
    member_s=1e-4,
    digest_record_s=5e-5,
    message_bytes=1_500.0,
    answer_bytes=1_300.0,
    record_bytes=4_500.0,
)


def outcome(nodes: int, writes_per_s: float, **changes: object) -> Outcome:
    return simulate(dataclasses.replace(Scenario(nodes, writes_per_s, drain_s=60.0), **changes), COSTS)


@pytest.mark.parametrize("nodes", [2, 3, 10])
@pytest.mark.parametrize("writes_per_s", [0.5, 20.0])
def test_every_write_reaches_every_node(nodes: int, writes_per_s: float) -> None:
    found = outcome(nodes, writes_per_s)
    assert len(found.convergence_s) > 20
    assert found.unconverged == 0


def test_the_same_seed_gives_the_same_outcome_and_another_seed_another() -> None:
    assert outcome(5, 2.0, seed=7) == outcome(5, 2.0, seed=7)
    assert outcome(5, 2.0, seed=7) != outcome(5, 2.0, seed=8)


def test_without_writes_there_are_only_contacts_and_comparisons() -> None:
    found = outcome(5, 0.0, duration_s=1_200.0)
    contacts = 4 / IDLE_DELTA_S  # an empty delta to each peer
    comparisons = 1 / 60.0
    assert found.records_per_s == 0
    assert found.convergence_s == []
    # A contact is due at the first push after a minute: up to an interval late.
    assert contacts * 60 / 72 < found.messages_per_s < contacts + 1.2 * comparisons


def test_a_doubled_interval_doubles_the_time_to_converge() -> None:
    once = outcome(4, 0.5, interval_s=10.0, duration_s=2_000.0, anti_entropy_s=1e6)
    twice = outcome(4, 0.5, interval_s=20.0, duration_s=2_000.0, anti_entropy_s=1e6)
    assert twice.percentile_s(50) / once.percentile_s(50) == pytest.approx(2, rel=0.15)


def test_a_write_converges_within_the_longest_interval_and_in_half_of_one_on_average() -> None:
    found = outcome(4, 0.5, duration_s=2_000.0)
    assert max(found.convergence_s) < 11.1
    assert sum(found.convergence_s) / len(found.convergence_s) == pytest.approx(5, rel=0.15)


@pytest.mark.parametrize("nodes", [2, 3, 6])
def test_a_write_is_sent_to_each_peer_and_passed_on_by_each_peer_to_all_but_the_sender(nodes: int) -> None:
    # Rare writes and no comparisons, which would exchange some of them.
    found = outcome(nodes, 0.02, duration_s=4_000.0, anti_entropy_s=1e9)
    sent = found.records_per_s * nodes * 4_000.0
    assert sent / len(found.convergence_s) == pytest.approx((nodes - 1) ** 2, rel=0.02)


@pytest.mark.parametrize("writes_per_s", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("nodes", [3, 16])
def test_counting_and_simulating_agree_where_the_cluster_keeps_up(nodes: int, writes_per_s: float) -> None:
    scenario = Scenario(nodes, writes_per_s, duration_s=1_200.0)
    assert simulate(scenario, COSTS).cpu == pytest.approx(demand(scenario, COSTS).cpu, rel=0.25)


def test_a_sample_of_a_cluster_works_as_much_as_the_whole_of_it() -> None:
    whole = outcome(40, 4.0)
    sample = outcome(40, 4.0, tracked=10)
    assert sample.cpu == pytest.approx(whole.cpu, rel=0.15)
    assert sample.sent_bytes_per_s == pytest.approx(whole.sent_bytes_per_s, rel=0.15)
    assert sample.percentile_s(50) == pytest.approx(whole.percentile_s(50), rel=0.25)


def test_a_cluster_that_needs_more_than_its_cores_falls_behind() -> None:
    scenario = Scenario(60, 2_000.0)
    assert demand(scenario, COSTS).cpu > 1
    assert outcome(60, 2_000.0, drain_s=0.0).unconverged > 0


def test_nodes_that_share_cores_converge_later() -> None:
    alone = outcome(12, 0.2, interval_s=1.0, duration_s=600.0)
    shared = outcome(12, 0.2, interval_s=1.0, duration_s=600.0, cores=1)
    assert sum(shared.convergence_s) > sum(alone.convergence_s)


def test_the_share_of_writes_that_did_not_arrive_has_no_finite_percentile() -> None:
    found = Outcome(0, 0, 0, 0, [1.0, 2.0, 3.0], 1)
    assert found.percentile_s(50) == 2.0
    assert found.percentile_s(75) == 3.0
    assert math.isinf(found.percentile_s(99))


class TestStartingAtOnce:
    def test_every_node_joins(self) -> None:
        storm = simulate_joining(50, 1_000, COSTS)
        assert storm.joined == 49
        assert math.isfinite(storm.all_s)
        assert 0 < storm.half_s <= storm.all_s

    def test_the_seed_alone_decides(self) -> None:
        assert simulate_joining(20, 100, COSTS, seed=3) == simulate_joining(20, 100, COSTS, seed=3)

    def test_those_that_have_joined_take_work_from_the_first_holder(self) -> None:
        storm = simulate_joining(400, 10_000, COSTS)
        one_snapshot_s = 10_000 * COSTS.send_record_s
        assert storm.holder_work_s < 200 * one_snapshot_s

    def test_a_larger_store_takes_longer(self) -> None:
        assert simulate_joining(20, 50_000, COSTS).all_s > simulate_joining(20, 100, COSTS).all_s
