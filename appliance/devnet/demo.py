"""The demonstration: one app derives, stores, reads and deletes through every node of a devnet, over the protocol."""

import time
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar

import anyio
import httpx

from appliance.client.client import KmsClient
from appliance.client.discovery import NodeFacts, StaticDirectory
from appliance.client.errors import KmsClientError, NotFound
from appliance.devnet.cluster import Devnet
from appliance.devnet.nodes import DevnetError
from appliance.tee.port import TeeProvider
from kmscore.envelope import parse_tee_pubkey

ResultT = TypeVar("ResultT")

REPLICATION_TIMEOUT_S = 30.0
POLL_S = 0.2
DEMO_KEY = "greeting"
DEMO_VALUE = b"hello from the devnet"


@dataclass(frozen=True, slots=True)
class DemoRow:
    """One thing that was tried: what, through which node, what came of it, and how long it took."""

    action: str
    node: str
    result: str
    duration_ms: float


class Demonstration:
    """Runs the steps in order and keeps a row for each; a step that fails raises `DevnetError`."""

    def __init__(self, devnet: Devnet, identity: TeeProvider, http: httpx.AsyncClient) -> None:
        self._devnet = devnet
        self._identity = identity
        self._http = http
        self.rows: list[DemoRow] = []

    async def run(self) -> None:
        """Same key everywhere, a value from one node to all others, a deletion likewise. Raises `DevnetError`."""
        async with AsyncExitStack() as stack:
            clients = [
                (
                    node.process.name,
                    await stack.enter_async_context(
                        # One client a node, so that it is this node that answers and no other stands in for it.
                        KmsClient(
                            self._identity,
                            StaticDirectory(
                                [
                                    NodeFacts(
                                        node.process.url, node.status.wallet, parse_tee_pubkey(node.status.tee_pubkey)
                                    )
                                ]
                            ),
                            http=self._http,
                        )
                    ),
                )
                for node in self._devnet.nodes
            ]
            try:
                await self._derive_everywhere(clients)
                await self._write_and_read(clients)
                await self._delete(clients)
            except KmsClientError as error:
                raise DevnetError(f"the demonstration failed: {error}") from error

    async def _derive_everywhere(self, clients: list[tuple[str, KmsClient]]) -> None:
        keys = set()
        for name, client in clients:
            key, duration_ms = await timed(client.derive("disk", "demo"))
            keys.add(key)
            self._row("derive a key", name, f"{len(key)} bytes", duration_ms)
        if len(keys) != 1:
            raise DevnetError("the nodes derived different keys")
        self._row("compare the keys", "all", "equal", 0)

    async def _write_and_read(self, clients: list[tuple[str, KmsClient]]) -> None:
        (writer, client), *readers = clients
        _, duration_ms = await timed(client.put(DEMO_KEY, DEMO_VALUE))
        self._row("put a value", writer, f"{len(DEMO_VALUE)} bytes", duration_ms)
        for name, reader in readers or clients:
            value, duration_ms = await timed(until_found(reader))
            if value != DEMO_VALUE:
                raise DevnetError(f"{name} returned another value than was put")
            self._row("read it after replication", name, "same value", duration_ms)

    async def _delete(self, clients: list[tuple[str, KmsClient]]) -> None:
        name, client = clients[-1]
        _, duration_ms = await timed(client.delete(DEMO_KEY))
        self._row("delete it", name, "deleted", duration_ms)
        for name, reader in clients:
            _, duration_ms = await timed(until_gone(reader))
            self._row("look for it after replication", name, "not found", duration_ms)

    def _row(self, action: str, node: str, result: str, duration_ms: float) -> None:
        self.rows.append(DemoRow(action, node, result, duration_ms))


async def timed(call: Awaitable[ResultT]) -> tuple[ResultT, float]:
    """The result of a call and its duration in milliseconds."""
    started = time.perf_counter()
    result = await call
    return result, (time.perf_counter() - started) * 1000


async def until_found(client: KmsClient) -> bytes:
    """The demonstration's value once this node has it. Raises `DevnetError` when it does not come."""
    with anyio.move_on_after(REPLICATION_TIMEOUT_S):
        while True:
            try:
                return (await client.get(DEMO_KEY)).value
            except NotFound:
                await anyio.sleep(POLL_S)
    raise DevnetError("a value was not replicated in time")


async def until_gone(client: KmsClient) -> None:
    """Return once this node does not have the value any more. Raises `DevnetError` when it keeps it."""
    with anyio.move_on_after(REPLICATION_TIMEOUT_S):
        while True:
            try:
                await client.get(DEMO_KEY)
            except NotFound:
                return
            await anyio.sleep(POLL_S)
    raise DevnetError("a deletion was not replicated in time")
