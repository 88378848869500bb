"""What can be read from an x86 boot image: its version string and the configuration embedded in it.

Reads only what the boot protocol defines and never more than a bounded amount, so that it may be pointed at any file.
"""

import re
import struct
import zlib
from dataclasses import dataclass, field
from typing import Final

from enclave_image.errors import MalformedError

MAX_UNPACKED_BYTES: Final = 256 << 20
MAX_CONFIG_BYTES: Final = 4 << 20

_SETUP_SECTORS_AT: Final = 0x1F1
_HEADER_MAGIC_AT: Final = 0x202
_VERSION_POINTER_AT: Final = 0x20E
_PAYLOAD_AT: Final = 0x248
_GZIP_MAGIC: Final = b"\x1f\x8b\x08"
_CONFIG_START: Final = b"IKCFG_ST"
_CONFIG_LINE: Final = re.compile(r"(?:(CONFIG_\w+)=(.*)|# (CONFIG_\w+) is not set)")


@dataclass(frozen=True, slots=True)
class BootImage:
    """A boot image: its version string, and its options (`name -> value`, `n` when off) where it carries them."""

    version: str
    options: dict[str, str] | None = field(repr=False)


def parse_config(text: str) -> dict[str, str]:
    """Options of a kernel configuration by name; `n` for those that say they are not set."""
    options: dict[str, str] = {}
    for line in text.splitlines():
        match = _CONFIG_LINE.fullmatch(line)
        if match is not None:
            options[match[1] or match[3]] = match[2] if match[1] else "n"
    return options


def _gunzip(data: bytes, limit_bytes: int) -> bytes:
    """Everything up to the limit that `data` unpacks to; a damaged end is left out."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        return unpacker.decompress(data, limit_bytes)
    except zlib.error as error:
        raise MalformedError("a kernel payload is not gzip") from error


def _embedded_config(image: bytes) -> dict[str, str] | None:
    offset, size = struct.unpack_from("<II", image, _PAYLOAD_AT)
    start = (image[_SETUP_SECTORS_AT] + 1) * 512 + offset
    payload = image[start : start + size]
    if not payload.startswith(_GZIP_MAGIC):
        return None  # another compressor: the options stay unknown
    kernel = _gunzip(payload, MAX_UNPACKED_BYTES)
    at = kernel.find(_CONFIG_START + _GZIP_MAGIC)
    if at < 0:
        return None
    text = _gunzip(kernel[at + len(_CONFIG_START) :], MAX_CONFIG_BYTES)
    return parse_config(text.decode("ascii", "replace"))


def read_boot_image(image: bytes) -> BootImage:
    """Version and options of an x86 boot image.

    Errors: `MalformedError` when it is none, or when what it carries is damaged.
    """
    if len(image) < _PAYLOAD_AT + 8 or image[_HEADER_MAGIC_AT : _HEADER_MAGIC_AT + 4] != b"HdrS":
        raise MalformedError("the kernel is not an x86 boot image: a hypervisor would not start it")
    (pointer,) = struct.unpack_from("<H", image, _VERSION_POINTER_AT)
    version = ""
    if pointer:
        raw = image[pointer + 512 : pointer + 512 + 256]
        version = raw.split(b"\0", 1)[0].decode("ascii", "replace")
    return BootImage(version, _embedded_config(image))
