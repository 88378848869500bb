"""Says what an EIF is: sections, checksum, registers, command line, metadata, files; also for images not made here.

Every byte is treated as hostile: the readers are bounds-checked, and what cannot be read becomes a problem in the
description, never an exception, once the header is one of an EIF.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

from enclave_image.bzimage import read_boot_image
from enclave_image.cpio import read_cpio
from enclave_image.eif import EifReading, SectionType, read_eif, strip_signature
from enclave_image.errors import MalformedError
from enclave_image.measure import Measurements, measure_eif, pcr8_of_certificate
from enclave_image.metadata import read_metadata
from enclave_image.signature import read_signature_section

MAX_SHOWN_CHARACTERS: Final = 4096
_COMPRESSED: Final = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ": "xz", b"\x04\x22\x4d\x18": "lz4"}


@dataclass(frozen=True, slots=True)
class SectionSummary:
    """One section: type, place in the file, SHA-256 of its data, and a few words on what it holds."""

    kind: SectionType
    offset: int
    size_bytes: int
    sha256: str
    summary: str


@dataclass(frozen=True, slots=True)
class Description:
    """Everything that `image describe` shows."""

    size_bytes: int
    sha256: str
    unsigned_sha256: str | None
    version: int
    flags: int
    crc32: int
    crc32_matches: bool
    sections: tuple[SectionSummary, ...]
    measurements: Measurements
    pcr8: bytes | None  # of the certificate in the file; whether the signature is right is checked elsewhere
    cmdline: str
    metadata: object
    problems: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """The description as JSON values, digests in hexadecimal."""
        return {
            "size_bytes": self.size_bytes,
            "sha256": self.sha256,
            "unsigned_sha256": self.unsigned_sha256,
            "version": self.version,
            "flags": self.flags,
            "crc32": f"{self.crc32:08x}",
            "crc32_matches": self.crc32_matches,
            "sections": [
                {
                    "type": section.kind.name.lower(),
                    "offset": section.offset,
                    "size_bytes": section.size_bytes,
                    "sha256": section.sha256,
                    "summary": section.summary,
                }
                for section in self.sections
            ],
            "PCR0": self.measurements.pcr0.hex(),
            "PCR1": self.measurements.pcr1.hex(),
            "PCR2": self.measurements.pcr2.hex(),
            "PCR8": None if self.pcr8 is None else self.pcr8.hex(),
            "code_measurement": "0x" + self.measurements.code_measurement.hex(),
            "cmdline": self.cmdline,
            "metadata": self.metadata,
            "problems": list(self.problems),
        }


def printable(data: bytes) -> str:
    """`data` as one line of printable ASCII, anything else escaped, cut to a length for people."""
    text = data[:MAX_SHOWN_CHARACTERS].decode("ascii", "backslashreplace")
    return "".join(character if " " <= character <= "~" else repr(character)[1:-1] for character in text)


def _ramdisk_summary(data: bytes) -> str:
    for magic, name in _COMPRESSED.items():
        if data.startswith(magic):
            return f"{name}, not looked into"
    records = read_cpio(data)
    files = sum(record.mode >> 12 == 0o10 for record in records)
    return f"{len(records)} paths, {files} files, {sum(len(record.data) for record in records)} bytes"


def _kernel_summary(data: bytes) -> str:
    image = read_boot_image(data)
    options = "no options embedded" if image.options is None else f"{len(image.options)} options embedded"
    return f"{printable(image.version.encode())}; {options}"


def _summaries(reading: EifReading) -> tuple[list[SectionSummary], list[str]]:
    summaries, problems = [], []
    for index, section in enumerate(reading.eif.sections):
        summary = ""
        try:
            match section.kind:
                case SectionType.KERNEL:
                    if not reading.eif.flags & 1:
                        summary = _kernel_summary(section.data)
                case SectionType.RAMDISK:
                    summary = _ramdisk_summary(section.data)
                case SectionType.CMDLINE:
                    if section.data != section.data.strip() or not section.data.isascii() or b"\0" in section.data:
                        problems.append(f"section {index} (cmdline): white space at an end, or not ASCII")
                case SectionType.METADATA:
                    read_metadata(section.data)
                case SectionType.SIGNATURE:
                    read_signature_section(section.data)
        except MalformedError as error:
            problems.append(f"section {index} ({section.kind.name.lower()}): {error}")
        digest = hashlib.sha256(section.data).hexdigest()
        summaries.append(SectionSummary(section.kind, reading.offsets[index], len(section.data), digest, summary))
    return summaries, problems


def describe_eif(data: bytes) -> Description:
    """What the EIF in `data` holds.

    Errors: `MalformedError` only when `data` is no EIF at all, or a section leaves the file.
    """
    reading = read_eif(data)
    eif = reading.eif
    sections, section_problems = _summaries(reading)
    problems = [*reading.problems, *section_problems]
    measurements = measure_eif(eif)

    pcr8 = None
    signature = eif.first(SectionType.SIGNATURE)
    if signature is not None:
        try:
            unverified = read_signature_section(signature)
            pcr8 = pcr8_of_certificate(unverified.certificate_der())
            if (unverified.register_index, unverified.register_value) != (0, measurements.pcr0):
                problems.append("the signature is for another PCR0 than this image has")
        except MalformedError as error:
            problems.append(f"PCR8 is unknown: {error}")
    metadata: object = None
    raw_metadata = eif.first(SectionType.METADATA)
    if raw_metadata is not None:
        try:
            metadata = read_metadata(raw_metadata)
        except MalformedError:
            metadata = None  # already a problem of its section
    return Description(
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        unsigned_sha256=None if reading.problems else hashlib.sha256(strip_signature(data)).hexdigest(),
        version=eif.version,
        flags=eif.flags,
        crc32=reading.stored_crc32,
        crc32_matches=reading.stored_crc32 == reading.computed_crc32,
        sections=tuple(sections),
        measurements=measurements,
        pcr8=pcr8,
        cmdline=printable(eif.first(SectionType.CMDLINE) or b""),
        metadata=metadata,
        problems=tuple(dict.fromkeys(problems)),
    )
