"""The proxy that makes conditions hostile must itself be dependable."""

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.support.chaos import ChaosProxy


@pytest.fixture
def echo_port() -> Iterator[int]:
    """A server that answers every line with itself."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept_forever, args=(server,), daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def accept_forever(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=echo, args=(connection,), daemon=True).start()


def echo(connection: socket.socket) -> None:
    with connection:
        while data := connection.recv(4096):
            connection.sendall(data)


@pytest.fixture
def proxy(echo_port: int) -> Iterator[ChaosProxy]:
    with ChaosProxy("127.0.0.1", echo_port) as proxy:
        yield proxy


def exchange(proxy: ChaosProxy, line: bytes = b"hello, world\n", timeout_s: float = 5.0) -> bytes:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=timeout_s) as client:
        client.sendall(line)
        return client.recv(4096)


def test_bytes_pass_unchanged_and_requests_are_counted(proxy: ChaosProxy) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5.0) as client:
        for line in (b"one", b"two"):
            client.sendall(line)
            assert client.recv(4096) == line
    assert proxy.requests == 2


def test_a_cut_line_gives_nothing_until_it_heals(proxy: ChaosProxy) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5.0) as open_before:
        open_before.sendall(b"x")
        assert open_before.recv(16) == b"x"
        proxy.cut()
        assert open_before.recv(16) == b""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5.0) as client:
        assert client.recv(16) == b""
    proxy.heal()
    assert exchange(proxy) == b"hello, world\n"


def test_a_blackhole_accepts_and_stays_silent(proxy: ChaosProxy) -> None:
    proxy.blackhole()
    with pytest.raises(TimeoutError):
        exchange(proxy, timeout_s=0.2)
    proxy.heal()
    assert exchange(proxy) == b"hello, world\n"


def test_a_corrupted_answer_differs_in_one_byte(proxy: ChaosProxy) -> None:
    proxy.corrupt_answers()
    answer = exchange(proxy)
    assert len(answer) == 13
    assert sum(a != b for a, b in zip(answer, b"hello, world\n", strict=True)) == 1


def test_dropped_requests_are_as_many_as_asked_for(proxy: ChaosProxy) -> None:
    proxy.drop_requests(2)
    assert [exchange(proxy) for _ in range(3)] == [b"", b"", b"hello, world\n"]


def test_a_lost_answer_is_counted_and_the_next_one_arrives(proxy: ChaosProxy) -> None:
    proxy.lose_answers(1)
    assert [exchange(proxy), exchange(proxy)] == [b"", b"hello, world\n"]
    assert proxy.answers_lost == 1
