"""What commands that boot an image in the emulator have in common: which QEMU, and how they get it."""

from pathlib import Path

import click

from appliance.devnet.emulator.qemu import Qemu, find_qemu, install_qemu
from kmscore.errors import ConfigError

qemu_option = click.option(
    "--qemu",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="QEMU 11 or newer; by default one on PATH, else Debian's, fetched once by apt and kept in ~/.cache/nova-kms.",
)


def obtain_qemu(program: Path | None) -> Qemu:
    """The QEMU to boot with, fetched when this machine has none. Raises `ConfigError`."""
    cache = Path.home() / ".cache/nova-kms/qemu"
    try:
        return find_qemu(cache, program)
    except ConfigError:
        if program is not None:
            raise
    click.echo(f"No QEMU 11 here: fetching Debian's into {cache}, about 60 MB; nothing is installed.", err=True)
    return install_qemu(cache, lambda text: click.echo(f"  {text}", err=True))
