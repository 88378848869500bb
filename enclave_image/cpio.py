"""The initramfs archive format "newc": written from a manifest, read from any file (nitro-facts §1.7).

Times are one constant, owners come from the manifest, inode numbers count from 1 in path order, links are never hard,
and the archive ends on a multiple of 512 bytes so that a second one may follow.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from enclave_image.errors import MalformedError
from enclave_image.manifest import EntryType, Manifest

MAGIC: Final = b"070701"
HEADER_BYTES: Final = 110
ALIGNMENT_BYTES: Final = 512  # the next ramdisk starts where this one ends, and the kernel wants it aligned
TRAILER: Final = b"TRAILER!!!"
MAX_FILE_BYTES: Final = (1 << 32) - 1
MAX_NAME_BYTES: Final = 4096
MAX_ENTRIES: Final = 1 << 20

_HEXADECIMAL: Final = re.compile(rb"[0-9a-fA-F]{104}")
_TYPE_BITS: Final = {
    EntryType.DIRECTORY: 0o040000,
    EntryType.FILE: 0o100000,
    EntryType.LINK: 0o120000,
    EntryType.DEVICE: 0o020000,
}


@dataclass(frozen=True, slots=True)
class CpioRecord:
    """One record as it stands in an archive; `mode` includes the type bits, `data` of a link is its target."""

    path: str
    mode: int
    uid: int
    gid: int
    inode: int
    links: int
    mtime_s: int
    device: tuple[int, int]
    data: bytes = field(repr=False)


def _record(name: bytes, fields: tuple[int, ...], data: bytes) -> bytes:
    inode, mode, uid, gid, links, mtime_s, major, minor = fields
    values = (inode, mode, uid, gid, links, mtime_s, len(data), 0, 0, major, minor, len(name) + 1, 0)
    head = MAGIC + b"".join(b"%08X" % value for value in values) + name + b"\0"
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def encode_cpio(manifest: Manifest, contents: Mapping[str, bytes], mtime_s: int) -> bytes:
    """The archive that `manifest` describes, with the contents of files looked up by their SHA-256.

    `mtime_s` is written for every path. Errors: `MalformedError` for contents that are missing or have another size
    than the manifest says.
    """
    parts: list[bytes] = []
    for inode, entry in enumerate(manifest.entries, 1):
        data = b""
        if entry.kind is EntryType.FILE:
            found = contents.get(entry.sha256)
            if found is None or len(found) != entry.size_bytes or len(found) > MAX_FILE_BYTES:
                raise MalformedError(f"no contents of {entry.size_bytes} bytes with {entry.sha256} for {entry.path!r}")
            data = found
        elif entry.kind is EntryType.LINK:
            data = entry.target.encode()
        fields = (inode, _TYPE_BITS[entry.kind] | entry.mode, entry.uid, entry.gid, 1, mtime_s, *entry.device)
        parts.append(_record(entry.path.encode(), fields, data))
    parts.append(_record(TRAILER, (0, 0, 0, 0, 1, 0, 0, 0), b""))
    size = sum(map(len, parts))
    parts.append(bytes(-size % ALIGNMENT_BYTES))
    return b"".join(parts)


def read_cpio(data: bytes) -> list[CpioRecord]:
    """Records of an uncompressed newc archive in file order, bounds-checked; padding after the trailer is allowed.

    Errors: `MalformedError` naming the offset of the record that is wrong.
    """
    records: list[CpioRecord] = []
    offset = 0
    while True:
        head = data[offset : offset + HEADER_BYTES]
        if len(head) < HEADER_BYTES or head[:6] != MAGIC:
            raise MalformedError(f"no newc record at offset {offset} of a {len(data)}-byte archive")
        digits = head[6:]
        if not _HEXADECIMAL.fullmatch(digits):
            raise MalformedError(f"the newc record at offset {offset} has a field that is not hexadecimal")
        values = [int(digits[8 * index : 8 * index + 8], 16) for index in range(13)]
        inode, mode, uid, gid, links, mtime_s, size, _, _, major, minor, name_size, _ = values
        name_start = offset + HEADER_BYTES
        data_start = name_start + name_size + (-(HEADER_BYTES + name_size) % 4)
        if not 2 <= name_size <= MAX_NAME_BYTES or data_start + size > len(data):
            raise MalformedError(f"the newc record at offset {offset} does not fit into its archive")
        name = data[name_start : name_start + name_size]
        if name[-1] != 0 or 0 in name[:-1]:
            raise MalformedError(f"the name in the newc record at offset {offset} is not one NUL-terminated string")
        offset = data_start + size + (-size % 4)
        if name[:-1] == TRAILER:
            break
        if len(records) == MAX_ENTRIES:
            raise MalformedError(f"more than {MAX_ENTRIES} records in one archive")
        path = name[:-1].decode("utf-8", "surrogateescape")
        contents = data[data_start : data_start + size]
        records.append(CpioRecord(path, mode, uid, gid, inode, links, mtime_s, (major, minor), contents))
    if data.count(0, offset) != len(data) - offset:
        raise MalformedError(f"bytes other than padding after the trailer at offset {offset}")
    return records
