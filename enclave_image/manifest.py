"""The manifest: one line per path of a ramdisk, and the rules that every ramdisk keeps.

A line is `mode owner type size sha256 path`, so that a changed PCR has a readable reason. The archive writer sees only
a manifest and the contents by hash: nothing of the build machine's file system can reach the image.
"""

import hashlib
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import quote, unquote

from enclave_image.errors import MalformedError

MAX_LINK_DEPTH: Final = 16
_SAFE_IN_PATHS: Final = "/+,:=@[]~!()&'"


class EntryType(StrEnum):
    """What a path is; sockets, fifos and block devices have no place in an image."""

    DIRECTORY = "dir"
    FILE = "file"
    LINK = "link"
    DEVICE = "char"


@dataclass(frozen=True, slots=True, order=True)
class ManifestEntry:
    """One path, relative and without `./`; `mode` holds the permission bits, size and digest are those of a file."""

    path: str
    kind: EntryType
    mode: int
    uid: int = 0
    gid: int = 0
    size_bytes: int = 0
    sha256: str = ""
    target: str = ""
    device: tuple[int, int] = (0, 0)

    def line(self) -> str:
        """The manifest line of this path, without a line end."""
        size, digest = "-", "-"
        if self.kind is EntryType.FILE:
            size, digest = str(self.size_bytes), self.sha256
        elif self.kind is EntryType.DEVICE:
            size = f"{self.device[0]}:{self.device[1]}"
        text = f"{self.mode:04o} {self.uid}:{self.gid} {self.kind} {size} {digest} {_quoted(self.path)}"
        return f"{text} -> {_quoted(self.target)}" if self.kind is EntryType.LINK else text


def _quoted(path: str) -> str:
    return quote(path, safe=_SAFE_IN_PATHS)


def path_order(path: str) -> bytes:
    """Sort key of a path: its raw bytes, which puts every directory before what it holds."""
    return path.encode()


@dataclass(frozen=True, slots=True)
class Manifest:
    """Entries of one ramdisk, sorted by the bytes of their paths, each path once."""

    entries: tuple[ManifestEntry, ...]

    @classmethod
    def of(cls, entries: Iterable[ManifestEntry]) -> "Manifest":
        """A manifest of these entries in any order.

        Errors: `MalformedError` for a path that appears twice or is not relative and normal.
        """
        by_path: dict[str, ManifestEntry] = {}
        for entry in entries:
            if not is_normal_path(entry.path):
                raise MalformedError(f"the path {entry.path!r} is not relative and normal")
            if entry.path in by_path:
                raise MalformedError(f"the path {entry.path!r} appears twice")
            by_path[entry.path] = entry
        return cls(tuple(by_path[path] for path in sorted(by_path, key=path_order)))

    def text(self) -> str:
        """The manifest file: one line per path, each with a line end."""
        return "".join(entry.line() + "\n" for entry in self.entries)

    def by_path(self) -> dict[str, ManifestEntry]:
        """Entries by path, in order."""
        return {entry.path: entry for entry in self.entries}


def is_normal_path(path: str) -> bool:
    """Whether `path` is relative UTF-8 without empty, `.` or `..` parts and without NUL or line breaks."""
    parts = path.split("/")
    return not any(part in ("", ".", "..") for part in parts) and not re.search(r"[\0\r\n\ud800-\udfff]", path)


_LINE: Final = re.compile(
    r"([0-7]{4}) (\d{1,10}):(\d{1,10}) (dir|file|link|char) (-|\d+|\d+:\d+) (-|[0-9a-f]{64}) (\S+)(?: -> (\S+))?"
)


def parse_manifest(text: str) -> Manifest:
    """The manifest in `text`, as `Manifest.text` writes it.

    Errors: `MalformedError` naming the line.
    """
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise MalformedError(f"manifest line {number} is not `mode owner type size sha256 path`")
        mode, uid, gid, kind, size, digest, path, target = match.groups()
        entry_type = EntryType(kind)
        major, _, minor = size.partition(":")
        entry = ManifestEntry(
            unquote(path),
            entry_type,
            int(mode, 8),
            int(uid),
            int(gid),
            int(size) if entry_type is EntryType.FILE and size.isdigit() else 0,
            digest if entry_type is EntryType.FILE else "",
            unquote(target or ""),
            (int(major), int(minor)) if entry_type is EntryType.DEVICE and minor else (0, 0),
        )
        if entry.line() != line or (entry_type is EntryType.FILE and not entry.sha256.isalnum()):
            raise MalformedError(f"manifest line {number} is not in canonical form")
        entries.append(entry)
    manifest = Manifest.of(entries)
    if tuple(entries) != manifest.entries:
        raise MalformedError("the manifest is not sorted by the bytes of its paths")
    return manifest


class Tree:
    """A root file system in memory while it is put together: paths and the contents of files.

    Nothing is written to disk: owner is always 0:0, times do not exist, modes are the caller's.
    """

    def __init__(self) -> None:
        self._entries: dict[str, ManifestEntry] = {}
        self._contents: dict[str, bytes] = {}

    def _place(self, entry: ManifestEntry) -> None:
        if not is_normal_path(entry.path):
            raise MalformedError(f"the path {entry.path!r} is not relative and normal")
        for parent in parents(entry.path):
            found = self._entries.get(parent)
            if found is None:
                self._entries[parent] = ManifestEntry(parent, EntryType.DIRECTORY, 0o755)
            elif found.kind is not EntryType.DIRECTORY:
                raise MalformedError(f"{entry.path!r} lies below {parent!r}, which is a {found.kind}")
        before = self._entries.get(entry.path)
        if before is not None and before != entry:
            if before.kind is EntryType.DIRECTORY and entry.kind is EntryType.DIRECTORY:
                self._entries[entry.path] = entry
                return
            raise MalformedError(f"two inputs hold {entry.path!r} with different contents")
        self._entries[entry.path] = entry

    def add_directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory; one that exists takes the new mode."""
        self._place(ManifestEntry(path, EntryType.DIRECTORY, mode))

    def add_file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a file and its missing parents.

        Errors: `MalformedError` for a path that already holds something else.
        """
        digest = hashlib.sha256(data).hexdigest()
        self._place(ManifestEntry(path, EntryType.FILE, mode, size_bytes=len(data), sha256=digest))
        self._contents[digest] = data

    def add_link(self, path: str, target: str) -> None:
        """Add a symbolic link; the target is checked by the lint, when the tree is whole."""
        self._place(ManifestEntry(path, EntryType.LINK, 0o777, target=target))

    def add_device(self, path: str, major: int, minor: int, mode: int) -> None:
        """Add a character device."""
        self._place(ManifestEntry(path, EntryType.DEVICE, mode, device=(major, minor)))

    def replace_file(self, path: str, data: bytes) -> None:
        """Give an existing file other contents; its mode stays."""
        mode = self._entries.pop(path).mode
        self.add_file(path, data, mode)

    def remove(self, path: str) -> None:
        """Take out a path and everything below it."""
        for held in [held for held in self._entries if held == path or held.startswith(path + "/")]:
            del self._entries[held]

    def remove_empty_directories(self, keep: Iterable[str] = ()) -> None:
        """Take out directories that hold nothing, from the bottom up, but for those in `keep`."""
        kept = set(keep)
        for path in sorted(self._entries, key=path_order, reverse=True):
            if self._entries[path].kind is not EntryType.DIRECTORY or path in kept:
                continue
            if not any(held.startswith(path + "/") for held in self._entries):
                del self._entries[path]

    def get(self, path: str) -> ManifestEntry | None:
        """The entry at exactly this path, links not followed."""
        return self._entries.get(path)

    def read(self, path: str) -> bytes:
        """Contents of the file at this path, which must be one."""
        return self._contents[self._entries[path].sha256]

    def paths(self) -> list[str]:
        """Every path, sorted by its bytes."""
        return sorted(self._entries, key=path_order)

    def files(self) -> list[str]:
        """Paths of the files alone, sorted by their bytes."""
        return [path for path in self.paths() if self._entries[path].kind is EntryType.FILE]

    def manifest(self) -> Manifest:
        """The manifest of the tree as it is now."""
        return Manifest.of(self._entries.values())

    def contents(self) -> dict[str, bytes]:
        """Contents of every file by SHA-256, for the archive writer."""
        return {
            entry.sha256: self._contents[entry.sha256]
            for entry in self._entries.values()
            if entry.kind is EntryType.FILE
        }


def parents(path: str) -> list[str]:
    """Every directory above `path`, outermost first."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[: depth + 1]) for depth in range(len(parts))]


def resolve(entries: Mapping[str, ManifestEntry], path: str) -> ManifestEntry | None:
    """The entry that `path` leads to with every link followed inside the image, or None where it leads nowhere."""
    pending = [part for part in path.split("/") if part]
    done: list[str] = []
    links = 0
    while pending:
        part = pending.pop(0)
        if part == ".":
            continue
        if part == "..":
            done = done[:-1]
            continue
        entry = entries.get("/".join([*done, part]))
        if entry is None:
            return None
        if entry.kind is not EntryType.LINK:
            done.append(part)
            continue
        links += 1
        if links > MAX_LINK_DEPTH:
            return None
        if posixpath.isabs(entry.target):
            done = []
        pending = [piece for piece in entry.target.split("/") if piece] + pending
    return entries.get("/".join(done)) if done else ManifestEntry(".", EntryType.DIRECTORY, 0o755)
