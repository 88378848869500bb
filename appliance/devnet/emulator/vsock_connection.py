"""One connection between a port of the host and a port of the guest: its socket, its credit, its two half closes.

The near end of the socket is read only when the guest has room and a buffer for what is read, so nothing waits here on
its way to the guest; on the way from it at most `BUFFER_BYTES` do, which is the credit the guest is given.
"""

import contextlib
import select
import socket
from concurrent.futures import Future
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

from appliance.devnet.emulator.vsock_packet import Op, Packet, Shutdown

BUFFER_BYTES: Final = 128 * 1024
_MODULO: Final = 0xFFFFFFFF
# The guest hears of room when this much has been freed since it last did.
_CREDIT_STEP: Final = BUFFER_BYTES // 2


@dataclass(frozen=True, slots=True)
class Key:
    """What names a connection."""

    host_cid: int
    host_port: int
    guest_port: int


class Due(IntFlag):
    """Packets without data that the guest is yet to get, sent in this order."""

    NONE = 0
    REQUEST = 1
    RESPONSE = 2
    CREDIT = 4
    SHUTDOWN = 8


@dataclass(frozen=True, slots=True)
class Opening:
    """A connection that the host asked for: who waits for it, and the end that it gets."""

    waiting: Future[socket.socket]
    far_end: socket.socket


class Connection:
    """State of one connection; the device above decides when its methods are called, always in one thread.

    `opening` is there while a REQUEST of ours is not answered.
    """

    def __init__(self, key: Key, guest_cid: int, near_end: socket.socket, opening: Opening | None = None) -> None:
        self.key = key
        self.near_end = near_end
        self.opening = opening
        self.due = Due.RESPONSE if opening is None else Due.REQUEST
        self.guest_left = False
        self._guest_cid = guest_cid
        self._peer_buffer = 0
        self._peer_forwarded = 0
        self._sent = 0
        self._outgoing = bytearray()
        self._forwarded = 0
        self._advertised = 0
        self._ours = Shutdown.NONE
        self._guests = Shutdown.NONE
        self._write_ended = False

    # --- what the device asks ---

    @property
    def can_send(self) -> bool:
        """Whether something read from the near end could go to the guest, buffers aside."""
        closed = self._ours & Shutdown.SEND or self._guests & Shutdown.RECEIVE
        return not closed and not self.guest_left and self.opening is None and self._credit() > 0

    @property
    def wants_to_write(self) -> bool:
        """Whether data of the guest waits for the near end."""
        return bool(self._outgoing)

    @property
    def guest_ended(self) -> bool:
        """Whether the guest's side is over in both directions and all of its data has left."""
        return not self._outgoing and (self.guest_left or self._guests == Shutdown.BOTH)

    @property
    def host_ended(self) -> bool:
        """Whether the host's side is over in both directions."""
        return self._ours == Shutdown.BOTH

    def packet(self, op: Op, *, flags: int = 0, data: bytes = b"") -> Packet:
        """A packet to the guest, which carries what is free here."""
        self._advertised = self._forwarded
        host_cid, host_port, guest_port = self.key.host_cid, self.key.host_port, self.key.guest_port
        return Packet(
            host_cid,
            self._guest_cid,
            host_port,
            guest_port,
            op,
            flags=flags,
            buffer_bytes=BUFFER_BYTES,
            forwarded=self._forwarded & _MODULO,
            data=data,
        )

    def next_due(self) -> Packet:
        """The first of the packets that are due, which is then no longer."""
        first = self.due & -self.due
        self.due &= ~first
        match first:
            case Due.REQUEST:
                return self.packet(Op.REQUEST)
            case Due.RESPONSE:
                return self.packet(Op.RESPONSE)
            case Due.CREDIT:
                return self.packet(Op.CREDIT_UPDATE)
        return self.packet(Op.SHUTDOWN, flags=self._ours)

    # --- from the guest ---

    def learn_credit(self, packet: Packet) -> None:
        """Take over what a packet says of the guest's buffer."""
        self._peer_buffer, self._peer_forwarded = packet.buffer_bytes, packet.forwarded

    def accepted(self) -> bool:
        """The guest has answered our REQUEST; False when it was not asked, or nobody waits any more."""
        opening, self.opening = self.opening, None
        if opening is None:
            return False
        if not opening.waiting.set_running_or_notify_cancel():
            opening.far_end.close()
            return False
        opening.waiting.set_result(opening.far_end)
        return True

    def deliver(self, data: bytes) -> bool:
        """Take data for the host; False when the guest may not send, or sends more than it has credit for."""
        if self.opening is not None or self._guests & Shutdown.SEND:
            return False
        if len(self._outgoing) + len(data) > BUFFER_BYTES:
            return False
        self._outgoing += data
        self.flush()
        return True

    def guest_shuts(self, flags: int) -> None:
        """The guest will not send, or not receive, or neither; what it said before stays said."""
        self._guests |= Shutdown(flags & Shutdown.BOTH)
        self._end_writing()
        if self._guests & Shutdown.RECEIVE:
            with contextlib.suppress(OSError):
                self.near_end.shutdown(socket.SHUT_RD)

    # --- to and from the near end ---

    def flush(self) -> None:
        """Write what the near end takes; when it takes nothing ever again, the guest is told."""
        while self._outgoing:
            try:
                taken = self.near_end.send(self._outgoing)
            except BlockingIOError:
                break
            except OSError:
                taken = len(self._outgoing)
                self._shut(Shutdown.RECEIVE)
            del self._outgoing[:taken]
            self._forwarded += taken
        if self._forwarded - self._advertised >= _CREDIT_STEP:
            self.due |= Due.CREDIT
        self._end_writing()

    def read(self, room_bytes: int) -> bytes | None:
        """What the near end has for the guest, as much as `room_bytes` and the guest's credit allow.

        None when it has nothing now; empty when it will never have any more, which is then due to be said.
        """
        try:
            data = self.near_end.recv(min(room_bytes, self._credit()))
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data:
            self._shut(Shutdown.BOTH if self._hung_up() else Shutdown.SEND)
        self._sent += len(data)
        return data

    def close(self) -> None:
        """Free the sockets; whoever waits for the connection to open is refused."""
        self.near_end.close()
        if self.opening is not None:
            self.opening.far_end.close()
            if self.opening.waiting.set_running_or_notify_cancel():
                self.opening.waiting.set_exception(ConnectionRefusedError("nobody in the guest accepts connections"))
            self.opening = None

    def _credit(self) -> int:
        unread = (self._sent - self._peer_forwarded) & _MODULO
        return max(0, self._peer_buffer - unread)

    def _shut(self, flags: Shutdown) -> None:
        if flags & ~self._ours:
            self._ours |= flags
            self.due |= Due.SHUTDOWN

    def _hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self.near_end, 0)
        return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))

    def _end_writing(self) -> None:
        if self._guests & Shutdown.SEND and not self._outgoing and not self._write_ended:
            self._write_ended = True
            with contextlib.suppress(OSError):
                self.near_end.shutdown(socket.SHUT_WR)
            if self._ours & Shutdown.SEND:
                self._shut(Shutdown.BOTH)
