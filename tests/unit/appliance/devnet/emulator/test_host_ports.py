"""Listeners of the host: accepted in turn, bounded, and never left hanging."""

import queue
import socket
import threading
from pathlib import Path

import pytest

from appliance.devnet.emulator.host_ports import GuestListener, unix_port


def test_connections_are_accepted_in_the_order_they_came() -> None:
    with GuestListener() as listener:
        near_ends = [listener() for _ in range(3)]
        for number, near_end in enumerate(near_ends):
            near_end.send(b"%d" % number)
        for number, near_end in enumerate(near_ends):
            with listener.accept(0) as far_end, near_end:
                assert far_end.recv(10) == b"%d" % number


def test_waiting_has_an_end() -> None:
    with GuestListener() as listener, pytest.raises(TimeoutError):
        listener.accept(0)


def test_closing_wakes_everyone_who_waits_and_resets_what_waited() -> None:
    listener = GuestListener()
    with listener() as near_end:
        listener.close()
        assert near_end.recv(1) == b""
    aborted = 0

    def wait() -> None:
        nonlocal aborted
        with pytest.raises(ConnectionAbortedError):
            listener.accept()
        aborted += 1

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    listener.close()

    assert aborted == 3
    with pytest.raises(ConnectionRefusedError):
        listener()


def test_closing_while_somebody_takes_the_last_connection_closes() -> None:
    taken: list[socket.socket] = []

    class Raced(queue.Queue):  # type: ignore[type-arg]
        """Somebody else is always a little faster."""

        def get_nowait(self) -> socket.socket:
            taken.append(super().get_nowait())
            found: socket.socket = super().get_nowait()
            return found

    listener = GuestListener()
    listener._waiting = Raced(10)
    with listener() as near_end:
        listener.close()
        (far_end,) = taken
        far_end.send(b"x")
        far_end.close()
        assert near_end.recv(10) == b"x"
    with pytest.raises(ConnectionAbortedError):
        listener.accept(0)


def test_a_full_listener_refuses() -> None:
    with GuestListener(backlog=1) as listener:
        near_end = listener()
        with near_end, pytest.raises(ConnectionRefusedError):
            listener()


def test_a_unix_socket_that_is_not_there_refuses(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        unix_port(tmp_path / "none")()
