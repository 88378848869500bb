"""The parent's forwarders and the enclave's ends of them together, over Unix sockets in the place of vsock."""

import asyncio
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import httpx
import pytest
import uvicorn
from anyio.abc import SocketStream
from web3.types import RPCEndpoint

from appliance.api.http_protocol import bounded_http_protocol
from appliance.chain import provider as chain_provider
from appliance.chain.provider import BoundedHttpProvider
from appliance.chain.types import ChainError
from appliance.egress import Tunnels, TunnelTransport, admits_origins, connect_to
from appliance.host.egress import Egress, parse_allowed
from appliance.host.ingress import Ingress
from appliance.host.streams import listen_tcp
from appliance.http import new_http_client
from appliance.variables import TcpAddress
from tests.support.cluster import Cluster
from tests.support.raw_client import request
from tests.support.tls_server import answering_https, write_certificate
from tests.support.unix_wires import UnixWires, running

pytestmark = pytest.mark.anyio

CID = 16
SERVICE_PORT = 8000
EGRESS_PORT = 8001
HOST = "peer.example"
BODY = b'{"jsonrpc":"2.0","id":0,"result":"0x1"}'


@pytest.fixture
def wires(tmp_path: Path) -> UnixWires:
    return UnixWires(tmp_path)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    return write_certificate(tmp_path, HOST)


@pytest.fixture
def authorities(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate[0]))


async def tell_client(scope: object, receive: object, send: Callable[..., object]) -> None:
    body = repr(scope["client"]).encode()  # type: ignore[index]
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]}
    await send(start)  # type: ignore[misc]
    await send({"type": "http.response.body", "body": body})  # type: ignore[misc]


async def test_a_request_through_the_ingress_comes_from_the_client(wires: UnixWires) -> None:
    server = uvicorn.Server(
        uvicorn.Config(
            tell_client,
            http=bounded_http_protocol(proxy_v2=True),
            ws="none",
            lifespan="off",
            log_config=None,
            proxy_headers=False,
        )
    )
    listener = listen_tcp("127.0.0.1", 0)
    with wires.listen_in_enclave(CID, SERVICE_PORT) as in_enclave:
        async with anyio.create_task_group() as group:
            group.start_soon(server.serve, [in_enclave])
            async with (
                running(lambda: Ingress(partial(wires.connect, CID, SERVICE_PORT)).serve(listener)),
                await anyio.connect_tcp(*listener.getsockname()) as client,
            ):
                await client.send(b"GET / HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
                answer = b""
                with anyio.fail_after(10):
                    async for piece in client:
                        answer += piece
                own = client.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610 - anyio's, no database's
                assert answer.endswith(repr(own.getsockname()).encode())
            server.should_exit = True


@asynccontextmanager
async def node_behind(directory: Path) -> AsyncIterator[Path]:
    """A node of its own process that listens on a Unix socket and demands PROXY headers; its chain does not answer."""
    path = directory / "node"
    environ = {
        "PATH": os.environ["PATH"],
        "IN_ENCLAVE": "false",
        "TEE_PROVIDER": "software",
        "BIND_ADDR": f"unix:{path}",
        "TRUSTED_INGRESS": "proxy-v2",
        "NONCE_RATE_LIMIT_PER_MINUTE": "2",
        "HELIOS_RPC_URL": "http://127.0.0.1:1",
    }
    command = [sys.executable, "-m", "appliance", "serve"]
    with (directory / "log").open("wb") as log:
        process = await anyio.open_process(command, env=environ, stdout=log, stderr=subprocess.STDOUT)
    try:
        with anyio.fail_after(30):
            while not path.exists():  # noqa: ASYNC110 - another process makes it
                await anyio.sleep(0.05)
        yield path
    finally:
        process.terminate()
        with anyio.move_on_after(20, shield=True):
            await process.aclose()


async def test_a_node_limits_each_client_of_the_ingress_by_its_own_address(tmp_path: Path) -> None:
    async def status_for(url: str, address: str) -> int:
        transport = httpx.AsyncHTTPTransport(local_address=address, retries=20)
        async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
            return (await client.get(url)).status_code

    listener = listen_tcp("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/nonce"
    async with node_behind(tmp_path) as path:

        async def connect() -> SocketStream:
            return await anyio.connect_unix(path)

        async with running(lambda: Ingress(connect).serve(listener)):
            assert [await status_for(url, "127.0.0.2") for _ in range(3)] == [200, 200, 429]
            assert await status_for(url, "127.0.0.3") == 200
        async with await connect() as stranger:
            await stranger.send(b"GET /health HTTP/1.1\r\nHost: node\r\n\r\n")
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await stranger.receive()


@asynccontextmanager
async def way_out(
    wires: UnixWires, directory: Path, port: int, *, inside: Sequence[str], outside: Sequence[str]
) -> AsyncIterator[Tunnels]:
    """Tunnels with one allow-list inside and one outside, where every name leads to a port of this machine."""

    async def dial(host: str, _: int) -> SocketStream:
        return await anyio.connect_tcp("127.0.0.1", port)

    async def connect() -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, str(directory / f"parent-{EGRESS_PORT}"))
        return connection

    proxy = Egress([parse_allowed(entry) for entry in outside], dial=dial, dial_pattern=dial)
    listener = wires.listen(EGRESS_PORT)
    async with running(lambda: proxy.serve(listener)):
        yield Tunnels(connect, admits_origins(lambda: inside))


def client_over(tunnels: Tunnels, authorities: ssl.SSLContext) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=TunnelTransport(tunnels, httpx.Limits(), authorities), trust_env=False)


async def test_a_peer_is_reached_with_tls_from_end_to_end(
    wires: UnixWires, tmp_path: Path, certificate: tuple[Path, Path], authorities: ssl.SSLContext
) -> None:
    async with (
        answering_https(*certificate, BODY) as port,
        way_out(wires, tmp_path, port, inside=[f"https://{HOST}"], outside=[f"{HOST}:443"]) as tunnels,
        client_over(tunnels, authorities) as client,
    ):
        for _ in range(2):
            assert (await client.get(f"https://{HOST}/status")).content == BODY


@pytest.mark.parametrize(
    ("inside", "outside"),
    [([], [f"{HOST}:443"]), ([f"https://{HOST}:444"], [f"{HOST}:443"]), ([f"https://{HOST}"], ["other.example:443"])],
    ids=["not inside", "another port inside", "not outside"],
)
async def test_both_lists_must_have_the_host(
    wires: UnixWires, tmp_path: Path, authorities: ssl.SSLContext, inside: list[str], outside: list[str]
) -> None:
    async with way_out(wires, tmp_path, 1, inside=inside, outside=outside) as tunnels:
        async with client_over(tunnels, authorities) as client:
            with pytest.raises(httpx.ConnectError):
                await client.get(f"https://{HOST}/status")
        provider = BoundedHttpProvider(f"https://{HOST}", timeout_s=5.0, tunnels=tunnels)
        try:
            with pytest.raises(ChainError, match="cannot be reached"):
                await provider.make_request(RPCEndpoint("eth_chainId"), [])
        finally:
            await provider.disconnect()


async def test_a_parent_that_answers_for_the_peer_fails_at_tls(
    wires: UnixWires, tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    async with (
        answering_https(*certificate, BODY) as port,
        way_out(wires, tmp_path, port, inside=[f"https://{HOST}"], outside=[f"{HOST}:443"]) as tunnels,
        new_http_client(tunnels) as client,
    ):
        with pytest.raises(httpx.ConnectError):
            await client.get(f"https://{HOST}/status")  # the certificate is none of a known authority


async def test_the_chain_is_read_through_the_way_out(
    wires: UnixWires,
    tmp_path: Path,
    certificate: tuple[Path, Path],
    authorities: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def ask(tunnels: Tunnels) -> object:
        provider = BoundedHttpProvider(f"https://{HOST}/key", timeout_s=5.0, tunnels=tunnels)
        try:
            return (await provider.make_request(RPCEndpoint("eth_chainId"), []))["result"]
        finally:
            await provider.disconnect()

    async with (
        answering_https(*certificate, BODY) as port,
        way_out(wires, tmp_path, port, inside=[f"https://{HOST}/key"], outside=[f"{HOST}:443"]) as tunnels,
    ):
        with pytest.raises(ChainError, match="cannot be reached"):
            await ask(tunnels)  # the certificate is none of a known authority
        monkeypatch.setattr(chain_provider.ssl, "create_default_context", lambda: authorities)
        assert await ask(tunnels) == "0x1"


async def test_a_proxy_of_the_platform_is_spoken_to_on_loopback(
    tmp_path: Path, certificate: tuple[Path, Path], authorities: ssl.SSLContext
) -> None:
    listener = listen_tcp("127.0.0.1", 0)
    async with answering_https(*certificate, BODY) as port:

        async def dial(host: str, _: int) -> SocketStream:
            return await anyio.connect_tcp("127.0.0.1", port)

        proxy = Egress([parse_allowed(f"{HOST}:443")], dial=dial)
        tunnels = Tunnels(connect_to(TcpAddress(*listener.getsockname())), admits_origins(lambda: [f"https://{HOST}"]))
        async with running(lambda: proxy.serve(listener)), client_over(tunnels, authorities) as client:
            assert (await client.get(f"https://{HOST}/status")).content == BODY


async def test_loopback_is_not_outside(wires: UnixWires, tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, way_out(wires, tmp_path, 1, inside=[], outside=[]) as tunnels:
        async with new_http_client(tunnels) as client:
            assert (await client.get(url)).content == BODY
        provider = BoundedHttpProvider(url, timeout_s=5.0, tunnels=tunnels)
        assert (await provider.make_request(RPCEndpoint("eth_chainId"), []))["result"] == "0x1"
        await provider.disconnect()


@pytest.mark.chain
@pytest.mark.cluster
def test_a_node_with_a_way_out_serves_what_it_finds_on_loopback(cluster: Cluster) -> None:
    cluster.add_nova("first", env={"EGRESS_PROXY": "127.0.0.1:1"})
    second = cluster.add_nova("second", env={"EGRESS_PROXY": "3:8001"})  # it has the master secret from the first
    assert request("GET", second.url + "/status").json()["node"]["service_available"]
