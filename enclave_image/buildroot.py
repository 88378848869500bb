"""A build root made of locked packages, and commands inside it: no network, read-only but for the work directory.

The root is unpacked without maintainer scripts and entered with user, mount, network and host-name name spaces, so
that neither the builder's privileges nor its tools, paths, names or environment reach what is built. Inside, work
happens in `/build` on a machine called `enclave`.
"""

import hashlib
import os
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from enclave_image.deb import DebEntry, read_deb
from enclave_image.errors import MalformedError, StepError
from enclave_image.fetch import Cache
from enclave_image.lock import LockedDeb
from enclave_image.manifest import EntryType, parents

WORK: Final = "/build"
_DEVICES: Final = ("full", "null", "random", "urandom", "zero")
_MERGED: Final = ("bin", "lib", "lib64", "sbin")
# What maintainer scripts would have linked, as far as a build needs it.
_LINKS: Final = {"usr/bin/awk": "gawk", "usr/bin/cc": "gcc", "usr/bin/python3": "python3.13"}
_LINES_KEPT: Final = 60
_LAYOUT_VERSION: Final = 1  # counts changes of this module that make older roots unusable
HOST_NAME: Final = "enclave"

_ENTER: Final = """
set -eu
root=$1; work=$2; shift 2
mount --bind "$root" "$root"
mount --bind "$work" "$root/build"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
for node in full null random urandom zero; do mount --bind "/dev/$node" "$root/dev/$node"; done
mount -o remount,bind,ro "$root"
exec chroot "$root" /usr/bin/env -i -C /build "$@"
"""
# A new name space starts with the builder's host name. 170 is sethostname of x86-64, which only perl can call here.
_NAME_HOST: Final = f"""
my $name = "{HOST_NAME}";
syscall(170, $name, length $name) == 0 or die "sethostname: $!";
exec {{ $ARGV[0] }} @ARGV or die "$ARGV[0]: $!";
"""


def merged(path: str) -> str:
    """The path below `usr` of a path whose first part is one of the links that `usr` took over."""
    return f"usr/{path}" if path.split("/", 1)[0] in _MERGED else path


def unpack(entries: Iterable[DebEntry], directory: Path, kinds: dict[str, EntryType]) -> None:
    """Write entries below `directory`; `kinds` remembers what is there over several calls.

    Errors: `MalformedError` for a path below a link or a file: nothing is ever written through a link.
    """
    for entry in entries:
        path = merged(entry.path)
        if path == "usr" or entry.path in _MERGED:
            continue
        for parent in parents(path):
            if kinds.setdefault(parent, EntryType.DIRECTORY) is not EntryType.DIRECTORY:
                raise MalformedError(f"{entry.path!r} lies below {parent!r}, which is a {kinds[parent]}")
        target = directory / path
        if kinds.get(path, entry.kind) is not entry.kind:
            raise MalformedError(f"{entry.path!r} is a {kinds[path]} in one package and a {entry.kind} in another")
        kinds[path] = entry.kind
        target.parent.mkdir(parents=True, exist_ok=True)
        if entry.kind is EntryType.DIRECTORY:
            target.mkdir(exist_ok=True)
            continue
        target.unlink(missing_ok=True)
        if entry.kind is EntryType.LINK:
            target.symlink_to(entry.target)
        else:
            target.write_bytes(entry.data)
            target.chmod(0o755 if entry.mode & 0o111 else 0o644)


def root_key(debs: Iterable[LockedDeb]) -> str:
    """The hash that names a build root of these packages."""
    lines = sorted(f"{deb.name} {deb.sha256}\n" for deb in debs)
    return hashlib.sha256(f"{_LAYOUT_VERSION}\n{''.join(lines)}".encode()).hexdigest()


def tree_seal(root: Path) -> str:
    """SHA-256 over every path below `root`: its kind, whether it is executable, and its contents or target."""
    lines = []
    for directory, names, files in os.walk(root):
        for name in [*names, *files]:
            path = Path(directory, name)
            shown = path.relative_to(root).as_posix()
            if path.is_symlink():
                lines.append(f"link {path.readlink()} {shown}\n")
            elif path.is_dir():
                lines.append(f"dir {shown}\n")
            else:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                lines.append(f"file {digest} {path.stat().st_mode & 0o111:03o} {shown}\n")
    return hashlib.sha256("".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()


def _is_whole(root: Path, seal: Path) -> bool:
    """Whether the root is as it was unpacked: a clean-up, an editor or a full disk may have been there since."""
    try:
        return root.is_dir() and seal.read_text(encoding="ascii") == tree_seal(root)
    except (OSError, UnicodeDecodeError):
        return False


def prepare_root(debs: Sequence[LockedDeb], cache: Cache, directory: Path) -> Path:
    """A build root of these packages below `directory`, unpacked unless it is there already and unchanged.

    Errors: `LockError` for a package that is missing or has another hash, `MalformedError` for one that is broken,
    `StepError` when another build unpacks the same root at this moment and fails.
    """
    root = directory / f"root-{root_key(debs)[:16]}"
    seal = directory / f"{root.name}.sha256"
    if _is_whole(root, seal):
        return root
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=directory) as temporary:
        partial = Path(temporary) / "root"
        _unpack_root(debs, cache, partial)
        found = tree_seal(partial)
        if root.exists():
            root.rename(Path(temporary) / "damaged")
        try:
            partial.rename(root)
        except OSError as error:  # another build was faster
            if not _is_whole(root, seal):
                raise StepError(f"another build is unpacking {root}: try again when it is done") from error
            return root
        seal.write_text(found, encoding="ascii")
    return root


def _unpack_root(debs: Sequence[LockedDeb], cache: Cache, partial: Path) -> None:
    kinds = dict.fromkeys(("build", "tmp", "dev", "usr", *(f"usr/{name}" for name in _MERGED)), EntryType.DIRECTORY)
    for name in ("build", "tmp", "dev"):
        (partial / name).mkdir(parents=True)
    for name in _MERGED:
        (partial / "usr" / name).mkdir(parents=True)
        (partial / name).symlink_to(f"usr/{name}")
    for deb in debs:
        unpack(read_deb(cache.read(deb.sha256, f"{deb.name} {deb.version}")).entries, partial, kinds)
    for path, target in _LINKS.items():
        link = partial / path
        if not link.is_symlink() and (link.parent / target).exists():
            link.symlink_to(target)
    for name in _DEVICES:
        (partial / "dev" / name).touch()
    (partial / "dev/fd").symlink_to("/proc/self/fd")


class BuildRoot:
    """Runs commands in a prepared root; `work` is the one place they can write."""

    def __init__(self, root: Path, work: Path, epoch_s: int) -> None:
        self._root = root
        self.work = work
        self._environment = {
            "PATH": "/usr/bin",
            "HOME": WORK,
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "SOURCE_DATE_EPOCH": str(epoch_s),
            "PYTHONHASHSEED": "0",  # for the compiler of byte code; never at run time
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        watch: Callable[[str], None] | None = None,
    ) -> str:
        """Run a command and return the end of what it printed; `watch` is given every line as it comes.

        Errors: `StepError` with the end of its output when it fails, or when name spaces cannot be had.
        """
        values = self._environment | dict(environment or {})
        full = [
            "unshare", "--user", "--map-root-user", "--mount", "--net", "--uts", "--ipc",
            "sh", "-c", _ENTER, "sh", str(self._root), str(self.work),
            "/usr/bin/perl", "-e", _NAME_HOST,
            "/usr/bin/env", *(f"{name}={value}" for name, value in values.items()), *command,
        ]  # fmt: skip
        lines: deque[str] = deque(maxlen=_LINES_KEPT)
        try:
            process = subprocess.Popen(  # noqa: S603 -- constant script; the command runs among locked tools only
                full,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                umask=0o022,
                encoding="utf-8",
                errors="replace",
            )
        except FileNotFoundError as error:
            raise StepError("unshare is missing: building needs Linux with util-linux") from error
        with process as running:
            for line in running.stdout or ():
                lines.append(line)
                if watch is not None:
                    watch(line)
        output = "".join(lines)
        if process.returncode:
            raise StepError(
                f"{' '.join(command)[:200]} failed in the build root with status {process.returncode}:\n{output}"
            )
        return output
