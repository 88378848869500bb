"""Builds the kernel from Debian's locked source package and the committed options, or takes it from the cache.

A cached kernel is named by the hash of everything it was made from: source, options, compilers and this module's
commands.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from enclave_image.buildroot import WORK, BuildRoot
from enclave_image.bzimage import parse_config, read_boot_image
from enclave_image.deb import read_deb
from enclave_image.errors import MalformedError, StepError

_RECIPE_VERSION: Final = 1  # counts changes of the commands below that change the result
_FILES_PER_REPORT: Final = 250
_TREE: Final = "linux"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A built kernel: the boot image, its whole configuration, its version string and the hash of its inputs."""

    image: bytes = field(repr=False)
    config: bytes = field(repr=False)
    version: str
    key: str


def kernel_key(source_sha256: str, fragment: bytes, root_key: str, epoch_s: int) -> str:
    """The hash that names a kernel of these inputs."""
    inputs = {
        "recipe": _RECIPE_VERSION,
        "source": source_sha256,
        "fragment": hashlib.sha256(fragment).hexdigest(),
        "root": root_key,
        "epoch_s": epoch_s,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def check_config(fragment: str, config: str) -> None:
    """Check that every option of the fragment survived the resolution of dependencies.

    Errors: `StepError` with each option that has another value.
    """
    wanted, found = parse_config(fragment), parse_config(config)
    wrong = [
        f"{name}: wanted {value}, got {found.get(name, 'n')}"
        for name, value in sorted(wanted.items())
        if found.get(name, "n") != value
    ]
    if wrong:
        raise StepError(f"{len(wrong)} kernel options did not survive: " + "; ".join(wrong))


def load_cached(directory: Path, key: str) -> Kernel | None:
    """The kernel with this key, or None; a file that was damaged since is not taken."""
    held = directory / f"kernel-{key}"
    try:
        digests = json.loads((held / "sha256.json").read_text(encoding="ascii"))
        image, config = (held / "bzImage").read_bytes(), (held / "config").read_bytes()
    except (OSError, ValueError):
        return None
    found = {"bzImage": hashlib.sha256(image).hexdigest(), "config": hashlib.sha256(config).hexdigest()}
    return Kernel(image, config, read_boot_image(image).version, key) if digests == found else None


def store_cached(directory: Path, kernel: Kernel) -> None:
    """Put a kernel into the cache; it appears whole or not at all."""
    partial = directory / f".kernel-{kernel.key}.{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / "bzImage").write_bytes(kernel.image)
    (partial / "config").write_bytes(kernel.config)
    digests = {
        "bzImage": hashlib.sha256(kernel.image).hexdigest(),
        "config": hashlib.sha256(kernel.config).hexdigest(),
    }
    (partial / "sha256.json").write_text(json.dumps(digests), encoding="ascii")
    final = directory / f"kernel-{kernel.key}"
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)


def _build_time(epoch_s: int) -> str:
    """A time that `date` parses the same everywhere; one it cannot parse would become the wall clock in silence."""
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _source_archive(source_deb: bytes) -> bytes:
    for entry in read_deb(source_deb).entries:
        if entry.path.startswith("usr/src/linux-source-") and entry.path.endswith(".tar.xz"):
            return entry.data
    raise MalformedError("the kernel source package holds no usr/src/linux-source-*.tar.xz")


def build_kernel(
    build_root: BuildRoot,
    source_deb: bytes,
    fragment: bytes,
    key: str,
    *,
    epoch_s: int,
    jobs: int,
    say: Callable[[str], None],
) -> Kernel:
    """Build the kernel in the build root's work directory with `jobs` compilers at a time.

    Errors: `MalformedError` for a source package of another shape, `StepError` when an option does not survive, the
    compilers fail, or the result is no boot image.
    """
    work = build_root.work
    say("unpacking the kernel source")
    (work / "linux.tar.xz").write_bytes(_source_archive(source_deb))
    (work / "kernel.config").write_bytes(fragment)
    (work / _TREE).mkdir()
    build_root.run(
        ["tar", "--extract", "--no-same-owner", "--strip-components=1", f"--directory={_TREE}", "--file=linux.tar.xz"]
    )
    (work / "linux.tar.xz").unlink()
    fixed = {
        "KBUILD_BUILD_TIMESTAMP": _build_time(epoch_s),
        "KBUILD_BUILD_USER": "nova-kms",
        "KBUILD_BUILD_HOST": "enclave",
        "KBUILD_BUILD_VERSION": "1",
        "LOCALVERSION": "",
        "KCONFIG_ALLCONFIG": f"{WORK}/kernel.config",
    }
    make = ["make", f"--directory={_TREE}", "ARCH=x86_64"]
    build_root.run([*make, "allnoconfig"], fixed)
    build_root.run([*make, "olddefconfig"], fixed)
    config = (work / _TREE / ".config").read_bytes()
    check_config(fragment.decode(), config.decode())
    say(f"compiling the kernel with {jobs} jobs; this takes some minutes")
    compiled = 0

    def count(line: str) -> None:
        nonlocal compiled
        compiled += line.lstrip().startswith(("CC ", "AS "))
        if compiled % _FILES_PER_REPORT == 0 and line.lstrip().startswith("CC "):
            say(f"{compiled} files of the kernel compiled")

    build_root.run([*make, f"--jobs={jobs}", "bzImage"], fixed, count)
    image = (work / _TREE / "arch/x86/boot/bzImage").read_bytes()
    shutil.rmtree(work / _TREE)
    boot_image = read_boot_image(image)
    if boot_image.options is None:
        raise StepError("the kernel does not carry its own options: CONFIG_IKCONFIG and gzip are needed")
    return Kernel(image, config, boot_image.version, key)
