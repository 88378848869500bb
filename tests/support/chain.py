"""Development chains for tests: one with both registries deployed, and a proxy before it that counts and lies."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import ClientSession, web

from appliance.chain.kms_registry import KmsRegistry
from appliance.chain.provider import connect
from appliance.chain.registry import NovaRegistry
from appliance.chain.rpc import ChainReader
from appliance.devnet.anvil import DEVNET_CHAIN_ID, HOST, Anvil, free_port
from appliance.devnet.contracts import DevRegistry, deploy_contracts

KMS_APP_ID = 49

Tamper = Callable[[str, list[Any], dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Chain:
    """A running chain and its registries' owner."""

    anvil: Anvil
    owner: DevRegistry

    @property
    def w3(self) -> Any:
        return self.owner.w3

    async def rpc(self, method: str, *params: object) -> Any:
        """The result of any method, anvil's own included."""
        response = await self.w3.provider.make_request(method, list(params))
        assert "error" not in response, response
        return response["result"]

    @asynccontextmanager
    async def reader(
        self, *urls: str, quorum: int = 1, confirmations: int = 0, **options: Any
    ) -> AsyncIterator[ChainReader]:
        """A reader of these URLs, or of this chain's own."""
        reader = ChainReader(urls or [self.anvil.url], quorum, DEVNET_CHAIN_ID, confirmations, **options)
        try:
            yield reader
        finally:
            await reader.aclose()

    def registry(self, reader: ChainReader) -> NovaRegistry:
        return NovaRegistry(reader, self.owner.deployment.nova_app_registry)

    def kms_registry(self, reader: ChainReader, **options: Any) -> KmsRegistry:
        return KmsRegistry(reader, self.owner.deployment.kms_registry, DEVNET_CHAIN_ID, **options)


@asynccontextmanager
async def running_chain(*, revert_unknown: bool = False, block_time_s: float | None = None) -> AsyncIterator[Chain]:
    """A fresh chain on which both registries are deployed and the KMS app has no version yet."""
    with Anvil(free_port(), block_time_s=block_time_s) as anvil:
        await anvil.wait_ready()
        w3 = connect(anvil.url)
        try:
            yield Chain(anvil, await deploy_contracts(w3, kms_app_id=KMS_APP_ID, revert_unknown=revert_unknown))
        finally:
            await w3.provider.disconnect()


class RpcProxy:
    """A provider between a reader and a chain. Use `running_proxy`.

    `tamper` sees method, parameters and response of every call and returns what to answer instead. `requests` counts
    HTTP requests and `methods` lists the calls of each.
    """

    def __init__(self, target: str, tamper: Tamper | None) -> None:
        self.url = ""
        self.tamper = tamper
        self.methods: list[list[str]] = []
        self._target = target

    @property
    def requests(self) -> int:
        return len(self.methods)

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        calls = json.loads(body)
        self.methods.append([call["method"] for call in calls])
        async with ClientSession() as session, session.post(self._target, data=body, headers=_JSON) as response:
            answers = {answer["id"]: answer for answer in await response.json()}
        if self.tamper is not None:
            for call in calls:
                answers[call["id"]] = self.tamper(call["method"], call["params"], answers[call["id"]])
        return web.json_response([answers[call["id"]] for call in calls])


_JSON = {"Content-Type": "application/json"}


@asynccontextmanager
async def running_proxy(target: str, tamper: Tamper | None = None) -> AsyncIterator[RpcProxy]:
    """A proxy before `target` on a free port of the loopback address."""
    proxy = RpcProxy(target, tamper)
    application = web.Application()
    application.router.add_post("/", proxy.handle)
    async with _served(application) as url:
        proxy.url = url
        yield proxy


@asynccontextmanager
async def running_handler(handler: Callable[[web.Request], Any]) -> AsyncIterator[str]:
    """The URL of a server that answers every POST with `handler`."""
    application = web.Application()
    application.router.add_post("/", handler)
    async with _served(application) as url:
        yield url


@asynccontextmanager
async def _served(application: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, HOST, 0)
        await site.start()
        yield f"http://{HOST}:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()
