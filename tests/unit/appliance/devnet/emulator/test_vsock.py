"""The vsock device against a guest that speaks packet by packet, kindly and not."""

import contextlib
import dataclasses
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest

from appliance.devnet.emulator.host_ports import GuestListener, unix_port
from appliance.devnet.emulator.reactor import Reactor
from appliance.devnet.emulator.vhost_user import Request, VhostUserBackend
from appliance.devnet.emulator.vsock import MAX_REFUSALS, VsockDevice
from appliance.devnet.emulator.vsock_connection import BUFFER_BYTES
from appliance.devnet.emulator.vsock_packet import (
    HEADER_BYTES,
    MAX_HOST_PAYLOAD_BYTES,
    Op,
    Packet,
    Shutdown,
    encode_packet,
    parse_packet,
)
from tests.support.virtio_guest import GUEST_BASE, FrontEnd, eventually

CID = 16
ROOM = 1 << 20
BUFFER = HEADER_BYTES + MAX_HOST_PAYLOAD_BYTES
MAX_CONNECTIONS = 8


class Guest:
    """The guest's driver, reduced to packets; its buffers have parts of these sizes."""

    def __init__(self, reactor: Reactor, path: Path, parts: Sequence[int] = (BUFFER,), count: int = 5) -> None:
        self.reactor = reactor
        self.parts = parts
        self.device = VsockDevice(reactor, CID, max_connections=MAX_CONNECTIONS)
        self.complaints: list[str] = []
        self.backend = VhostUserBackend(path, self.device, reactor, self.complaints.append)
        self.front = FrontEnd(path, reactor, 2)
        self.front.start()
        self.rx, self.tx = self.front.rings
        self.give_buffers(count)

    def close(self) -> None:
        self.front.close()
        self.backend.close()

    def give_buffers(self, count: int) -> None:
        for _ in range(count):
            self.rx.offer(writable=self.parts)
        self.front.kick(self.rx)

    def send_raw(self, *parts: bytes) -> None:
        self.tx.offer(parts)
        self.front.kick(self.tx)
        self.tx.collect()

    def send(self, packet: Packet) -> None:
        self.send_raw(encode_packet(packet))

    def say(self, op: int, port: int = 700, host_port: int = 80, cid: int = 3, **more: object) -> None:
        """A packet of the guest's port 700 to port 80 of CID 3."""
        values = {"buffer_bytes": ROOM} | more
        self.send(Packet(CID, cid, port, host_port, op, **values))  # type: ignore[arg-type]

    def hear(self) -> list[Packet]:
        """The packets that came; as many buffers are given back."""
        self.front.settle()
        packets = [parse_packet(data) for data in self.rx.collect()]
        self.give_buffers(len(packets))
        return packets

    def hear_ops(self) -> list[int]:
        return [packet.op for packet in self.hear()]

    def hear_data(self) -> bytes:
        """Data until nothing more comes."""
        data = b""
        while packets := self.hear():
            assert {packet.op for packet in packets} == {Op.RW}
            data += b"".join(packet.data for packet in packets)
        return data


@pytest.fixture
def guest(reactor: Reactor, tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(reactor, tmp_path / "vsock.sock")
    yield guest
    guest.close()


@pytest.fixture
def listener(guest: Guest) -> Iterator[GuestListener]:
    with GuestListener() as listener:
        guest.device.listen(80, listener)
        yield listener


@pytest.fixture
def host(guest: Guest, listener: GuestListener) -> Iterator[socket.socket]:
    """The host's end of a connection that the guest has opened."""
    guest.say(Op.REQUEST)
    with listener.accept(0) as host:
        assert guest.hear_ops() == [Op.RESPONSE]
        host.settimeout(5)
        yield host


def connect(guest: Guest, port: int = 5000) -> tuple[Future[socket.socket], Packet]:
    """Ask for a connection as the host; the future, and the REQUEST that the guest got."""
    waiting: Future[socket.socket] = Future()
    guest.device.connect(port, waiting)
    (request,) = guest.hear()
    return waiting, request


def answer(request: Packet, op: int, **more: object) -> Packet:
    ports = request.target_port, request.source_port
    values = {"buffer_bytes": ROOM} | more
    return Packet(CID, request.source_cid, *ports, op, **values)  # type: ignore[arg-type]


# --- opening ---


def test_the_configuration_is_the_guests_cid(guest: Guest) -> None:
    answered = guest.front.ask(Request.GET_CONFIG, struct.pack("<III", 0, 8, 0) + bytes(8))

    assert answered == struct.pack("<IIIQ", 0, 8, 0, CID)


@pytest.mark.parametrize("cid", [2, 3])
def test_the_guest_reaches_the_host_by_either_cid(guest: Guest, listener: GuestListener, cid: int) -> None:
    guest.say(Op.REQUEST, cid=cid)
    (response,) = guest.hear()

    assert response == Packet(cid, CID, 80, 700, Op.RESPONSE, buffer_bytes=BUFFER_BYTES)
    listener.accept(0).close()


def test_a_port_may_be_served_on_one_cid_alone(guest: Guest) -> None:
    with GuestListener() as listener:
        guest.device.listen(81, listener, [3])
        guest.say(Op.REQUEST, host_port=81, cid=2)
        assert guest.hear_ops() == [Op.RST]
        guest.say(Op.REQUEST, host_port=81, cid=3)
        assert guest.hear_ops() == [Op.RESPONSE]


@pytest.mark.parametrize(("cid", "port"), [(3, 81), (1, 80), (0, 80), (16, 80), (2**40, 80)])
def test_a_port_that_nobody_serves_is_refused(guest: Guest, listener: GuestListener, cid: int, port: int) -> None:
    guest.say(Op.REQUEST, cid=cid, host_port=port)

    assert guest.hear() == [Packet(cid, CID, port, 700, Op.RST)]


def test_the_guest_reaches_unix_sockets_and_is_refused_without_them(guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "service.sock"
    guest.device.listen(90, unix_port(path))
    guest.say(Op.REQUEST, host_port=90)
    assert guest.hear_ops() == [Op.RST]
    with socket.socket(socket.AF_UNIX) as service:
        service.bind(str(path))
        service.listen()
        guest.say(Op.REQUEST, host_port=90)
        guest.say(Op.RW, host_port=90, data=b"hello")
        accepted, _ = service.accept()
        with accepted:
            assert accepted.recv(100) == b"hello"
    assert guest.hear_ops()[0] == Op.RESPONSE


def test_the_host_reaches_a_port_of_the_guest(guest: Guest) -> None:
    waiting, request = connect(guest)
    assert (request.source_cid, request.target_cid, request.target_port, request.op) == (3, CID, 5000, Op.REQUEST)
    assert not waiting.done()
    guest.send(answer(request, Op.RESPONSE))
    with waiting.result(0) as host:
        guest.send(answer(request, Op.RW, data=b"from the guest"))
        assert host.recv(100) == b"from the guest"
        host.send(b"from the host")
        assert guest.hear_data() == b"from the host"


def test_connections_of_the_host_have_ports_of_their_own(guest: Guest) -> None:
    assert len({connect(guest)[1].source_port for _ in range(5)}) == 5


def test_a_refusal_of_the_guest_reaches_the_host(guest: Guest) -> None:
    waiting, request = connect(guest)
    guest.send(answer(request, Op.RST))

    with pytest.raises(ConnectionRefusedError):
        waiting.result(0)


def test_an_abandoned_connection_is_reset(guest: Guest) -> None:
    waiting, request = connect(guest)
    assert waiting.cancel()
    guest.device.abandon(waiting)

    assert guest.hear_ops() == [Op.RST]
    guest.send(answer(request, Op.RESPONSE))
    assert guest.hear_ops() == [Op.RST]


def test_an_answer_that_comes_too_late_is_reset(guest: Guest) -> None:
    waiting, request = connect(guest)
    assert waiting.cancel()
    guest.send(answer(request, Op.RESPONSE))

    assert guest.hear_ops() == [Op.RST]


def test_without_a_guest_the_host_is_refused(reactor: Reactor) -> None:
    waiting: Future[socket.socket] = Future()
    VsockDevice(reactor, CID).connect(1, waiting)

    with pytest.raises(ConnectionRefusedError):
        waiting.result(0)


# --- data ---


def test_data_goes_both_ways(guest: Guest, host: socket.socket) -> None:
    guest.say(Op.RW, data=b"question")
    assert host.recv(100) == b"question"
    host.send(b"answer")

    assert guest.hear_data() == b"answer"


def test_data_may_lie_in_several_buffers_behind_its_header(guest: Guest, host: socket.socket) -> None:
    packet = encode_packet(Packet(CID, 3, 700, 80, Op.RW, buffer_bytes=ROOM, data=b"abcdef"))
    guest.send_raw(packet[:10], packet[10:46], packet[46:])

    assert host.recv(100) == b"abcdef"


def test_data_for_the_guest_is_cut_to_what_its_buffers_hold(guest: Guest, host: socket.socket) -> None:
    sent = os.urandom(20_000)
    host.send(sent)
    sizes, received = [], b""
    while packets := guest.hear():
        sizes += [len(packet.data) for packet in packets]
        received += b"".join(packet.data for packet in packets)

    assert received == sent
    assert sizes == [MAX_HOST_PAYLOAD_BYTES] * 5 + [20_000 - 5 * MAX_HOST_PAYLOAD_BYTES]


@pytest.mark.parametrize("parts", [(HEADER_BYTES + 100,), (HEADER_BYTES, 100), (10, 100, 34)])
def test_smaller_buffers_get_smaller_packets(reactor: Reactor, tmp_path: Path, parts: tuple[int, ...]) -> None:
    guest = Guest(reactor, tmp_path / "vsock.sock", parts)
    with GuestListener() as listener:
        guest.device.listen(80, listener)
        guest.say(Op.REQUEST)
        guest.hear()
        with listener.accept(0) as host:
            host.send(bytes(250))
            sizes = [len(packet.data) for packet in guest.hear()]
    guest.close()

    assert sizes == [100, 100, 50]


def test_connections_take_turns(reactor: Reactor, tmp_path: Path) -> None:
    guest = Guest(reactor, tmp_path / "vsock.sock", count=0)
    with GuestListener() as listener, contextlib.ExitStack() as hosts:
        guest.device.listen(80, listener)
        for port in (1, 2, 3):
            guest.say(Op.REQUEST, port=port)
            hosts.enter_context(listener.accept(0)).send(bytes(2 * MAX_HOST_PAYLOAD_BYTES))
        guest.give_buffers(3)
        assert guest.hear_ops() == [Op.RESPONSE] * 3
        ports = [packet.target_port for packet in guest.hear()]
        ports += [packet.target_port for packet in guest.hear()]
    guest.close()

    assert ports == [1, 2, 3] * 2


# --- credit ---


def test_the_guest_is_sent_no_more_than_it_has_room_for(guest: Guest, listener: GuestListener) -> None:
    guest.say(Op.REQUEST, buffer_bytes=5000)
    with listener.accept(0) as host:
        guest.hear()
        host.send(bytes(12_000))
        assert len(guest.hear_data()) == 5000
        guest.say(Op.CREDIT_UPDATE, buffer_bytes=5000, forwarded=4000)
        assert len(guest.hear_data()) == 4000
        guest.say(Op.CREDIT_UPDATE, buffer_bytes=10_000, forwarded=9000)
        assert len(guest.hear_data()) == 3000


def test_a_guest_without_room_is_sent_nothing_and_costs_nothing(guest: Guest, listener: GuestListener) -> None:
    guest.say(Op.REQUEST, buffer_bytes=0)
    with listener.accept(0) as host:
        guest.hear()
        host.send(b"x")
        assert guest.hear() == []
        assert not guest.reactor.step()


@pytest.mark.parametrize("forwarded", [1, 2**32 - 1, 2**31])
def test_a_guest_that_claims_to_have_read_what_was_never_sent_gets_nothing(
    guest: Guest, listener: GuestListener, forwarded: int
) -> None:
    guest.say(Op.REQUEST, buffer_bytes=100, forwarded=forwarded)
    with listener.accept(0) as host:
        guest.hear()
        host.send(bytes(1000))

        assert len(guest.hear_data()) <= 100


def test_the_guest_hears_of_room_when_half_is_free_again(guest: Guest, host: socket.socket) -> None:
    for _ in range(BUFFER_BYTES // 2 // 65536):
        guest.say(Op.RW, data=bytes(65536))
        received = 0
        while received < 65536:
            received += len(host.recv(65536))
    eventually(guest.reactor, lambda: not guest.reactor.step())
    (update,) = guest.hear()

    assert (update.op, update.forwarded, update.buffer_bytes) == (Op.CREDIT_UPDATE, BUFFER_BYTES // 2, BUFFER_BYTES)


def test_the_guest_hears_of_room_when_it_asks(guest: Guest, host: socket.socket) -> None:
    guest.say(Op.RW, data=b"1234")
    guest.say(Op.CREDIT_REQUEST)
    (update,) = guest.hear()

    assert (update.op, update.forwarded) == (Op.CREDIT_UPDATE, 4)


def test_a_guest_that_overruns_its_credit_is_reset(guest: Guest, host: socket.socket) -> None:
    ops: list[int] = []
    for _ in range(20):
        guest.say(Op.RW, data=bytes(65536))
        ops += guest.hear_ops()
        if Op.RST in ops:
            break

    assert ops[-1] == Op.RST
    guest.say(Op.RW, data=b"x")
    assert guest.hear_ops() == [Op.RST]


def test_data_that_the_host_does_not_read_waits_and_arrives(guest: Guest, host: socket.socket) -> None:
    sent = os.urandom(2 * 65536)
    taken = 0
    while taken < 8 * 65536:  # more than the sockets between hold
        guest.say(Op.RW, data=sent[:65536])
        taken += 65536
        if guest.hear():
            break
    received = 0
    while received < taken:
        received += len(host.recv(65536))
        guest.front.settle()

    assert received == taken


# --- closing ---


def test_the_guest_may_end_sending_and_go_on_receiving(guest: Guest, host: socket.socket) -> None:
    guest.say(Op.RW, data=b"all I have to say")
    guest.say(Op.SHUTDOWN, flags=Shutdown.SEND)
    assert host.makefile("rb").read() == b"all I have to say"
    host.send(b"I see")
    assert guest.hear_data() == b"I see"


def test_the_host_may_end_sending_and_go_on_receiving(guest: Guest, host: socket.socket) -> None:
    host.send(b"all I have to say")
    host.shutdown(socket.SHUT_WR)
    data, shutdown = guest.hear()
    assert (data.data, shutdown.op, shutdown.flags) == (b"all I have to say", Op.SHUTDOWN, Shutdown.SEND)
    guest.say(Op.RW, data=b"I see")
    assert host.recv(100) == b"I see"


def test_a_guest_that_closes_gets_its_reset_after_its_data_left(guest: Guest, host: socket.socket) -> None:
    guest.say(Op.RW, data=b"last words")
    guest.say(Op.SHUTDOWN, flags=Shutdown.BOTH)

    assert guest.hear_ops() == [Op.RST]
    assert host.makefile("rb").read() == b"last words"


def test_a_host_that_closes_says_so_once_and_is_forgotten(guest: Guest, host: socket.socket) -> None:
    host.send(b"last words")
    host.close()
    data, shutdown = guest.hear()

    assert (data.data, shutdown.op, shutdown.flags) == (b"last words", Op.SHUTDOWN, Shutdown.BOTH)
    guest.say(Op.RST)
    assert guest.hear() == []
    guest.say(Op.RW, data=b"too late")
    assert guest.hear_ops() == [Op.RST]


def test_a_host_that_closes_while_the_guest_speaks_is_found_out(guest: Guest, host: socket.socket) -> None:
    guest.say(Op.RW, data=b"unread")
    host.close()
    ops = guest.hear_ops()
    guest.say(Op.RW, data=b"more")
    ops += guest.hear_ops()

    assert ops == [Op.SHUTDOWN, Op.RST]


def test_a_reset_of_the_guest_closes_the_host(guest: Guest, host: socket.socket) -> None:
    guest.say(Op.RW, data=b"last words")
    guest.say(Op.RST)

    assert host.makefile("rb").read() == b"last words"
    assert guest.hear() == []


def test_both_half_closes_together_are_a_close(guest: Guest, host: socket.socket) -> None:
    host.shutdown(socket.SHUT_WR)
    guest.hear()
    guest.say(Op.SHUTDOWN, flags=Shutdown.SEND)
    (shutdown,) = guest.hear()

    assert (shutdown.op, shutdown.flags) == (Op.SHUTDOWN, Shutdown.BOTH)
    assert host.recv(1) == b""


def test_a_guest_that_will_not_receive_is_sent_nothing_more(guest: Guest, host: socket.socket) -> None:
    guest.say(Op.SHUTDOWN, flags=Shutdown.RECEIVE)
    with pytest.raises(BrokenPipeError):
        host.send(b"x")
    assert guest.hear() == []


def test_a_guest_that_leaves_takes_its_connections_along(guest: Guest, host: socket.socket) -> None:
    waiting, _ = connect(guest)
    guest.front.send(Request.GET_VRING_BASE, struct.pack("<II", 0, 0))

    assert host.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        waiting.result(0)


# --- a guest that attacks ---


@pytest.mark.parametrize("op", [Op.RESPONSE, Op.SHUTDOWN, Op.RW, Op.CREDIT_UPDATE, Op.CREDIT_REQUEST, 0, 8, 65535])
def test_a_packet_of_no_connection_is_reset(guest: Guest, op: int) -> None:
    guest.say(op)

    assert guest.hear_ops() == [Op.RST]


def test_a_reset_of_no_connection_is_not_answered(guest: Guest) -> None:
    guest.say(Op.RST)

    assert guest.hear() == []


@pytest.mark.parametrize("op", [Op.REQUEST, Op.RESPONSE, 0, 8])
def test_a_packet_out_of_place_ends_its_connection(guest: Guest, host: socket.socket, op: int) -> None:
    guest.say(op)

    assert guest.hear_ops() == [Op.RST]
    assert host.recv(1) == b""


@pytest.mark.parametrize("op", [Op.RW, Op.SHUTDOWN, Op.REQUEST])
def test_a_guest_must_answer_before_it_speaks(guest: Guest, op: int) -> None:
    waiting, request = connect(guest)
    guest.send(answer(request, op))

    assert guest.hear_ops() == [Op.RST]
    with pytest.raises(ConnectionRefusedError):
        waiting.result(0)


def test_data_after_the_end_of_sending_is_reset(guest: Guest, host: socket.socket) -> None:
    guest.say(Op.SHUTDOWN, flags=Shutdown.SEND)
    guest.say(Op.RW, data=b"x")

    assert guest.hear_ops() == [Op.RST]


@pytest.mark.parametrize("change", [{"source_cid": 17}, {"source_cid": 3}, {"kind": 2}, {"kind": 0}])
def test_a_packet_of_another_source_or_kind_is_reset(
    guest: Guest, listener: GuestListener, change: dict[str, int]
) -> None:
    request = Packet(CID, 3, 700, 80, Op.REQUEST, buffer_bytes=ROOM)
    guest.send(dataclasses.replace(request, **change))  # type: ignore[arg-type]

    assert guest.hear_ops() == [Op.RST]
    with pytest.raises(TimeoutError):
        listener.accept(0)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(HEADER_BYTES - 1),
        encode_packet(Packet(CID, 3, 700, 80, Op.RW, data=b"abc"))[:-1],
        encode_packet(Packet(CID, 3, 700, 80, Op.RW, data=b"abc")) + b"d",
        encode_packet(Packet(CID, 3, 700, 80, Op.RW, data=bytes(65537))),
    ],
    ids=["empty", "short", "less data", "more data", "too much data"],
)
def test_a_packet_that_is_none_breaks_the_queue(guest: Guest, data: bytes) -> None:
    guest.send_raw(data)

    assert len(guest.complaints) == 1


@pytest.mark.parametrize("parts", [(HEADER_BYTES,), (1,), (20, 24)])
def test_a_buffer_without_room_for_data_breaks_the_queue(
    reactor: Reactor, tmp_path: Path, parts: tuple[int, ...]
) -> None:
    guest = Guest(reactor, tmp_path / "vsock.sock", parts)
    guest.say(Op.RW)
    guest.close()

    assert len(guest.complaints) == 1


def test_the_guest_holds_a_bounded_number_of_connections(guest: Guest, listener: GuestListener) -> None:
    for port in range(MAX_CONNECTIONS):
        guest.say(Op.REQUEST, port=port)
        assert guest.hear_ops() == [Op.RESPONSE]
    guest.say(Op.REQUEST, port=1000)
    assert guest.hear_ops() == [Op.RST]
    waiting: Future[socket.socket] = Future()
    guest.device.connect(5000, waiting)
    assert isinstance(waiting.exception(0), ConnectionRefusedError)

    listener.accept(0).close()
    guest.hear()
    guest.say(Op.REQUEST, port=1000)
    assert guest.hear_ops() == [Op.RESPONSE]


def test_a_listener_holds_a_bounded_number_of_connections(guest: Guest) -> None:
    with GuestListener(backlog=2) as small:
        guest.device.listen(80, small)
        for port in range(3):
            guest.say(Op.REQUEST, port=port)
        assert guest.hear_ops() == [Op.RESPONSE, Op.RESPONSE, Op.RST]


def test_a_guest_that_fetches_nothing_makes_only_so_many_refusals_wait(guest: Guest) -> None:
    for number in range(MAX_REFUSALS + 100):
        guest.say(Op.RW, port=number)
    waiting = 0
    while packets := guest.hear():
        waiting += len(packets)

    assert waiting == MAX_REFUSALS + 5


def test_a_guest_that_goes_on_and_on_lets_others_have_their_turn(
    guest: Guest, reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.devnet.emulator.vsock.BURST", 3)
    for number in range(8):
        guest.tx.offer([encode_packet(Packet(CID, 3, number, 80, Op.RW))])
    os.eventfd_write(guest.tx.kick, 1)
    turns = []
    while reactor.step():
        turns.append((len(guest.tx.collect()), len(guest.rx.collect())))

    assert turns[:3] == [(3, 3), (3, 2), (2, 0)]


def test_a_guest_address_outside_memory_breaks_the_queue(guest: Guest) -> None:
    guest.tx.describe(0, GUEST_BASE - 44, 44, 0)
    guest.tx.publish(0)
    guest.front.kick(guest.tx)

    assert len(guest.complaints) == 1
