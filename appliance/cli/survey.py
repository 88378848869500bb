"""Looking at a cluster from outside: what the chain says of its nodes, and what each says of itself.

The two stay apart in every record: the chain decides who is a node; a node's own word is unsigned and only shown.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import anyio
import httpx

from appliance.chain.types import MemberFacts, VersionStatus
from appliance.cli.options import Chain, ClusterOptions
from appliance.client.discovery import LeftOut, NodeFacts, select_nodes
from appliance.http import AnswerTooLarge, read_bounded
from kmscore.errors import Rejected, Unavailable
from kmscore.json import parse_json_object

PROBE_TIMEOUT_S = 3.0
MAX_ANSWER_BYTES = 1 << 20
MAX_SHOWN_CHARS = 200
HASH_UNSET = bytes(32)

PlainT = TypeVar("PlainT", bool, int)


class NodeUnreadable(Unavailable):
    """A public endpoint gave nothing that can be shown; `str(error)` says why."""


@dataclass(frozen=True, slots=True)
class NodeClaims:
    """What a node's /status says; None where it says nothing that can be understood.

    `identity_matches`: whether the keys it names are the registered ones. They differ after a restart until the
    registry lists the new ones.
    """

    available: bool | None
    reason: str | None
    master_secret: str | None
    keys: int | None
    identity_matches: bool | None


@dataclass(frozen=True, slots=True)
class NodeReport:
    """One eligible instance as the chain has it, and what it `says`, or the `problem` of asking it."""

    instance_id: int
    wallet: str
    url: str
    version: str
    answered_in_ms: int | None
    says: NodeClaims | None
    problem: str | None

    @property
    def serves(self) -> bool:
        return self.says is not None and self.says.available is True


@dataclass(frozen=True, slots=True)
class ClusterReport:
    """A whole cluster; `master_secret_hash` 64 hex digits, None when nobody has claimed one."""

    kms_app_id: int
    chain_id: int
    nova_app_registry: str
    kms_registry: str
    master_secret_hash: str | None
    nodes: tuple[NodeReport, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def serving(self) -> int:
        """How many nodes say that they serve."""
        return sum(node.serves for node in self.nodes)


@dataclass(frozen=True, slots=True)
class PeerView:
    """One node as another one describes it; every text printable, empty where there is none."""

    instance_id: str
    url: str
    wallet: str
    version_id: str
    status: str
    reached: bool | None
    http_code: int | None
    probe_ms: int | None
    checked_at_ms: int | None


async def survey(chain: Chain, http: httpx.AsyncClient, cluster: ClusterOptions) -> ClusterReport:
    """Read the chain, then every eligible node's /status at once. Raises `ChainError` when the chain cannot be read."""
    settings = cluster.settings
    members = await chain.registry.active_instances(settings.kms_app_id)
    secret_hash = await chain.master_secret_hash()
    eligible, left_out = select_nodes(members, settings.kms_app_id, https_only=cluster.https_only)
    facts = {member.instance.wallet: member for member in members}
    reports: dict[str, NodeReport] = {}

    async def look_at(node: NodeFacts) -> None:
        reports[node.wallet] = await _report_on(http, node, facts[node.wallet])

    async with anyio.create_task_group() as group:
        for node in eligible:
            group.start_soon(look_at, node)
    return ClusterReport(
        kms_app_id=settings.kms_app_id,
        chain_id=settings.chain_id,
        nova_app_registry=settings.nova_app_registry_address,
        kms_registry=settings.kms_registry_address,
        master_secret_hash=None if secret_hash == HASH_UNSET else secret_hash.hex(),
        nodes=tuple(reports[node.wallet] for node in eligible),
        left_out=left_out,
    )


async def ask_for_nodes(http: httpx.AsyncClient, urls: Sequence[str]) -> tuple[str, list[object]]:
    """The URL of the first node that answers /nodes, and the list it gives. Raises `NodeUnreadable` when none does."""
    problems = []
    for url in urls:
        try:
            operators = (await _fetch_object(http, f"{url}/nodes")).get("operators")
        except NodeUnreadable as error:
            problems.append(f"{url}: {error}")
            continue
        if isinstance(operators, list):
            return url, operators
        problems.append(f"{url}: its answer is no list of nodes")
    raise NodeUnreadable("; ".join(problems) or "the chain lists no node that can be asked")


def parse_claims(body: Mapping[str, object], node: NodeFacts) -> NodeClaims:
    """What a /status answer says (protocol §6), whatever its shape."""
    said = _members(body.get("node"))
    wallet, tee_pubkey = said.get("tee_wallet"), said.get("tee_pubkey")
    matches = None
    if isinstance(wallet, str) and isinstance(tee_pubkey, str):
        key = tee_pubkey.lower().removeprefix("0x")
        matches = wallet.lower() == node.wallet and key == node.tee_pubkey.der.hex()
    return NodeClaims(
        available=_plain(said.get("service_available"), bool),
        reason=printable(said.get("service_unavailable_reason")) or None,
        master_secret=printable(_members(said.get("master_secret")).get("state")) or None,
        keys=_plain(_members(body.get("data_store")).get("total_keys"), int),
        identity_matches=matches,
    )


def parse_peer_view(operator: object) -> PeerView:
    """One entry of a /nodes answer (protocol §6), whatever its shape."""
    instance, connection = (_members(_members(operator).get(name)) for name in ("instance", "connection"))
    return PeerView(
        instance_id=printable(instance.get("instance_id")),
        url=printable(instance.get("instance_url")),
        wallet=printable(instance.get("tee_wallet")),
        version_id=printable(instance.get("version_id")),
        status=printable(_members(instance.get("instance_status")).get("name")),
        reached=_plain(connection.get("status_endpoint_reachable"), bool),
        http_code=_plain(connection.get("status_endpoint_http_code"), int),
        probe_ms=_plain(connection.get("status_probe_ms"), int),
        checked_at_ms=_plain(connection.get("status_checked_at_ms"), int),
    )


def printable(value: object) -> str:
    """Outside text or a number for a terminal: cut, and without what moves a cursor; anything else is empty."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if value.bit_length() <= 256 else ""
    if not isinstance(value, str):
        return ""
    return "".join(character if character.isprintable() else "?" for character in value[:MAX_SHOWN_CHARS])


async def _report_on(http: httpx.AsyncClient, node: NodeFacts, facts: MemberFacts) -> NodeReport:
    started = time.perf_counter()
    claims, problem, elapsed_ms = None, None, None
    try:
        claims = parse_claims(await _fetch_object(http, f"{node.url}/status"), node)
        elapsed_ms = round((time.perf_counter() - started) * 1000)
    except NodeUnreadable as error:
        problem = str(error)
    return NodeReport(facts.instance.instance_id, node.wallet, node.url, _version(facts), elapsed_ms, claims, problem)


def _version(facts: MemberFacts) -> str:
    if facts.version is None:
        return "unknown"
    name = printable(facts.version.name) or str(facts.version.version_id)
    return name if facts.version.status == VersionStatus.ENROLLED else f"{name} (deprecated)"


async def _fetch_object(http: httpx.AsyncClient, url: str) -> dict[str, object]:
    try:
        with anyio.fail_after(PROBE_TIMEOUT_S):
            async with http.stream("GET", url) as response:
                body = await read_bounded(response, MAX_ANSWER_BYTES)
    except TimeoutError as error:
        raise NodeUnreadable("no answer in time") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise NodeUnreadable("no connection") from error
    except AnswerTooLarge as error:
        raise NodeUnreadable("the answer is too large") from error
    if response.status_code != httpx.codes.OK:
        raise NodeUnreadable(f"answered {response.status_code}")
    try:
        return parse_json_object(body)
    except Rejected as error:
        raise NodeUnreadable("the answer is not JSON") from error


def _members(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _plain(value: object, kind: type[PlainT]) -> PlainT | None:
    # By exact type: True is an int to isinstance.
    return value if type(value) is kind else None
