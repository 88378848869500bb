"""`nova-kms devnet`: a whole cluster on this machine, with a demonstration."""

import os
import signal
from pathlib import Path

import anyio
import click
from rich.console import Console
from rich.table import Table

from appliance.cli.errors import first_error
from appliance.devnet.cluster import Devnet
from appliance.devnet.demo import Demonstration, DemoRow
from appliance.devnet.profile import PROFILE_FILE
from appliance.devnet.progress import Progress
from appliance.http import new_http_client
from appliance.tee.local import LocalTee


@click.command()
@click.option("--nodes", default=3, show_default=True, type=click.IntRange(1, 16), help="How many nodes to start.")
@click.option("--once", is_flag=True, help="Stop after the demonstration; exit 0 when it succeeded, 1 otherwise.")
@click.option(
    "--dir",
    "directory",
    default=".devnet",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the profile, the example app's keys and the logs go.",
)
def devnet(nodes: int, once: bool, directory: Path) -> None:
    """Run a chain, the registries, nodes and an example app on this machine.

    Derives the same key through every node, puts a value on one and reads it on the others, deletes it, and shows what
    happened. Then the cluster stays up until Ctrl-C, which stops everything that was started.

    \b
    While it runs, from another terminal in the same directory:
      nova-kms status
      nova-kms nodes
      nova-kms app derive disk
      nova-kms app put greeting hello
      nova-kms app get greeting
    """
    console = Console(highlight=False)
    try:
        anyio.run(_run, console, nodes, once, directory)
    except ExceptionGroup as group:
        raise first_error(group) from group


async def _run(console: Console, nodes: int, once: bool, directory: Path) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(_cancel_on_signal, group.cancel_scope)
        async with (
            Devnet(directory, node_count=nodes, progress=Progress(console)) as cluster,
            new_http_client() as http,
        ):
            keys = cluster.app_keys
            identity = LocalTee(keys.wallet_key(), keys.agreement_key(), os.urandom)
            demonstration = Demonstration(cluster, identity, http)
            with Progress(console).step("Demonstrating"):
                await demonstration.run()
            console.print(_table(demonstration.rows))
            if not once:
                console.print(_addresses(cluster, directory))
                await anyio.sleep_forever()
        group.cancel_scope.cancel()


async def _cancel_on_signal(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()
            return


def _table(rows: list[DemoRow]) -> Table:
    table = Table("What", "Through", "Result", "Time", title="What the example app did")
    table.columns[3].justify = "right"
    for row in rows:
        table.add_row(row.action, row.node, row.result, f"{row.duration_ms:.0f} ms" if row.duration_ms else "")
    return table


def _addresses(cluster: Devnet, directory: Path) -> Table:
    profile = cluster.profile
    table = Table("Part", "Where", title="Running until Ctrl-C")
    table.add_row("chain", profile.rpc_url)
    table.add_row("app registry", profile.nova_app_registry)
    table.add_row("KMS registry", profile.kms_registry)
    for node in cluster.nodes:
        table.add_row(node.process.name, node.process.url)
    table.add_row("profile", str(directory / PROFILE_FILE))
    return table
