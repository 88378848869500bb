"""Explains why two images differ: the first and every difference, down to a file, a mode bit or a kernel option."""

import json
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from enclave_image.bzimage import read_boot_image
from enclave_image.cpio import CpioRecord, read_cpio
from enclave_image.describe import printable
from enclave_image.eif import Eif, SectionType, read_eif
from enclave_image.errors import MalformedError
from enclave_image.measure import measure_eif
from enclave_image.metadata import read_metadata

_CHARACTERS_SHOWN: Final = 160
_CHARACTERS_BEFORE: Final = 40  # of them, those that are still the same
_TYPE_NAMES: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference: where it is, and one sentence with both values."""

    place: str
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


def _values(place: str, name: str, left: object, right: object) -> Iterator[Difference]:
    if left != right:
        yield Difference(place, f"{name} {left} against {right}")


def first_difference(left: bytes, right: bytes) -> str:
    """Where two byte strings part, as a line of text where both are text, else as an offset."""
    low, high = 0, min(len(left), len(right))
    while low < high:  # the longest common prefix, by halves
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    sizes = "" if len(left) == len(right) else f", {len(left)} against {len(right)} bytes"
    if b"\0" not in left and b"\0" not in right:
        line = left.count(b"\n", 0, low) + 1
        # A long line is shown from shortly before the place where the two part.
        start = max(left.rfind(b"\n", 0, low) + 1, low - _CHARACTERS_BEFORE)
        shown = [printable(data[start : start + _CHARACTERS_SHOWN].split(b"\n", 1)[0]) for data in (left, right)]
        return f"contents differ from line {line}: {shown[0]!r} against {shown[1]!r}{sizes}"
    around = [data[low : low + 8].hex() or "the end" for data in (left, right)]
    return f"contents differ from offset {low}: {around[0]} against {around[1]}{sizes}"


def compare_options(place: str, left: Mapping[str, str], right: Mapping[str, str]) -> Iterator[Difference]:
    """Kernel options that are not the same in both."""
    for name in sorted(left.keys() | right.keys()):
        values = [printable(options.get(name, "absent").encode()) for options in (left, right)]
        yield from _values(place, name, *values)


def _kernel(left: bytes, right: bytes) -> Iterator[Difference]:
    if left == right:
        return
    explained = False
    try:
        images = read_boot_image(left), read_boot_image(right)
    except MalformedError as error:
        yield Difference("kernel", f"{first_difference(left, right)} ({error})")
        return
    for difference in _values("kernel", "version", *(repr(image.version) for image in images)):
        explained = True
        yield difference
    if images[0].options is not None and images[1].options is not None:
        for difference in compare_options("kernel option", images[0].options, images[1].options):
            explained = True
            yield difference
    if not explained:
        reason = "with the same version and options: another compiler, source or build time"
        yield Difference("kernel", f"{first_difference(left, right)} {reason}")


def _cmdline(left: bytes, right: bytes) -> Iterator[Difference]:
    if left == right:
        return
    words = [data.split(b" ") for data in (left, right)]
    for word in words[0]:
        if word not in words[1]:
            yield Difference("cmdline", f"only the first has {printable(word)!r}")
    for word in words[1]:
        if word not in words[0]:
            yield Difference("cmdline", f"only the second has {printable(word)!r}")
    if sorted(words[0]) == sorted(words[1]):
        yield Difference("cmdline", "the same words in another order")


def _metadata(left: bytes, right: bytes) -> Iterator[Difference]:
    if left == right:
        return
    try:
        values = read_metadata(left), read_metadata(right)
    except MalformedError:
        yield Difference("metadata", first_difference(left, right))
        return
    flat = [dict(_flatten(value)) for value in values]
    found = False
    for name in sorted(flat[0].keys() | flat[1].keys()):
        for difference in _values("metadata", name, flat[0].get(name, "absent"), flat[1].get(name, "absent")):
            found = True
            yield difference
    if not found:
        yield Difference("metadata", "the same values in another order or spelling")


def _flatten(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, held in value.items():
            shown = printable(str(key).encode("utf-8", "surrogatepass"))
            yield from _flatten(held, f"{name}.{shown}" if name else shown)
    else:
        yield name or "value", json.dumps(value, sort_keys=True)


def _record(place: str, left: CpioRecord, right: CpioRecord) -> Iterator[Difference]:
    types = [_TYPE_NAMES.get(stat.S_IFMT(record.mode), "unknown type") for record in (left, right)]
    if types[0] != types[1]:
        yield Difference(place, f"a {types[0]} against a {types[1]}")
        return
    yield from _values(place, "mode", f"{stat.S_IMODE(left.mode):04o}", f"{stat.S_IMODE(right.mode):04o}")
    yield from _values(place, "owner", f"{left.uid}:{left.gid}", f"{right.uid}:{right.gid}")
    yield from _values(place, "time", left.mtime_s, right.mtime_s)
    yield from _values(place, "device", left.device, right.device)
    yield from _values(place, "hard links", left.links, right.links)
    if left.data != right.data:
        if types[0] == "link":
            yield Difference(place, f"points to {printable(left.data)} against {printable(right.data)}")
        else:
            yield Difference(place, first_difference(left.data, right.data))


def _ramdisk(name: str, left: bytes, right: bytes) -> Iterator[Difference]:
    if left == right:
        return
    try:
        archives = read_cpio(left), read_cpio(right)
    except MalformedError as error:
        yield Difference(name, f"{first_difference(left, right)} (not compared by file: {error})")
        return
    by_path = [{record.path: record for record in archive} for archive in archives]
    found = False
    for path in sorted(by_path[0].keys() | by_path[1].keys()):
        place = f"{name}, {printable(path.encode('utf-8', 'surrogateescape'))}"
        both = by_path[0].get(path), by_path[1].get(path)
        if both[0] is None or both[1] is None:
            yield Difference(place, f"only in the {'second' if both[0] is None else 'first'}")
            found = True
            continue
        for difference in _record(place, both[0], both[1]):
            found = True
            yield difference
    if not found:
        yield Difference(name, f"the same files, but {first_difference(left, right)}: order, inode numbers or padding")


def compare_registers(left: bytes, right: bytes) -> str:
    """Which of PCR0 to PCR2 are the same in two images: what their differences mean for a verifier.

    Errors: `MalformedError` when one of them is no EIF.
    """
    measured = [measure_eif(read_eif(data).eif) for data in (left, right)]
    pairs = {name: [getattr(found, name.lower()) for found in measured] for name in ("PCR0", "PCR1", "PCR2")}
    words = [f"{name} {'is the same' if first == second else 'differs'}" for name, (first, second) in pairs.items()]
    return "registers: " + ", ".join(words)


def compare_eif(left: bytes, right: bytes) -> list[Difference]:
    """Every difference between two images, in the order of the file; empty exactly when the bytes are the same.

    Errors: `MalformedError` when one of them is no EIF.
    """
    if left == right:
        return []
    readings = read_eif(left), read_eif(right)
    eifs: tuple[Eif, Eif] = (readings[0].eif, readings[1].eif)
    found: list[Difference] = []
    for name in ("version", "flags", "default_memory_bytes", "default_cpus"):
        found += _values("header", name, getattr(eifs[0], name), getattr(eifs[1], name))
    orders = [" ".join(section.kind.name.lower() for section in eif.sections) for eif in eifs]
    found += _values("header", "sections", *orders)
    for kind, explain in (
        (SectionType.KERNEL, _kernel),
        (SectionType.CMDLINE, _cmdline),
        (SectionType.METADATA, _metadata),
    ):
        both = eifs[0].first(kind), eifs[1].first(kind)
        if both[0] is not None and both[1] is not None:
            found += explain(both[0], both[1])
    ramdisks = eifs[0].ramdisks(), eifs[1].ramdisks()
    for number, (first, second) in enumerate(zip(*ramdisks, strict=False), 1):
        found += _ramdisk(f"ramdisk {number}", first, second)
    signatures = [eif.first(SectionType.SIGNATURE) for eif in eifs]
    if signatures[0] != signatures[1] and None not in signatures:
        found.append(Difference("signature", "another key, or another signature of the same key"))
    for number, reading in enumerate(readings):
        for problem in reading.problems:
            if problem not in readings[1 - number].problems:
                found.append(Difference("first" if number == 0 else "second", problem))
    return found or [Difference("file", first_difference(left, right))]
