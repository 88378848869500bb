"""`nova-kms host`: the parent's side of an enclave."""

import sys
from pathlib import Path

import anyio
import click

from appliance.cli.errors import first_error
from appliance.cli.signals import stopped_by_signals
from appliance.host.egress import Allowed, parse_allowed
from appliance.host.nitro_cli import MIN_CID, EnclaveStart, NitroCli
from appliance.host.run import EGRESS_PORT, SERVICE_PORT, HostPlan, default_memory_mib, run_host
from appliance.host.streams import Vsock
from appliance.log import configure_logging
from appliance.settings import LogFormat, LogLevel
from appliance.urls import parse_node_url
from appliance.variables import TcpAddress, parse_bind_address
from kmscore.errors import ConfigError, Rejected

_PORT = click.IntRange(1, 0xFFFFFFFE)


@click.group()
def host() -> None:
    """Run an enclave on this machine, the parent instance."""


@host.command()
@click.option("--eif", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The image.")
@click.option(
    "--listen", default="127.0.0.1:8443", show_default=True, help="host:port where your TLS ingress reaches the node."
)
@click.option(
    "--allow",
    "allow",
    multiple=True,
    metavar="HOST:PORT",
    help="What the enclave may connect to; also *.domain:port, and *:443 for peers whose hosts are not known yet.",
)
@click.option("--instance-url", help="The node's public URL, as the registry has it.")
@click.option(
    "--node-log-level",
    type=click.Choice([level.value for level in LogLevel if level is not LogLevel.CRITICAL]),
    help="LOG_LEVEL of the node.",
)
@click.option("--memory", type=click.IntRange(64), help="MiB; by default 4 times the image, at least 1024.")
@click.option("--cpu-count", default=2, show_default=True, type=click.IntRange(1), help="Processors for the enclave.")
@click.option("--enclave-cid", type=click.IntRange(MIN_CID, 0xFFFFFFFE), help="Context id; by default one is chosen.")
@click.option("--service-port", default=SERVICE_PORT, show_default=True, type=_PORT, help="The node's vsock port.")
@click.option("--egress-port", default=EGRESS_PORT, show_default=True, type=_PORT, help="Vsock port of the way out.")
@click.option("--debug-mode", is_flag=True, help="Show the console. No verifier accepts such an enclave.")
def run(
    eif: Path,
    listen: str,
    allow: tuple[str, ...],
    instance_url: str | None,
    node_log_level: str | None,
    memory: int | None,
    cpu_count: int,
    enclave_cid: int | None,
    service_port: int,
    egress_port: int,
    debug_mode: bool,
) -> None:
    """Start an enclave through nitro-cli and forward to it and from it until Ctrl-C, which ends the enclave, too.

    Everything that the node keeps is in the enclave's memory: ending the last enclave of a cluster loses its data.

    \b
    nova-kms host run --eif nova-kms.eif --listen 127.0.0.1:8443 --instance-url https://kms1.example.org \\
      --allow rpc-one.example.org:443 --allow rpc-two.example.org:443 --allow '*:443'
    """
    start = EnclaveStart(
        eif, memory or default_memory_mib(eif.stat().st_size), cpu_count, cid=enclave_cid, debug=debug_mode
    )
    plan = HostPlan(
        start,
        parse_listen(listen),
        allowed=parse_allow(allow),
        instance_url=parse_instance_url(instance_url),
        log_level=LogLevel(node_log_level) if node_log_level else None,
        service_port=service_port,
        egress_port=egress_port,
    )
    configure_logging(LogLevel.INFO, LogFormat.TEXT)
    try:
        # asyncio's own loop: uvloop drops connections on vsock without a word.
        anyio.run(_run, plan)
    except ExceptionGroup as group:
        raise first_error(group) from group


async def _run(plan: HostPlan) -> None:
    async with stopped_by_signals():
        await run_host(plan, NitroCli(), Vsock(), show_console)


def show_console(piece: bytes) -> None:
    """The console on the terminal, without the control characters by which it could drive it."""
    text = piece.decode("ascii", "replace").replace("\r", "")
    sys.stdout.write("".join(letter if letter.isprintable() or letter in "\n\t" else "?" for letter in text))
    sys.stdout.flush()


def parse_listen(text: str) -> TcpAddress:
    """The value of --listen. Raises `ConfigError`."""
    try:
        address = parse_bind_address(text)
    except Rejected as error:
        raise ConfigError("--listen is not host:port") from error
    if not isinstance(address, TcpAddress):
        raise ConfigError("--listen is not host:port")
    return address


def parse_allow(entries: tuple[str, ...]) -> tuple[Allowed, ...]:
    """The values of --allow. Raises `ConfigError`."""
    return tuple(parse_allowed(entry) for entry in entries)


def parse_instance_url(text: str | None, *, https_only: bool = True) -> str | None:
    """The value of --instance-url. Raises `ConfigError`."""
    if text is None:
        return None
    try:
        return parse_node_url(text, https_only=https_only)
    except Rejected as error:
        raise ConfigError(f"--instance-url is not accepted: {error}") from error
