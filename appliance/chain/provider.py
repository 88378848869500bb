"""web3's HTTP provider, bounded: how many bytes it reads, how long it waits, where it connects.

`AsyncHTTPProvider` reads an answer of any size into memory, follows redirects, opens a connection for every request and
guesses the order of a batch whose ids are missing. A provider of chain data is not trusted, so this one does none of
that. Importing web3 costs about 0.7 s and 55 MB; `appliance.chain.rpc` imports this module when it first connects.
"""

import ssl
import sys
from typing import Any, cast

import anyio.to_thread
from aiohttp import BaseConnector, ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from web3 import AsyncHTTPProvider, AsyncWeb3
from web3.types import RPCEndpoint, RPCRequest, RPCResponse

from appliance.chain.tunnel import TunnelConnector
from appliance.chain.types import ChainError
from appliance.egress import Tunnels
from appliance.urls import is_loopback_url
from kmscore.errors import Rejected
from kmscore.json import parse_json

# Importing web3 imports py_ecc, which raises the recursion limit of the whole process to 100,000. With that, nested
# input to any recursive parser is a segmentation fault and not a RecursionError. This is the interpreter's own limit.
RECURSION_LIMIT = 1000
sys.setrecursionlimit(RECURSION_LIMIT)

# A full batch of instances with the longest text that fits into a transaction is about 12 MiB of hex.
MAX_RESPONSE_BYTES = 16 * 1024 * 1024
MAX_CONNECTIONS = 8
READ_CHUNK_BYTES = 64 * 1024
# Parsing this much JSON takes about half a millisecond; what is longer is parsed in a worker thread.
PARSE_INLINE_BYTES = 64 * 1024

_HEADERS = {
    "Content-Type": "application/json",
    # Compressed answers are not asked for and not accepted: a small one may unpack to gigabytes.
    "Accept-Encoding": "identity",
    "User-Agent": "nova-kms",
}


class BoundedHttpProvider(AsyncHTTPProvider):
    """JSON-RPC over HTTP with a limit on everything; every failure of it is a `ChainError`.

    `timeout_s` bounds one request from connecting to the last byte. Connections are kept for the next request, so an
    instance belongs to one event loop and must be closed with `disconnect`. With `tunnels` everything but loopback is
    reached through them.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        tunnels: Tunnels | None = None,
    ) -> None:
        # Retrying is the caller's: it knows the deadline.
        super().__init__(url, exception_retry_configuration=None)
        self._url = url
        self._timeout_s = timeout_s
        self._max_response_bytes = max_response_bytes
        self._tunnels = None if is_loopback_url(url) else tunnels
        self._session: ClientSession | None = None

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """One request and its answer, which may be an error object. Raises ChainError."""
        answer = await _parse(await self._post(self.encode_rpc_request(method, params)))
        if not isinstance(answer, dict):
            raise ChainError("a chain provider answered something that is not JSON-RPC")
        return cast(RPCResponse, answer)

    async def make_batch_request(self, batch_requests: list[tuple[RPCEndpoint, Any]]) -> list[RPCResponse]:
        """Several requests in one round trip, answered in their order; each answer may be an error object.

        Raises ChainError, also if the answers' ids are not exactly those of the requests.
        """
        requests = [self.form_request(method, params) for method, params in batch_requests]
        answer = await _parse(await self._post(self.encode_batch_request_dicts(requests)))
        if not isinstance(answer, list):
            raise ChainError("a chain provider refused a batch of requests")
        return _in_order(requests, answer)

    async def disconnect(self) -> None:
        """Closes the connections; the next request would open new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _connector(self) -> BaseConnector:
        if self._tunnels is None:
            return TCPConnector(limit=MAX_CONNECTIONS)
        return TunnelConnector(self._tunnels, ssl.create_default_context(), limit=MAX_CONNECTIONS)

    async def _post(self, payload: bytes) -> bytes:
        if self._session is None:
            self._session = ClientSession(
                connector=self._connector(),
                timeout=ClientTimeout(total=self._timeout_s),
                cookie_jar=DummyCookieJar(),
                headers=_HEADERS,
                auto_decompress=False,
            )
        body = bytearray()
        try:
            # A redirect would lead out of what the image's measured configuration names.
            async with self._session.post(self._url, data=payload, allow_redirects=False) as response:
                if response.status != 200:
                    raise ChainError(f"a chain provider answered HTTP {response.status}")
                async for chunk in response.content.iter_chunked(READ_CHUNK_BYTES):
                    body += chunk
                    if len(body) > self._max_response_bytes:
                        raise ChainError(f"a chain provider answered more than {self._max_response_bytes} bytes")
        except TimeoutError as error:
            raise ChainError(f"a chain provider did not answer within {self._timeout_s} s") from error
        except (ClientError, OSError) as error:
            raise ChainError("a chain provider cannot be reached") from error
        return bytes(body)


async def _parse(body: bytes) -> object:
    try:
        if len(body) > PARSE_INLINE_BYTES:
            return await anyio.to_thread.run_sync(parse_json, body)
        return parse_json(body)
    except Rejected as error:
        raise ChainError("a chain provider answered something that is not JSON") from error


def _in_order(requests: list[RPCRequest], answers: list[object]) -> list[RPCResponse]:
    by_id: dict[object, RPCResponse] = {}
    for answer in answers:
        if not isinstance(answer, dict) or type(answer.get("id")) is not int:
            raise ChainError("a chain provider answered a batch with something that is not JSON-RPC")
        by_id[answer["id"]] = cast(RPCResponse, answer)
    if len(answers) != len(requests) or by_id.keys() != {request["id"] for request in requests}:
        raise ChainError("a chain provider did not answer the requests it was asked")
    return [by_id[request["id"]] for request in requests]


def connect(url: str, *, timeout_s: float = 10.0, tunnels: Tunnels | None = None) -> AsyncWeb3[BoundedHttpProvider]:
    """A web3 client of one URL. Close it with `await client.provider.disconnect()`."""
    return AsyncWeb3(BoundedHttpProvider(url, timeout_s=timeout_s, tunnels=tunnels))
