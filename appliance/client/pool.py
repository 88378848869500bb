"""Which node to ask next.

Calls stay with the node that answered last, because replication between nodes takes seconds and an app should read what
it wrote. Every client starts in an order of its own, so that many clients spread over the nodes.
"""

import random
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from appliance.client.discovery import NodeFacts
from appliance.client.errors import NodeFailure
from appliance.client.session import NodeSession
from appliance.clock import Clock

# About as long as a node takes to restart; longer would keep load off it that it can bear again.
COOL_DOWN_MS = 10_000
# A node is left alone at least this long once it asked for patience, so that "Retry-After: 0" is no invitation to
# hammer it, and at most this long, so that nobody can silence a node for good with one forged answer.
MIN_REST_S = 1.0
MAX_REST_S = 60.0


@dataclass(slots=True)
class _Entry:
    session: NodeSession
    order: float
    cool_until_ms: int = 0
    rest_until_ms: int = 0
    failure: NodeFailure | None = None


class NodePool:
    """The sessions with all known nodes. A node that failed is asked last for a while; one that asked for patience, not
    at all.
    """

    def __init__(self, open_session: Callable[[NodeFacts], NodeSession], *, rng: random.Random, clock: Clock) -> None:
        self._open_session = open_session
        self._rng = rng
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._preferred: str | None = None

    def update(self, nodes: Iterable[NodeFacts]) -> None:
        """Keep the sessions with `nodes` and no others; a node whose URL or key changed starts anew."""
        entries: dict[str, _Entry] = {}
        for node in nodes:
            entry = self._entries.get(node.wallet)
            if entry is None or entry.session.node != node:
                entry = _Entry(self._open_session(node), self._rng.random())
            entries[node.wallet] = entry
        self._entries = entries

    def pick(self, excluded: Collection[str]) -> NodeSession | None:
        """The best node whose wallet is not `excluded`: the preferred one, then those in good standing, then the
        others.
        """
        now_ms = self._clock.monotonic_ms()
        candidates = [
            (entry.cool_until_ms > now_ms, wallet != self._preferred, entry.order, wallet)
            for wallet, entry in self._entries.items()
            if wallet not in excluded and entry.rest_until_ms <= now_ms
        ]
        return self._entries[min(candidates)[-1]].session if candidates else None

    def succeeded(self, wallet: str) -> None:
        """Prefer this node from now on."""
        self._preferred = wallet
        entry = self._entries.get(wallet)
        if entry is not None:
            entry.cool_until_ms = entry.rest_until_ms = 0
            entry.failure = None

    def failed(self, failure: NodeFailure) -> None:
        """Ask this node last for a while, or leave it alone for as long as it asked for."""
        entry = self._entries.get(failure.wallet)
        if entry is None:
            return
        now_ms = self._clock.monotonic_ms()
        entry.failure = failure
        entry.cool_until_ms = now_ms + COOL_DOWN_MS
        if failure.retry_after_s is not None:
            entry.rest_until_ms = now_ms + int(1000 * min(max(failure.retry_after_s, MIN_REST_S), MAX_REST_S))

    def resting(self) -> Mapping[str, NodeFailure]:
        """The nodes that asked for patience and are still left alone, by wallet, with what they said."""
        now_ms = self._clock.monotonic_ms()
        return {
            wallet: entry.failure
            for wallet, entry in self._entries.items()
            if entry.rest_until_ms > now_ms and entry.failure is not None
        }

    def rest_ends_in_s(self) -> float | None:
        """Seconds until the first resting node may be asked again; None when none rests."""
        now_ms = self._clock.monotonic_ms()
        ends = [entry.rest_until_ms for entry in self._entries.values() if entry.rest_until_ms > now_ms]
        return (min(ends) - now_ms) / 1000 if ends else None
