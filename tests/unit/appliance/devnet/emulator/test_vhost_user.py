"""The back end of vhost-user against a front end that errs and a guest that attacks."""

import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from appliance.devnet.emulator.reactor import Reactor
from appliance.devnet.emulator.vhost_user import MAX_PAYLOAD_BYTES, Request, VhostUserBackend
from appliance.devnet.emulator.vring import Vring
from tests.support.virtio_guest import GUEST_BASE, INDIRECT, MEMORY_BYTES, NEXT, USER_BASE, WRITE, DriverRing, FrontEnd


class Echo:
    """A device that writes back what it reads, backwards, and counts what happens to it."""

    queue_count = 2
    config = b"0123456789"

    def __init__(self) -> None:
        self.rings: Sequence[Vring] = ()
        self.resets = 0

    def attach(self, rings: Sequence[Vring]) -> None:
        self.rings = rings

    def reset(self) -> None:
        self.resets += 1

    def detach(self) -> None:
        self.rings = ()

    def process(self, queue: int) -> None:
        ring = self.rings[queue]
        while (chain := ring.take()) is not None:
            data = chain.read(chain.writable_bytes)[::-1]
            chain.write(data)
            ring.complete(chain, len(data))
            ring.notify()


class Bench:
    """A back end with its device, what it complained of, and a front end."""

    def __init__(self, reactor: Reactor, path: Path) -> None:
        self.device = Echo()
        self.complaints: list[str] = []
        self.backend = VhostUserBackend(path, self.device, reactor, self.complaints.append)
        self.front = FrontEnd(path, reactor, self.device.queue_count)
        self.rings = self.front.rings


@pytest.fixture
def bench(reactor: Reactor, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(reactor, tmp_path / "device.sock")
    with bench.front:
        yield bench
    bench.front.settle()
    bench.backend.close()


@pytest.fixture
def running(bench: Bench) -> Bench:
    bench.front.start()
    return bench


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# --- a good front end and a good guest ---


def test_it_offers_the_features_it_has_and_no_others(bench: Bench) -> None:
    assert bench.front.ask(Request.GET_FEATURES) == struct.pack("<Q", 1 << 32 | 1 << 30)
    assert bench.front.ask(Request.GET_PROTOCOL_FEATURES) == struct.pack("<Q", 1 << 0 | 1 << 3 | 1 << 9)
    assert bench.front.ask(Request.GET_QUEUE_NUM) == struct.pack("<Q", 2)


@pytest.mark.parametrize(
    ("offset", "size", "found"), [(0, 10, b"0123456789"), (3, 4, b"3456"), (8, 3, b""), (9, 0, b"")]
)
def test_the_configuration_is_read_in_bounds(bench: Bench, offset: int, size: int, found: bytes) -> None:
    answer = bench.front.ask(Request.GET_CONFIG, struct.pack("<III", offset, size, 0) + bytes(size))

    assert answer == struct.pack("<III", offset, len(found), 0) + found


def test_a_chain_goes_to_the_device_and_comes_back_with_an_interrupt(running: Bench) -> None:
    ring = running.rings[1]
    ring.interrupted()
    ring.offer([b"abc", b"", b"defg"], [2, 0, 100])
    running.front.kick(ring)

    assert ring.collect() == [b"gfedcba"]
    assert ring.interrupted()


def test_a_ring_wraps_around_for_as_long_as_it_is_used(running: Bench) -> None:
    ring = running.rings[0]
    for number in range(70_000 // 8):
        for part in range(8):
            ring.offer([b"%d" % (number + part)], [8])
        running.front.kick(ring)
        assert ring.collect() == [(b"%d" % (number + part))[::-1] for part in range(8)]

    assert not running.complaints


def test_a_new_call_descriptor_is_signalled_at_once(running: Bench) -> None:
    assert running.rings[0].interrupted()
    running.front.send(Request.SET_VRING_CALL, struct.pack("<Q", 0 | 0x100))
    running.front.send(Request.SET_VRING_CALL, struct.pack("<Q", 0), [running.rings[0].call])

    assert running.rings[0].interrupted()


def test_what_was_offered_before_the_ring_started_is_served(bench: Bench) -> None:
    bench.rings[0].offer([b"ab"], [2])
    bench.front.start()

    assert bench.rings[0].collect() == [b"ba"]


def test_a_ring_that_is_not_enabled_is_not_served(running: Bench) -> None:
    ring = running.rings[0]
    running.front.send(Request.SET_VRING_ENABLE, struct.pack("<II", 0, 0))
    ring.offer([b"ab"], [2])
    running.front.kick(ring)
    before = ring.collect()
    running.front.send(Request.SET_VRING_ENABLE, struct.pack("<II", 0, 1))

    assert (before, ring.collect()) == ([], [b"ba"])


def test_a_front_end_without_protocol_features_has_its_rings_enabled(running: Bench) -> None:
    running.front.send(Request.SET_VRING_ENABLE, struct.pack("<II", 0, 0))
    running.front.send(Request.SET_FEATURES, struct.pack("<Q", 1 << 32))
    running.rings[0].offer([b"ab"], [2])
    running.front.kick(running.rings[0])

    assert running.rings[0].collect() == [b"ba"]


def test_a_stopped_ring_says_where_it_was_and_goes_on_there(running: Bench) -> None:
    ring = running.rings[0]
    for _ in range(3):
        ring.offer([b"ab"], [2])
    running.front.kick(ring)
    assert running.front.ask(Request.GET_VRING_BASE, struct.pack("<II", 0, 0)) == struct.pack("<II", 0, 3)
    ring.offer([b"cd"], [2])
    running.front.kick(ring)
    assert (ring.collect(), running.device.resets) == ([b"ba"] * 3, 1)

    running.front.send(Request.SET_VRING_BASE, struct.pack("<II", 0, 3))
    running.front.send(Request.SET_VRING_KICK, struct.pack("<Q", 0), [ring.kick])
    assert ring.collect() == [b"dc"]


def test_memory_may_come_in_several_regions_and_change(running: Bench) -> None:
    half = MEMORY_BYTES // 2
    halves = ((GUEST_BASE + half, half, USER_BASE + half, half), (GUEST_BASE, half, USER_BASE, 0))
    descriptor = running.front.descriptor
    running.front.send(Request.SET_MEM_TABLE, running.front.memory_table(*halves), [descriptor, descriptor])
    running.rings[1].offer([b"ab"], [2])
    running.front.kick(running.rings[1])

    assert running.rings[1].collect() == [b"ba"]


def test_an_acknowledgement_is_given_when_it_is_asked_for(bench: Bench) -> None:
    assert bench.front.ask(Request.SET_OWNER, flags=1 | 8) == struct.pack("<Q", 0)
    assert bench.front.ask(Request.SET_OWNER) is None


def test_a_message_may_come_in_pieces(bench: Bench, reactor: Reactor) -> None:
    message = struct.pack("<IIII", Request.SET_VRING_NUM, 1, 8, 1) + struct.pack("<I", 8)
    message += struct.pack("<III", Request.GET_QUEUE_NUM, 1, 0)
    for byte in message:
        bench.front.socket.send(bytes([byte]))
        reactor.step()

    assert bench.front.socket.recv(100)[12:] == struct.pack("<Q", 2)


def test_one_front_end_is_served_at_a_time_and_another_after_it(bench: Bench, reactor: Reactor, tmp_path: Path) -> None:
    with FrontEnd(tmp_path / "device.sock", reactor, 2) as second:
        assert second.left()
        assert bench.front.ask(Request.GET_QUEUE_NUM) == struct.pack("<Q", 2)
    bench.front.socket.close()
    bench.front.settle()
    assert bench.device.rings == ()
    with FrontEnd(tmp_path / "device.sock", reactor, 2) as third:
        third.start()
        third.rings[0].offer([b"ab"], [2])
        third.kick(third.rings[0])
        assert third.rings[0].collect() == [b"ba"]
    assert not bench.complaints


def test_no_descriptor_is_left_behind(reactor: Reactor, tmp_path: Path) -> None:
    before = open_descriptors()
    for number in range(3):
        bench = Bench(reactor, tmp_path / f"{number}.sock")
        with bench.front:
            bench.front.start()
            bench.front.send(Request.SET_VRING_ERR, struct.pack("<Q", 0), [bench.rings[0].call])
            bench.front.send(Request.SET_MEM_TABLE, bench.front.memory_table(), [bench.front.descriptor] * 3)
        bench.front.settle()
        bench.backend.close()

    assert open_descriptors() == before


# --- a front end that errs ---


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def state(index: int, value: int) -> bytes:
    return struct.pack("<II", index, value)


@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        (0, b""),
        (Request.SET_OWNER + 1, b""),
        (99, b""),
        (Request.SET_FEATURES, u64(1 << 28)),
        (Request.SET_FEATURES, b""),
        (Request.SET_FEATURES, bytes(16)),
        (Request.SET_PROTOCOL_FEATURES, u64(1 << 1)),
        (Request.SET_VRING_NUM, state(2, 16)),
        (Request.SET_VRING_NUM, state(0, 0)),
        (Request.SET_VRING_NUM, state(0, 3)),
        (Request.SET_VRING_NUM, state(0, 2048)),
        (Request.SET_VRING_NUM, state(0, 16) + b"\0"),
        (Request.SET_VRING_BASE, state(0, 1 << 16)),
        (Request.SET_VRING_ADDR, struct.pack("<IIQQQQ", 9, 0, 0, 0, 0, 0)),
        (Request.SET_VRING_ADDR, bytes(8)),
        (Request.GET_VRING_BASE, state(2, 0)),
        (Request.SET_VRING_ENABLE, state(1 << 31, 1)),
        (Request.SET_VRING_KICK, u64(0)),
        (Request.SET_VRING_CALL, u64(7)),
        (Request.SET_VRING_CALL, u64(0)),
        (Request.SET_MEM_TABLE, struct.pack("<II", 1, 0)),
        (Request.SET_MEM_TABLE, struct.pack("<II", 9, 0) + bytes(32 * 9)),
        (Request.SET_MEM_TABLE, struct.pack("<II", 1, 0) + bytes(32)),
        (Request.SET_MEM_TABLE, b""),
        (Request.GET_CONFIG, bytes(11)),
    ],
)
def test_a_front_end_that_errs_is_left(bench: Bench, request_: int, payload: bytes) -> None:
    bench.front.send(request_, payload)

    assert bench.front.left()
    assert len(bench.complaints) == 1
    assert bench.device.rings == ()


def test_descriptors_where_none_belong_are_closed_and_the_front_end_left(bench: Bench) -> None:
    before = open_descriptors()
    bench.front.send(Request.SET_VRING_CALL, u64(0 | 0x100), [bench.front.descriptor])

    assert bench.front.left()
    assert open_descriptors() < before


def test_more_descriptors_than_regions_are_too_many(bench: Bench) -> None:
    bench.front.send(Request.SET_OWNER, b"", [bench.front.descriptor] * 9)

    assert bench.front.left()


@pytest.mark.parametrize(("flags", "size"), [(0, 0), (2, 0), (1 | 4, 0), (1, MAX_PAYLOAD_BYTES + 1), (1, 2**32 - 1)])
def test_a_header_of_another_shape_ends_the_session(bench: Bench, flags: int, size: int) -> None:
    bench.front.send(Request.SET_OWNER, b"", flags=flags, size=size)

    assert bench.front.left()


# --- a guest that attacks ---


def outside(ring: DriverRing) -> None:
    ring.describe(0, 0x1000, 8, 0)
    ring.publish(0)


def past_the_end(ring: DriverRing) -> None:
    ring.describe(0, GUEST_BASE + MEMORY_BYTES - 4, 8, 0)
    ring.publish(0)


def at_the_end_of_the_address_space(ring: DriverRing) -> None:
    ring.describe(0, 2**64 - 4, 8, WRITE)
    ring.publish(0)


def larger_than_memory(ring: DriverRing) -> None:
    ring.describe(0, GUEST_BASE, 2**32 - 1, WRITE)
    ring.publish(0)


def unknown_head(ring: DriverRing) -> None:
    ring.publish(ring.size)


def unknown_next(ring: DriverRing) -> None:
    ring.describe(0, GUEST_BASE, 8, NEXT, 0xFFFF)
    ring.publish(0)


def loop_of_one(ring: DriverRing) -> None:
    ring.describe(0, GUEST_BASE, 8, NEXT, 0)
    ring.publish(0)


def loop_of_all(ring: DriverRing) -> None:
    for slot in range(ring.size):
        ring.describe(slot, GUEST_BASE, 8, NEXT, (slot + 1) % ring.size)
    ring.publish(0)


def indirect(ring: DriverRing) -> None:
    ring.describe(0, GUEST_BASE, 16, INDIRECT)
    ring.publish(0)


def unknown_flag(ring: DriverRing) -> None:
    ring.describe(0, GUEST_BASE, 16, 1 << 15)
    ring.publish(0)


def room_before_data(ring: DriverRing) -> None:
    ring.describe(0, GUEST_BASE, 8, WRITE | NEXT, 1)
    ring.describe(1, GUEST_BASE, 8, 0)
    ring.publish(0)


def more_than_the_ring_has(ring: DriverRing) -> None:
    ring.describe(0, GUEST_BASE, 8, 0)
    ring.publish(0, ring.size + 1)


def index_runs_backwards(ring: DriverRing) -> None:
    ring.publish(0, -1)


ATTACKS: list[Callable[[DriverRing], None]] = [
    outside,
    past_the_end,
    at_the_end_of_the_address_space,
    larger_than_memory,
    unknown_head,
    unknown_next,
    loop_of_one,
    loop_of_all,
    indirect,
    unknown_flag,
    room_before_data,
    more_than_the_ring_has,
    index_runs_backwards,
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_an_attack_breaks_its_ring_and_no_other(running: Bench, attack: Callable[[DriverRing], None]) -> None:
    attack(running.rings[0])
    running.front.kick(running.rings[0])
    running.front.kick(running.rings[0])
    assert (len(running.complaints), running.rings[0].collect()) == (1, [])

    running.rings[1].offer([b"ab"], [2])
    running.front.kick(running.rings[1])
    assert running.rings[1].collect() == [b"ba"]
    assert running.front.ask(Request.GET_QUEUE_NUM) == u64(2)


def test_a_broken_ring_serves_again_once_it_is_set_up_anew(running: Bench) -> None:
    ring = running.rings[0]
    outside(ring)
    running.front.kick(ring)
    running.front.send(Request.GET_VRING_BASE, state(0, 0))
    running.front.socket.recv(100)
    ring.memory[ring.available : ring.available + 4] = bytes(4)
    running.front.set_up(ring)
    ring.offer([b"ab"], [2])
    running.front.kick(ring)

    assert ring.collect() == [b"ba"]


@pytest.mark.parametrize("shift", [1, 4096 * 1000, -USER_BASE])
def test_rings_outside_the_memory_are_not_followed(running: Bench, shift: int) -> None:
    ring = running.rings[0]
    for at in ("descriptors", "available", "used"):
        tables = {name: USER_BASE + getattr(ring, name) for name in ("descriptors", "used", "available")}
        tables[at] += shift
        running.front.send(Request.SET_VRING_ADDR, struct.pack("<IIQQQQ", 0, 0, *tables.values(), 0))
        ring.publish(0, 0)
        ring.offer([b"ab"], [2])
        running.front.kick(ring)

    assert ring.collect() == []
    assert running.complaints


def test_rings_without_memory_are_not_followed(bench: Bench) -> None:
    bench.front.send(Request.SET_FEATURES, u64(1 << 32 | 1 << 30))
    bench.front.set_up(bench.rings[0])
    bench.front.kick(bench.rings[0])

    assert len(bench.complaints) == 1
