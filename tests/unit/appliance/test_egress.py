"""Tunnels out of the enclave: whom the list admits, and what a proxy may answer."""

import asyncio
import contextlib
import socket

import anyio
import pytest

from appliance.egress import MAX_ANSWER_BYTES, Tunnels, admits_origins, is_loopback

pytestmark = pytest.mark.anyio

ANSWERS = {
    "refused": (b"HTTP/1.1 403 Forbidden\r\n\r\n", ConnectionRefusedError),
    "no HTTP": (b"SSH-2.0-x\r\n\r\n", ConnectionRefusedError),
    "another success": (b"HTTP/1.1 204 No Content\r\n\r\n", ConnectionRefusedError),
    "closed": (b"", ConnectionResetError),
    "closed in the middle": (b"HTTP/1.1 200 OK\r\n", ConnectionResetError),
    "without end": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * (2 * MAX_ANSWER_BYTES), ConnectionResetError),
    "with something behind": (b"HTTP/1.1 200 OK\r\n\r\nmore", ConnectionResetError),
    "twice": (b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", ConnectionResetError),
}


class Proxy:
    """A proxy that says one thing to whoever connects, and keeps what it was asked."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self.near_ends: list[socket.socket] = []
        self.far_ends: list[socket.socket] = []

    async def connect(self) -> socket.socket:
        near_end, far_end = socket.socketpair()
        near_end.setblocking(False)
        far_end.sendall(self._answer)
        far_end.shutdown(socket.SHUT_WR)
        self.near_ends.append(near_end)
        self.far_ends.append(far_end)
        return near_end

    def asked(self) -> bytes:
        return self.far_ends[-1].recv(4096)

    def close(self) -> None:
        for far_end in self.far_ends:
            far_end.close()


def tunnels(proxy: Proxy, *urls: str) -> Tunnels:
    return Tunnels(proxy.connect, admits_origins(lambda: urls))


@pytest.mark.parametrize(("answer", "error"), ANSWERS.values(), ids=ANSWERS)
async def test_what_is_no_success_closes_the_connection(answer: bytes, error: type[OSError]) -> None:
    with contextlib.closing(Proxy(answer)) as proxy:
        with pytest.raises(error):
            await tunnels(proxy, "https://a.example").open("a.example", 443)
        assert [near_end.fileno() for near_end in proxy.near_ends] == [-1]


@pytest.mark.parametrize(
    ("host", "port", "asked"),
    [
        ("A.Example", 443, b"CONNECT a.example:443 "),
        ("2001:db8::1", 8443, b"CONNECT [2001:db8::1]:8443 "),
        ("[2001:DB8::1]", 8443, b"CONNECT [2001:db8::1]:8443 "),
    ],
)
async def test_hosts_are_compared_and_asked_for_in_one_form(host: str, port: int, asked: bytes) -> None:
    with contextlib.closing(Proxy(b"HTTP/1.1 200 OK\r\n\r\n")) as proxy:
        opened = await tunnels(proxy, "https://a.example", "https://[2001:db8::1]:8443").open(host, port)
        opened.close()
        assert proxy.asked().startswith(asked)


@pytest.mark.parametrize(
    ("host", "port"),
    [("b.example", 443), ("a.example", 80), ("x.a.example", 443), ("a.example\r\nX: y", 443), ("", 443)],
)
async def test_nothing_is_asked_for_a_host_that_is_not_on_the_list(host: str, port: int) -> None:
    with contextlib.closing(Proxy(b"HTTP/1.1 200 OK\r\n\r\n")) as proxy:
        with pytest.raises(PermissionError):
            await tunnels(proxy, "https://a.example").open(host, port)
        assert proxy.far_ends == []


async def test_the_list_is_the_one_of_the_moment() -> None:
    urls: list[str] = []
    with contextlib.closing(Proxy(b"HTTP/1.1 200 OK\r\n\r\n")) as proxy:
        way_out = Tunnels(proxy.connect, admits_origins(lambda: urls))
        with pytest.raises(PermissionError):
            await way_out.open("a.example", 443)
        urls.append("https://a.example")
        (await way_out.open("a.example", 443)).close()


async def test_a_cancelled_opening_closes_the_connection() -> None:
    near_end, far_end = socket.socketpair()
    near_end.setblocking(False)

    async def connect() -> socket.socket:
        return near_end

    with far_end:
        with anyio.move_on_after(0.05):
            await Tunnels(connect, lambda *_: True).open("a.example", 443)
        assert near_end.fileno() == -1
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("127.9.9.9", True), ("::1", True), ("a.example", False), ("10.0.0.1", False)],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
