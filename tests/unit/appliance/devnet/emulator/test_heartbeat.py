"""The heartbeat: one byte, sent back once."""

import threading

from appliance.devnet.emulator.heartbeat import answer_heartbeat
from appliance.devnet.emulator.host_ports import GuestListener


def answered(listener: GuestListener) -> tuple[threading.Thread, list[bool]]:
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(answer_heartbeat(listener)))
    thread.start()
    return thread, results


def test_the_byte_of_the_platform_is_sent_back() -> None:
    with GuestListener() as listener, listener() as guest:
        guest.settimeout(10)
        thread, results = answered(listener)
        guest.send(b"\xb7")
        assert guest.recv(10) == b"\xb7"
        assert guest.recv(10) == b""
        thread.join(10)

    assert results == [True]


def test_another_byte_or_none_is_no_heartbeat() -> None:
    with GuestListener() as listener:
        thread, results = answered(listener)
        for said in (b"x", b""):
            with listener() as guest:
                guest.settimeout(10)
                guest.send(said)
                guest.shutdown(1)
                assert guest.recv(10) == b""
        with listener() as guest:
            guest.settimeout(10)
            guest.send(b"\xb7")
            assert guest.recv(10) == b"\xb7"
        thread.join(10)

    assert results == [True]


def test_a_machine_that_stops_waits_no_longer() -> None:
    listener = GuestListener()
    thread, results = answered(listener)
    listener.close()
    thread.join(10)

    assert results == [False]
