"""The content-addressed cache of inputs, and how missing ones get there: apt and pip by package name, checked by hash.

A cache is a directory of files named by their SHA-256; it may be a copy from elsewhere, since mirrors drop old
versions. Nothing is believed because of where it lies: every read hashes again.
"""

import hashlib
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from enclave_image.apt import AptRoot
from enclave_image.errors import LockError, StepError
from enclave_image.lock import Lock, LockedDeb, LockedWheel
from enclave_image.wheel import split_wheel_name

PYTHON_VERSION: Final = "3.13"
PIP_TIMEOUT_S: Final = 1800
PIP_TARGET: Final = (
    "--implementation=cp",
    f"--python-version={PYTHON_VERSION}",
    f"--abi=cp{PYTHON_VERSION.replace('.', '')}",
    "--abi=abi3",
    "--abi=none",
    *(f"--platform=manylinux{age}_x86_64" for age in ("_2_28", "_2_17", "2014", "_2_5", "1")),
    "--platform=any",
)


class Cache:
    """Files by SHA-256 below one directory, which is made when the first file is put."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, sha256: str) -> Path:
        """Where a file with this hash lies, or would lie."""
        return self._directory / "sha256" / sha256[:2] / sha256

    def __contains__(self, sha256: str) -> bool:
        """Whether a file with this hash is there, undamaged."""
        try:
            with self.path(sha256).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == sha256
        except FileNotFoundError:
            return False

    def read(self, sha256: str, name: str) -> bytes:
        """Contents with exactly this hash; `name` is for the error.

        Errors: `LockError` when the file is missing, or when its contents have another hash.
        """
        try:
            data = self.path(sha256).read_bytes()
        except FileNotFoundError as error:
            raise LockError(
                f"{name} ({sha256}) is not in the cache {self._directory}: run `nova-kms image fetch`, "
                "or point --cache at a copy that has it"
            ) from error
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise LockError(
                f"{name}: expected {sha256}, found {found} in the cache {self._directory}: replace it with "
                "`nova-kms image fetch`"
            )
        return data

    def put(self, data: bytes) -> str:
        """Store `data` and return its hash; a file appears whole or not at all, also in the place of a damaged one."""
        digest = hashlib.sha256(data).hexdigest()
        path = self.path(digest)
        if digest not in self:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.parent / f".{secrets.token_hex(8)}"
            partial.write_bytes(data)
            partial.replace(path)
        return digest


def check_fetched(name: str, data: bytes, sha256: str, size_bytes: int) -> None:
    """Check a downloaded file against the lock.

    Errors: `LockError` naming the input, both hashes and what to do.
    """
    found = hashlib.sha256(data).hexdigest()
    if (found, len(data)) != (sha256, size_bytes):
        raise LockError(
            f"{name}: expected {sha256} ({size_bytes} bytes), the mirror gave {found} ({len(data)} bytes). "
            "Do not build: the mirror or the lock is wrong. Resolve anew with `nova-kms image lock` and read the change"
        )


def run_pip(arguments: Sequence[str], directory: Path) -> None:
    """Run this machine's pip, with its own configuration, in `directory`.

    Errors: `StepError` with what pip said.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(  # noqa: S603 -- this interpreter, arguments from the lock
            command,
            cwd=directory,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=PIP_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise StepError(f"pip did not finish within {PIP_TIMEOUT_S} s") from error
    if done.returncode:
        raise StepError(f"pip {arguments[0]} failed: {done.stderr.strip()[-2000:]}")


def download_wheels(requirements: str, directory: Path) -> None:
    """Download the wheels of these requirements, each pinned and with its hashes, for the image's Python and platform.

    Errors: `StepError` with what pip said.
    """
    path = directory / "requirements.txt"
    path.write_text(requirements, encoding="utf-8")
    fixed = ["download", "--no-deps", "--require-hashes", "--only-binary=:all:", *PIP_TARGET]
    run_pip([*fixed, f"--requirement={path}"], directory)


def _fetch_wheels(wheels: Sequence[LockedWheel], cache: Cache, directory: Path) -> None:
    lines = []
    for wheel in wheels:
        name, version = split_wheel_name(wheel.file_name)
        lines.append(f"{name}=={version} --hash=sha256:{wheel.sha256}\n")
    download_wheels("".join(lines), directory)
    for wheel in wheels:
        data = _downloaded(directory / wheel.file_name, wheel.file_name)
        check_fetched(wheel.file_name, data, wheel.sha256, wheel.size_bytes)
        cache.put(data)


def _downloaded(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise LockError(
            f"{name} was not delivered: the mirror may have dropped this version. Point --cache at a copy that has it, "
            "or resolve anew with `nova-kms image lock`"
        ) from error


def _fetch_debs(debs: Iterable[LockedDeb], cache: Cache, apt: AptRoot, directory: Path) -> None:
    wanted = {(deb.name, deb.version): deb for deb in debs}
    if not wanted:
        return
    apt.update()
    for (name, version), path in apt.download(wanted, directory).items():
        deb = wanted[name, version]
        data = _downloaded(path, f"{name} {version}")
        check_fetched(f"{name} {version}", data, deb.sha256, deb.size_bytes)
        cache.put(data)


def fetch_locked(lock: Lock, cache: Cache, apt: Callable[[Path], AptRoot], say: Callable[[str], None]) -> int:
    """Bring every input of the lock that the cache lacks, and return how many there were.

    `apt` makes a private apt root in the directory it is given; it is not called when nothing of Debian's is missing.
    Errors: `LockError` for inputs that cannot be had or have another hash, `StepError` when a client fails.
    """
    debs = [deb for deb in lock.debs if deb.sha256 not in cache]
    wheels = [wheel for wheel in lock.wheels if wheel.sha256 not in cache]
    with tempfile.TemporaryDirectory(prefix="nova-kms-fetch-") as temporary:
        directory = Path(temporary)
        if wheels:
            say(f"fetching {len(wheels)} wheels with pip")
            _fetch_wheels(wheels, cache, directory)
        if debs:
            say(f"fetching {len(debs)} Debian packages with apt, {sum(d.size_bytes for d in debs) >> 20} MiB")
            _fetch_debs(debs, cache, apt(directory / "apt"), directory)
    return len(debs) + len(wheels)
