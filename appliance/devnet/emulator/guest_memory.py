"""The guest's memory as this process maps it, and the refusal to reach outside it.

Two address spaces lead to it: the guest's physical one, in descriptors that the guest writes, and the front end's own
one, in the messages of vhost-user. Both are translated here and nowhere else.
"""

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from kmscore.errors import KmsError

MAX_REGIONS: Final = 8
MAX_REGION_BYTES: Final = 1 << 40
_ADDRESS_SPACE: Final = 1 << 64


class BrokenProtocol(KmsError):
    """The guest or the front end did what the protocol forbids; the device stops following it."""


@dataclass(frozen=True, slots=True)
class RegionTable:
    """One region as the front end describes it: sizes and addresses in bytes."""

    guest_address: int
    size_bytes: int
    user_address: int
    offset: int


@dataclass(frozen=True, slots=True)
class _Region:
    table: RegionTable
    mapping: mmap.mmap = field(repr=False)


class GuestMemory:
    """Mapped regions; empty until the front end has sent its table."""

    def __init__(self, regions: Sequence[_Region] = ()) -> None:
        self._regions = tuple(regions)

    @classmethod
    def map(cls, tables: Sequence[RegionTable], descriptors: Sequence[int]) -> "GuestMemory":
        """Map each region from its descriptor, which stays the caller's to close.

        Raises `BrokenProtocol` for more than eight regions, for addresses or sizes that leave the address space or the
        file, and for offsets that are not on a page.
        """
        if not len(tables) == len(descriptors) <= MAX_REGIONS:
            raise BrokenProtocol("the memory table and its descriptors do not match")
        regions: list[_Region] = []
        try:
            for table, descriptor in zip(tables, descriptors, strict=True):
                _check(table, descriptor)
                mapping = mmap.mmap(descriptor, table.size_bytes, offset=table.offset)
                regions.append(_Region(table, mapping))
        except (BrokenProtocol, OSError, ValueError) as error:
            cls(regions).close()
            if isinstance(error, BrokenProtocol):
                raise
            raise BrokenProtocol("a region of the guest's memory cannot be mapped") from error
        return cls(regions)

    def close(self) -> None:
        """Unmap everything; the object must not be used afterwards."""
        for region in self._regions:
            region.mapping.close()

    def check(self, address: int, size_bytes: int) -> None:
        """Check that this span of guest-physical memory is mapped. Raises `BrokenProtocol`."""
        self._spans(address, size_bytes)

    def read(self, address: int, size_bytes: int) -> bytes:
        """Bytes at a guest-physical address. Raises `BrokenProtocol` when a part of them is not mapped."""
        spans = self._spans(address, size_bytes)
        return b"".join(mapping[start : start + size] for mapping, start, size in spans)

    def write(self, address: int, data: bytes) -> None:
        """Put bytes at a guest-physical address, all or none. Raises `BrokenProtocol` likewise."""
        done = 0
        for mapping, start, size in self._spans(address, len(data)):
            mapping[start : start + size] = data[done : done + size]
            done += size

    def locate(self, user_address: int, size_bytes: int, alignment: int) -> tuple[mmap.mmap, int]:
        """Where a span of the front end's address space lies: a mapping and the offset in it.

        Raises `BrokenProtocol` when it is not aligned, or not within one region.
        """
        for region in self._regions:
            start = user_address - region.table.user_address
            if 0 <= start <= region.table.size_bytes - size_bytes and start % alignment == 0:
                return region.mapping, start
        raise BrokenProtocol("a ring does not lie in the guest's memory, or not where one may begin")

    def _spans(self, address: int, size_bytes: int) -> list[tuple[mmap.mmap, int, int]]:
        spans: list[tuple[mmap.mmap, int, int]] = []
        while size_bytes:
            mapping, start, left = self._find(address)
            size = min(size_bytes, left)
            spans.append((mapping, start, size))
            address, size_bytes = address + size, size_bytes - size
        return spans

    def _find(self, address: int) -> tuple[mmap.mmap, int, int]:
        for region in self._regions:
            start = address - region.table.guest_address
            if 0 <= start < region.table.size_bytes:
                return region.mapping, start, region.table.size_bytes - start
        raise BrokenProtocol("a descriptor points outside the guest's memory")


def _check(table: RegionTable, descriptor: int) -> None:
    if not 0 < table.size_bytes <= MAX_REGION_BYTES:
        raise BrokenProtocol("a region of the guest's memory has no possible size")
    if max(table.guest_address, table.user_address) > _ADDRESS_SPACE - table.size_bytes:
        raise BrokenProtocol("a region of the guest's memory leaves the address space")
    # Reading past the end of the file would end this process with SIGBUS.
    if table.offset % mmap.ALLOCATIONGRANULARITY or table.offset + table.size_bytes > os.fstat(descriptor).st_size:
        raise BrokenProtocol("a region of the guest's memory leaves its file, or does not begin on a page")
