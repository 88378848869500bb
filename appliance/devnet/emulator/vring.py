"""Split virtqueues seen from the device (VIRTIO 1.2 §2.7), with nothing the guest writes taken for granted.

Neither indirect descriptors nor event indices are offered, so a guest that uses them breaks the protocol. A ring that
was broken gives nothing more until the driver sets it up anew. Rings are little-endian, and so must the host be.
"""

import contextlib
import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from appliance.devnet.emulator.guest_memory import BrokenProtocol, GuestMemory

T = TypeVar("T")

MAX_RING_SIZE: Final = 1024

_NEXT: Final = 1
_WRITE: Final = 2
_DESCRIPTOR: Final = struct.Struct("<QIHH")
_USED_ELEMENT: Final = struct.Struct("<II")
# Native, because a native 16-bit store is one store: the other side must never see half of a new index.
_INDEX: Final = struct.Struct("=H")
_INDEX_OFFSET: Final = 2
_RING_OFFSET: Final = 4
_MASK: Final = 0xFFFF


@dataclass(frozen=True, slots=True)
class Chain:
    """Buffers that the guest made available together: address and size of each, all of them mapped when taken."""

    head: int
    readable: tuple[tuple[int, int], ...]
    writable: tuple[tuple[int, int], ...]
    _memory: GuestMemory = field(repr=False)

    @property
    def readable_bytes(self) -> int:
        return sum(size for _, size in self.readable)

    @property
    def writable_bytes(self) -> int:
        return sum(size for _, size in self.writable)

    def read(self, limit_bytes: int) -> bytes:
        """What the guest put into the readable buffers, at most `limit_bytes` of it."""
        parts: list[bytes] = []
        for address, size in self.readable:
            parts.append(self._memory.read(address, min(size, limit_bytes)))
            limit_bytes -= len(parts[-1])
        return b"".join(parts)

    def write(self, data: bytes) -> None:
        """Put `data` into the writable buffers, or nothing. Raises `BrokenProtocol` when it does not fit."""
        if len(data) > self.writable_bytes:
            raise BrokenProtocol("an answer does not fit the buffers that the guest gave")
        for address, size in self.writable:
            self._memory.write(address, data[:size])
            data = data[size:]


class Vring:
    """One queue of a device: set up by the front end, then `take` and `complete` in turn by the device.

    `on_broken` is called once with a sentence when the guest breaks the protocol on it.
    """

    def __init__(self, on_broken: Callable[[str], None]) -> None:
        self._on_broken = on_broken
        self._memory = GuestMemory()
        self._descriptors = self._used = self._available = 0
        self._size = 0
        self._next = 0
        self._broken = False
        self._call = -1
        self.started = False
        self.enabled = False

    # --- set up by the front end ---

    def set_size(self, size: int) -> None:
        """Number of descriptors. Raises `BrokenProtocol` unless it is a power of two of at most 1024."""
        if not 0 < size <= MAX_RING_SIZE or size & (size - 1):
            raise BrokenProtocol("a ring has an impossible size")
        self._broken = False
        self._size = size

    def set_addresses(self, descriptors: int, used: int, available: int) -> None:
        """Where the three tables lie in the front end's address space."""
        self._broken = False
        self._descriptors, self._used, self._available = descriptors, used, available

    def set_memory(self, memory: GuestMemory) -> None:
        """Use another memory table from now on."""
        self._memory = memory

    def set_next_available(self, index: int) -> None:
        """Where to go on in the available ring. Raises `BrokenProtocol` above 65535."""
        if index > _MASK:
            raise BrokenProtocol("a ring's base is impossible")
        self._next = index

    def set_call(self, descriptor: int) -> None:
        """Signal the guest through this eventfd (-1: not at all), which becomes the ring's to close.

        It is signalled at once: an answer may have gone to the one before, which nobody watched.
        """
        self._close_call()
        self._call = descriptor
        if descriptor >= 0:
            os.set_blocking(descriptor, False)
            self.notify()

    def stop(self) -> int:
        """Stop serving and return where to go on later."""
        self.started = False
        return self._next

    def close(self) -> None:
        """Stop for good."""
        self.stop()
        self._close_call()

    # --- served by the device ---

    def has_buffers(self) -> bool:
        """Whether the guest has made buffers available; breaking the protocol counts as no buffers."""
        return self._serve(self._count_available) not in (None, 0)

    def take(self) -> Chain | None:
        """The next chain of buffers, or None when there is none or the guest has broken the protocol."""
        if not self.has_buffers():
            return None
        chain = self._serve(self._read_chain)
        if chain is not None:
            self._next = (self._next + 1) & _MASK
        return chain

    def put_back(self) -> None:
        """Return the chain taken last, unused."""
        self._next = (self._next - 1) & _MASK

    def complete(self, chain: Chain, written_bytes: int) -> None:
        """Give a chain back to the guest with this many bytes written; `notify` after the last of several."""
        self._serve(lambda: self._write_used(chain.head, written_bytes))

    def notify(self) -> None:
        """Interrupt the guest. Its wish to be left alone is only advice, and reading it safely would take a barrier."""
        if self._call >= 0:
            with contextlib.suppress(BlockingIOError):  # a full counter is signalled already
                os.eventfd_write(self._call, 1)

    def fail(self, sentence: str) -> None:
        """Give the ring up: the guest has broken the protocol on it."""
        if not self._broken:
            self._broken = True
            self._on_broken(sentence)

    def _serve(self, work: Callable[[], T]) -> T | None:
        if not (self.started and self.enabled and self._size) or self._broken:
            return None
        try:
            return work()
        except BrokenProtocol as error:
            self.fail(str(error))
            return None

    def _count_available(self) -> int:
        mapping, start = self._locate_available()
        (index,) = _INDEX.unpack_from(mapping, start + _INDEX_OFFSET)
        count: int = (index - self._next) & _MASK
        if count > self._size:
            raise BrokenProtocol("the guest makes more buffers available than its ring has")
        return count

    def _read_chain(self) -> Chain:
        mapping, start = self._locate_available()
        (head,) = _INDEX.unpack_from(mapping, start + _RING_OFFSET + _INDEX.size * (self._next % self._size))
        mapping, start = self._memory.locate(self._descriptors, _DESCRIPTOR.size * self._size, _DESCRIPTOR.size)
        readable: list[tuple[int, int]] = []
        writable: list[tuple[int, int]] = []
        position = head
        for _ in range(self._size):
            if position >= self._size:
                raise BrokenProtocol("a descriptor's number is not in the ring")
            address, size, flags, following = _DESCRIPTOR.unpack_from(mapping, start + _DESCRIPTOR.size * position)
            if flags & ~(_NEXT | _WRITE):
                raise BrokenProtocol("a descriptor is of a kind that was not offered")
            if writable and not flags & _WRITE:
                raise BrokenProtocol("a buffer to read follows one to write")
            self._memory.check(address, size)
            (writable if flags & _WRITE else readable).append((address, size))
            if not flags & _NEXT:
                return Chain(head, tuple(readable), tuple(writable), self._memory)
            position = following
        raise BrokenProtocol("a chain of descriptors is longer than its ring")

    def _write_used(self, head: int, written_bytes: int) -> None:
        size = _RING_OFFSET + _USED_ELEMENT.size * self._size + _INDEX.size
        mapping, start = self._memory.locate(self._used, size, 4)
        (index,) = _INDEX.unpack_from(mapping, start + _INDEX_OFFSET)
        slot = start + _RING_OFFSET + _USED_ELEMENT.size * (index % self._size)
        _USED_ELEMENT.pack_into(mapping, slot, head, written_bytes)
        _INDEX.pack_into(mapping, start + _INDEX_OFFSET, (index + 1) & _MASK)

    def _locate_available(self) -> tuple[mmap.mmap, int]:
        return self._memory.locate(self._available, _RING_OFFSET + _INDEX.size * (self._size + 1), _INDEX.size)

    def _close_call(self) -> None:
        if self._call >= 0:
            os.close(self._call)
            self._call = -1
