"""What is asked of the model, what it answers, and what can be said by counting alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench.scale.costs import Costs

IDLE_DELTA_S: Final = 60.0
# At most so many records of 1 KiB in one request (store §4: 360,000 bytes of ciphertext).
RECORDS_PER_REQUEST: Final = 342
LATENCY_S: Final = 0.001


@dataclass(frozen=True, slots=True)
class Scenario:
    """One cluster under one load. `writes_per_s` is of the whole cluster; `tracked` None simulates every node."""

    nodes: int
    writes_per_s: float
    interval_s: float = 10.0
    node_tick_s: float = 60.0
    anti_entropy_s: float = 60.0
    duration_s: float = 120.0
    # Writing stops at the end of `duration_s`; so much longer is waited for what is under way.
    drain_s: float = 0.0
    tracked: int | None = None
    latency_s: float = LATENCY_S
    # How many cores all simulated nodes share; None gives each node one.
    cores: int | None = None
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it; processor time and bytes are means over the simulated nodes, per second of `duration_s`.

    `cpu` counts the work that arrived, on one core: above 1 the node falls behind. `convergence_s` has the time of
    every write (or group of writes) that reached all simulated nodes, in order; `unconverged` counts those that did
    not.
    """

    cpu: float
    sent_bytes_per_s: float
    messages_per_s: float
    records_per_s: float
    convergence_s: Sequence[float]
    unconverged: int

    def percentile_s(self, percent: float) -> float:
        """Convergence of the slowest of this share of the writes; infinite when they did not arrive."""
        wanted = math.ceil(percent / 100 * (len(self.convergence_s) + self.unconverged)) - 1
        return self.convergence_s[wanted] if 0 <= wanted < len(self.convergence_s) else math.inf


@dataclass(frozen=True, slots=True)
class Demand:
    """What a node of a cluster that keeps up would have to do, per second: cores, and bytes sent."""

    cpu: float
    sent_bytes_per_s: float


def demand(scenario: Scenario, costs: Costs) -> Demand:
    """By counting: in an interval each pair exchanges one message each way, and each write is sent (n - 1)² times.
    Where this says more than one core, the simulation says how the cluster falls behind.
    """
    of, peers = scenario, scenario.nodes - 1
    # Nodes that learn of nothing in an interval have nothing to push.
    silent = math.exp(-of.writes_per_s * of.interval_s)
    records_per_push = of.writes_per_s * of.interval_s
    pushes = peers / of.interval_s * (1 - silent) + peers / IDLE_DELTA_S * silent
    requests = pushes * max(1.0, records_per_push / RECORDS_PER_REQUEST)
    records = of.writes_per_s * peers**2 / of.nodes
    ticks_s = of.nodes * costs.member_s + peers * (costs.ask_s + costs.answer_s)
    comparison_s = costs.send_message_s + costs.receive_message_s + costs.ask_s + costs.answer_s
    cpu = (
        requests * (costs.send_message_s + costs.receive_message_s)
        + pushes * silent * (costs.ask_s + costs.answer_s)
        + records * (costs.send_record_s + costs.repeat_record_s)
        + of.writes_per_s * (costs.receive_record_s - costs.repeat_record_s + costs.digest_record_s)
        + ticks_s / of.node_tick_s
        + comparison_s / of.anti_entropy_s
    )
    return Demand(cpu, requests * (costs.message_bytes + costs.answer_bytes) + records * costs.record_bytes)
