"""The guest's memory: what is mapped can be read and written across regions, and nothing else can."""

import mmap
import os
from collections.abc import Iterator

import pytest

from appliance.devnet.emulator.guest_memory import BrokenProtocol, GuestMemory, RegionTable

PAGE = mmap.ALLOCATIONGRANULARITY


@pytest.fixture
def file() -> Iterator[int]:
    descriptor = os.memfd_create("guest")
    os.ftruncate(descriptor, 4 * PAGE)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def memory(file: int) -> Iterator[GuestMemory]:
    """Two regions that touch in the guest's address space, in the other order in the file and in the front end's."""
    tables = [RegionTable(0x10000, PAGE, 0x900000, 2 * PAGE), RegionTable(0x10000 + PAGE, PAGE, 0x500000, PAGE)]
    memory = GuestMemory.map(tables, [file, file])
    yield memory
    memory.close()


def test_a_span_across_regions_is_written_and_read_whole(memory: GuestMemory, file: int) -> None:
    memory.write(0x10000 + PAGE - 2, b"abcd")

    assert memory.read(0x10000 + PAGE - 2, 4) == b"abcd"
    assert os.pread(file, 2, 3 * PAGE - 2) == b"ab"
    assert os.pread(file, 2, PAGE) == b"cd"


@pytest.mark.parametrize(
    ("address", "size"),
    [
        (0xFFFF, 1),
        (0xFFFF, 2),
        (0x10000 + 2 * PAGE, 1),
        (0x10000 + 2 * PAGE - 1, 2),
        (0x10000, 2 * PAGE + 1),
        (0, 1),
        (2**64 - 1, 2),
        (2**64 - 1, 1),
        (0x10000, 2**32 - 1),
    ],
)
def test_a_span_that_is_not_all_mapped_is_refused_untouched(memory: GuestMemory, address: int, size: int) -> None:
    for attempt in (lambda: memory.check(address, size), lambda: memory.read(address, size)):
        with pytest.raises(BrokenProtocol):
            attempt()
    if size < 2**20:
        with pytest.raises(BrokenProtocol):
            memory.write(address, b"\xff" * size)

    assert memory.read(0x10000, 2 * PAGE) == bytes(2 * PAGE)


def test_nothing_is_read_from_nowhere(memory: GuestMemory) -> None:
    assert memory.read(0, 0) == b""


@pytest.mark.parametrize(
    ("address", "size", "alignment"),
    [
        (0x500000 - 1, 2, 1),
        (0x500000, PAGE + 1, 1),
        (0x500000 + PAGE - 1, 2, 1),
        (0x500001, 2, 2),
        (0x500008, 16, 16),
        (0x10000, 1, 1),
        (0, 1, 1),
    ],
)
def test_a_ring_lies_in_one_region_and_where_it_may_begin(
    memory: GuestMemory, address: int, size: int, alignment: int
) -> None:
    with pytest.raises(BrokenProtocol):
        memory.locate(address, size, alignment)


def test_a_ring_is_found_by_the_front_ends_address(memory: GuestMemory) -> None:
    mapping, start = memory.locate(0x500000 + 16, PAGE - 16, 16)
    mapping[start : start + 2] = b"xy"

    assert memory.read(0x10000 + PAGE + 16, 2) == b"xy"


@pytest.mark.parametrize(
    "table",
    [
        RegionTable(0, 0, 0, 0),
        RegionTable(0, 1 << 41, 0, 0),
        RegionTable(0, 5 * PAGE, 0, 0),
        RegionTable(0, PAGE, 0, 4 * PAGE),
        RegionTable(0, PAGE, 0, 1),
        RegionTable(0, PAGE, 0, 2**64 - PAGE),
        RegionTable(2**64 - 1, PAGE, 0, 0),
        RegionTable(0, PAGE, 2**64 - 1, 0),
    ],
)
def test_a_region_that_cannot_be_is_refused(file: int, table: RegionTable) -> None:
    with pytest.raises(BrokenProtocol):
        GuestMemory.map([RegionTable(0, PAGE, 0, 0), table], [file, file])


def test_a_table_needs_a_descriptor_for_each_of_at_most_eight_regions(file: int) -> None:
    table = RegionTable(0, PAGE, 0, 0)
    for tables, descriptors in (([table], []), ([], [file]), ([table] * 9, [file] * 9)):
        with pytest.raises(BrokenProtocol):
            GuestMemory.map(tables, descriptors)


def test_a_descriptor_that_cannot_be_mapped_is_refused() -> None:
    reader, writer = os.pipe()
    with pytest.raises(BrokenProtocol):
        GuestMemory.map([RegionTable(0, PAGE, 0, 0)], [reader])
    os.close(reader)
    os.close(writer)
