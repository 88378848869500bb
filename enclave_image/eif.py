"""The Enclave Image File, version 4: encode, read, check (nitro-facts §1.1 to §1.3 restated as code).

Refuses to guess: a section that leaves the file, an unknown type or a wrong checksum is named, never repaired.
"""

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Final

from enclave_image.errors import MalformedError

MAGIC: Final = b".eif"
VERSION: Final = 4
MAX_SECTIONS: Final = 32
HEADER_BYTES: Final = 548
CRC_OFFSET: Final = 544
SECTION_HEADER_BYTES: Final = 12
MAX_SIGNATURE_BYTES: Final = 32768  # what the tooling of the platform reads
MAX_FILE_BYTES: Final = 2 << 30  # what is read of a file here; an enclave needs four times as much memory

FLAG_AARCH64: Final = 1
DEFAULT_MEMORY_BYTES: Final = 1 << 30  # written by the platform's own tooling, read by nobody
DEFAULT_CPUS: Final = 2

_FIXED = struct.Struct(">4sHHQQHH")
_TABLE = struct.Struct(">32Q")
_TAIL = struct.Struct(">II")
_SECTION = struct.Struct(">HHQ")


class SectionType(IntEnum):
    """Section types of the format; every other number is refused."""

    KERNEL = 1
    CMDLINE = 2
    RAMDISK = 3
    SIGNATURE = 4
    METADATA = 5


@dataclass(frozen=True, slots=True)
class Section:
    """One section: its type and its data without the 12-byte header."""

    kind: SectionType
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Eif:
    """A well-formed image: header fields that carry meaning, and the sections in file order."""

    sections: tuple[Section, ...]
    flags: int = 0
    default_memory_bytes: int = DEFAULT_MEMORY_BYTES
    default_cpus: int = DEFAULT_CPUS
    version: int = VERSION

    def first(self, kind: SectionType) -> bytes | None:
        """Data of the first section of this type, or None."""
        return next((section.data for section in self.sections if section.kind is kind), None)

    def ramdisks(self) -> tuple[bytes, ...]:
        """Data of the ramdisks in file order."""
        return tuple(section.data for section in self.sections if section.kind is SectionType.RAMDISK)


@dataclass(frozen=True, slots=True)
class EifReading:
    """What a file holds, with one sentence for each rule of the format that it breaks."""

    eif: Eif
    offsets: tuple[int, ...]
    stored_crc32: int
    computed_crc32: int
    problems: tuple[str, ...]


def _order_problems(kinds: Iterable[SectionType], version: int) -> list[str]:
    kinds = list(kinds)
    problems = [
        f"{kind.name.lower()} sections: found {kinds.count(kind)}, expected exactly 1"
        for kind in (SectionType.KERNEL, SectionType.CMDLINE, *((SectionType.METADATA,) if version >= VERSION else ()))
        if kinds.count(kind) != 1
    ]
    if kinds.count(SectionType.SIGNATURE) > 1:
        problems.append(f"signature sections: found {kinds.count(SectionType.SIGNATURE)}, expected at most 1")
    measured = [kind for kind in kinds if kind in (SectionType.KERNEL, SectionType.CMDLINE, SectionType.RAMDISK)]
    if measured != sorted(measured):
        problems.append("the measured sections are not in the order kernel, command line, ramdisks")
    return problems


def encode_eif(eif: Eif) -> bytes:
    """The bytes of `eif`: header, sections without gaps, checksum last.

    Errors: `MalformedError` for more than 32 sections, for a missing or repeated section, or for another order than
    kernel, command line, ramdisks; metadata and signature may stand anywhere.
    """
    if len(eif.sections) > MAX_SECTIONS:
        raise MalformedError(f"an EIF holds at most {MAX_SECTIONS} sections, not {len(eif.sections)}")
    problems = _order_problems((section.kind for section in eif.sections), eif.version)
    if problems:
        raise MalformedError(f"cannot write this EIF: {problems[0]}")
    offsets = [0] * MAX_SECTIONS
    sizes = [0] * MAX_SECTIONS
    position = HEADER_BYTES
    for index, section in enumerate(eif.sections):
        offsets[index], sizes[index] = position, len(section.data)
        position += SECTION_HEADER_BYTES + len(section.data)
    fixed = _FIXED.pack(MAGIC, eif.version, eif.flags, eif.default_memory_bytes, eif.default_cpus, 0, len(eif.sections))
    header = fixed + _TABLE.pack(*offsets) + _TABLE.pack(*sizes) + bytes(4)
    body = [part for s in eif.sections for part in (_SECTION.pack(s.kind, 0, len(s.data)), s.data)]
    crc32 = zlib.crc32(header)
    for part in body:
        crc32 = zlib.crc32(part, crc32)
    return b"".join([header, crc32.to_bytes(4, "big"), *body])


def load_eif(path: Path) -> bytes:
    """Contents of the file, which starts as an EIF does; nothing else of them is checked.

    Errors: `MalformedError` for another start, before the rest is read, and for more than 2 GiB.
    """
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
        if len(head) < HEADER_BYTES or not head.startswith(MAGIC):
            read_eif(head)  # says what is wrong
        data = head + file.read(MAX_FILE_BYTES + 1 - len(head))
    if len(data) > MAX_FILE_BYTES:
        raise MalformedError(f"{path} has more than {MAX_FILE_BYTES} bytes: too large to be read here")
    return data


def read_eif(data: bytes) -> EifReading:
    """Read any EIF, bounds-checked, and list what is wrong with it instead of stopping at the first breach.

    Errors: `MalformedError` only where nothing can be read: too short, another magic, too many sections, or a section
    whose header or data leaves the file.
    """
    if len(data) < HEADER_BYTES:
        raise MalformedError(f"not an EIF: {len(data)} bytes, the header alone has {HEADER_BYTES}")
    magic, version, flags, memory, cpus, reserved, count = _FIXED.unpack_from(data)
    if magic != MAGIC:
        raise MalformedError(f"not an EIF: it starts with {magic.hex()}, expected {MAGIC.hex()}")
    if count > MAX_SECTIONS:
        raise MalformedError(f"the header claims {count} sections, the format has room for {MAX_SECTIONS}")
    offsets = _TABLE.unpack_from(data, _FIXED.size)
    sizes = _TABLE.unpack_from(data, _FIXED.size + _TABLE.size)
    unused, stored_crc32 = _TAIL.unpack_from(data, CRC_OFFSET - 4)

    problems: list[str] = []
    if version not in (2, 3, VERSION):
        problems.append(f"header version {version}: only 2, 3 and {VERSION} are known")
    if flags & ~FLAG_AARCH64:
        problems.append(f"header flags 0x{flags:04x}: an ordinary enclave has 0 (x86_64) or 1 (aarch64)")
    if reserved or unused:
        problems.append("reserved header fields are not zero")
    if any(offsets[count:]) or any(sizes[count:]):
        problems.append("unused slots of the section tables are not zero")

    claimed = HEADER_BYTES + SECTION_HEADER_BYTES * count + sum(sizes[:count])
    if claimed > len(data):
        raise MalformedError(f"the sections claim {claimed} bytes of a file of {len(data)}")
    sections: list[Section] = []
    computed_crc32 = zlib.crc32(data[:CRC_OFFSET])
    expected_offset = HEADER_BYTES
    for index, (offset, size) in enumerate(zip(offsets[:count], sizes[:count], strict=True)):
        end = offset + SECTION_HEADER_BYTES + size
        if offset < HEADER_BYTES or end > len(data):
            raise MalformedError(f"section {index} claims bytes {offset} to {end} of a file of {len(data)}")
        kind, section_flags, header_size = _SECTION.unpack_from(data, offset)
        if kind not in SectionType.__members__.values():
            raise MalformedError(f"section {index} has type {kind}; types are 1 to 5")
        if header_size != size:
            problems.append(f"section {index}: its header says {header_size} bytes, the table says {size}")
        if section_flags:
            problems.append(f"section {index}: flags 0x{section_flags:04x}, expected 0")
        if offset != expected_offset:
            problems.append(
                f"section {index} starts at {offset}, the one before ends at {expected_offset}: "
                "tools that walk the file cannot read it"
            )
        expected_offset = end
        computed_crc32 = zlib.crc32(data[offset:end], computed_crc32)
        sections.append(Section(SectionType(kind), data[offset + SECTION_HEADER_BYTES : end]))
    if expected_offset != len(data):
        problems.append(f"{len(data) - expected_offset} bytes after the last section")
    problems += _order_problems((section.kind for section in sections), version)
    if computed_crc32 != stored_crc32:
        problems.append(f"checksum: stored 0x{stored_crc32:08x}, computed 0x{computed_crc32:08x}")
    eif = Eif(tuple(sections), flags, memory, cpus, version)
    return EifReading(eif, offsets[:count], stored_crc32, computed_crc32, tuple(problems))


def parse_eif(data: bytes) -> Eif:
    """The image in `data`, which follows every rule of the format.

    Errors: `MalformedError` naming the first rule that is broken.
    """
    reading = read_eif(data)
    if reading.problems:
        raise MalformedError(f"not a well-formed EIF: {reading.problems[0]}")
    return reading.eif


def strip_signature(data: bytes) -> bytes:
    """The same image without its signature section; an unsigned image comes back unchanged.

    Errors: `MalformedError` as `parse_eif`.
    """
    eif = parse_eif(data)
    unsigned = tuple(section for section in eif.sections if section.kind is not SectionType.SIGNATURE)
    return encode_eif(Eif(unsigned, eif.flags, eif.default_memory_bytes, eif.default_cpus, eif.version))
