"""A discrete-event model of replication as it is implemented: full mesh, every change passed on by everybody.

What a node does, and the model with it:

- Every `interval_s` ± 10 % it pushes to each peer what it has learned since that peer's last acknowledgement, its own
  writes and records of others alike, but for those that came from this very peer. A push that still runs is left to
  run.
- What is news to the receiver becomes a change of its own log and travels on with its next push. So a write is sent
  (n - 1)² times, once to every node as news and n - 2 times as a repetition, which is checked like news and then
  ignored.
- A peer with nothing to be sent gets an empty delta once a minute.
- Every minute a node compares digests with one peer in turn and exchanges what differs.
- Every minute it refreshes the membership and asks every peer's /status.
- A node computes on one core, first come, first served.

Larger clusters are simulated by a sample: `tracked` nodes in full, and the rest as a crowd that sends each of them what
a node of the cluster would and is as busy as a tracked node. Only writes at tracked nodes are followed then, and
whether they have arrived is asked of tracked nodes only.

Pure computing: no clock but its own, no randomness but the seed's.
"""

import heapq
import math
import random
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from bench.scale.costs import Costs
from bench.scale.scenario import IDLE_DELTA_S, RECORDS_PER_REQUEST, Outcome, Scenario

JITTER: Final = 0.1
NEXT_NONCE_S: Final = 20.0
# Requests of a comparison that finds differences: down to the leaf, the records, and back.
COMPARISON_REQUESTS: Final = 4
# Writes of one node that lie closer together than a third of an interval are followed as one.
GROUPS_PER_INTERVAL: Final = 3.0
FOLLOWED_PER_S: Final = 0.05


def simulate(scenario: Scenario, costs: Costs) -> Outcome:
    """Run the scenario to its end."""
    return _Simulation(scenario, costs).run()


class _Kind(IntEnum):
    WRITE = 0
    TICK = 1
    ARRIVAL = 2
    MERGED = 3
    ACKNOWLEDGED = 4
    NODE_TICK = 5
    COMPARISON = 6
    CROWD_TICK = 7
    CROWD_NODE_TICK = 8
    CROWD_PUSHED = 9


@dataclass(slots=True)
class _Node:
    """Sets of writes are integers, a bit for each group."""

    busy_until_s: float = 0.0
    known: int = 0
    settled: dict[int, int] = field(default_factory=dict)  # by peer: acknowledged by it, or come from it
    in_flight: set[int] = field(default_factory=set)
    exchanged_at_s: dict[int, float] = field(default_factory=dict)
    pushed_at_s: dict[int, float] = field(default_factory=dict)
    compared_with: int = 0
    digested: int = 0


_CROWD: Final = -1


class _Simulation:
    def __init__(self, scenario: Scenario, costs: Costs) -> None:
        self.of = scenario
        self.costs = costs
        self.rng = random.Random(scenario.seed)  # noqa: S311 - a model's dice
        self.count = min(scenario.tracked or scenario.nodes, scenario.nodes)
        self.crowd = scenario.nodes - self.count
        self.nodes = [_Node() for _ in range(self.count)]
        self.events: list[tuple[float, int, _Kind, int, int, int]] = []
        self.pushed_events = 0
        per_node = scenario.writes_per_s / scenario.nodes
        # How often a node begins a group of writes, and how many writes one group stands for. In a sample more are
        # followed than there are, each for a part of a write.
        least_rate = FOLLOWED_PER_S if self.crowd and per_node > 0 else 0.0
        self.group_rate = max(least_rate, min(per_node, GROUPS_PER_INTERVAL / scenario.interval_s))
        self.weight = per_node / self.group_rate if self.group_rate > 0 else 0.0
        self.crowd_writes_per_s = per_node * self.crowd
        self.written_at_s: list[float] = []
        self.missing: list[int] = []
        self.convergence_s: list[float] = []
        self.core_free_s = [0.0] * scenario.cores if scenario.cores else []
        self.now_s = 0.0
        self.work_s = 0.0
        self.sent_bytes = 0.0
        self.messages = 0.0
        self.records = 0.0

    # --- the clockwork ---

    def at(self, time_s: float, kind: _Kind, node: int = 0, other: int = 0, groups: int = 0) -> None:
        self.pushed_events += 1
        heapq.heappush(self.events, (time_s, self.pushed_events, kind, node, other, groups))

    def jittered(self, interval_s: float) -> float:
        return interval_s * self.rng.uniform(1 - JITTER, 1 + JITTER)

    def run(self) -> Outcome:
        of, rng = self.of, self.rng
        for i, node in enumerate(self.nodes):
            self.at(rng.uniform(0, of.interval_s), _Kind.TICK, i)
            self.at(rng.uniform(0, of.node_tick_s), _Kind.NODE_TICK, i)
            self.at(rng.uniform(0, of.anti_entropy_s), _Kind.COMPARISON, i)
            node.compared_with = i
            node.exchanged_at_s = {j: -rng.uniform(0, IDLE_DELTA_S) for j in self.peers(i)}
            if self.group_rate > 0:
                self.at(rng.expovariate(self.group_rate), _Kind.WRITE, i)
            # One event for each member of the crowd and each node it sends to.
            for _ in range(self.crowd):
                self.at(rng.uniform(0, self.crowd_interval_s()), _Kind.CROWD_TICK, i, groups=0)
        for _ in range(self.crowd):
            self.at(rng.uniform(0, of.node_tick_s), _Kind.CROWD_NODE_TICK)
        end_s = of.duration_s + of.drain_s
        while self.events and self.events[0][0] <= end_s:
            time_s, _, kind, i, j, groups = heapq.heappop(self.events)
            self.now_s = time_s
            self.handle(time_s, kind, i, j, groups)
        node_seconds = of.duration_s * self.count
        return Outcome(
            cpu=self.work_s / node_seconds,
            sent_bytes_per_s=self.sent_bytes / node_seconds,
            messages_per_s=self.messages / node_seconds,
            records_per_s=self.records / node_seconds,
            convergence_s=sorted(self.convergence_s),
            unconverged=sum(count > 0 for count in self.missing),
        )

    def peers(self, i: int) -> list[int]:
        """The other tracked nodes, and the crowd as one when there is one."""
        return [j for j in range(self.count) if j != i] + ([_CROWD] if self.crowd else [])

    def compute(self, i: int, now_s: float, work_s: float) -> float:
        """When the node is done with work that comes now."""
        node = self.nodes[i]
        start_s = max(now_s, node.busy_until_s)
        if self.core_free_s:
            start_s = max(start_s, heapq.heappop(self.core_free_s))
            heapq.heappush(self.core_free_s, start_s + work_s)
        node.busy_until_s = start_s + work_s
        if self.counting:
            self.work_s += work_s
        return node.busy_until_s

    @property
    def counting(self) -> bool:
        """Whether what happens now is part of the figures: not while the rest is only waited for."""
        return self.now_s <= self.of.duration_s

    def handle(self, now_s: float, kind: _Kind, i: int, j: int, groups: int) -> None:
        match kind:
            case _Kind.WRITE:
                self.write(now_s, i)
            case _Kind.TICK:
                self.tick(now_s, i)
            case _Kind.ARRIVAL:
                self.arrive(now_s, i, j, groups)
            case _Kind.MERGED:
                self.merge(now_s, i, j, groups)
            case _Kind.ACKNOWLEDGED:
                node = self.nodes[i]
                node.settled[j] = node.settled.get(j, 0) | groups
                node.in_flight.discard(j)
            case _Kind.NODE_TICK:
                self.node_tick(now_s, i)
            case _Kind.COMPARISON:
                self.compare(now_s, i)
            case _Kind.CROWD_TICK:
                self.hear_from_crowd(now_s, i, groups)
            case _Kind.CROWD_NODE_TICK:
                for asked in range(self.count):
                    self.compute(asked, now_s, self.costs.answer_s)
                self.at(now_s + self.jittered(self.of.node_tick_s), _Kind.CROWD_NODE_TICK)
            case _Kind.CROWD_PUSHED:
                self.nodes[i].in_flight.discard(_CROWD)

    # --- writes, and how they travel ---

    def write(self, now_s: float, i: int) -> None:
        if now_s > self.of.duration_s:
            return
        self.nodes[i].known |= 1 << len(self.written_at_s)
        self.written_at_s.append(now_s)
        self.missing.append(self.count - 1)
        if self.count == 1:
            self.convergence_s.append(0.0)
        self.at(now_s + self.rng.expovariate(self.group_rate), _Kind.WRITE, i)

    def tick(self, now_s: float, i: int) -> None:
        """Start a push to every peer that none is under way to."""
        order = self.peers(i)
        self.rng.shuffle(order)
        for j in order:
            if j == _CROWD:
                self.push_to_crowd(now_s, i)
            elif j not in self.nodes[i].in_flight:
                self.push(now_s, i, j)
        self.at(now_s + self.jittered(self.of.interval_s), _Kind.TICK, i)

    def push(self, now_s: float, i: int, j: int) -> None:
        node = self.nodes[i]
        groups = node.known & ~node.settled.get(j, 0)
        records = groups.bit_count() * self.weight + self.from_crowd(node, j, now_s)
        if not records and now_s - node.exchanged_at_s[j] < IDLE_DELTA_S:
            return
        work_s = self.send_s(records)
        # A nonce that came with an answer is good for a while; later one has to be asked for.
        if now_s - node.exchanged_at_s[j] > NEXT_NONCE_S:
            work_s += self.costs.ask_s
        node.pushed_at_s[j] = now_s
        node.in_flight.add(j)
        node.exchanged_at_s[j] = now_s
        done_s = self.compute(i, now_s, work_s)
        self.count_message(records)
        self.at(done_s + self.of.latency_s, _Kind.ARRIVAL, j, i, groups)

    def from_crowd(self, node: _Node, j: int, now_s: float) -> float:
        """Records written in the crowd that the node has learned since it last sent to that peer."""
        return self.crowd_writes_per_s * (now_s - node.pushed_at_s.get(j, 0.0))

    def arrive(self, now_s: float, i: int, j: int, groups: int) -> None:
        news = (groups & ~self.nodes[i].known).bit_count() * self.weight
        known = groups.bit_count() * self.weight - news
        # Everything of the crowd's is told by the crowd first and is a repetition here.
        known += self.from_crowd(self.nodes[j], i, now_s) if self.crowd else 0.0
        done_s = self.compute(i, now_s, self.receive_s(news, known))
        self.count_answer()
        self.at(done_s, _Kind.MERGED, i, j, groups)

    def merge(self, now_s: float, i: int, j: int, groups: int) -> None:
        node = self.nodes[i]
        news = groups & ~node.known
        self.learn(now_s, i, news)
        # What a peer sent first is not sent back to it.
        node.settled[j] = node.settled.get(j, 0) | news
        self.at(now_s + self.of.latency_s, _Kind.ACKNOWLEDGED, j, i, groups)

    def learn(self, now_s: float, i: int, news: int) -> None:
        self.nodes[i].known |= news
        while news:
            group = (news & -news).bit_length() - 1
            news &= news - 1
            self.missing[group] -= 1
            if self.missing[group] == 0:
                self.convergence_s.append(now_s - self.written_at_s[group])

    def requests(self, records: float) -> int:
        return max(1, math.ceil(records / RECORDS_PER_REQUEST))

    def send_s(self, records: float) -> float:
        return self.requests(records) * self.costs.send_message_s + records * self.costs.send_record_s

    def receive_s(self, news: float, known: float) -> float:
        return (
            self.requests(news + known) * self.costs.receive_message_s
            + news * self.costs.receive_record_s
            + known * self.costs.repeat_record_s
        )

    def count_answer(self) -> None:
        if self.counting:
            self.sent_bytes += self.costs.answer_bytes

    def count_message(self, records: float, times: float = 1) -> None:
        if not self.counting:
            return
        self.messages += times * self.requests(records)
        self.records += times * records
        self.sent_bytes += times * (
            self.requests(records) * self.costs.message_bytes + records * self.costs.record_bytes
        )

    # --- the crowd ---

    def crowd_interval_s(self) -> float:
        """How often a member of the crowd has something to say: at each push, or once a minute."""
        return self.of.interval_s if self.of.writes_per_s > 0 else IDLE_DELTA_S

    def push_to_crowd(self, now_s: float, i: int) -> None:
        """All pushes to the crowd as one stretch of work."""
        node = self.nodes[i]
        if _CROWD in node.in_flight:
            return
        if self.of.writes_per_s > 0:
            records = self.of.writes_per_s * (now_s - node.pushed_at_s.get(_CROWD, now_s - self.of.interval_s))
        elif now_s - node.exchanged_at_s[_CROWD] >= IDLE_DELTA_S:
            records = 0.0
        else:
            return
        node.pushed_at_s[_CROWD] = node.exchanged_at_s[_CROWD] = now_s
        node.in_flight.add(_CROWD)
        done_s = self.compute(i, now_s, self.crowd * self.send_s(records))
        self.count_message(records, self.crowd)
        # The last of them is answered when a node as busy as this one has come to it.
        self.at(done_s + self.of.latency_s + max(0.0, node.busy_until_s - now_s), _Kind.CROWD_PUSHED, i)

    def hear_from_crowd(self, now_s: float, i: int, sent_ms: int) -> None:
        """One member's push to this node; `sent_ms` is when its last one was."""
        interval_s = now_s - sent_ms / 1000 if sent_ms else self.crowd_interval_s()
        records = self.of.writes_per_s * interval_s
        news = records / self.of.nodes  # its own writes; the rest others have told before, or will
        done_s = self.compute(i, now_s, self.receive_s(news, records - news))
        self.count_answer()
        # Its next push waits for this one, and for its own work, of which it has as much as a tracked node.
        other = self.nodes[self.rng.randrange(self.count)]
        next_s = max(now_s + self.jittered(self.crowd_interval_s()), done_s, other.busy_until_s)
        self.at(next_s, _Kind.CROWD_TICK, i, groups=round(now_s * 1000))

    # --- once a minute ---

    def node_tick(self, now_s: float, i: int) -> None:
        """Read the membership and ask every peer's status."""
        self.compute(i, now_s, self.of.nodes * self.costs.member_s + (self.of.nodes - 1) * self.costs.ask_s)
        for j in range(self.count):
            if j != i:
                self.compute(j, now_s, self.costs.answer_s)
        self.at(now_s + self.jittered(self.of.node_tick_s), _Kind.NODE_TICK, i)

    def compare(self, now_s: float, i: int) -> None:
        """Digests with the next peer in turn; what differs is exchanged."""
        self.at(now_s + self.jittered(self.of.anti_entropy_s), _Kind.COMPARISON, i)
        if self.of.nodes == 1:
            return
        node = self.nodes[i]
        node.compared_with = (node.compared_with + 1) % self.of.nodes
        if node.compared_with == i:
            node.compared_with = (i + 1) % self.of.nodes
        j = node.compared_with
        fresh = (
            node.known.bit_count() - node.digested
        ) * self.weight + self.crowd_writes_per_s * self.of.anti_entropy_s
        node.digested = node.known.bit_count()
        digests_s = fresh * self.costs.digest_record_s
        ask_s = self.costs.send_message_s + self.costs.ask_s
        if j >= self.count:
            # A member of the crowd; in turn each of them compares with somebody too, and as often with this node.
            self.compute(i, now_s, ask_s + digests_s + self.costs.receive_message_s + self.costs.answer_s)
            self.count_message(0, 2)
            return
        other = self.nodes[j]
        theirs, ours = other.known & ~node.known, node.known & ~other.known
        requests = COMPARISON_REQUESTS if theirs | ours else 1
        gained, given = theirs.bit_count() * self.weight, ours.bit_count() * self.weight
        self.compute(
            i,
            now_s,
            digests_s
            + self.costs.ask_s
            + requests * self.costs.send_message_s
            + gained * self.costs.receive_record_s
            + given * self.costs.send_record_s,
        )
        done_s = self.compute(
            j,
            now_s,
            self.costs.answer_s
            + requests * self.costs.receive_message_s
            + given * self.costs.receive_record_s
            + gained * self.costs.send_record_s,
        )
        self.count_message(gained + given)
        self.learn(done_s, i, theirs)
        self.learn(done_s, j, ours)
