"""The rules that a root file system keeps before it becomes a ramdisk; every breach is one sentence.

Checked on both ramdisks together, as the kernel unpacks one over the other.
"""

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final

from enclave_image.elf import is_elf, read_elf
from enclave_image.errors import LintError, MalformedError
from enclave_image.manifest import EntryType, ManifestEntry, Tree, resolve

LIBRARY_DIRECTORIES: Final = ("usr/lib/x86_64-linux-gnu", "usr/lib")

# Every file is below one of these: anything else is unknown and refused.
KNOWN_PLACES: Final = (
    "init",
    "etc/group",
    "etc/hosts",
    "etc/nsswitch.conf",
    "etc/passwd",
    "etc/nova-kms/*",
    "etc/ssl/certs/ca-certificates.crt",
    "etc/ssl/openssl.cnf",
    "usr/bin/python3.13",
    "usr/bin/python3",
    "usr/lib/x86_64-linux-gnu/*.so*",
    "usr/lib64/ld-linux-x86-64.so.2",
    "usr/lib/python3.13/*",
    "usr/lib/python3/dist-packages/*",
    "usr/local/lib/python3.13/dist-packages/*",
)

# Never, wherever it lies: package managers, shells, installer records, the builder's identity, code that runs on
# start-up. Patterns are for absolute paths.
FORBIDDEN: Final = (
    "*/apt/*", "*/dpkg/*", "*/pip/*", "*/pip-*", "*/bash", "*/dash", "*/sh", "*/busybox",
    "/etc/resolv.conf", "/etc/hostname", "/etc/machine-id", "/etc/mtab", "/etc/shadow*", "/etc/*-",
    "*/RECORD", "*/INSTALLER", "*/REQUESTED", "*/direct_url.json", "*.pth", "*/sitecustomize.py*",
    "*/usercustomize.py*", "*.egg-link", "*/ld.so.cache", "*.log",
)  # fmt: skip

_UNCHECKED_HASH: Final = 1  # the flag word of a .pyc that is believed without a look at its source
_MIN_LEAK_BYTES: Final = 6  # shorter names occur by chance


def _modes(entry: ManifestEntry) -> Iterator[str]:
    if (entry.uid, entry.gid) != (0, 0):
        yield f"{entry.path}: owned by {entry.uid}:{entry.gid}, everything belongs to 0:0"
    if entry.mode & 0o6000:
        yield f"{entry.path}: set-user-id or set-group-id"
    if entry.kind is EntryType.FILE and entry.mode & 0o022:
        yield f"{entry.path}: writable by others than its owner"
    if entry.kind is EntryType.DIRECTORY and entry.mode & 0o002 and not entry.mode & 0o1000:
        yield f"{entry.path}: writable by everybody without the sticky bit"


def _places(entry: ManifestEntry) -> Iterator[str]:
    if entry.kind not in (EntryType.FILE, EntryType.LINK):
        return
    if any(fnmatchcase(f"/{entry.path}", pattern) for pattern in FORBIDDEN):
        yield f"{entry.path}: must not be in an image"
    else:
        top_link = entry.kind is EntryType.LINK and "/" not in entry.path
        if not top_link and not any(fnmatchcase(entry.path, place) for place in KNOWN_PLACES):
            yield f"{entry.path}: in no place that an image has files in"


def _elf(entries: Mapping[str, ManifestEntry], path: str, data: bytes) -> Iterator[str]:
    try:
        needs = read_elf(data)
    except MalformedError as error:
        yield f"{path}: {error}"
        return
    if needs.interpreter and resolve(entries, needs.interpreter) is None:
        yield f"{path}: its interpreter {needs.interpreter} is not in the image"
    origin = posixpath.dirname(path)
    searched = []
    for part in needs.run_path:
        if not part.startswith(("$ORIGIN", "${ORIGIN}")):
            yield f"{path}: its run path {part} is absolute"
            continue
        rest = part.replace("${ORIGIN}", "$ORIGIN").removeprefix("$ORIGIN").lstrip("/")
        searched.append(posixpath.normpath(posixpath.join(origin, rest)))
    for library in needs.needed:
        places = [posixpath.join(directory, library) for directory in (*searched, *LIBRARY_DIRECTORIES)]
        if not any(resolve(entries, place) is not None for place in places):
            yield f"{path}: the library {library} is not in the image"


def _contents(entries: Mapping[str, ManifestEntry], path: str, data: bytes, leaks: Sequence[bytes]) -> Iterator[str]:
    if is_elf(data):
        yield from _elf(entries, path, data)
    if path.endswith(".pyc") and int.from_bytes(data[4:8], "little") != _UNCHECKED_HASH:
        yield f"{path}: byte code that is not of the unchecked-hash kind"
    for leak in leaks:
        if leak in data:
            yield f"{path}: holds {leak.decode('utf-8', 'replace')!r}, which belongs to the build machine"


def findings(base: Tree, application: Tree, leaks: Sequence[str] = ()) -> tuple[str, ...]:
    """Every breach of the rules; `leaks` are paths of the build machine that no file may hold."""
    found: list[str] = []
    entries = base.manifest().by_path() | application.manifest().by_path()
    searched = [leak.encode() for leak in sorted(set(leaks)) if len(leak) >= _MIN_LEAK_BYTES]
    for path in application.paths():
        below = base.get(path)
        above = application.get(path)
        if below is not None and above is not None and EntryType.DIRECTORY not in (below.kind, above.kind):
            found.append(f"{path}: the application replaces a file of the base")
    for tree in (base, application):
        for path in tree.paths():
            entry = tree.get(path)
            if entry is None:
                continue
            found += [*_modes(entry), *_places(entry)]
            if entry.kind is EntryType.LINK and resolve(entries, path) is None:
                found.append(f"{path}: the link to {entry.target} leads nowhere")
            if entry.kind is EntryType.FILE:
                found += _contents(entries, path, tree.read(path), searched)
    return tuple(found)


def check(base: Tree, application: Tree, leaks: Sequence[str] = ()) -> None:
    """Check the rules.

    Errors: `LintError` with every breach.
    """
    found = findings(base, application, leaks)
    if found:
        raise LintError(found)
