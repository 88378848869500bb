"""Packets of virtio-vsock (VIRTIO 1.2 §5.10): a header of 44 bytes, and data behind it in one kind only."""

import struct
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Final

from appliance.devnet.emulator.guest_memory import BrokenProtocol

HEADER_BYTES: Final = 44
# Linux sends at most 64 KiB in a packet, and receives into buffers with room for 3776 bytes of data.
MAX_GUEST_PAYLOAD_BYTES: Final = 64 * 1024
MAX_HOST_PAYLOAD_BYTES: Final = 3776
STREAM: Final = 1

_HEADER: Final = struct.Struct("<QQIIIHHIII")


class Op(IntEnum):
    """What a packet is for."""

    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Shutdown(IntFlag):
    """What the sender of a SHUTDOWN will not do any more."""

    NONE = 0
    RECEIVE = 1
    SEND = 2
    BOTH = 3


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet. `op` is an `Op` where it is one of them; credit fields count modulo 2^32."""

    source_cid: int
    target_cid: int
    source_port: int
    target_port: int
    op: int
    kind: int = STREAM
    flags: int = 0
    buffer_bytes: int = 0
    forwarded: int = 0
    data: bytes = field(default=b"", repr=False)


def encode_packet(packet: Packet) -> bytes:
    """The header, and the data behind it."""
    header = _HEADER.pack(
        packet.source_cid,
        packet.target_cid,
        packet.source_port,
        packet.target_port,
        len(packet.data),
        packet.kind,
        packet.op,
        packet.flags,
        packet.buffer_bytes,
        packet.forwarded,
    )
    return header + packet.data


def parse_packet(data: bytes) -> Packet:
    """Read one packet, data included.

    Raises `BrokenProtocol` when it is shorter than a header, or has more or fewer bytes of data than it says.
    """
    if len(data) < HEADER_BYTES:
        raise BrokenProtocol("a packet is shorter than its header")
    source_cid, target_cid, source_port, target_port, size, kind, op, flags, room, forwarded = _HEADER.unpack_from(data)
    if size > MAX_GUEST_PAYLOAD_BYTES or size != len(data) - HEADER_BYTES:
        raise BrokenProtocol("a packet has another size than it says")
    return Packet(
        source_cid, target_cid, source_port, target_port, op, kind, flags, room, forwarded, data[HEADER_BYTES:]
    )
