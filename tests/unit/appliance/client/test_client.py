"""The SDK over whole calls that succeed, at newer and older nodes, and calls that are never sent."""

import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.from_thread
import httpx
import pytest

from appliance.client.answers import PutResult
from appliance.client.client import KmsClient
from appliance.client.discovery import StaticDirectory
from appliance.client.errors import (
    BadRequest,
    NotFound,
)
from kmscore.errors import ConfigError
from tests.support import fake_node, wire
from tests.support.client_bench import APP_ID, Bench
from tests.support.fake_node import (
    MASTER_SECRET,
    OLD_NODE,
    VALUE_TIME_MS,
    FakeNode,
    Traits,
)

pytestmark = pytest.mark.anyio

# --- calls that succeed ---


async def test_derive_returns_what_the_cluster_derives_for_this_app(bench: Bench) -> None:
    bench.add_node()
    async with bench.client() as kms:
        assert await kms.derive("disk", "v2", 48) == wire.derive_key(MASTER_SECRET, APP_ID, "disk", "v2", 48)


async def test_a_value_can_be_put_read_listed_and_deleted(bench: Bench) -> None:
    bench.add_node()
    async with bench.client() as kms:
        assert await kms.put("config", b"\x00value\xff") == PutResult(VALUE_TIME_MS)
        found = await kms.get("config")
        assert (found.value, found.updated_at_ms) == (b"\x00value\xff", VALUE_TIME_MS)
        assert await kms.keys() == ["config"]
        await kms.delete("config")
        with pytest.raises(NotFound):
            await kms.get("config")


@pytest.mark.parametrize("key", ["a/b", "a b", "a+b", "a%2Bb", "..", "ключ", "a?b#c&d=e"])
@pytest.mark.parametrize("knows_key_query", [True, False])
async def test_any_text_is_a_key_with_either_form_of_request(bench: Bench, key: str, knows_key_query: bool) -> None:
    bench.add_node(Traits(knows_key_query=knows_key_query))
    async with bench.client() as kms:
        await kms.put(key, b"value")
        assert (await kms.get(key)).value == b"value"


async def test_the_key_goes_into_the_path_after_one_listing_from_a_node_that_takes_no_query(bench: Bench) -> None:
    node = bench.add_node(Traits(knows_key_query=False))
    bench.store["k"] = b"v"
    async with bench.client() as kms:
        await kms.get("k")
        await kms.get("k")
    assert node.ran == ["list", "get k", "get k"]


async def test_concurrent_reads_find_out_together_that_a_node_takes_no_query(bench: Bench) -> None:
    node = bench.add_node(Traits(knows_key_query=False))
    bench.store |= {f"k{number}": b"v" for number in range(5)}
    all_asked = anyio.Event()

    async def answers_when_all_have_asked(node: FakeNode, request: httpx.Request) -> httpx.Response:
        if node.asked.count("GET /kms/data") == len(bench.store):
            all_asked.set()
        await all_asked.wait()
        return node.answer(request)

    node.always = answers_when_all_have_asked
    async with bench.client() as kms, anyio.create_task_group() as group:
        for key in bench.store:
            group.start_soon(kms.get, key)


async def test_the_next_nonce_saves_the_request_for_one(bench: Bench) -> None:
    node = bench.add_node()
    async with bench.client() as kms:
        for _ in range(3):
            await kms.keys()
    assert node.asked == ["GET /nonce", *["GET /kms/data"] * 3]


async def test_a_next_nonce_that_has_become_old_is_not_used(bench: Bench) -> None:
    node = bench.add_node()
    async with bench.client() as kms:
        await kms.keys()
        bench.clock.elapsed_ms += 21_000
        await kms.keys()
    assert node.asked.count("GET /nonce") == 2


async def test_a_put_with_a_next_nonce_that_the_node_forgot_is_sent_again_with_a_fetched_one(bench: Bench) -> None:
    node = bench.add_node()
    async with bench.client() as kms:
        await kms.keys()
        node.forget_nonces()
        await kms.put("k", b"v")
    assert node.ran == ["list", "put k"]
    assert node.asked[-3:] == ["PUT /kms/data", "GET /nonce", "PUT /kms/data"]


async def test_concurrent_calls_share_a_client(bench: Bench) -> None:
    node = bench.add_node()
    async with bench.client() as kms, anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(kms.put, f"k{number}", b"v")
    assert sorted(bench.store) == sorted(f"k{number}" for number in range(20))
    assert len(node.ran) == 20


# --- older nodes ---

OLDER_NODES = {
    "no extension": OLD_NODE,
    "v 27 or 28 without 0x": Traits(signs=False, form=wire.SignatureForm(27, "")),
    "upper-case hex with 0x": Traits(signs=False, upper_case_hex=True),
    "only the oldest label": Traits(signs=False, labels=(wire.ENCLAVER_LABEL,)),
    "only the middle label": Traits(signs=False, labels=(wire.CAPSULE_API_LABEL,)),
    "no query for keys": Traits(signs=False, knows_key_query=False),
}


@pytest.mark.parametrize("traits", OLDER_NODES.values(), ids=OLDER_NODES.keys())
async def test_every_call_works_at_an_older_node(bench: Bench, traits: Traits) -> None:
    node = bench.add_node(traits)
    async with bench.client() as kms:
        await kms.put("k", b"v")
        assert (await kms.get("k")).value == b"v"
        assert len(await kms.derive("disk")) == 32
        assert await kms.keys() == ["k"]
        await kms.delete("k")
    assert node.ran.count("put k") == 1


async def test_the_label_a_node_understood_is_used_from_then_on(bench: Bench) -> None:
    node = bench.add_node(OLDER_NODES["only the oldest label"])
    async with bench.client() as kms:
        await kms.put("k", b"1")
        asked = len(node.asked)
        await kms.put("k", b"2")
    assert node.asked[asked:] == ["GET /nonce", "PUT /kms/data"]


# --- arguments ---

BAD_CALLS: dict[str, Callable[[Any], Awaitable[object]]] = {
    "empty path": lambda kms: kms.derive(""),
    "path that is no text": lambda kms: kms.derive(7),
    "context that is no text": lambda kms: kms.derive("p", None),
    "length 0": lambda kms: kms.derive("p", length=0),
    "length 1025": lambda kms: kms.derive("p", length=1025),
    "length true": lambda kms: kms.derive("p", length=True),
    "empty key": lambda kms: kms.get(""),
    "key with half a surrogate pair": lambda kms: kms.delete("\ud800"),
    "value that is text": lambda kms: kms.put("k", "v"),
    "negative ttl": lambda kms: kms.put("k", b"v", ttl_ms=-1),
}


async def test_a_key_that_no_request_can_carry_is_the_calls_fault_and_no_nodes(bench: Bench) -> None:
    bench.add_node()
    async with bench.client() as kms:
        with pytest.raises(BadRequest, match="key is too long"):
            await kms.get("k" * 70_000)


@pytest.mark.parametrize("call", BAD_CALLS.values(), ids=BAD_CALLS.keys())
async def test_a_call_that_cannot_be_right_is_refused_before_anything_is_sent(
    bench: Bench, call: Callable[[Any], Awaitable[object]]
) -> None:
    node = bench.add_node()
    async with bench.client() as kms:
        with pytest.raises(BadRequest):
            await call(kms)
    assert node.asked == []


async def test_a_label_that_is_none_of_the_protocol_is_a_configuration_error(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="label"):
        bench.client(label="no such label")


async def test_a_node_s_cookies_go_to_no_other_node(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    made: list[httpx.AsyncClient] = []
    original = httpx.AsyncClient

    def remember(**options: Any) -> httpx.AsyncClient:
        made.append(original(**options))
        return made[-1]

    monkeypatch.setattr("appliance.client.client.httpx.AsyncClient", remember)
    async with KmsClient(bench.identity, StaticDirectory([])):
        (http,) = made
        asked = httpx.Request("GET", "https://kms1.example.com/nonce")
        large = [("set-cookie", f"c{number}={'x' * 4000}; Domain=example.com") for number in range(40)]
        http.cookies.extract_cookies(httpx.Response(200, headers=large, request=asked))
        assert "cookie" not in http.build_request("GET", "https://kms2.example.com/nonce").headers


async def test_its_own_connections_verify_tls_follow_nothing_and_ignore_the_environment(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    made: list[dict[str, Any]] = []
    original = httpx.AsyncClient

    def recording(**options: Any) -> httpx.AsyncClient:
        made.append(options)
        return original(**options)

    monkeypatch.setattr(httpx, "AsyncClient", recording)
    async with KmsClient(bench.identity, StaticDirectory([])):
        pass
    private_ca = ssl.create_default_context()
    async with KmsClient(bench.identity, StaticDirectory([]), tls=private_ca):
        pass
    assert [options["verify"] for options in made] == [True, private_ca]
    assert not any(options["follow_redirects"] or options["trust_env"] for options in made)


def test_synchronous_code_drives_the_client_through_a_portal(bench: Bench) -> None:
    bench.add_node()
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(bench.client()) as kms,
    ):
        assert portal.call(kms.derive, "disk") == wire.derive_key(MASTER_SECRET, APP_ID, "disk")


async def test_a_cancelled_call_leaves_the_client_usable(bench: Bench) -> None:
    node: FakeNode = bench.add_node()
    node.faults = [fake_node.hangs]
    async with bench.client() as kms:
        with anyio.move_on_after(0.05) as scope:
            await kms.keys()
        assert scope.cancelled_caught
        assert await kms.keys() == []
