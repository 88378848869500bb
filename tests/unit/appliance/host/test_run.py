"""An enclave and all that the parent does for it: together up, together down."""

import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketStream

from appliance.devnet.anvil import free_port
from appliance.host.egress import ESTABLISHED, parse_allowed
from appliance.host.nitro_cli import EnclaveStart, NitroCli
from appliance.host.run import EGRESS_PORT, SERVICE_PORT, HostPlan, default_memory_mib, run_host
from appliance.host.streams import listen_tcp, serve_connections
from appliance.variables import TcpAddress
from enclave_image.init.config import parse_parameters
from kmscore.errors import ConfigError, Unavailable
from tests.support import fake_nitro_cli
from tests.support.unix_wires import UnixWires, received, running

pytestmark = pytest.mark.anyio

CID = 16


def cli_of(state: Path) -> NitroCli:
    return NitroCli([sys.executable, fake_nitro_cli.__file__, str(state)])


def plan_for(tmp_path: Path, **changes: object) -> HostPlan:
    plan = HostPlan(
        EnclaveStart(tmp_path / "nova-kms.eif", 1024, 2), TcpAddress("127.0.0.1", free_port()), look_every_s=0.02
    )
    return replace(plan, **changes)  # type: ignore[arg-type]


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - files of another process have no events
            await anyio.sleep(0.01)


async def connected(plan: HostPlan) -> SocketStream:
    """A client's connection, waited for: clients are served once the enclave runs."""
    with anyio.fail_after(20):
        return await anyio.connect_tcp(plan.listen.host, plan.listen.port)


@asynccontextmanager
async def echoing_enclave(wires: UnixWires) -> AsyncIterator[None]:
    async def echo(stream: SocketStream) -> None:
        await stream.send(await received(stream))

    async with running(lambda: serve_connections(wires.listen_in_enclave(CID, SERVICE_PORT), echo, limit=8)):
        yield


async def test_clients_reach_the_enclave_it_reaches_out_and_stopping_ends_everything(
    tmp_path: Path, wires: UnixWires
) -> None:
    outside = listen_tcp("127.0.0.1", 0)
    port = outside.getsockname()[1]
    plan = plan_for(tmp_path, allowed=[parse_allowed(f"127.0.0.1:{port}")], instance_url="https://kms.example")

    async def greet(stream: SocketStream) -> None:
        await stream.send(b"hello from outside")

    async with (
        echoing_enclave(wires),
        running(lambda: serve_connections(outside, greet, limit=8)),
        running(lambda: run_host(plan, cli_of(tmp_path), wires, lambda _: None)),
    ):
        async with await connected(plan) as client:
            await client.send(b"request")
            await client.send_eof()
            assert (await received(client)).endswith(b"request")
        async with await wires.connect_from_enclave(plan.parameters_port) as stream:
            told = parse_parameters(await received(stream))
        assert told == {"instance_url": "https://kms.example", "egress": f"3:{EGRESS_PORT}"}
        async with await wires.connect_from_enclave(EGRESS_PORT) as stream:
            await stream.send(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n".encode())
            assert await received(stream) == ESTABLISHED + b"hello from outside"
        assert (tmp_path / "enclave").exists()
    assert not (tmp_path / "enclave").exists()
    with pytest.raises(OSError, match=r"[Aa]ll connection attempts failed"):
        await anyio.connect_tcp(plan.listen.host, plan.listen.port)


async def test_without_an_allow_list_there_is_no_way_out(tmp_path: Path, wires: UnixWires) -> None:
    plan = plan_for(tmp_path)
    async with running(lambda: run_host(plan, cli_of(tmp_path), wires, lambda _: None)):
        await until((tmp_path / "enclave").exists)
        async with await wires.connect_from_enclave(plan.parameters_port) as stream:
            assert parse_parameters(await received(stream)) == {}
        with pytest.raises(OSError, match="No such file"):
            await wires.connect_from_enclave(EGRESS_PORT)


async def test_debug_mode_shows_the_console(tmp_path: Path, wires: UnixWires) -> None:
    plan = plan_for(tmp_path, start=EnclaveStart(tmp_path / "x.eif", 1024, 2, debug=True))
    shown: list[bytes] = []
    async with running(lambda: run_host(plan, cli_of(tmp_path), wires, shown.append)):
        await until(lambda: b"".join(shown).endswith(b"\n"))  # a line may come in pieces
    assert b"".join(shown) == b"init: mounts\n"


async def failure_of(plan: HostPlan, cli: NitroCli, wires: UnixWires) -> BaseException:
    with pytest.raises((ExceptionGroup, ConfigError)) as failure, anyio.fail_after(20):
        await run_host(plan, cli, wires, lambda _: None)
    error: BaseException = failure.value
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


async def test_an_enclave_that_ends_by_itself_stops_everything(tmp_path: Path, wires: UnixWires) -> None:
    async def end_it() -> None:
        await until((tmp_path / "enclave").exists)
        await anyio.sleep(0.1)
        (tmp_path / "enclave").unlink()

    plan = plan_for(tmp_path)
    async with anyio.create_task_group() as group:
        group.start_soon(end_it)
        error = await failure_of(plan, cli_of(tmp_path), wires)
    assert isinstance(error, Unavailable)
    assert "has ended" in str(error)


async def test_an_enclave_that_ended_is_not_ended_again(tmp_path: Path, wires: UnixWires) -> None:
    async with anyio.create_task_group() as group:

        async def end_it() -> None:
            await until((tmp_path / "enclave").exists)
            await anyio.sleep(0.1)
            (tmp_path / "enclave").unlink()

        group.start_soon(end_it)
        await failure_of(plan_for(tmp_path), cli_of(tmp_path), wires)
    assert "terminate-enclave" not in (tmp_path / "calls").read_text()


@pytest.mark.parametrize("trouble", ["it fails", "it is being upgraded"])
async def test_a_tool_that_cannot_say_how_the_enclave_is_does_not_cost_the_enclave(
    tmp_path: Path, wires: UnixWires, trouble: str
) -> None:
    tool = tmp_path / "nitro-cli"
    real = f'#!/bin/sh\nexec {sys.executable} {fake_nitro_cli.__file__} {tmp_path} "$@"\n'
    tool.write_text(real)
    tool.chmod(0o755)

    def looks() -> int:
        return (tmp_path / "calls").read_text().count("describe-enclaves")

    async with running(lambda: run_host(plan_for(tmp_path), NitroCli([str(tool)]), wires, lambda _: None)):
        await until(lambda: (tmp_path / "enclave").exists() and looks() > 0)
        if trouble == "it fails":
            (tmp_path / "fail").write_text("[ E51 ] Log file cannot be written.")
            seen = looks()
            await until(lambda: looks() > seen + 8)
            (tmp_path / "fail").unlink()
        else:
            tool.unlink()
            await anyio.sleep(0.3)
            tool.write_text(real)
            tool.chmod(0o755)
        seen = looks()
        await until(lambda: looks() > seen + 1)
        assert (tmp_path / "enclave").exists()
    assert not (tmp_path / "enclave").exists()


async def test_an_enclave_that_does_not_start_leaves_nothing_behind(tmp_path: Path, wires: UnixWires) -> None:
    (tmp_path / "fail").write_text("E26")
    plan = plan_for(tmp_path)
    assert isinstance(await failure_of(plan, cli_of(tmp_path), wires), Unavailable)
    with contextlib.closing(listen_tcp(plan.listen.host, plan.listen.port)):
        pass


async def test_a_port_that_is_taken_costs_no_enclave(tmp_path: Path, wires: UnixWires) -> None:
    plan = plan_for(tmp_path)
    with socket.create_server((plan.listen.host, plan.listen.port)):
        error = await failure_of(plan, cli_of(tmp_path), wires)
    assert isinstance(error, ConfigError)
    assert not (tmp_path / "calls").exists()


async def test_stopping_while_the_enclave_starts_ends_it_too(tmp_path: Path, wires: UnixWires) -> None:
    plan = plan_for(tmp_path)
    async with running(lambda: run_host(plan, cli_of(tmp_path), wires, lambda _: None)):
        await anyio.sleep(0.01)
    assert (tmp_path / "calls").read_text().startswith('["run-enclave"')
    assert not (tmp_path / "enclave").exists()


@pytest.mark.parametrize(
    ("eif_bytes", "memory_mib"),
    [(1, 1024), (256 << 20, 1024), ((256 << 20) + 1, 1026), (300 << 20, 1200), ((300 << 20) + (1 << 18), 1202)],
)
def test_memory_is_four_times_the_image_in_whole_huge_pages(eif_bytes: int, memory_mib: int) -> None:
    assert default_memory_mib(eif_bytes) == memory_mib
