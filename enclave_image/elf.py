"""Reads which libraries an x86-64 ELF file needs, so that an image can be checked to hold them all."""

import struct
from dataclasses import dataclass
from typing import Final

from enclave_image.errors import MalformedError

MAGIC: Final = b"\x7fELF"
_PROGRAM_HEADER: Final = struct.Struct("<IIQQQQQQ")
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_SONAME, _DT_RPATH, _DT_RUNPATH = 0, 1, 5, 14, 15, 29
_MAX_DYNAMIC_ENTRIES: Final = 4096


@dataclass(frozen=True, slots=True)
class ElfNeeds:
    """What the dynamic loader looks for: interpreter, libraries in order, run path with `$ORIGIN` as written."""

    interpreter: str
    soname: str
    needed: tuple[str, ...]
    run_path: tuple[str, ...]


def is_elf(data: bytes) -> bool:
    """Whether `data` starts as an ELF file does."""
    return data.startswith(MAGIC)


def read_elf(data: bytes) -> ElfNeeds:
    """What the 64-bit little-endian ELF file in `data` needs; all empty for a static one.

    Errors: `MalformedError` for another class, or tables that leave the file.
    """
    try:
        return _read(data)
    except (struct.error, OverflowError) as error:
        raise MalformedError("an ELF file whose tables leave the file") from error


def _text(data: bytes, offset: int) -> str:
    end = data.find(b"\0", offset)
    if end < 0:
        raise MalformedError("an ELF string without end")
    return data[offset:end].decode("utf-8", "replace")


def _read(data: bytes) -> ElfNeeds:
    if data[:6] != MAGIC + b"\x02\x01":
        raise MalformedError("not a 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", data, 0x20)
    size, count = struct.unpack_from("<HH", data, 0x36)
    loads: list[tuple[int, int, int]] = []
    dynamic: tuple[int, int] | None = None
    interpreter = ""
    for index in range(count):
        kind, _, offset, address, _, file_size, _, _ = _PROGRAM_HEADER.unpack_from(data, table + index * size)
        if kind == _PT_LOAD:
            loads.append((address, offset, file_size))
        elif kind == _PT_DYNAMIC:
            dynamic = (offset, file_size)
        elif kind == _PT_INTERP:
            interpreter = _text(data, offset)
    if dynamic is None:
        return ElfNeeds(interpreter, "", (), ())
    tags: list[tuple[int, int]] = []
    for index in range(min(dynamic[1] // 16, _MAX_DYNAMIC_ENTRIES)):
        tag, value = struct.unpack_from("<QQ", data, dynamic[0] + 16 * index)
        if tag == _DT_NULL:
            break
        tags.append((tag, value))
    strings = next((value for tag, value in tags if tag == _DT_STRTAB), 0)
    base = next(
        (strings - address + offset for address, offset, held in loads if address <= strings < address + held), 0
    )

    def texts(*wanted: int) -> tuple[str, ...]:
        return tuple(_text(data, base + value) for tag, value in tags if tag in wanted)

    run_path = tuple(part for text in texts(_DT_RPATH, _DT_RUNPATH) for part in text.split(":") if part)
    return ElfNeeds(interpreter, "".join(texts(_DT_SONAME)[:1]), texts(_DT_NEEDED), run_path)
