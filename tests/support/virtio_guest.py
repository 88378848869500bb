"""A front end and a guest's driver in the test's own hands: real memory, real rings, real eventfds, no machine.

Nothing is validated on this side, so that a test can be as hostile as it likes.
"""

import contextlib
import mmap
import os
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from appliance.devnet.emulator.reactor import Reactor
from appliance.devnet.emulator.vhost_user import Request

MEMORY_BYTES = 1 << 20
GUEST_BASE = 0x4000_0000
USER_BASE = 0x7F00_0000_0000
RING_SIZE = 16
# Rings lie in the first pages; buffers are given out behind them.
_RING_PAGE = 4096
_BUFFERS = 16 * _RING_PAGE

NEXT, WRITE, INDIRECT = 1, 2, 4


class DriverRing:
    """One queue as the driver sees it."""

    def __init__(self, memory: mmap.mmap, index: int, size: int = RING_SIZE) -> None:
        self.index = index
        self.size = size
        self.memory = memory
        self.descriptors = 3 * index * _RING_PAGE
        self.available = self.descriptors + _RING_PAGE
        self.used = self.available + _RING_PAGE
        self.kick = os.eventfd(0, os.EFD_NONBLOCK)
        self.call = os.eventfd(0, os.EFD_NONBLOCK)
        self._free = list(range(size))
        self._buffers = _BUFFERS + index * (MEMORY_BYTES - _BUFFERS) // 4
        self._chains: dict[int, tuple[list[int], list[tuple[int, int]]]] = {}
        self._seen = 0

    # --- as a driver ---

    def offer(self, readable: Sequence[bytes] = (), writable: Sequence[int] = ()) -> int:
        """Make one chain available, with data to read and room of these sizes; returns its head."""
        buffers = [(data, 0) for data in readable] + [(bytes(size), WRITE) for size in writable]
        slots = [self._free.pop(0) for _ in buffers]
        room: list[tuple[int, int]] = []
        for position, (slot, (data, flags)) in enumerate(zip(slots, buffers, strict=True)):
            address = self._place(data)
            if flags:
                room.append((address, len(data)))
            following = slots[position + 1] if position + 1 < len(slots) else 0
            more = NEXT if position + 1 < len(slots) else 0
            self.describe(slot, GUEST_BASE + address, len(data), flags | more, following)
        self._chains[slots[0]] = slots, room
        self.publish(slots[0])
        return slots[0]

    def collect(self) -> list[bytes]:
        """What the device has written into the chains that it gave back since the last time."""
        (index,) = struct.unpack_from("<H", self.memory, self.used + 2)
        results = []
        while self._seen != index:
            head, written = struct.unpack_from("<II", self.memory, self.used + 4 + 8 * (self._seen % self.size))
            self._seen = (self._seen + 1) & 0xFFFF
            slots, room = self._chains.pop(head)
            self._free += slots
            results.append(b"".join(self.memory[at : at + size] for at, size in room)[:written])
        return results

    def interrupted(self) -> bool:
        """Whether the device has signalled since the last time."""
        with contextlib.suppress(BlockingIOError):
            return os.eventfd_read(self.call) > 0
        return False

    def restart(self) -> None:
        """Forget what was offered and collected, as a driver does that sets its ring up anew."""
        self._free = list(range(self.size))
        self._chains.clear()
        self._seen = 0

    # --- as an attacker ---

    def describe(self, slot: int, address: int, size: int, flags: int, following: int = 0) -> None:
        """Write one descriptor."""
        struct.pack_into("<QIHH", self.memory, self.descriptors + 16 * slot, address, size, flags, following)

    def publish(self, head: int, count: int = 1) -> None:
        """Write `head` into the available ring, and move its index by `count`."""
        (index,) = struct.unpack_from("<H", self.memory, self.available + 2)
        struct.pack_into("<H", self.memory, self.available + 4 + 2 * (index % self.size), head)
        struct.pack_into("<H", self.memory, self.available + 2, (index + count) & 0xFFFF)

    def _place(self, data: bytes) -> int:
        end = _BUFFERS + (self.index + 1) * (MEMORY_BYTES - _BUFFERS) // 4
        if self._buffers + len(data) > end:
            self._buffers = _BUFFERS + self.index * (MEMORY_BYTES - _BUFFERS) // 4
        address = self._buffers
        self.memory[address : address + len(data)] = data
        self._buffers += len(data)
        return address


class FrontEnd:
    """The other side of a back end's socket; steps the back end's reactor so that no thread is needed."""

    def __init__(self, path: Path, reactor: Reactor, queues: int) -> None:
        self._reactor = reactor
        self.descriptor = os.memfd_create("guest")
        os.ftruncate(self.descriptor, MEMORY_BYTES)
        self.memory = mmap.mmap(self.descriptor, MEMORY_BYTES)
        self.rings = [DriverRing(self.memory, index) for index in range(queues)]
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.socket.setblocking(False)
        self.settle()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the back end, and let it notice."""
        self.socket.close()
        for ring in self.rings:
            os.close(ring.kick)
            os.close(ring.call)
        self.memory.close()
        os.close(self.descriptor)
        self.settle()

    def settle(self) -> None:
        """Let the back end do everything that there is to do."""
        while self._reactor.step():
            pass

    def send(
        self, request: int, payload: bytes = b"", descriptors: Sequence[int] = (), *, flags: int = 1, size: int = -1
    ) -> None:
        """One message, wrong ones too."""
        header = struct.pack("<III", request, flags, len(payload) if size < 0 else size)
        socket.send_fds(self.socket, [header + payload], list(descriptors))
        self.settle()

    def ask(
        self, request: int, payload: bytes = b"", descriptors: Sequence[int] = (), *, flags: int = 1
    ) -> bytes | None:
        """One message, and the payload of the reply; None when none came, `b""` too when the back end has left."""
        self.send(request, payload, descriptors, flags=flags)
        try:
            reply = self.socket.recv(4096)
        except BlockingIOError:
            return None
        return reply[12:]

    def left(self) -> bool:
        """Whether the back end has ended the session."""
        try:
            return self.socket.recv(4096) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True

    def memory_table(self, *regions: tuple[int, int, int, int]) -> bytes:
        """The payload of a memory table; by default the whole of the guest's memory in one region."""
        regions = regions or ((GUEST_BASE, MEMORY_BYTES, USER_BASE, 0),)
        return struct.pack("<II", len(regions), 0) + b"".join(struct.pack("<QQQQ", *region) for region in regions)

    def start(self) -> None:
        """Everything a front end says before the guest's driver runs."""
        features = (1 << 32) | (1 << 30)
        self.send(Request.SET_OWNER)
        self.send(Request.SET_FEATURES, struct.pack("<Q", features))
        self.send(Request.SET_MEM_TABLE, self.memory_table(), [self.descriptor])
        for ring in self.rings:
            self.set_up(ring)

    def set_up(self, ring: DriverRing) -> None:
        """Set up one ring and start it."""
        self.send(Request.SET_VRING_NUM, struct.pack("<II", ring.index, ring.size))
        self.send(Request.SET_VRING_BASE, struct.pack("<II", ring.index, 0))
        addresses = (USER_BASE + at for at in (ring.descriptors, ring.used, ring.available))
        self.send(Request.SET_VRING_ADDR, struct.pack("<IIQQQQ", ring.index, 0, *addresses, 0))
        self.send(Request.SET_VRING_KICK, struct.pack("<Q", ring.index), [ring.kick])
        self.send(Request.SET_VRING_CALL, struct.pack("<Q", ring.index), [ring.call])
        self.send(Request.SET_VRING_ENABLE, struct.pack("<II", ring.index, 1))

    def kick(self, ring: DriverRing) -> None:
        """Tell the device that buffers are available, and let it use them."""
        os.eventfd_write(ring.kick, 1)
        self.settle()


def eventually(reactor: Reactor, condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Step the reactor, waiting for the kernel where it must, until the condition holds."""
    steps = int(timeout_s / 0.05)
    while not condition():
        if not reactor.step(0.05):
            steps -= 1
        assert steps > 0, "it does not happen"
