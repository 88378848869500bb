"""Guests that write whatever they like, wherever they can: the devices complain, and neither fail nor grow."""

import contextlib
import os
import random
import socket
import struct
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.clock import SystemClock
from appliance.devnet.emulator.host_ports import GuestListener
from appliance.devnet.emulator.nsm_device import NsmDevice
from appliance.devnet.emulator.reactor import Reactor
from appliance.devnet.emulator.vhost_user import VhostUserBackend
from appliance.devnet.emulator.vsock import VsockDevice
from appliance.devnet.emulator.vsock_packet import HEADER_BYTES, Packet, encode_packet
from appliance.tee.software.nsm import MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, PcrBank, SoftwareNsm
from appliance.tee.software.pki import ThrowAwayRoot
from tests.support.virtio_guest import GUEST_BASE, MEMORY_BYTES, DriverRing, FrontEnd

CID = 16
MODULE = "i-0123456789abcdef0-enc0123456789abcdef"


@pytest.fixture(scope="module")
def nsm() -> SoftwareNsm:
    issuer = ThrowAwayRoot(datetime.now(UTC)).issuer(MODULE)
    return SoftwareNsm(MODULE, PcrBank({}), issuer, SystemClock())


@given(st.binary(max_size=MAX_REQUEST_BYTES + 10))
def test_the_secure_module_answers_any_bytes(nsm: SoftwareNsm, request_: bytes) -> None:
    assert 0 < len(nsm.handle(request_)) <= MAX_RESPONSE_BYTES


operations = st.tuples(
    st.sampled_from([1, 1, 5, 5, 5, 4, 6, 7, 3, 2, 0, 9]),  # op
    st.sampled_from([0, 0, 0, 1, 2]),  # port of the guest
    st.sampled_from([80, 80, 80, 81]),
    st.sampled_from([3, 3, 3, 2, 7]),
    st.sampled_from([0, 1, 100, 1 << 20, 2**32 - 1]),  # room
    st.sampled_from([0, 1, 5000, 2**31, 2**32 - 1]),  # forwarded
    st.integers(0, 7),  # flags
    st.sampled_from([0, 1, 5000, 65536]),  # data
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(operations, st.integers(0, 5)), max_size=40))
def test_any_sequence_of_packets_leaves_the_device_whole(
    script: list[tuple[tuple[int, int, int, int, int, int, int, int], int]],
) -> None:
    reactor = Reactor()
    device = VsockDevice(reactor, CID, max_connections=4)
    with tempfile.TemporaryDirectory() as directory, GuestListener(backlog=4) as listener:
        complaints: list[str] = []
        backend = VhostUserBackend(Path(directory) / "s", device, reactor, complaints.append)
        device.listen(80, listener)
        front = FrontEnd(Path(directory) / "s", reactor, 2)
        front.start()
        rx, tx = front.rings
        for _ in range(4):
            rx.offer(writable=[HEADER_BYTES + 3776])
        hosts: list[socket.socket] = []
        for (op, port, host_port, cid, room, forwarded, flags, size), host_does in script:
            packet = Packet(
                CID, cid, port, host_port, op, 1, flags=flags, buffer_bytes=room, forwarded=forwarded, data=bytes(size)
            )
            tx.offer([encode_packet(packet)])
            front.kick(tx)
            tx.collect()
            for _ in rx.collect():
                rx.offer(writable=[HEADER_BYTES + 3776])
            front.kick(rx)
            with contextlib.suppress(TimeoutError):
                hosts.append(listener.accept(0))
            _host_acts(hosts, host_does)
            front.settle()
        for host in hosts:
            host.close()
        front.close()
        backend.close()
        reactor.close()
    assert not complaints


def _host_acts(hosts: list[socket.socket], what: int) -> None:
    if not hosts:
        return
    host = hosts[-1]
    host.setblocking(False)
    with contextlib.suppress(OSError):
        match what:
            case 1:
                host.send(bytes(9000))
            case 2:
                host.recv(1 << 20)
            case 3:
                host.shutdown(socket.SHUT_WR)
            case 4:
                hosts.pop().close()


@pytest.mark.parametrize("seed", range(40))
def test_rings_of_noise_break_and_nothing_else_does(
    reactor: Reactor, tmp_path: Path, nsm: SoftwareNsm, seed: int
) -> None:
    numbers = random.Random(seed)  # noqa: S311 -- the same noise every time
    complaints: list[str] = []
    devices = (VsockDevice(reactor, CID), NsmDevice(nsm, reactor))
    for number, device in enumerate(devices):
        path = tmp_path / f"{number}.sock"
        backend = VhostUserBackend(path, device, reactor, complaints.append)
        front = FrontEnd(path, reactor, device.queue_count)
        front.start()
        for _ in range(30):
            ring = numbers.choice(front.rings)
            _scribble(ring, numbers)
            os.eventfd_write(ring.kick, 1)
            front.settle()
        assert not front.left()
        front.close()
        backend.close()


def _scribble(ring: DriverRing, numbers: random.Random) -> None:
    """Descriptors that are nearly good, and indices that are not."""
    for slot in range(ring.size):
        address = GUEST_BASE + numbers.choice([0, 4096 * 20, MEMORY_BYTES - 8, numbers.randrange(MEMORY_BYTES), -1])
        size = numbers.choice([0, 1, 44, 4096, 0x3000, 2**32 - 1])
        flags = numbers.choice([0, 0, 1, 2, 3, 3, 4, 7])
        ring.describe(slot, address, size, flags, numbers.randrange(ring.size + 1))
    index = numbers.randrange(0x10000) if numbers.random() < 0.2 else None
    if index is None:
        ring.publish(numbers.randrange(ring.size + 1), numbers.choice([1, 1, 1, 2, ring.size]))
    else:
        struct.pack_into("<H", ring.memory, ring.available + 2, index)
