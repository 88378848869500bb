"""What the model says of clusters that do not fit on this machine, and how far it is from those that do."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bench.results import Check, Curves, Figure, Results, Sense
from bench.scale.costs import Costs
from bench.scale.joining import Storm, simulate_joining
from bench.scale.model import simulate
from bench.scale.nodes import ANTI_ENTROPY_S, NODE_TICK_S, SYNC_INTERVAL_S
from bench.scale.scenario import Demand, Outcome, Scenario, demand

NODES: Final = (3, 10, 16, 100, 1_000)
WRITES_PER_S: Final = (0, 1, 100, 1_000)
# More nodes than this are simulated by a sample of so many.
FULL_NODES: Final = 100
TRACKED: Final = 16
DRAIN_S: Final = 120.0
SNAPSHOT_RECORDS: Final = 10_000
# How far measured and predicted may be apart: the model knows of no scheduler, no garbage collection, no noise.
FACTOR: Final = 2.0
CONVERGENCE: Final = "convergence, mean"
# Between two nodes nothing is passed on: the one delivery costs less than the app's own request, and both are lost in
# what idling takes meanwhile.
PASSED_ON_NODES: Final = 3
CORE: Final = 1.0
# One at a time, as they were measured.
RARE_WRITES_PER_S: Final = 0.05
RARE_WRITES_S: Final = 2_000.0


@dataclass(frozen=True, slots=True)
class Prediction:
    scenario: Scenario
    outcome: Outcome
    demand: Demand

    @property
    def keeps_up(self) -> bool:
        return self.demand.cpu < CORE and self.outcome.unconverged == 0


def predict(
    costs: Costs,
    measured: Sequence[Figure],
    *,
    nodes: Sequence[int] = NODES,
    cores: int,
    seed: int,
    say: Callable[[str], None],
) -> Results:
    """Simulate every size at every rate, and the measured clusters; `measured` are figures of the part `nodes`."""
    predictions = []
    for count in nodes:
        say(f"simulating {count:,} nodes")
        predictions += [_predict(count, rate, costs, seed) for rate in WRITES_PER_S]
    say("simulating clusters that start at once")
    storms = {count: simulate_joining(count, SNAPSHOT_RECORDS, costs, seed=seed) for count in nodes}
    say("comparing the model with the measured clusters")
    compared, checks = compare(costs, measured, cores=cores, seed=seed)
    return Results(
        part="model",
        figures=[
            *(figure for prediction in predictions for figure in _figures(prediction)),
            *(figure for count, storm in storms.items() for figure in _storm_figures(count, storm)),
            *compared,
        ],
        checks=checks,
        curves=_curves(predictions),
        notes=[*_notes(predictions, storms, costs), *([] if checks else [NOT_COMPARED])],
    )


NOT_COMPARED: Final = "The model was not compared with measured clusters: the part `nodes` has not been run."


def _predict(nodes: int, writes_per_s: float, costs: Costs, seed: int) -> Prediction:
    scenario = Scenario(
        nodes, writes_per_s, tracked=None if nodes <= FULL_NODES else TRACKED, drain_s=DRAIN_S, seed=seed
    )
    return Prediction(scenario, simulate(scenario, costs), demand(scenario, costs))


def _figures(prediction: Prediction) -> list[Figure]:
    of: Mapping[str, int | float] = {
        "nodes": prediction.scenario.nodes,
        "writes_per_s": prediction.scenario.writes_per_s,
    }
    figures = [
        Figure("model", "CPU a node needs", prediction.demand.cpu, "cores", of),
        Figure("model", "bytes a node sends, needed", prediction.demand.sent_bytes_per_s, "B/s", of),
        Figure("model", "CPU work per node, simulated", prediction.outcome.cpu, "cores", of),
        Figure("model", "bytes a node sends, simulated", prediction.outcome.sent_bytes_per_s, "B/s", of),
    ]
    if prediction.scenario.writes_per_s and prediction.keeps_up:
        figures += [
            Figure("model", f"convergence, p{percent}", prediction.outcome.percentile_s(percent), "s", of)
            for percent in (50, 99)
        ]
    return figures


def _storm_figures(nodes: int, storm: Storm) -> list[Figure]:
    of = {"nodes": nodes, "records": SNAPSHOT_RECORDS}
    return [
        Figure("model", "start at once, half have joined", storm.half_s, "s", of),
        Figure("model", "start at once, all have joined", storm.all_s, "s", of),
        Figure("model", "start at once, requests per node", storm.requests_per_node, "requests", of),
        Figure("model", "start at once, work of the first holder", storm.holder_work_s, "s", of),
    ]


def _curves(predictions: Sequence[Prediction]) -> list[Curves]:
    def lines(value: Callable[[Prediction], float], *, idle: bool) -> dict[str, list[tuple[float, float]]]:
        found: dict[str, list[tuple[float, float]]] = {}
        for prediction in predictions:
            rate = prediction.scenario.writes_per_s
            if (rate or idle) and math.isfinite(value(prediction)):
                found.setdefault(f"{rate:g} writes/s", []).append((prediction.scenario.nodes, value(prediction)))
        return found

    return [
        Curves("Model: CPU that a node needs", "nodes", "cores", lines(lambda p: p.demand.cpu, idle=True), True, True),
        Curves(
            "Model: bytes that a node sends",
            "nodes",
            "B/s",
            lines(lambda p: p.demand.sent_bytes_per_s, idle=True),
            log_x=True,
            log_y=True,
        ),
        Curves(
            "Model: convergence of the slowest of 100 writes, where the cluster keeps up",
            "nodes",
            "s",
            lines(lambda p: p.outcome.percentile_s(99) if p.keeps_up else math.inf, idle=False),
            log_x=True,
        ),
    ]


# --- against what was measured ---


def compare(costs: Costs, measured: Sequence[Figure], *, cores: int, seed: int) -> tuple[list[Figure], list[Check]]:
    """Convergence and the processor time of a write, predicted for the clusters of the part `nodes`."""
    figures: list[Figure] = []
    checks: list[Check] = []
    for name, unit, predicted in (
        (CONVERGENCE, "s", _convergence_s),
        ("CPU of a write, all nodes", "ms", _cpu_of_a_write_ms),
    ):
        apart = []
        for figure in measured:
            if figure.group == "nodes" and figure.name == name:
                nodes = int(figure.parameters["nodes"])
                value = predicted(nodes, costs, cores, seed)
                figures.append(Figure("model", f"{name}, predicted", value, unit, {"nodes": nodes}))
                if name == CONVERGENCE or nodes >= PASSED_ON_NODES:
                    apart.append(max(value / figure.value, figure.value / value))
        if apart:
            checks.append(
                Check(
                    f"model against measured clusters: {name}",
                    max(apart),
                    Sense.AT_MOST,
                    FACTOR,
                    "×",
                    (
                        f"the larger of predicted and measured {name} divided by the smaller, the worst of "
                        f"{len(apart)} sizes"
                    ),
                    same_run=False,
                )
            )
    return figures, checks


def _convergence_s(nodes: int, costs: Costs, cores: int, seed: int) -> float:
    found = _rare_writes(nodes, costs, cores, seed).convergence_s
    return sum(found) / len(found)


def _rare_writes(nodes: int, costs: Costs, cores: int, seed: int) -> Outcome:
    """A cluster like the measured ones, under writes that share no message."""
    return simulate(
        Scenario(
            nodes,
            RARE_WRITES_PER_S,
            interval_s=SYNC_INTERVAL_S,
            node_tick_s=NODE_TICK_S,
            anti_entropy_s=ANTI_ENTROPY_S,
            duration_s=RARE_WRITES_S,
            cores=cores,
            seed=seed,
        ),
        costs,
    )


def _cpu_of_a_write_ms(nodes: int, costs: Costs, cores: int, seed: int) -> float:
    """What the write costs, and as many deliveries of it as the simulation counts, each in a message of its own."""
    sent = _rare_writes(nodes, costs, cores, seed).records_per_s * nodes / RARE_WRITES_PER_S
    delivery_s = costs.send_message_s + costs.receive_message_s + costs.send_record_s + costs.repeat_record_s
    # A nonce and a request of an app cost a node what a nonce and a message of a peer do.
    return 1000 * (costs.answer_s + costs.receive_message_s + sent * delivery_s)


# --- in words ---


def _notes(predictions: Sequence[Prediction], storms: Mapping[int, Storm], costs: Costs) -> list[str]:
    largest = max(storms)
    message_ms = 1000 * (costs.send_message_s + costs.receive_message_s)
    record_us = 1e6 * (costs.send_record_s + costs.repeat_record_s)
    notes = [
        (
            "The model follows replication as it is implemented: each node pushes to each other one, and what it hears "
            "for the first time it passes on to all but the sender. A write is therefore sent (n - 1)² times, of which "
            "n - 1 deliver it and the rest are repetitions that cost a check each. It was calibrated with an exchange "
            f"of {message_ms:.1f} ms and a record of 1 KiB of {record_us:.0f} µs, both sides together, and "
            f"{costs.record_bytes:.0f} bytes on the wire for its 1,024. These are costs of a busy node; one that has "
            "little to do finds its caches cold and pays up to twice as much for a single exchange."
        ),
        *(_limit(rate, costs) for rate in WRITES_PER_S),
        *(
            f"{p.scenario.nodes:,} nodes at {p.scenario.writes_per_s:,g} writes/s do not keep up: a node would need "
            f"{p.demand.cpu:.1f} cores and {p.demand.sent_bytes_per_s / 1e6:,.0f} MB/s in each direction."
            for p in predictions
            if not p.keeps_up
        ),
        (
            f"When {largest:,} nodes start at once and one holds the secret and {SNAPSHOT_RECORDS:,} records, half "
            f"have joined after {storms[largest].half_s:.0f} s and all after {storms[largest].all_s:.0f} s, with "
            f"{storms[largest].requests_per_node:.0f} requests each: those that join become givers, so the first "
            f"holder works {storms[largest].holder_work_s:.1f} s and no more."
        ),
        _needs(costs),
    ]
    if largest > FULL_NODES:
        notes.append(
            f"More than {FULL_NODES} nodes are simulated by {TRACKED} of them in full; the others are a crowd that "
            "sends each of these what a node would and is as busy. Only writes at these are followed, and to these, so "
            "the slowest node of all may be somewhat later than said."
        )
    return notes


def _limit(writes_per_s: float, costs: Costs) -> str:
    """From how many nodes on a node's core is full at this rate."""
    nodes = 2
    while nodes < MOST_NODES and demand(Scenario(nodes, writes_per_s), costs).cpu < CORE:
        nodes += 1
    what = "Idle" if not writes_per_s else f"With {_rate(writes_per_s)} in the cluster"
    if nodes == MOST_NODES:
        return f"{what}, a node's core is enough beyond {MOST_NODES:,} nodes, more than a membership can have."
    needs = demand(Scenario(nodes, writes_per_s), costs)
    return (
        f"{what}, a node's core is full at {nodes:,} nodes, which is the limit before the network: each sends "
        f"{needs.sent_bytes_per_s / 1e6:,.1f} MB/s then."
    )


MOST_NODES: Final = 10_000


def _rate(writes_per_s: float) -> str:
    return "one write a second" if writes_per_s == 1 else f"{writes_per_s:,g} writes a second"


def _needs(costs: Costs) -> str:
    """What would have to change for 1,000 nodes."""
    at = Scenario(1_000, 100.0)
    now = demand(at, costs)
    once_records_s = at.writes_per_s * (costs.send_record_s + costs.receive_record_s)
    messages_s = (at.nodes - 1) / at.interval_s * (costs.send_message_s + costs.receive_message_s)
    return (
        f"Of the {now.cpu:.1f} cores that each of 1,000 nodes would need at 100 writes/s, {messages_s:.2f} are the "
        f"messages of a full mesh and nearly all else repetitions. If only the writer sent a record, or each node "
        f"passed it on to a few, records would take {once_records_s:.3f} cores instead of {now.cpu - messages_s:.1f}; "
        "comparing stores would find what such a push misses. Beyond that a node keeps at most 64 idle connections, so "
        "with more peers every push opens connections anew, and it remembers the envelope nonces of 1,024 peers and "
        "reads at most 1,000 members."
    )
