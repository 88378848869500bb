"""`nova-kms status` and `nova-kms nodes`: a cluster for people and, with --json, for programs."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TypeVar

import anyio
import click

from appliance.cli.options import ClusterOptions, Toolbox, cluster_options
from appliance.cli.survey import ClusterReport, NodeUnreadable, ask_for_nodes, parse_peer_view, survey
from appliance.cli.tables import show_peers, show_report
from appliance.client.discovery import select_nodes
from appliance.urls import parse_node_url
from kmscore.errors import ConfigError, Rejected

ResultT = TypeVar("ResultT")


@click.command(
    epilog="""\b
Examples:
  nova-kms status                       the devnet of this directory, else the public cluster
  nova-kms status --rpc-url https://rpc.example --json | jq '.nodes[] | select(.says.available | not)'"""
)
@cluster_options
@click.pass_context
def status(ctx: click.Context, /, *, toolbox: Toolbox, cluster: ClusterOptions) -> None:
    """Show a cluster: who is a node according to the chain, and whether each one serves.

    What a node says of itself is unsigned. IDENTITY "differs" when what answers at its URL does not name the keys that
    the chain lists, as after a restart. Exit code 1 when no node serves.
    """

    async def look() -> ClusterReport:
        async with toolbox.http(cluster.tunnels) as http, toolbox.connect(cluster.settings, cluster.timeout_s) as chain:
            return await survey(chain, http, cluster)

    report = _run(cluster.timeout_s, look)
    if cluster.as_json:
        click.echo(json.dumps(asdict(report) | {"serving": report.serving}))
    else:
        show_report(report)
    if report.serving == 0:
        ctx.exit(1)


@click.command(
    epilog="""\b
Examples:
  nova-kms nodes                        the view of the first listed node that answers
  nova-kms nodes https://node.example --json"""
)
@click.argument("url", required=False)
@cluster_options
def nodes(*, toolbox: Toolbox, cluster: ClusterOptions, url: str | None) -> None:
    """Show what one node knows about the others: its list of peers, and how each was when it last looked.

    URL names the node; without one, the first of the chain's list that answers is asked.
    """

    async def look() -> tuple[str, list[object]]:
        async with toolbox.http(cluster.tunnels) as http:
            if url is not None:
                return await ask_for_nodes(http, [_parse_url(url)])
            async with toolbox.connect(cluster.settings, cluster.timeout_s) as chain:
                members = await chain.registry.active_instances(cluster.settings.kms_app_id)
            found, _ = select_nodes(members, cluster.settings.kms_app_id, https_only=cluster.https_only)
            return await ask_for_nodes(http, [node.url for node in found])

    asked, operators = _run(cluster.timeout_s, look)
    if cluster.as_json:
        click.echo(json.dumps({"asked": asked, "operators": operators}))
    else:
        show_peers(asked, [parse_peer_view(operator) for operator in operators])


def _run(timeout_s: float, look: Callable[[], Awaitable[ResultT]]) -> ResultT:
    async def bounded() -> ResultT:
        with anyio.fail_after(timeout_s):
            return await look()

    try:
        return anyio.run(bounded)
    except TimeoutError as error:
        raise NodeUnreadable(f"there was no result within {timeout_s:g} seconds") from error


def _parse_url(text: str) -> str:
    try:
        return parse_node_url(text, https_only=False)
    except Rejected as error:
        raise ConfigError(f"URL is not accepted: {error}") from error
