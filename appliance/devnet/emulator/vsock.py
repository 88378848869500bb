"""The vsock device: streams between ports of the guest and of the host, which is CID 2 and CID 3 to the guest.

Everything that a guest can make this process hold is bounded: connections, data on its way to the host, refusals that
it does not fetch. Data on its way to the guest stays in the sockets that it comes from.
"""

import itertools
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final

from appliance.devnet.emulator.guest_memory import BrokenProtocol
from appliance.devnet.emulator.reactor import READ, WRITE, Reactor
from appliance.devnet.emulator.vring import Vring
from appliance.devnet.emulator.vsock_connection import Connection, Due, Key, Opening
from appliance.devnet.emulator.vsock_packet import (
    HEADER_BYTES,
    MAX_GUEST_PAYLOAD_BYTES,
    MAX_HOST_PAYLOAD_BYTES,
    STREAM,
    Op,
    Packet,
    encode_packet,
    parse_packet,
)

HOST_CIDS: Final = (2, 3)
PARENT_CID: Final = 3
FIRST_GUEST_CID: Final = 4
MAX_CONNECTIONS: Final = 256
MAX_REFUSALS: Final = 256
# Packets in one turn of the reactor; a guest that goes on and on must not keep everyone else waiting.
BURST: Final = 128
_FIRST_HOST_PORT: Final = 1 << 30
_RX, _TX = 0, 1

HostPort = Callable[[], socket.socket]
"""Serves a port of the host: gives the near end of a new connection at once, or raises `OSError` to refuse it."""


class VsockDevice:
    """The device of one guest. Every method runs in the reactor's thread, except where it says otherwise.

    `guest_cid` is at least 4; connections of the host come from `parent_cid`.
    """

    queue_count = 2

    def __init__(self, reactor: Reactor, guest_cid: int, *, max_connections: int = MAX_CONNECTIONS) -> None:
        self.config = struct.pack("<Q", guest_cid)
        self._reactor = reactor
        self._guest_cid = guest_cid
        self._max_connections = max_connections
        self._rings: Sequence[Vring] = ()
        self._ports: dict[tuple[int, int], HostPort] = {}
        self._connections: dict[Key, Connection] = {}
        # Dictionaries as queues: a connection is in each of them at most once.
        self._due: dict[Key, Connection] = {}
        self._senders: dict[Key, Connection] = {}
        # A guest that does not fetch refusals loses the oldest: it has to live with packets that nobody answers.
        self._refusals: deque[Packet] = deque(maxlen=MAX_REFUSALS)
        self._host_ports = itertools.count(_FIRST_HOST_PORT)

    # --- for the host ---

    def listen(self, port: int, serve: HostPort, cids: Sequence[int] = HOST_CIDS) -> None:
        """Serve connections of the guest to this port of these CIDs, in place of who did before."""
        for cid in cids:
            self._ports[cid, port] = serve

    def connect(self, port: int, waiting: Future[socket.socket]) -> None:
        """Ask the guest for a connection to its port; `waiting` gets the far end, or `ConnectionRefusedError`.

        Cancelling it before it is done abandons the connection; `abandon` then frees what it holds.
        """
        try:
            if len(self._connections) >= self._max_connections or not self._rings:
                raise ConnectionRefusedError("the guest cannot be reached")
            near_end, far_end = socket.socketpair()
        except OSError as error:
            if waiting.set_running_or_notify_cancel():
                waiting.set_exception(error)
            return
        self._begin(Key(PARENT_CID, next(self._host_ports), port), near_end, Opening(waiting, far_end))
        self._pump()

    def abandon(self, waiting: Future[socket.socket]) -> None:
        """Give up connections that nobody waits for any more."""
        for connection in list(self._connections.values()):
            if connection.opening is not None and connection.opening.waiting is waiting:
                self._end(connection)
        self._pump()

    # --- as a device ---

    def attach(self, rings: Sequence[Vring]) -> None:
        """Serve these queues: packets to the guest, packets from it."""
        self._rings = rings

    def reset(self) -> None:
        """Close every connection: the guest's driver has forgotten them."""
        for connection in list(self._connections.values()):
            self._forget(connection)
        self._refusals.clear()

    def detach(self) -> None:
        """Close every connection and serve nobody."""
        self.reset()
        self._rings = ()

    def process(self, queue: int) -> None:
        """Take the packets of the guest, or use the buffers that it has freed."""
        if queue == _TX and self._rings:
            self._take_packets()
        self._pump()

    # --- from the guest ---

    def _take_packets(self) -> None:
        ring, taken = self._rings[_TX], 0
        while taken < BURST and (chain := ring.take()) is not None:
            try:
                packet = parse_packet(chain.read(HEADER_BYTES + MAX_GUEST_PAYLOAD_BYTES + 1))
            except BrokenProtocol as error:
                ring.fail(str(error))
                break
            ring.complete(chain, 0)
            taken += 1
            self._receive(packet)
        if taken:
            ring.notify()
        if taken == BURST:
            self._reactor.post(lambda: self.process(_TX))

    def _receive(self, packet: Packet) -> None:
        key = Key(packet.target_cid, packet.target_port, packet.source_port)
        connection = self._connections.get(key)
        if packet.source_cid != self._guest_cid or packet.kind != STREAM:
            self._refuse(packet)
        elif connection is None:
            self._open(packet, key) if packet.op == Op.REQUEST else self._refuse(packet)
        elif connection.guest_left:
            self._refuse(packet)
        else:
            connection.learn_credit(packet)
            if self._follow(connection, packet):
                self._update(connection)
            else:
                self._end(connection)

    def _open(self, packet: Packet, key: Key) -> None:
        serve = self._ports.get((packet.target_cid, packet.target_port))
        if serve is None or len(self._connections) >= self._max_connections:
            self._refuse(packet)
            return
        try:
            near_end = serve()
        except OSError:
            self._refuse(packet)
            return
        self._begin(key, near_end).learn_credit(packet)

    def _follow(self, connection: Connection, packet: Packet) -> bool:
        """Do what a packet of an open connection says; False when it has no place there."""
        match packet.op:
            case Op.RESPONSE:
                return connection.accepted()
            case Op.RW:
                return connection.deliver(packet.data)
            case Op.SHUTDOWN if connection.opening is None:
                connection.guest_shuts(packet.flags)
            case Op.RST:
                connection.guest_left = True
            case Op.CREDIT_UPDATE:
                pass
            case Op.CREDIT_REQUEST:
                connection.due |= Due.CREDIT
            case _:
                return False
        return True

    def _refuse(self, packet: Packet) -> None:
        """Answer RST to a packet that belongs to no connection, unless it is one."""
        if packet.op != Op.RST:
            addresses = packet.target_cid, packet.source_cid, packet.target_port, packet.source_port
            self._refusals.append(Packet(*addresses, Op.RST, packet.kind))

    # --- to the guest ---

    def _pump(self) -> None:
        """Fill the guest's buffers: refusals, then what connections have to say, then data of each in turn."""
        if not self._rings:
            return
        ring, sent = self._rings[_RX], 0
        while sent < BURST and (self._refusals or self._due or self._senders) and (chain := ring.take()) is not None:
            room = chain.writable_bytes - HEADER_BYTES
            if room <= 0 or chain.readable_bytes:
                ring.fail("a buffer for packets has no room for one")
                break
            packet = self._next_packet(room)
            if packet is None:
                ring.put_back()
                continue
            data = encode_packet(packet)
            chain.write(data)
            ring.complete(chain, len(data))
            sent += 1
        if sent:
            ring.notify()
        if sent == BURST:
            self._reactor.post(self._pump)

    def _next_packet(self, room_bytes: int) -> Packet | None:
        """The next packet for the guest; None when the first in turn turned out to have nothing."""
        if self._refusals:
            return self._refusals.popleft()
        packet: Packet | None
        if self._due:
            connection = self._due.pop(next(iter(self._due)))
            packet = connection.next_due()
        else:
            connection = self._senders.pop(next(iter(self._senders)))
            data = connection.read(min(room_bytes, MAX_HOST_PAYLOAD_BYTES)) if connection.can_send else None
            packet = connection.packet(Op.RW, data=data) if data else None
            if data:
                # Its turn comes again after the others'.
                self._senders[connection.key] = connection
        self._update(connection)
        return packet

    # --- connections ---

    def _begin(self, key: Key, near_end: socket.socket, opening: Opening | None = None) -> Connection:
        near_end.setblocking(False)
        self._connections[key] = connection = Connection(key, self._guest_cid, near_end, opening)
        self._update(connection)
        return connection

    def _update(self, connection: Connection) -> None:
        """After any change of a connection: end it, or queue what is due and watch its near end."""
        if connection.guest_ended:
            self._end(connection)
        elif connection.host_ended and not connection.due:
            self._forget(connection)
        else:
            if connection.due and not connection.guest_left:
                self._due[connection.key] = connection
            reading = connection.can_send and connection.key not in self._senders
            events = (READ if reading else 0) | (WRITE if connection.wants_to_write else 0)
            self._watch(connection, events)

    def _watch(self, connection: Connection, events: int) -> None:
        descriptor = connection.near_end.fileno()
        if events:
            self._reactor.watch(descriptor, events, lambda ready: self._near_end_ready(connection, ready))
        else:
            self._reactor.unwatch(descriptor)

    def _near_end_ready(self, connection: Connection, ready: int) -> None:
        if ready & READ:
            self._senders[connection.key] = connection
        if ready & WRITE:
            connection.flush()
        self._update(connection)
        self._pump()

    def _end(self, connection: Connection) -> None:
        """Forget a connection at once, and tell the guest unless it was the guest who ended it."""
        if not connection.guest_left:
            self._refusals.append(connection.packet(Op.RST))
        self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        for table in (self._connections, self._due, self._senders):
            table.pop(connection.key, None)
        self._reactor.unwatch(connection.near_end.fileno())
        connection.close()
