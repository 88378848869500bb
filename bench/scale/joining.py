"""The model of a cluster that starts at once: one node holds the master secret, all others come for it.

As a node does (node §2): it asks the other members in random order, one after the other. One that has no confirmed
secret refuses before it looks at the request; from one that has, the secret and then the whole snapshot are taken. A
node that found nobody tries again at its next tick.
"""

import heapq
import random
from dataclasses import dataclass
from typing import Final

from bench.scale.costs import Costs
from bench.scale.model import JITTER
from bench.scale.scenario import LATENCY_S

REQUEST_DEADLINE_S: Final = 20.0
PAGE_RECORDS: Final = 996  # of 1 KiB in a page of 1 MiB
START_WITHIN_S: Final = 1.0
MAX_TICKS: Final = 30
JOINED: Final = -1


@dataclass(frozen=True, slots=True)
class Storm:
    """How a start went: seconds until half and until all were in, requests per node, what the first holder did."""

    half_s: float
    all_s: float
    requests_per_node: float
    holder_work_s: float
    joined: int


def simulate_joining(nodes: int, records: int, costs: Costs, *, node_tick_s: float = 60.0, seed: int = 1) -> Storm:
    """All but node 0, which has the secret and `records` records of 1 KiB, start within a second."""
    return _Joining(nodes, records, costs, node_tick_s, seed).run()


class _Joining:
    def __init__(self, nodes: int, records: int, costs: Costs, node_tick_s: float, seed: int) -> None:
        self.nodes = nodes
        self.costs = costs
        self.node_tick_s = node_tick_s
        self.rng = random.Random(seed)  # noqa: S311 - a model's dice
        self.busy_until_s = [0.0] * nodes
        self.has_all = [number == 0 for number in range(nodes)]
        self.joined_s: list[float] = []
        self.requests = 0
        self.holder_work_s = 0.0
        pages = max(1, -(-records // PAGE_RECORDS))
        self.give_s = (
            costs.answer_s + (1 + pages) * costs.receive_message_s + 2 * costs.agree_s + records * costs.send_record_s
        )
        self.take_s = pages * costs.send_message_s + costs.agree_s + records * costs.receive_record_s

    def compute(self, node: int, now_s: float, work_s: float) -> float:
        self.busy_until_s[node] = max(now_s, self.busy_until_s[node]) + work_s
        if node == 0:
            self.holder_work_s += work_s
        return self.busy_until_s[node]

    def order_of(self, node: int) -> list[int]:
        others = [other for other in range(self.nodes) if other != node]
        self.rng.shuffle(others)
        return others

    def run(self) -> Storm:
        costs = self.costs
        # time, tie-break, node, ticks so far (JOINED: it has everything), the members it still asks (None: a tick
        # begins)
        events: list[tuple[float, int, int, int, list[int] | None]] = [
            (self.rng.uniform(0, START_WITHIN_S), number, number, 0, None) for number in range(1, self.nodes)
        ]
        heapq.heapify(events)
        made = self.nodes
        while events:
            now_s, _, node, ticks, left = heapq.heappop(events)
            made += 1
            if ticks == JOINED:
                self.has_all[node] = True
                self.joined_s.append(now_s)
                continue
            if left is None:
                done_s = self.compute(node, now_s, self.nodes * costs.member_s)
                heapq.heappush(events, (done_s, made, node, ticks, self.order_of(node)))
                continue
            if not left:
                if ticks + 1 < MAX_TICKS:
                    pause_s = self.node_tick_s * self.rng.uniform(1 - JITTER, 1 + JITTER)
                    heapq.heappush(events, (now_s + pause_s, made, node, ticks + 1, None))
                continue
            peer = left.pop()
            self.requests += 1
            # Sealing to somebody for the first time takes a key agreement, whatever the answer.
            asked_s = self.compute(node, now_s, costs.ask_s + costs.send_message_s + 2 * costs.agree_s) + LATENCY_S
            if not self.has_all[peer]:
                # A nonce, and a refusal that costs about as much.
                refused_s = self.compute(peer, asked_s, 2 * costs.answer_s) + LATENCY_S
                heapq.heappush(events, (refused_s, made, node, ticks, left))
                continue
            given_s = self.compute(peer, asked_s, self.give_s)
            if given_s - asked_s > REQUEST_DEADLINE_S + self.give_s:
                heapq.heappush(events, (asked_s + REQUEST_DEADLINE_S, made, node, ticks, left))
                continue
            heapq.heappush(events, (self.compute(node, given_s, self.take_s), made, node, JOINED, None))
        count = len(self.joined_s)
        return Storm(
            half_s=self.joined_s[count // 2] if count else float("inf"),
            all_s=self.joined_s[-1] if count == self.nodes - 1 else float("inf"),
            requests_per_node=self.requests / max(1, self.nodes - 1),
            holder_work_s=self.holder_work_s,
            joined=count,
        )
