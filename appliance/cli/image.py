"""`nova-kms image`: the builder's commands, and `run`, which boots an image in the emulator."""

from pathlib import Path

import anyio
import click

from appliance.cli.emulator import obtain_qemu, qemu_option
from appliance.cli.errors import first_error
from appliance.cli.host import parse_allow, parse_instance_url, parse_listen, show_console
from appliance.cli.signals import stopped_by_signals
from appliance.clock import SystemClock
from appliance.devnet.emulator.host import EmulatedHost
from appliance.devnet.emulator.machine import EnclaveOptions
from appliance.devnet.emulator.qemu import Qemu
from appliance.host.nitro_cli import EnclaveStart
from appliance.host.run import HostPlan, default_memory_mib, run_host
from appliance.log import configure_logging
from appliance.settings import LogFormat, LogLevel
from enclave_image.cli import image

LOOK_EVERY_S = 1.0


@image.command()
@click.argument("eif", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--emulate", is_flag=True, required=True, help="Boot in QEMU; there is no other way to run one here.")
@click.option("--listen", default="127.0.0.1:8000", show_default=True, help="host:port where clients reach the node.")
@click.option(
    "--allow", multiple=True, metavar="HOST:PORT", help="What the enclave may connect to, as in `nova-kms host run`."
)
@click.option("--instance-url", help="The node's public URL, as the registry has it.")
@click.option(
    "--attest-root",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the throw-away root that signs the attestation to this file, for `attest verify --root`.",
)
@click.option("--memory", type=click.IntRange(64), help="MiB; by default 4 times the image, at least 1024.")
@click.option("--cpu-count", default=2, show_default=True, type=click.IntRange(1), help="Processors of the enclave.")
@click.option("--debug-mode", is_flag=True, help="Zero PCR0 to PCR2, as the platform does in debug mode.")
@qemu_option
def run(
    eif: Path,
    emulate: bool,  # noqa: ARG001 - required, so that nobody takes this for the real thing
    listen: str,
    allow: tuple[str, ...],
    instance_url: str | None,
    attest_root: Path | None,
    memory: int | None,
    cpu_count: int,
    debug_mode: bool,
    qemu: Path | None,
) -> None:
    """Boot EIF on this machine and show its console, until Ctrl-C or until it ends.

    The image is the very one that runs on the platform; around it are QEMU in software emulation, an emulated security
    module whose documents a throw-away root signs, and the parent's side of `nova-kms host run`. No KVM, no privilege
    and no network is needed. On a parent instance, use `nova-kms host run`.

    \b
    nova-kms image run dist/image/nova-kms.eif --emulate --attest-root root.pem
    nova-kms attest verify http://127.0.0.1:8000 --root root.pem --measurements dist/image/measurements.json
    """
    start = EnclaveStart(eif, memory or default_memory_mib(eif.stat().st_size), cpu_count, debug=debug_mode)
    plan = HostPlan(
        start,
        parse_listen(listen),
        allowed=parse_allow(allow),
        instance_url=parse_instance_url(instance_url, https_only=False),
        look_every_s=LOOK_EVERY_S,
    )
    found = obtain_qemu(qemu)
    configure_logging(LogLevel.INFO, LogFormat.TEXT)
    try:
        anyio.run(_run, plan, found, EnclaveOptions(attest_root=attest_root, show_console=show_console))
    except ExceptionGroup as group:
        raise first_error(group) from group


async def _run(plan: HostPlan, qemu: Qemu, options: EnclaveOptions) -> None:
    async with stopped_by_signals():
        with EmulatedHost(qemu, SystemClock(), options) as emulated:
            await run_host(plan, emulated, emulated, lambda _: None)
