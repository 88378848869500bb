"""Reads Debian packages: the ar container and the two tar archives inside, without running anything of theirs.

Maintainer scripts are never looked at; owners and times are not kept. What a package may hold is files, directories,
links and hard links (which become files); anything else is refused.
"""

import bz2
import gzip
import io
import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from enclave_image.errors import MalformedError
from enclave_image.manifest import EntryType, is_normal_path

_AR_MAGIC: Final = b"!<arch>\n"
_AR_HEADER_BYTES: Final = 60
MAX_UNPACKED_BYTES: Final = 1 << 30  # the largest package, the kernel's source, has 150 MB


@dataclass(frozen=True, slots=True)
class DebEntry:
    """One path of a package: relative and normal; `mode` holds the permission bits."""

    path: str
    kind: EntryType
    mode: int
    data: bytes = field(default=b"", repr=False)
    target: str = ""


@dataclass(frozen=True, slots=True)
class Deb:
    """A package: the fields of its control file, and its paths in archive order."""

    control: dict[str, str]
    entries: tuple[DebEntry, ...] = field(repr=False)


def _members(data: bytes) -> Iterator[tuple[str, bytes]]:
    if not data.startswith(_AR_MAGIC):
        raise MalformedError("not a Debian package: the ar magic is missing")
    offset = len(_AR_MAGIC)
    while offset < len(data):
        header = data[offset : offset + _AR_HEADER_BYTES]
        size_text = header[48:58].decode("ascii", "replace").strip()
        if len(header) < _AR_HEADER_BYTES or header[58:] != b"`\n" or not (size_text.isascii() and size_text.isdigit()):
            raise MalformedError(f"the ar header at offset {offset} is broken")
        start, size = offset + _AR_HEADER_BYTES, int(size_text)
        if start + size > len(data):
            raise MalformedError(f"the ar member at offset {offset} does not fit into its archive")
        yield header[:16].decode("ascii", "replace").strip().rstrip("/"), data[start : start + size]
        offset = start + size + size % 2


def _unpacked(name: str, data: bytes) -> bytes:
    stream: lzma.LZMAFile | gzip.GzipFile | bz2.BZ2File
    match posixpath.splitext(name)[1]:
        case ".tar":
            return data
        case ".xz":
            stream = lzma.LZMAFile(io.BytesIO(data))  # noqa: SIM115 -- closed below, as its siblings
        case ".gz":
            stream = gzip.GzipFile(fileobj=io.BytesIO(data))
        case ".bz2":
            stream = bz2.BZ2File(io.BytesIO(data))
        case _:
            raise MalformedError(f"the package member {name} is compressed in a way that is not read here")
    try:
        with stream:
            unpacked = stream.read(MAX_UNPACKED_BYTES + 1)
    except (lzma.LZMAError, OSError, EOFError, ValueError, zlib.error) as error:
        raise MalformedError(f"the package member {name} is damaged") from error
    if len(unpacked) > MAX_UNPACKED_BYTES:
        raise MalformedError(f"the package member {name} unpacks to more than {MAX_UNPACKED_BYTES} bytes")
    return unpacked


def _control_fields(data: bytes) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in data.decode("utf-8", "replace").splitlines():
        if line[:1] in (" ", "\t") and name:
            fields[name] += "\n" + line.strip()
        elif ":" in line:
            name, _, value = line.partition(":")
            fields[name] = value.strip()
    return fields


def tar_entries(data: bytes) -> Iterator[DebEntry]:
    """Entries of an uncompressed tar, in order; hard links come as copies of the file they name.

    Errors: `MalformedError` for a broken archive, a path outside its root, and types that no image holds.
    """
    contents: dict[str, DebEntry] = {}
    try:
        # With the encoding named: the default is that of the machine's locale.
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:", encoding="utf-8") as archive:
            for member in archive:
                path = posixpath.normpath(member.name)
                if path == ".":
                    continue
                if not is_normal_path(path):
                    raise MalformedError(f"the archive path {member.name!r} is not relative and normal")
                mode = member.mode & 0o7777
                if member.isdir():
                    yield DebEntry(path, EntryType.DIRECTORY, mode)
                elif member.issym():
                    yield DebEntry(path, EntryType.LINK, 0o777, target=member.linkname)
                elif member.islnk():
                    original = contents.get(posixpath.normpath(member.linkname))
                    if original is None:
                        raise MalformedError(f"{path!r} is a hard link to something that is not before it")
                    yield DebEntry(path, EntryType.FILE, original.mode, original.data)
                elif member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse():
                    held = archive.extractfile(member)
                    entry = DebEntry(path, EntryType.FILE, mode, held.read() if held is not None else b"")
                    contents[path] = entry
                    yield entry
                else:
                    raise MalformedError(f"{path!r} is neither file, directory nor link")
    except (tarfile.TarError, EOFError, OverflowError, ValueError) as error:
        raise MalformedError("a tar archive is damaged") from error


def read_deb(data: bytes) -> Deb:
    """The package in `data`.

    Errors: `MalformedError` for anything that does not follow the format.
    """
    control: dict[str, str] | None = None
    entries: tuple[DebEntry, ...] | None = None
    for index, (name, member) in enumerate(_members(data)):
        if index == 0 and (name, member[:2]) != ("debian-binary", b"2."):
            raise MalformedError("not a Debian package of format 2")
        if name.startswith("control.tar") and control is None:
            for entry in tar_entries(_unpacked(name, member)):
                if entry.path == "control":
                    control = _control_fields(entry.data)
        elif name.startswith("data.tar") and entries is None:
            entries = tuple(tar_entries(_unpacked(name, member)))
    if control is None or entries is None:
        raise MalformedError("a Debian package without control or data archive")
    return Deb(control, entries)
