"""Clusters as tables for people. Only prints what `survey` has made printable."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from appliance.cli.survey import ClusterReport, NodeReport, PeerView, printable

# Wide enough for wallets and URLs when the output goes to a file or a pipe, where nothing tells a width.
PIPE_WIDTH = 180
# The last millisecond that `datetime` can show.
MAX_TIME_MS = 253_402_300_799_999

_IDENTITY = {True: "matches", False: "differs", None: ""}
_REACHED = {True: "yes", False: "no", None: ""}


def show_report(report: ClusterReport) -> None:
    """The cluster's facts, its nodes, and the instances that are left out with the reason."""
    secret_hash = f"0x{report.master_secret_hash}" if report.master_secret_hash else "not set: no node has claimed one"
    facts = [
        ("KMS app", f"{report.kms_app_id} on chain {report.chain_id}"),
        ("NovaAppRegistry", report.nova_app_registry),
        ("KMSRegistry", report.kms_registry),
        ("master secret hash", secret_hash),
        ("serving", f"{report.serving} of {len(report.nodes)} nodes"),
    ]
    console = _console()
    console.print(_table(None, facts))
    if report.nodes:
        header = ("ID", "URL", "WALLET", "VERSION", "STATE", "SECRET", "KEYS", "IDENTITY", "ANSWER")
        console.print(_table(header, [_node_row(node) for node in report.nodes]))
    if report.left_out:
        rows = [(instance.wallet, printable(instance.url), instance.reason) for instance in report.left_out]
        console.print(_table(("LEFT OUT", "URL", "WHY"), rows))


def show_peers(asked: str, peers: Sequence[PeerView]) -> None:
    """What the node at `asked` knows about the others."""
    header = ("ID", "URL", "WALLET", "VERSION", "STATUS", "REACHED", "HTTP", "ANSWER", "LOOKED AT")
    rows = [
        (
            peer.instance_id,
            peer.url,
            peer.wallet,
            peer.version_id,
            peer.status,
            _REACHED[peer.reached],
            _number(peer.http_code),
            _milliseconds(peer.probe_ms),
            _time(peer.checked_at_ms),
        )
        for peer in peers
    ]
    console = _console()
    console.print(Text(f"{asked} knows {len(rows)} nodes"))
    console.print(_table(header, rows))


def _node_row(node: NodeReport) -> tuple[str, ...]:
    fixed = (str(node.instance_id), node.url, node.wallet, node.version, _state(node))
    if node.says is None:
        return (*fixed, "", "", "", "")
    return (
        *fixed,
        node.says.master_secret or "",
        _number(node.says.keys),
        _IDENTITY[node.says.identity_matches],
        _milliseconds(node.answered_in_ms),
    )


def _state(node: NodeReport) -> str:
    if node.says is None:
        return f"unreachable: {node.problem}"
    if node.serves:
        return "serves"
    return f"not ready: {node.says.reason}" if node.says.reason else "not ready"


def _table(header: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> Table:
    table = Table(*(header or ()), show_header=header is not None, box=box.SIMPLE_HEAD if header else None)
    for row in rows:
        # Text and not str: what a node says must not be read as markup.
        table.add_row(*(Text(cell) for cell in row))
    return table


def _console() -> Console:
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _milliseconds(value: int | None) -> str:
    return "" if value is None else f"{value} ms"


def _time(unix_ms: int | None) -> str:
    if unix_ms is None or not 0 <= unix_ms <= MAX_TIME_MS:
        return ""
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
