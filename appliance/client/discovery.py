"""Which nodes there are, and the keys they must prove to hold.

The registry on the chain is the only source: neither a node's `/status` nor its `/nodes` is ever asked, because whoever
answers those would choose whom the app trusts.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import anyio

from appliance.auth.eligibility import authorize_peer
from appliance.chain.types import MemberFacts, MembershipReads
from appliance.clock import Clock, SystemClock
from appliance.log import short
from appliance.urls import parse_node_url
from kmscore.envelope import TeePublicKey
from kmscore.errors import Rejected

logger = logging.getLogger(__name__)

DEFAULT_TTL_S = 180.0


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One node as the chain vouches for it: `url` without a trailing slash, `wallet` canonical."""

    url: str
    wallet: str
    tee_pubkey: TeePublicKey


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An active instance that may not be asked, and the check it failed."""

    wallet: str
    url: str
    reason: str


class NodeDirectory(Protocol):
    """Where the SDK learns of nodes."""

    async def nodes(self, *, max_age_s: float | None = None) -> Sequence[NodeFacts]:
        """The nodes that may be asked, in any order; facts no older than `max_age_s`, None leaves the age to the
        directory.

        Raises `Unavailable` when they cannot be learned.
        """
        ...


class StaticDirectory:
    """A fixed set of nodes whose wallets and keys the caller vouches for."""

    def __init__(self, nodes: Iterable[NodeFacts]) -> None:
        self._nodes = tuple(nodes)

    async def nodes(self, *, max_age_s: float | None = None) -> Sequence[NodeFacts]:  # noqa: ARG002 - facts do not age
        return self._nodes


class RegistryDirectory:
    """The eligible instances of the KMS app, read from the chain and kept for at most `ttl_s` seconds.

    A failed read is never covered up with facts older than that. Concurrent callers share one read.
    """

    def __init__(
        self,
        registry: MembershipReads,
        kms_app_id: int,
        *,
        https_only: bool = True,
        ttl_s: float = DEFAULT_TTL_S,
        clock: Clock | None = None,
    ) -> None:
        self._registry = registry
        self._kms_app_id = kms_app_id
        self._https_only = https_only
        self._ttl_s = ttl_s
        self._clock = clock or SystemClock()
        self._reading = anyio.Lock()
        self._nodes: tuple[NodeFacts, ...] = ()
        self._read_at_ms: int | None = None

    async def nodes(self, *, max_age_s: float | None = None) -> Sequence[NodeFacts]:
        max_age_ms = 1000 * min(self._ttl_s, self._ttl_s if max_age_s is None else max_age_s)
        if self._age_ms() <= max_age_ms:
            return self._nodes
        async with self._reading:
            if self._age_ms() > max_age_ms:
                # Age counts from before the read: what we then know was true no later than that.
                asked_at_ms = self._clock.monotonic_ms()
                members = await self._registry.active_instances(self._kms_app_id)
                self._nodes, left_out = select_nodes(members, self._kms_app_id, https_only=self._https_only)
                self._read_at_ms = asked_at_ms
                for instance in left_out:
                    logger.info(
                        "instance left out", extra={"wallet": short(instance.wallet), "reason": instance.reason}
                    )
            return self._nodes

    def _age_ms(self) -> float:
        return float("inf") if self._read_at_ms is None else self._clock.monotonic_ms() - self._read_at_ms


def select_nodes(
    members: Iterable[MemberFacts], kms_app_id: int, *, https_only: bool
) -> tuple[tuple[NodeFacts, ...], tuple[LeftOut, ...]]:
    """Split what the registry lists into nodes that may be asked and instances that may not (chain §3)."""
    nodes: list[NodeFacts] = []
    left_out: list[LeftOut] = []
    for member in sorted(members, key=lambda member: member.instance.instance_id):
        instance = member.instance
        try:
            authorized = authorize_peer(instance.wallet, instance, member.app, member.version, kms_app_id=kms_app_id)
            url = parse_node_url(instance.instance_url, https_only=https_only)
        except Rejected as error:
            left_out.append(LeftOut(instance.wallet, instance.instance_url, str(error)))
        else:
            nodes.append(NodeFacts(url, authorized.wallet, authorized.tee_pubkey))
    return tuple(nodes), tuple(left_out)
