"""`nova-kms devnet`: a whole cluster on this machine, with a demonstration."""

import os
from pathlib import Path

import anyio
import click
from rich.console import Console
from rich.table import Table

from appliance.cli.emulator import obtain_qemu, qemu_option
from appliance.cli.errors import first_error
from appliance.cli.signals import stopped_by_signals
from appliance.devnet.cluster import ATTEST_ROOT_FILE, Devnet, ImageToRun
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
@click.option(
    "--eif",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Also run one node from this enclave image, in the emulator; see below.",
)
@click.option("--unregistered", is_flag=True, help="Leave the image's node for `nova-kms provision` to register.")
@qemu_option
def devnet(nodes: int, once: bool, directory: Path, eif: Path | None, unregistered: bool, qemu: Path | None) -> None:
    """Run a chain, the registries, nodes and an example app on this machine.

    Derives the same key through every node, puts a value on one and reads it on the others, deletes it, and shows what
    happened. Then the cluster stays up until Ctrl-C, which stops everything that was started.

    With --eif one node more joins the cluster: an enclave image, booted in QEMU with an emulated security module, and
    registered with the keys that it attests. The image must have been built for devnets:

    \b
      nova-kms image build --config enclave_image/devnet.toml --out dist/devnet-image
      nova-kms devnet --nodes 2 --eif dist/devnet-image/nova-kms.eif
      nova-kms devnet --nodes 2 --eif dist/devnet-image/nova-kms.eif --unregistered
      nova-kms provision --url http://image-node.devnet.test:8000 --root .devnet/attest-root.pem \\
        --measurements dist/devnet-image/measurements.json --register

    \b
    While it runs, from another terminal in the same directory:
      nova-kms status
      nova-kms nodes
      nova-kms app derive disk
      nova-kms app put greeting hello
      nova-kms app get greeting
    """
    if unregistered and eif is None:
        raise click.UsageError("--unregistered is about the node of an image: give one with --eif.")
    console = Console(highlight=False)
    try:
        image = None if eif is None else ImageToRun(eif, obtain_qemu(qemu), registered=not unregistered)
        anyio.run(_run, console, nodes, once, directory, image)
    except ExceptionGroup as group:
        raise first_error(group) from group


async def _run(console: Console, nodes: int, once: bool, directory: Path, image: ImageToRun | None) -> None:
    async with (
        stopped_by_signals(),
        Devnet(directory, node_count=nodes, progress=Progress(console), image=image) as cluster,
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
    if cluster.image_node is not None and cluster.image_node.name not in {node.process.name for node in cluster.nodes}:
        table.add_row(f"{cluster.image_node.name}, not registered", cluster.image_node.registered_url)
    table.add_row("profile", str(directory / PROFILE_FILE))
    if cluster.image_node is not None:
        table.add_row("attestation root", str(directory / ATTEST_ROOT_FILE))
    return table
