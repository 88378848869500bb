"""The back end of vhost-user: a virtio device in this process for a guest in another one.

One front end at a time, over a Unix socket. The front end is a program that we started, the guest behind it is not:
what the front end says is checked so that a mistake ends the session and nothing else, what the guest writes into its
rings is checked in `vring` as an attack.
"""

import contextlib
import logging
import os
import socket
import struct
from collections.abc import Callable, Sequence
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Final, Protocol

from appliance.devnet.emulator.guest_memory import MAX_REGIONS, BrokenProtocol, GuestMemory, RegionTable
from appliance.devnet.emulator.reactor import READ, Reactor
from appliance.devnet.emulator.vring import Vring

MAX_PAYLOAD_BYTES: Final = 4096
MAX_DESCRIPTORS: Final = MAX_REGIONS

_HEADER: Final = struct.Struct("<III")
_U64: Final = struct.Struct("<Q")
_VRING_STATE: Final = struct.Struct("<II")
_VRING_ADDRESSES: Final = struct.Struct("<IIQQQQ")
_MEMORY_HEADER: Final = struct.Struct("<II")
_REGION: Final = struct.Struct("<QQQQ")
_CONFIG: Final = struct.Struct("<III")
_VRING_INDEX_MASK: Final = 0xFF
_NO_DESCRIPTOR: Final = 0x100

logger = logging.getLogger(__name__)


class Feature(IntFlag):
    """Feature bits of virtio and of vhost-user's own."""

    PROTOCOL_FEATURES = 1 << 30
    VERSION_1 = 1 << 32


class ProtocolFeature(IntFlag):
    """Extensions of vhost-user that this back end has."""

    MQ = 1 << 0
    REPLY_ACK = 1 << 3
    CONFIG = 1 << 9


class Request(IntEnum):
    """Messages of the front end that this back end follows."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24


class MessageFlag(IntFlag):
    """Flags of a message; the two lowest bits are the version, which is 1."""

    VERSION_1 = 1
    REPLY = 1 << 2
    NEED_REPLY = 1 << 3


class VirtioDevice(Protocol):
    """What a device does with the queues that it is given; called in the reactor's thread only."""

    queue_count: int
    config: bytes

    def attach(self, rings: Sequence[Vring]) -> None:
        """Serve these queues from now on."""

    def process(self, queue: int) -> None:
        """The guest has made buffers of this queue available."""

    def reset(self) -> None:
        """The guest's driver has let go of the queues: forget what it began."""

    def detach(self) -> None:
        """The front end is gone: forget it too."""


class VhostUserBackend:
    """Waits on `path` for one front end, and serves `device` to it until it leaves.

    `on_broken` is called with a sentence, in the reactor's thread, when the front end or the guest breaks the protocol.
    Made before the reactor runs; closed after it has stopped.
    """

    def __init__(self, path: Path, device: VirtioDevice, reactor: Reactor, on_broken: Callable[[str], None]) -> None:
        self._device = device
        self._reactor = reactor
        self._on_broken = on_broken
        self._session: _Session | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._listener.setblocking(False)
        reactor.watch(self._listener.fileno(), READ, self._accept)

    def close(self) -> None:
        """Leave the front end and stop listening."""
        self._end_session()
        self._reactor.unwatch(self._listener.fileno())
        self._listener.close()

    def _accept(self, _events: int) -> None:
        connection, _ = self._listener.accept()
        if self._session is not None:
            connection.close()
            return
        connection.setblocking(False)
        self._session = _Session(connection, self._device, self._reactor, self._on_broken)
        self._reactor.watch(connection.fileno(), READ, self._receive)

    def _receive(self, _events: int) -> None:
        session = self._session
        if session is None:
            return
        try:
            if session.receive():
                return
        except (BrokenProtocol, OSError) as error:
            sentence = str(error) if isinstance(error, BrokenProtocol) else "the front end's connection broke"
            logger.warning("vhost-user session ended", extra={"reason": sentence})
            self._on_broken(sentence)
        self._end_session()

    def _end_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


class _Session:
    """One front end: its messages, its memory, its rings."""

    def __init__(
        self, connection: socket.socket, device: VirtioDevice, reactor: Reactor, on_broken: Callable[[str], None]
    ) -> None:
        self._connection = connection
        self._device = device
        self._reactor = reactor
        self._memory = GuestMemory()
        self._rings = [Vring(on_broken) for _ in range(device.queue_count)]
        self._kicks: dict[int, int] = {}
        self._received = b""
        self._descriptors: list[int] = []
        device.attach(self._rings)

    @property
    def _features(self) -> int:
        return Feature.VERSION_1 | Feature.PROTOCOL_FEATURES

    @property
    def _protocol_features(self) -> int:
        config = ProtocolFeature.CONFIG if self._device.config else ProtocolFeature(0)
        return ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | config

    def close(self) -> None:
        self._device.detach()
        for index, ring in enumerate(self._rings):
            self._close_kick(index)
            ring.close()
        self._memory.close()
        self._close_descriptors()
        self._reactor.unwatch(self._connection.fileno())
        self._connection.close()

    # --- messages ---

    def receive(self) -> bool:
        """Read what has come, and follow it when it is a whole message; False when the front end has left.

        Never reads past the end of a message: descriptors of the next one would be taken for this one's. Raises
        `BrokenProtocol` and `OSError`.
        """
        wanted = _HEADER.size
        if len(self._received) >= _HEADER.size:
            wanted += self._payload_bytes()
        data, descriptors, flags, _ = socket.recv_fds(
            self._connection, wanted - len(self._received), MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
        self._descriptors += descriptors
        if flags & socket.MSG_CTRUNC or len(self._descriptors) > MAX_DESCRIPTORS:
            raise BrokenProtocol("the front end sent too many descriptors")
        if not data:
            return False
        self._received += data
        if len(self._received) >= _HEADER.size and len(self._received) == _HEADER.size + self._payload_bytes():
            message, self._received = self._received, b""
            try:
                self._follow(message)
            finally:
                self._close_descriptors()
        return True

    def _payload_bytes(self) -> int:
        _, flags, size = _HEADER.unpack_from(self._received)
        if size > MAX_PAYLOAD_BYTES or flags & 3 != MessageFlag.VERSION_1 or flags & MessageFlag.REPLY:
            raise BrokenProtocol("the front end sent a message of an unknown shape")
        return int(size)

    def _follow(self, message: bytes) -> None:
        number, flags, _ = _HEADER.unpack_from(message)
        try:
            request = Request(number)
        except ValueError as error:
            raise BrokenProtocol("the front end sent a message that was not offered") from error
        try:
            answer = self._answer(request, message[_HEADER.size :])
        except struct.error as error:
            raise BrokenProtocol("the front end sent a message of the wrong size") from error
        if answer is None and flags & MessageFlag.NEED_REPLY:
            answer = _U64.pack(0)
        if answer is not None:
            reply_flags = MessageFlag.VERSION_1 | MessageFlag.REPLY
            self._connection.sendall(_HEADER.pack(request, reply_flags, len(answer)) + answer)

    def _answer(self, request: Request, payload: bytes) -> bytes | None:
        match request:
            case Request.GET_FEATURES:
                return _U64.pack(self._features)
            case Request.SET_FEATURES:
                self._set_features(*_U64.unpack(payload))
            case Request.GET_PROTOCOL_FEATURES:
                return _U64.pack(self._protocol_features)
            case Request.SET_PROTOCOL_FEATURES:
                if _U64.unpack(payload)[0] & ~self._protocol_features:
                    raise BrokenProtocol("the front end wants extensions that were not offered")
            case Request.SET_OWNER:
                pass
            case Request.GET_QUEUE_NUM:
                return _U64.pack(len(self._rings))
            case Request.SET_MEM_TABLE:
                self._set_memory(payload)
            case Request.GET_CONFIG:
                return self._read_config(payload)
            case Request.SET_VRING_ADDR:
                index, _, descriptors, used, available, _ = _VRING_ADDRESSES.unpack(payload)
                self._ring(index).set_addresses(descriptors, used, available)
            case Request.SET_VRING_KICK | Request.SET_VRING_CALL | Request.SET_VRING_ERR:
                self._set_descriptor(request, *_U64.unpack(payload))
            case _:
                index, value = _VRING_STATE.unpack(payload)
                return self._set_state(request, index, value)
        return None

    def _set_features(self, features: int) -> None:
        if features & ~self._features:
            raise BrokenProtocol("the front end wants features that were not offered")
        if not features & Feature.PROTOCOL_FEATURES:
            for ring in self._rings:
                ring.enabled = True

    def _set_state(self, request: Request, index: int, value: int) -> bytes | None:
        ring = self._ring(index)
        match request:
            case Request.SET_VRING_NUM:
                ring.set_size(value)
            case Request.SET_VRING_BASE:
                ring.set_next_available(value)
            case Request.SET_VRING_ENABLE:
                ring.enabled = bool(value)
                self._device.process(index)
            case _:
                self._close_kick(index)
                self._device.reset()
                return _VRING_STATE.pack(index, ring.stop())
        return None

    def _set_memory(self, payload: bytes) -> None:
        count, _ = _MEMORY_HEADER.unpack_from(payload)
        if count > MAX_REGIONS or len(payload) != _MEMORY_HEADER.size + _REGION.size * count:
            raise BrokenProtocol("the front end sent a memory table of the wrong size")
        tables = [RegionTable(*fields) for fields in _REGION.iter_unpack(payload[_MEMORY_HEADER.size :])]
        memory = GuestMemory.map(tables, self._descriptors)
        for ring in self._rings:
            ring.set_memory(memory)
        self._memory.close()
        self._memory = memory

    def _read_config(self, payload: bytes) -> bytes:
        offset, size, flags = _CONFIG.unpack_from(payload)
        if len(payload) != _CONFIG.size + size or offset + size > len(self._device.config):
            return _CONFIG.pack(offset, 0, flags)
        return _CONFIG.pack(offset, size, flags) + self._device.config[offset : offset + size]

    # --- rings ---

    def _ring(self, index: int) -> Vring:
        if index >= len(self._rings):
            raise BrokenProtocol("the front end speaks of a ring that does not exist")
        return self._rings[index]

    def _set_descriptor(self, request: Request, value: int) -> None:
        index = value & _VRING_INDEX_MASK
        ring = self._ring(index)
        if len(self._descriptors) != (0 if value & _NO_DESCRIPTOR else 1):
            raise BrokenProtocol("the front end sent no descriptor, or too many")
        descriptor = self._descriptors.pop() if self._descriptors else -1
        if request is Request.SET_VRING_CALL:
            ring.set_call(descriptor)
        elif request is Request.SET_VRING_KICK:
            self._set_kick(index, descriptor)
        elif descriptor >= 0:
            os.close(descriptor)

    def _set_kick(self, index: int, descriptor: int) -> None:
        self._close_kick(index)
        if descriptor >= 0:
            os.set_blocking(descriptor, False)
            self._kicks[index] = descriptor
            self._reactor.watch(descriptor, READ, lambda _events: self._kicked(index, descriptor))
        self._rings[index].started = True
        self._device.process(index)

    def _kicked(self, index: int, descriptor: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(descriptor)
        self._device.process(index)

    def _close_kick(self, index: int) -> None:
        descriptor = self._kicks.pop(index, -1)
        if descriptor >= 0:
            self._reactor.unwatch(descriptor)
            os.close(descriptor)

    def _close_descriptors(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
