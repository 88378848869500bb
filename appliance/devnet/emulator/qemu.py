"""QEMU: one that can carry our devices, found or fetched, and the command line that boots an image with it.

The machine is `microvm`, whose devices are announced to the kernel as the platform announces them. Everything is
emulated in software: no KVM, no capability, no network.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from appliance.devnet.emulator.nsm_device import VIRTIO_ID
from enclave_image.apt import AptRoot
from enclave_image.buildroot import unpack
from enclave_image.deb import read_deb
from enclave_image.errors import ImageError
from enclave_image.manifest import EntryType
from kmscore.errors import ConfigError

PROGRAM: Final = "qemu-system-x86_64"
# The generic vhost-user device, which QEMU has since 11 under this name; the secure module is behind it.
NEEDED_DEVICE: Final = "vhost-user-test-device"
SUITES: Final = ("trixie", "trixie-updates", "trixie-security", "trixie-backports")
_PACKAGES: Final = ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios")
_LIBRARIES: Final = Path("usr/lib/x86_64-linux-gnu")
_PROBE_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Qemu:
    """How to start one QEMU: what its command begins with, and the environment it needs beyond ours."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Boot:
    """What one machine boots: files in `directory`, sizes, and whether the secure module is one of its devices.

    Devices are announced on the kernel's command line, as the platform does; the kernel must be one that looks there.
    """

    directory: Path
    cmdline: str
    memory_mib: int
    cpus: int
    secure_module: bool = True

    @property
    def kernel(self) -> Path:
        return self.directory / "kernel"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd"

    @property
    def vsock_socket(self) -> Path:
        return self.directory / "vsock.sock"

    @property
    def nsm_socket(self) -> Path:
        return self.directory / "nsm.sock"


def find_qemu(cache: Path, program: Path | None = None) -> Qemu:
    """The QEMU to use: `program` if given, else one on PATH, else the one that `install_qemu` put into `cache`.

    Raises `ConfigError`, which says how to get one, when none of them has the device that is needed.
    """
    if program is not None:
        given = Qemu((str(program),))
        if not _suits(given):
            raise ConfigError(f"the QEMU given has no {NEEDED_DEVICE}: it must be QEMU 11 or newer, for x86_64")
        return given
    on_path = shutil.which(PROGRAM)
    candidates = [Qemu((on_path,))] if on_path else []
    for candidate in (*candidates, _unpacked(cache)):
        if _suits(candidate):
            return candidate
    raise ConfigError(
        f"no QEMU with {NEEDED_DEVICE} (QEMU 11 or newer) is on PATH or in {cache}: install Debian 13's backport "
        "(apt-get install -t trixie-backports qemu-system-x86), or have this machine's apt fetch it into that "
        "directory with: python -m appliance.devnet.emulator.qemu DIRECTORY"
    )


def install_qemu(cache: Path, say: Callable[[str], None]) -> Qemu:
    """Fetch Debian's QEMU and its libraries from this machine's mirror into `cache`, installing nothing.

    Returns at once when it is there. Raises `ConfigError` when the mirror cannot be reached or has no such QEMU.
    """
    held = _unpacked(cache)
    if _suits(held):
        return held
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".qemu-", dir=cache) as temporary:
        directory = Path(temporary)
        try:
            _fetch(directory, say)
        except ImageError as error:
            raise ConfigError(f"QEMU cannot be fetched: {error}") from error
        if not _suits(_unpacked(directory)):
            raise ConfigError(f"the mirror's QEMU has no {NEEDED_DEVICE}: QEMU 11 or newer is needed")
        root = cache / "root"
        shutil.rmtree(root, ignore_errors=True)
        (directory / "root").rename(root)
    return held


def boot_command(qemu: Qemu, boot: Boot) -> list[str]:
    """The command that boots an image whose back ends wait on the sockets; the console is its standard output."""
    memory = f"{boot.memory_mib}M"
    return [
        *qemu.command,
        "-nodefaults",
        "-no-user-config",
        "-nographic",
        "-no-reboot",
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-run-with", "exit-with-parent=on"),
        *("-machine", "microvm,acpi=off,pcie=off,memory-backend=memory"),
        *("-object", f"memory-backend-memfd,id=memory,size={memory},share=on"),
        *("-m", memory),
        *("-smp", str(boot.cpus)),
        *("-accel", "tcg"),
        *("-cpu", "max"),
        *("-serial", "stdio"),
        # The keyboard controller is how an x86 kernel resets the machine; without it a reboot is a jump into the BIOS.
        *("-device", "i8042"),
        *("-kernel", str(boot.kernel)),
        *("-initrd", str(boot.initrd)),
        *("-append", boot.cmdline),
        *("-chardev", f"socket,id=vsock,path={_option(boot.vsock_socket)}"),
        *("-device", "vhost-user-vsock-device,chardev=vsock"),
        *(_secure_module(boot) if boot.secure_module else ()),
    ]


def _secure_module(boot: Boot) -> list[str]:
    return [
        *("-chardev", f"socket,id=nsm,path={_option(boot.nsm_socket)}"),
        *("-device", f"{NEEDED_DEVICE},chardev=nsm,virtio-id={VIRTIO_ID},num_vqs=1,config_size=0"),
    ]


def _option(path: Path) -> str:
    return str(path).replace(",", ",,")


def _suits(qemu: Qemu) -> bool:
    try:
        done = subprocess.run(
            [*qemu.command, "-machine", "none", "-device", "help"],
            env=dict(qemu.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_PROBE_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return f'name "{NEEDED_DEVICE}"'.encode() in done.stdout


def _unpacked(cache: Path) -> Qemu:
    """The QEMU that lies in a cache, run with the libraries beside it instead of the system's."""
    root = cache.absolute() / "root"
    libraries = root / _LIBRARIES
    return Qemu(
        (
            str(libraries / "ld-linux-x86-64.so.2"),
            *("--library-path", str(libraries)),
            str(root / "usr/bin" / PROGRAM),
            *("-L", str(root / "usr/share/qemu")),
            *("-L", str(root / "usr/share/seabios")),
        ),
        {"QEMU_MODULE_DIR": str(libraries / "qemu")},
    )


def _fetch(directory: Path, say: Callable[[str], None]) -> None:
    """Unpack QEMU into `directory`/root, without running anything of it."""
    say("looking for QEMU in Debian 13 backports")
    apt = AptRoot(directory / "apt", SUITES, "amd64")
    apt.update()
    closure = apt.closure(["--target-release=trixie-backports", *_PACKAGES])
    say(f"fetching QEMU and its libraries, {len(closure)} packages")
    packages = directory / "packages"
    packages.mkdir()
    kinds: dict[str, EntryType] = {}
    for path in apt.download(closure, packages).values():
        if not path.exists():
            raise ConfigError("the mirror lacks a package that its own index lists: try again later")
        unpack(read_deb(path.read_bytes()).entries, directory / "root", kinds)


def main(arguments: list[str]) -> None:
    """Fetch QEMU into the directory that is the one argument. Ends the process with a sentence when it cannot."""
    parser = argparse.ArgumentParser(
        prog="python -m appliance.devnet.emulator.qemu",
        description="Have this machine's apt fetch QEMU and its libraries into DIRECTORY. Nothing is installed.",
        epilog="Example: python -m appliance.devnet.emulator.qemu ~/.cache/nova-kms/qemu",
    )
    parser.add_argument("directory", metavar="DIRECTORY", type=Path, help="where QEMU is put, some 170 MB")
    try:
        install_qemu(parser.parse_args(arguments).directory, print)
    except ConfigError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
