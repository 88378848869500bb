"""Messages to the secure module: the exact bytes, and whatever it answers."""

import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.tee.attestation.cbor import encode_cbor
from appliance.tee.nsm.module import NsmErrorWord, Register, SecureModule
from kmscore.errors import InvariantBroken, Unavailable
from tests.support.secure_module import IMAGE, MODULE_ID, SecureModuleBench

pytestmark = pytest.mark.anyio

Call = Callable[[SecureModule], Awaitable[Any]]

# The module's name of a request, its bytes, and what makes it.
REQUESTS: list[tuple[str, str, Call]] = [
    ("GetRandom", "6947657452616e646f6d", lambda module: module.random(1)),
    ("DescribePCR", "a16b4465736372696265504352a165696e64657800", lambda module: module.describe_pcr(0)),
    (
        "Attestation",
        "a16b4174746573746174696f6ea369757365725f646174614175656e6f6e6365416e6a7075626c69635f6b6579f6",
        lambda module: module.attest(public_key=None, user_data=b"u", nonce=b"n"),
    ),
    (
        "Attestation",
        "a16b4174746573746174696f6ea369757365725f64617461f6656e6f6e6365f66a7075626c69635f6b6579f6",
        lambda module: module.attest(public_key=None, user_data=None, nonce=None),
    ),
]
CALLS = [pytest.param(name, call, id=name) for name, _, call in REQUESTS[:3]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def bench() -> SecureModuleBench:
    return SecureModuleBench().bind()


@pytest.mark.parametrize(("name", "encoded", "call"), REQUESTS)
async def test_a_request_has_the_bytes_that_the_device_wants(
    bench: SecureModuleBench, name: str, encoded: str, call: Call
) -> None:
    await call(SecureModule(bench.exchange))

    assert bench.requests == [bytes.fromhex(encoded)]


async def test_registers_are_read_with_their_locks(bench: SecureModuleBench) -> None:
    module = SecureModule(bench.exchange)

    assert await module.describe_pcr(0) == Register(IMAGE.pcrs[0], locked=True)
    assert (await module.describe_pcr(16)).locked
    assert await module.describe_pcr(17) == Register(bytes(48), locked=False)


async def test_extending_a_register_follows_the_vector() -> None:
    bench = SecureModuleBench().bind(bytes.fromhex("aabb"))
    expected = "d58f2de0e0ef657cb6e39b23bc7835e2c842df0c3007be5a9c35a4752154c637d9b67f46e39188cabde1e57d6b66841b"

    assert (await SecureModule(bench.exchange).describe_pcr(16)).value.hex() == expected


async def test_a_document_carries_what_it_was_asked_to(bench: SecureModuleBench) -> None:
    made = await SecureModule(bench.exchange).attest(public_key=b"key", user_data=b"data", nonce=b"nonce")
    verified = bench.verify(made, b"nonce")

    assert (verified.public_key, verified.user_data, verified.module_id) == (b"key", b"data", MODULE_ID)


@pytest.mark.parametrize("block", [2, 31, 256, 4096])
@pytest.mark.parametrize("size", [0, 1, 32, 64, 300])
async def test_random_bytes_are_gathered_from_as_many_calls_as_it_takes(
    bench: SecureModuleBench, block: int, size: int
) -> None:
    blocks = iter(bytes([number] * block) for number in range(256))
    bench.respond = lambda _: encode_cbor({"GetRandom": {"random": next(blocks)}})

    data = await SecureModule(bench.exchange).random(size)

    assert len(data) == size
    assert len(bench.requests) == -(-size // block)
    assert len(set(data)) == len(bench.requests)


@pytest.mark.parametrize("word", NsmErrorWord)
@pytest.mark.parametrize(("name", "call"), CALLS)
async def test_an_error_word_is_unavailable_and_named(
    bench: SecureModuleBench, word: NsmErrorWord, name: str, call: Call
) -> None:
    bench.respond = lambda _: encode_cbor({"Error": word.value})

    with pytest.raises(Unavailable, match=f"refuses {name}: {word.value}"):
        await call(SecureModule(bench.exchange))


async def test_a_word_nobody_knows_is_not_repeated(bench: SecureModuleBench) -> None:
    bench.respond = lambda _: encode_cbor({"Error": "\x1b[31mgo away"})

    with pytest.raises(Unavailable, match="another error"):
        await SecureModule(bench.exchange).random(1)


UNUSABLE: dict[str, bytes] = {
    "nothing": b"",
    "no CBOR": b"\xff" * 10,
    "a byte too many": encode_cbor({"GetRandom": {"random": bytes(256)}}) + b"\0",
    "too much": bytes(0x3001),
    "the name alone": encode_cbor("GetRandom"),
    "null": encode_cbor(None),
    "a list": encode_cbor(["GetRandom", "Attestation", "DescribePCR"]),
    "an empty map": encode_cbor({}),
    "another answer": encode_cbor({"DescribeNSM": {}}),
    "two answers": encode_cbor({"GetRandom": {"random": bytes(256)}, "Attestation": {"document": b"x"}}),
    "an error that is no word": encode_cbor({"Error": 7}),
    "answers without members": encode_cbor({"GetRandom": {}}),
    "random bytes that are text": encode_cbor({"GetRandom": {"random": "x" * 256}}),
    "no random bytes": encode_cbor({"GetRandom": {"random": b""}}),
    "a register of 47 bytes": encode_cbor({"DescribePCR": {"lock": True, "data": bytes(47)}}),
    "a lock that is a number": encode_cbor({"DescribePCR": {"lock": 1, "data": bytes(48)}}),
    "an empty document": encode_cbor({"Attestation": {"document": b""}}),
    "a document that is null": encode_cbor({"Attestation": {"document": None}}),
}


@pytest.mark.parametrize("response", UNUSABLE.values(), ids=UNUSABLE)
@pytest.mark.parametrize(("name", "call"), CALLS)
async def test_an_answer_that_cannot_be_used_is_unavailable(
    bench: SecureModuleBench, name: str, call: Call, response: bytes
) -> None:
    bench.respond = lambda _: response

    with pytest.raises(Unavailable, match="cannot be used"):
        await call(SecureModule(bench.exchange))


@given(response=st.binary(max_size=200))
def test_no_response_raises_anything_else(response: bytes) -> None:
    async def ask() -> None:
        module = SecureModule(lambda _: response)
        for _, _, call in REQUESTS:
            try:
                await call(module)
            except Unavailable:
                continue

    anyio.run(ask)


@pytest.mark.parametrize(("name", "call"), CALLS)
async def test_a_device_that_fails_is_unavailable(bench: SecureModuleBench, name: str, call: Call) -> None:
    def fail(_: bytes) -> bytes:
        raise OSError(5, "Input/output error")

    bench.respond = fail

    with pytest.raises(Unavailable, match="cannot be reached"):
        await call(SecureModule(bench.exchange))


async def test_what_the_device_does_not_take_is_never_sent(bench: SecureModuleBench) -> None:
    with pytest.raises(InvariantBroken):
        await SecureModule(bench.exchange).attest(public_key=None, user_data=bytes(4096), nonce=None)

    assert bench.requests == []


async def test_calls_are_made_one_at_a_time_and_off_the_event_loop(bench: SecureModuleBench) -> None:
    inside = 0
    most = 0
    here = threading.get_ident()

    def slowly(request: bytes) -> bytes:
        nonlocal inside, most
        assert threading.get_ident() != here
        inside += 1
        most = max(most, inside)
        time.sleep(0.01)
        inside -= 1
        return bench.nsm.handle(request)

    bench.respond = slowly
    module = SecureModule(bench.exchange)
    async with anyio.create_task_group() as group:
        for _, _, call in REQUESTS:
            group.start_soon(call, module)

    assert most == 1


async def test_a_device_that_hangs_is_given_up_and_not_asked_twice_at_a_time(bench: SecureModuleBench) -> None:
    release = threading.Event()
    entered = 0

    def hang(request: bytes) -> bytes:
        nonlocal entered
        entered += 1
        release.wait(10)
        return bench.nsm.handle(request)

    bench.respond = hang
    module = SecureModule(bench.exchange, timeout_s=0.05)

    for _ in range(3):
        with pytest.raises(Unavailable, match="in time"):
            await module.random(1)
    assert entered == 1

    bench.respond = bench.nsm.handle
    release.set()
    with anyio.fail_after(5):
        while True:
            try:
                assert len(await module.random(1)) == 1
                break
            except Unavailable:
                continue


async def test_a_cancelled_call_leaves_the_module_usable(bench: SecureModuleBench) -> None:
    release = threading.Event()

    def hang(request: bytes) -> bytes:
        release.wait(10)
        return bench.nsm.handle(request)

    bench.respond = hang
    module = SecureModule(bench.exchange)
    with anyio.move_on_after(0.05) as scope:
        await module.random(1)

    assert scope.cancelled_caught
    release.set()
    assert len(await module.random(32)) == 32
