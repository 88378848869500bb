"""The secure module behind its queue: requests and room for responses, in one chain or in two."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.devnet.emulator.nsm_device import NsmDevice
from appliance.devnet.emulator.reactor import Reactor
from appliance.devnet.emulator.vhost_user import Request, VhostUserBackend
from appliance.tee.attestation.cbor import decode_cbor, encode_cbor
from appliance.tee.software.nsm import MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, PcrBank, SoftwareNsm
from appliance.tee.software.pki import ThrowAwayRoot
from tests.support.virtio_guest import FrontEnd

MODULE = "i-0123456789abcdef0-enc0123456789abcdef"
LOCK = encode_cbor({"LockPCR": {"index": 16}})
LOCKED = encode_cbor("LockPCR")
RANDOM = encode_cbor({"GetRandom": {"random": bytes(256)}})
READ_ONLY = encode_cbor({"Error": "ReadOnlyIndex"})


class Driver:
    """The guest's driver of the module."""

    def __init__(self, reactor: Reactor, path: Path) -> None:
        issuer = ThrowAwayRoot(datetime(2026, 1, 1, tzinfo=UTC)).issuer(MODULE)
        nsm = SoftwareNsm(MODULE, PcrBank({}), issuer, SystemClock(), random=bytes)
        self.complaints: list[str] = []
        self.backend = VhostUserBackend(path, NsmDevice(nsm, reactor), reactor, self.complaints.append)
        self.front = FrontEnd(path, reactor, 1)
        self.front.start()
        (self.ring,) = self.front.rings

    def kick(self) -> list[bytes]:
        self.front.kick(self.ring)
        return self.ring.collect()


@pytest.fixture
def driver(reactor: Reactor, tmp_path: Path) -> Iterator[Driver]:
    driver = Driver(reactor, tmp_path / "nsm.sock")
    yield driver
    driver.front.close()
    driver.backend.close()


def test_a_request_and_its_room_come_as_two_chains(driver: Driver) -> None:
    driver.ring.interrupted()
    driver.ring.offer([LOCK])
    driver.ring.offer(writable=[MAX_RESPONSE_BYTES])

    assert driver.kick() == [b"", LOCKED]
    assert driver.ring.interrupted()


def test_a_request_and_its_room_come_as_one_chain(driver: Driver) -> None:
    driver.ring.offer([LOCK[:5], LOCK[5:]], [5, MAX_RESPONSE_BYTES])

    assert driver.kick() == [LOCKED]


def test_a_request_waits_for_its_room(driver: Driver) -> None:
    driver.ring.offer([LOCK])
    assert driver.kick() == []
    driver.ring.offer(writable=[MAX_RESPONSE_BYTES])
    assert driver.kick() == [b"", LOCKED]


def test_requests_are_answered_in_turn(driver: Driver) -> None:
    for request in (LOCK, encode_cbor("GetRandom"), LOCK):
        driver.ring.offer([request])
        driver.ring.offer(writable=[MAX_RESPONSE_BYTES])

    assert driver.kick() == [b"", LOCKED, b"", RANDOM, b"", READ_ONLY]


def test_a_guest_with_many_requests_lets_others_have_their_turn(
    driver: Driver, reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.devnet.emulator.nsm_device.BURST", 3)
    for _ in range(8):
        driver.ring.offer([LOCK], [MAX_RESPONSE_BYTES])
    os.eventfd_write(driver.ring.kick, 1)
    turns = []
    while reactor.step():
        turns.append(len(driver.ring.collect()))

    assert turns == [3, 3, 2]


@pytest.mark.parametrize("size", [MAX_REQUEST_BYTES + 1, 100_000])
def test_a_request_that_is_too_large_is_refused(driver: Driver, size: int) -> None:
    driver.ring.offer([bytes(size)], [MAX_RESPONSE_BYTES])

    assert [decode_cbor(answer) for answer in driver.kick()] == [{"Error": "InputTooLarge"}]


def test_a_driver_that_starts_again_loses_its_request_and_not_the_registers(driver: Driver) -> None:
    driver.ring.offer([LOCK], [MAX_RESPONSE_BYTES])
    driver.ring.offer([LOCK])
    assert driver.kick() == [LOCKED]
    driver.front.ask(Request.GET_VRING_BASE, bytes(8))
    driver.ring.memory[driver.ring.available : driver.ring.used + 4096] = bytes(8192)
    driver.front.set_up(driver.ring)
    driver.ring.restart()
    driver.ring.offer([LOCK], [MAX_RESPONSE_BYTES])

    assert driver.kick() == [READ_ONLY]


def test_room_without_a_request_breaks_the_queue(driver: Driver) -> None:
    driver.ring.offer(writable=[MAX_RESPONSE_BYTES])

    assert (driver.kick(), len(driver.complaints)) == ([], 1)


def test_a_second_request_before_an_answer_breaks_the_queue(driver: Driver) -> None:
    driver.ring.offer([LOCK])
    driver.ring.offer([LOCK], [MAX_RESPONSE_BYTES])

    assert (driver.kick(), len(driver.complaints)) == ([], 1)


def test_an_empty_chain_breaks_the_queue(driver: Driver) -> None:
    driver.ring.offer([b""])

    assert (driver.kick(), len(driver.complaints)) == ([], 1)


def test_too_little_room_breaks_the_queue(driver: Driver) -> None:
    driver.ring.offer([LOCK], [MAX_RESPONSE_BYTES - 1])

    assert (driver.kick(), len(driver.complaints)) == ([], 1)


def test_a_kick_without_anything_is_nothing(driver: Driver) -> None:
    driver.ring.interrupted()

    assert (driver.kick(), driver.ring.interrupted(), driver.complaints) == ([], False, [])


def test_a_kick_that_was_counted_already_is_nothing(driver: Driver) -> None:
    os.eventfd_write(driver.ring.kick, 1000)

    assert driver.kick() == []
