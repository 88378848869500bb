"""Connections of the parent: what a listener survives, and what becomes of sockets."""

import errno
import socket
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketStream

from appliance.host.parameters import RuntimeParameters, answer_parameters, encode_parameters
from appliance.host.streams import Vsock, serve_connections
from tests.support.unix_wires import UnixWires, received, running

pytestmark = pytest.mark.anyio

PORT = 8001


class Troubled(socket.socket):
    """A listener whose first attempts to accept fail with these errors."""

    errors: list[int]

    def accept(self) -> tuple[socket.socket, object]:
        if self.errors:
            code = self.errors.pop(0)
            raise OSError(code, errno.errorcode[code])
        return super().accept()


def troubled(tmp_path: Path, *errors: int) -> Troubled:
    listener = Troubled(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.errors = list(errors)
    listener.bind(str(tmp_path / f"parent-{PORT}"))
    listener.listen()
    listener.setblocking(False)
    return listener


async def greet(stream: SocketStream) -> None:
    await stream.send(b"hello")


# accept(2): errors of the connection that was to be accepted, and of a machine that is short of something.
PASSING = [
    errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT,
    errno.EPERM, errno.EOPNOTSUPP, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
]  # fmt: skip


@pytest.mark.parametrize("code", PASSING, ids=errno.errorcode.get)
async def test_trouble_with_one_connection_ends_no_listener(tmp_path: Path, wires: UnixWires, code: int) -> None:
    listener = troubled(tmp_path, code)
    async with (
        running(lambda: serve_connections(listener, greet, limit=8)),
        await wires.connect_from_enclave(PORT) as stream,
    ):
        assert await received(stream) == b"hello"


async def test_a_listener_that_is_none_any_more_says_so(tmp_path: Path) -> None:
    listener = troubled(tmp_path, errno.EINVAL)
    with pytest.raises((OSError, ExceptionGroup)) as failure, anyio.fail_after(10):
        await serve_connections(listener, greet, limit=8)
    assert "EINVAL" in repr(failure.value)


async def test_trouble_of_the_machine_does_not_leave_the_enclave_without_its_parameters(
    tmp_path: Path, wires: UnixWires
) -> None:
    parameters = RuntimeParameters(egress="3:8001")
    async with anyio.create_task_group() as group:
        group.start_soon(answer_parameters, troubled(tmp_path, errno.EMFILE), parameters)
        async with await wires.connect_from_enclave(PORT) as stream:
            assert await received(stream) == encode_parameters(parameters)


async def test_an_enclave_that_resets_a_connection_at_once_is_a_broken_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[socket.socket] = []

    class Reset(socket.socket):
        """Connects, and is reset before anything is asked about it."""

        def __init__(self, *_: object) -> None:
            super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
            made.append(self)

        def connect(self, _address: object) -> None:
            """There was somebody, for a moment."""

    monkeypatch.setattr("appliance.host.streams.socket.socket", Reset)
    with pytest.raises(ConnectionResetError):
        await Vsock().connect(16, 8000)
    assert [connection.fileno() for connection in made] == [-1]
