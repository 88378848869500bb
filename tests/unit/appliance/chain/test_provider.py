"""The limits of the HTTP provider, against servers that break them."""

import gzip
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from aiohttp import web

from appliance.chain.provider import PARSE_INLINE_BYTES, BoundedHttpProvider
from appliance.chain.types import ChainError
from tests.support.chain import running_handler

pytestmark = pytest.mark.anyio

TWO_CALLS: list[tuple[Any, Any]] = [("eth_blockNumber", []), ("eth_chainId", [])]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def batch_from(handler: Handler, **options: Any) -> list[Any]:
    """What a batch of two calls gives, asked of a server with this handler."""
    async with running_handler(handler) as url:
        provider = BoundedHttpProvider(url, **{"timeout_s": 5.0, **options})
        try:
            return await provider.make_batch_request(TWO_CALLS)
        finally:
            await provider.disconnect()


def answering(change: Callable[[list[dict[str, Any]]], Any]) -> Handler:
    """A server whose answer to a batch is a change of the right one, in which each result is the method's name."""

    async def handle(request: web.Request) -> web.Response:
        calls = await request.json()
        answers = [{"jsonrpc": "2.0", "id": call["id"], "result": call["method"]} for call in calls]
        return web.json_response(change(answers))

    return handle


def replying(**response: Any) -> Handler:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(**response)

    return handle


async def test_a_batch_is_one_request_and_its_answers_come_in_order() -> None:
    answers = await batch_from(answering(lambda answers: answers[::-1]))
    assert [answer["result"] for answer in answers] == ["eth_blockNumber", "eth_chainId"]


async def test_a_long_answer_is_parsed_too() -> None:
    text = "x" * PARSE_INLINE_BYTES
    answers = await batch_from(answering(lambda answers: [{**answer, "result": text} for answer in answers]))
    assert [answer["result"] for answer in answers] == [text, text]


async def test_connections_are_kept_and_closed_with_the_provider() -> None:
    peers = set()

    async def handle(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        return await answering(lambda answers: answers)(request)

    async with running_handler(handle) as url:
        provider = BoundedHttpProvider(url, timeout_s=5.0)
        for _ in range(3):
            await provider.make_batch_request(TWO_CALLS)
        await provider.disconnect()
        await provider.disconnect()
    assert len(peers) == 1


ODD_BATCHES = {
    "one error object": lambda _: {"id": None, "error": {"code": -32600, "message": "no"}},
    "an answer missing": lambda answers: answers[:1],
    "an answer twice": lambda answers: [answers[0], answers[0]],
    "an answer too many": lambda answers: [*answers, {"id": 99, "result": "0x"}],
    "the ids of others": lambda answers: [{**answer, "id": answer["id"] + 100} for answer in answers],
    "ids that are no numbers": lambda answers: [{**answer, "id": str(answer["id"])} for answer in answers],
    "true for one": lambda answers: [{**answers[0], "id": False}, {**answers[1], "id": True}],
    "no ids": lambda _: [{"result": "0x"}, {"result": "0x"}],
    "no objects": lambda _: [1, 2],
    "null": lambda _: None,
}


@pytest.mark.parametrize("change", ODD_BATCHES.values(), ids=ODD_BATCHES)
async def test_a_batch_answered_in_another_shape_is_a_chain_error(change: Any) -> None:
    with pytest.raises(ChainError):
        await batch_from(answering(change))


BAD_RESPONSES: dict[str, dict[str, Any]] = {
    "an empty body": {"body": b""},
    "no JSON": {"body": b"<html>"},
    "no UTF-8": {"body": b'"\xff"'},
    "nested without end": {"body": b"[" * 100_000},
    "a number of a million digits": {"body": b"1" * 1_000_000},
    "too many requests": {"status": 429, "body": b"[]"},
    "a server error": {"status": 500},
    "compressed, though not asked for": {
        "body": gzip.compress(b"[]" + b" " * 10**6),
        "headers": {"Content-Encoding": "gzip"},
    },
}


@pytest.mark.parametrize("response", BAD_RESPONSES.values(), ids=BAD_RESPONSES)
async def test_a_response_that_is_no_json_rpc_is_a_chain_error(response: dict[str, Any]) -> None:
    with pytest.raises(ChainError):
        await batch_from(replying(**response))


def test_web3_leaves_the_recursion_limit_as_it_was() -> None:
    # In a process of its own: this one has imported more than the appliance does.
    code = "import sys, appliance.chain.provider; print(sys.getrecursionlimit())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (run.stdout.strip(), run.stderr) == ("1000", "")


def test_the_recursion_limit_is_back_before_web3_is_imported() -> None:
    # A node answers strangers meanwhile, for seconds where processors are emulated.
    code = """
import sys
set_limit, seen = sys.setrecursionlimit, []
sys.setrecursionlimit = lambda limit: (seen.append((limit, "web3" in sys.modules)), set_limit(limit))
from appliance.chain.rpc import connect_http
connect_http("http://127.0.0.1:1", 1.0)
print(seen[:2], all(limit == 1000 for limit, _ in seen[1:]), sys.getrecursionlimit())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[(100000, False), (1000, False)] True 1000"


async def test_a_redirect_is_not_followed() -> None:
    followed = False

    async def other(_: web.Request) -> web.Response:
        nonlocal followed
        followed = True
        return web.Response()

    async with running_handler(other) as url:
        with pytest.raises(ChainError, match="HTTP 307"):
            await batch_from(replying(status=307, headers={"Location": url}))
    assert not followed


async def test_no_more_is_read_than_the_limit() -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * 65536)
            sent += 65536

    with pytest.raises(ChainError, match="more than 300000 bytes"):
        await batch_from(endless, max_response_bytes=300_000)
    assert sent < 20_000_000  # what the kernel's buffers took, and not an endless stream


async def test_a_server_that_trickles_is_left_at_the_deadline() -> None:
    async def trickle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await anyio.sleep(0.01)

    with pytest.raises(ChainError, match="did not answer within"):
        await batch_from(trickle, timeout_s=0.1)


async def test_a_server_that_closes_in_the_middle_is_a_chain_error() -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"[")
        assert request.transport is not None
        request.transport.close()
        return response

    with pytest.raises(ChainError, match="cannot be reached"):
        await batch_from(cut)


async def test_nobody_listening_is_a_chain_error() -> None:
    provider = BoundedHttpProvider("http://127.0.0.1:9/", timeout_s=5.0)
    with pytest.raises(ChainError, match="cannot be reached"):
        await provider.make_batch_request(TWO_CALLS)
    await provider.disconnect()


async def test_a_single_request_is_answered_with_its_object_or_a_chain_error() -> None:
    async def one(request: web.Request) -> web.Response:
        call = json.loads(await request.read())
        return web.json_response({"id": call["id"], "result": "0x1"} if call["method"] == "eth_chainId" else [])

    async with running_handler(one) as url:
        provider = BoundedHttpProvider(url, timeout_s=5.0)
        assert (await provider.make_request("eth_chainId", []))["result"] == "0x1"  # type: ignore[arg-type]
        with pytest.raises(ChainError):
            await provider.make_request("eth_other", [])  # type: ignore[arg-type]
        await provider.disconnect()
