"""Quorum, pinning, deadlines and retries of `ChainReader`, on providers that behave as each test says."""

import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import pytest

from appliance.chain import rpc
from appliance.chain.abi import Call
from appliance.chain.rpc import ChainReader, Question, Reverted, parse_data, parse_quantity
from appliance.chain.types import ChainError, PinnedBlock
from kmscore.errors import ConfigError

pytestmark = pytest.mark.anyio

CHAIN_ID = 84532
CALLS = [Call("0x" + "aa" * 20, b"\1"), Call("0x" + "aa" * 20, b"\2")]
BLOCK_HASH = "0x" + "bb" * 32

Answer = Callable[[str, Any], Any]


def error(code: int = 3, message: str = "execution reverted", data: object = None) -> dict[str, object]:
    return {"error": {"code": code, "message": message, **({} if data is None else {"data": data})}}


def honest(method: str, params: Any) -> Any:
    """Block 100 is the newest; a call returns its own data."""
    match method:
        case "eth_chainId":
            return hex(CHAIN_ID)
        case "eth_blockNumber":
            return hex(100)
        case "eth_getBlockByNumber":
            return {"number": params[0], "hash": BLOCK_HASH}
        case "eth_call":
            return params[0]["data"]
    raise AssertionError(method)


class Provider:
    """Answers every request with `answer(method, params)`: a result, or a response dict with "error"."""

    def __init__(self, answer: Answer = honest) -> None:
        self.answer = answer
        self.batches: list[list[tuple[str, Any]]] = []
        self.closed = False

    async def make_batch_request(self, batch: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
        self.batches.append(list(batch))
        results = [self.answer(method, params) for method, params in batch]
        return [r if isinstance(r, dict) and "error" in r else {"result": r} for r in results]

    async def disconnect(self) -> None:
        self.closed = True


class Hanging(Provider):
    """Never answers; knows whether it was let go."""

    def __init__(self) -> None:
        super().__init__()
        self.cancelled = False

    async def make_batch_request(self, _: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            self.cancelled = True
            raise
        raise AssertionError


class Failing(Provider):
    """Fails a number of times before it answers."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    async def make_batch_request(self, batch: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
        if self.failures:
            self.failures -= 1
            raise ChainError("a chain provider cannot be reached")
        return await super().make_batch_request(batch)


def lying(**lies: Any) -> Provider:
    """Honest except for the results of the named methods."""
    return Provider(lambda method, params: lies.get(method, honest(method, params)))


async def no_sleep(seconds: float) -> None:
    await anyio.lowlevel.checkpoint()


def reader_of(
    *providers: Provider,
    quorum: int = 1,
    confirmations: int = 6,
    timeout_s: float = 5.0,
    sleep: Callable[[float], Awaitable[None]] = no_sleep,
) -> ChainReader:
    urls = [f"https://provider{number}.example" for number in range(len(providers))]
    by_url = dict(zip(urls, providers, strict=True))
    return ChainReader(
        urls,
        quorum,
        CHAIN_ID,
        confirmations,
        timeout_s=timeout_s,
        connect=lambda url, _: by_url[url],  # type: ignore[arg-type, return-value]
        sleep=sleep,
        jitter=lambda: 0.0,
    )


# --- construction ---


@pytest.mark.parametrize("quorum", [0, -1, 3])
def test_a_quorum_that_cannot_be_met_is_refused_at_start_up(quorum: int) -> None:
    with pytest.raises(ConfigError, match=f"CHAIN_RPC_QUORUM is {quorum}"):
        reader_of(Provider(), Provider(), quorum=quorum)


def test_a_provider_named_twice_is_refused_at_start_up() -> None:
    with pytest.raises(ConfigError, match="twice"):
        ChainReader(["http://a", "http://a"], 2, CHAIN_ID, 6)


async def test_closing_closes_every_provider() -> None:
    providers = [Provider(), Provider()]
    reader = reader_of(*providers, quorum=2)
    await reader.check_chain_id()
    await reader.aclose()
    assert all(provider.closed for provider in providers)


async def test_providers_are_connected_to_once_when_the_chain_is_first_asked_and_off_the_event_loop() -> None:
    connected: list[bool] = []

    def connect(_: str, timeout_s: float) -> Provider:
        assert timeout_s == 2.5
        connected.append(threading.current_thread() is threading.main_thread())
        return Provider()

    reader = ChainReader(["http://a", "http://b"], 1, CHAIN_ID, 6, timeout_s=5.0, connect=connect)  # type: ignore[arg-type]
    assert connected == []
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(reader.check_chain_id)
    assert connected == [False, False]


async def test_closing_before_the_chain_was_asked_connects_to_nobody() -> None:
    provider = Provider()
    await reader_of(provider).aclose()
    assert not provider.closed


async def test_a_slow_connect_does_not_count_towards_the_deadline() -> None:
    def connect(_: str, __: float) -> Provider:
        slow.wait(0.3)
        return Provider()

    slow = threading.Event()
    await ChainReader(["http://a"], 1, CHAIN_ID, 6, timeout_s=0.2, connect=connect).check_chain_id()  # type: ignore[arg-type]


# --- quorum ---


async def test_one_provider_is_believed_when_the_quorum_is_one() -> None:
    assert await reader_of(Provider()).call_batch(CALLS, 94) == [b"\1", b"\2"]


async def test_an_empty_batch_asks_nothing() -> None:
    provider = Provider()
    assert await reader_of(provider).call_batch([], 94) == []
    assert provider.batches == []


async def test_a_liar_is_outvoted(caplog: pytest.LogCaptureFixture) -> None:
    reader = reader_of(lying(eth_call="0xee"), Provider(), Provider(), quorum=2)
    assert await reader.call_batch(CALLS, 94) == [b"\1", b"\2"]
    assert [(record.message, record.rpc_index) for record in caplog.records] == [("a chain provider was outvoted", 0)]


async def test_two_liars_about_different_calls_are_both_outvoted() -> None:
    def lie_about(data: str) -> Provider:
        return Provider(lambda method, params: "0xee" if params[0]["data"] == data else honest(method, params))

    assert await reader_of(lie_about("0x01"), lie_about("0x02"), Provider(), quorum=2).call_batch(CALLS, 94) == [
        b"\1",
        b"\2",
    ]


async def test_too_few_equal_answers_are_an_error_that_says_how_many() -> None:
    reader = reader_of(lying(eth_call="0xe1"), lying(eth_call="0xe2"), Provider(), quorum=2)
    with pytest.raises(ChainError, match=r"1 of 3 chain providers agree on eth_call, 2 are needed \(3 answered\)"):
        await reader.call_batch(CALLS, 94)


async def test_a_dead_provider_is_made_up_for_by_the_others() -> None:
    assert await reader_of(Failing(99), Provider(), Provider(), quorum=2).call_batch(CALLS, 94) == [b"\1", b"\2"]


async def test_too_few_providers_alive_is_an_error() -> None:
    with pytest.raises(ChainError, match=r"1 of 2 chain providers agree on eth_call, 2 are needed \(1 answered\)"):
        await reader_of(Failing(99), Provider(), quorum=2).call_batch(CALLS, 94)


async def test_a_revert_is_an_answer_and_the_same_revert_counts() -> None:
    reverting = [lying(eth_call=error(data="0xd7d88fdf")), lying(eth_call=error(data="0xd7d88fdf"))]
    answers = await reader_of(*reverting, Provider(), quorum=2).call_batch(CALLS[:1], 94)
    assert answers == [Reverted(bytes.fromhex("d7d88fdf"))]


async def test_different_reverts_do_not_count_together() -> None:
    reverting = [lying(eth_call=error(data="0xd7d88fdf")), lying(eth_call=error(data="0xa76d08c2"))]
    with pytest.raises(ChainError):
        await reader_of(*reverting, quorum=2).call_batch(CALLS[:1], 94)


@pytest.mark.parametrize(
    ("response", "data"),
    [
        (error(), b""),
        (error(data="0x"), b""),
        (error(data="0x0102"), b"\1\2"),
        (error(data="Reverted 0x0102"), b""),
        (error(data={"0xabc": {}}), b""),
        (error(code=-32000, message="VM Exception: REVERT"), b""),
    ],
)
async def test_reverts_are_recognised_however_a_node_reports_them(response: dict[str, Any], data: bytes) -> None:
    assert await reader_of(lying(eth_call=response)).call_batch(CALLS[:1], 94) == [Reverted(data)]


async def test_a_slow_provider_is_not_waited_for_once_the_quorum_is_met() -> None:
    slow = Hanging()
    assert await reader_of(slow, Provider(), Provider(), quorum=2).call_batch(CALLS, 94) == [b"\1", b"\2"]
    assert slow.cancelled


# --- what is not an answer ---

NO_ANSWERS = {
    "an error that is no revert": error(code=-32000, message="header not found"),
    "an error that is no object": {"error": "no"},
    "a result that is no string": 7,
    "a result that is no hexadecimal": "0xzz",
    "half a byte": "0x1",
    "white space within the bytes": "0x 1 2",
    "a revert whose data is no hexadecimal": error(data="0xzz"),
    "null": None,
}


@pytest.mark.parametrize("response", NO_ANSWERS.values(), ids=NO_ANSWERS)
async def test_a_call_without_a_usable_answer_is_asked_again_and_then_an_error(response: Any) -> None:
    provider = lying(eth_call=response)
    with pytest.raises(ChainError):
        await reader_of(provider).call_batch(CALLS[:1], 94)
    assert len(provider.batches) == rpc.MAX_ATTEMPTS


async def test_a_batch_answered_with_one_error_object_is_not_an_answer() -> None:
    class Refusing(Provider):
        async def make_batch_request(self, _: Any) -> Any:
            return {"id": None, "error": {"code": -32600, "message": "no batches"}}

    with pytest.raises(ChainError):
        await reader_of(Refusing()).call_batch(CALLS, 94)


@pytest.mark.parametrize("text", ["", "0x", "100", "0x-1", "0x1_0", "0x 1", "0xg", "0x" + "f" * 65, 100, None, True])
def test_a_number_is_hexadecimal_digits_and_nothing_else(text: object) -> None:
    with pytest.raises(ChainError):
        parse_quantity(text)


def test_numbers_and_bytes_of_every_size_are_read() -> None:
    assert parse_quantity("0x0") == 0
    assert parse_quantity("0x" + "f" * 64) == 2**256 - 1
    assert parse_data("0x") == b""
    assert parse_data("0xAbCd") == b"\xab\xcd"


# --- retries and deadlines ---


async def test_a_passing_fault_is_retried_with_growing_waits() -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    assert await reader_of(Failing(3), sleep=sleep).call_batch(CALLS, 94) == [b"\1", b"\2"]
    assert waits == [0.05, 0.1, 0.2]  # half of the wait is jitter, which is 0 here


async def test_retries_are_bounded() -> None:
    provider = Failing(99)
    with pytest.raises(ChainError):
        await reader_of(provider).call_batch(CALLS, 94)
    assert provider.failures == 99 - rpc.MAX_ATTEMPTS


async def test_a_provider_that_hangs_is_an_error_at_the_deadline() -> None:
    provider = Hanging()
    with pytest.raises(ChainError, match="0 answered"):
        await reader_of(provider, timeout_s=0.01).call_batch(CALLS, 94)
    assert provider.cancelled


async def test_cancelling_the_caller_lets_every_provider_go() -> None:
    providers = [Hanging(), Hanging()]
    with anyio.move_on_after(0.01) as scope:
        await reader_of(*providers, quorum=2).call_batch(CALLS, 94)
    assert scope.cancelled_caught
    assert all(provider.cancelled for provider in providers)


async def test_a_long_batch_is_split() -> None:
    provider = Provider()
    calls = [Call("0x" + "aa" * 20, number.to_bytes(2, "big")) for number in range(rpc.MAX_BATCH + 1)]
    assert await reader_of(provider).call_batch(calls, 94) == [call.data for call in calls]
    assert [len(batch) for batch in provider.batches] == [rpc.MAX_BATCH, 1]


# --- pinned blocks ---


async def test_reads_name_the_block_that_has_its_confirmations() -> None:
    provider = Provider()
    reader = reader_of(provider, confirmations=6)
    number = await reader.pinned_number()
    await reader.call_batch(CALLS, number)
    assert number == 94
    assert {params[1] for method, params in provider.batches[-1]} == {"0x5e"}


async def test_the_newest_block_is_the_one_that_a_quorum_has() -> None:
    heads = [lying(eth_blockNumber=hex(number)) for number in (90, 99, 10**9)]
    assert await reader_of(*heads, quorum=2, confirmations=0).pinned_number() == 99


async def test_a_liar_can_neither_raise_nor_much_lower_the_newest_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "LAGGARD_GRACE_S", 0.05)
    ahead = reader_of(lying(eth_blockNumber=hex(10**9)), Provider(), Provider(), quorum=2, confirmations=0)
    behind = reader_of(lying(eth_blockNumber=hex(1)), Provider(), Provider(), quorum=2, confirmations=0)
    assert await ahead.pinned_number() == 100
    assert await behind.pinned_number() == 100


async def test_nobody_waits_for_a_provider_that_is_known_to_be_silent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rpc, "LAGGARD_GRACE_S", 60.0)
    dead = Failing(rpc.MAX_ATTEMPTS)
    reader = reader_of(dead, Provider(), Provider(), quorum=2, confirmations=0, timeout_s=60.0)
    with anyio.fail_after(5.0):
        assert await reader.pinned_number() == 100
        dead.make_batch_request = Hanging().make_batch_request  # type: ignore[method-assign]
        assert await reader.pinned_number() == 100
    assert [record.message for record in caplog.records] == ["a chain provider does not answer"]


async def test_a_silent_provider_is_waited_for_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "SILENCE_S", 0.0)
    monkeypatch.setattr(rpc, "LAGGARD_GRACE_S", 60.0)
    returning = Failing(rpc.MAX_ATTEMPTS)
    reader = reader_of(returning, lying(eth_blockNumber="0x1"), Provider(), quorum=2, confirmations=0, timeout_s=60.0)
    assert await reader.pinned_number() == 1
    with anyio.fail_after(5.0):
        assert await reader.pinned_number() == 100


async def test_a_provider_that_fails_again_is_reported_once_for_each_time_it_fell_silent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    flapping = Failing(rpc.MAX_ATTEMPTS)
    reader = reader_of(flapping, Provider())
    for failures in (rpc.MAX_ATTEMPTS, rpc.MAX_ATTEMPTS, 0, rpc.MAX_ATTEMPTS):
        flapping.failures = failures
        await reader.ask_each(Question("eth_blockNumber", (), parse_quantity), lambda answers: len(answers) == 2)
    assert [record.rpc_index for record in caplog.records] == [0, 0]


async def test_fewer_heads_than_the_quorum_are_an_error() -> None:
    with pytest.raises(ChainError, match="eth_blockNumber"):
        await reader_of(Failing(99), Provider(), quorum=2).pinned_number()


async def test_a_chain_shorter_than_its_confirmations_cannot_be_read() -> None:
    with pytest.raises(ChainError, match="shorter than the 6 confirmations"):
        await reader_of(lying(eth_blockNumber="0x5")).pinned_number()
    assert await reader_of(lying(eth_blockNumber="0x6")).pinned_number() == 0


@pytest.mark.parametrize(("newest", "readable"), [(101, True), (100 - rpc.MAX_REWIND_BLOCKS, True), (35, False)])
async def test_a_chain_may_go_back_only_as_far_as_a_reorganisation_does(newest: int, readable: bool) -> None:
    provider = Provider()
    reader = reader_of(provider, confirmations=0)
    await reader.call_batch(CALLS, await reader.pinned_number())
    provider.answer = lambda *_: hex(newest)
    if readable:
        assert await reader.pinned_number() == newest
    else:
        with pytest.raises(ChainError, match="went back from block 100 to block 35"):
            await reader.pinned_number()


async def test_a_pinned_block_has_its_hash_and_is_confirmed_while_it_stays() -> None:
    provider = Provider()
    reader = reader_of(provider)
    block = await reader.pinned_block()
    assert block == PinnedBlock(94, bytes.fromhex("bb" * 32))
    await reader.confirm_block(block)

    provider.answer = lambda _, params: {"number": params[0], "hash": "0x" + "cc" * 32}
    with pytest.raises(ChainError, match="reorganised"):
        await reader.confirm_block(block)


BAD_HEADERS = {
    "not there": None,
    "no object": "0x5e",
    "another number": {"number": "0x5f", "hash": BLOCK_HASH},
    "no number": {"hash": BLOCK_HASH},
    "no hash": {"number": "0x5e"},
    "half a hash": {"number": "0x5e", "hash": "0x" + "bb" * 16},
}


@pytest.mark.parametrize("header", BAD_HEADERS.values(), ids=BAD_HEADERS)
async def test_a_block_that_cannot_be_read_is_an_error_and_never_another_block(header: Any) -> None:
    provider = lying(eth_getBlockByNumber=header)
    with pytest.raises(ChainError):
        await reader_of(provider).pinned_block()
    asked = {params[0] for batch in provider.batches for method, params in batch if method == "eth_getBlockByNumber"}
    assert asked == {"0x5e"}


# --- chain id ---


async def test_the_right_chain_passes() -> None:
    await reader_of(Provider(), Failing(99)).check_chain_id()


@pytest.mark.parametrize("quorum", [1, 2])
async def test_a_wrong_chain_id_is_fatal_and_names_both(quorum: int) -> None:
    reader = reader_of(*(lying(eth_chainId="0x1") for _ in range(quorum)), quorum=quorum)
    with pytest.raises(ConfigError, match="the chain has id 1, expected 84532"):
        await reader.check_chain_id()


async def test_one_wrong_chain_among_enough_right_ones_does_not_stop_the_node() -> None:
    await reader_of(lying(eth_chainId="0x1"), Provider(), Provider(), quorum=2).check_chain_id()


async def test_an_unreachable_chain_is_no_configuration_error() -> None:
    with pytest.raises(ChainError, match="0 of 1 chain providers answer, 1 are needed"):
        await reader_of(Failing(99)).check_chain_id()


# --- each provider's own answer ---


async def test_every_provider_is_asked_for_its_own_answer_and_the_dead_are_left_out() -> None:
    question = Question("eth_blockNumber", (), parse_quantity)
    reader = reader_of(lying(eth_blockNumber="0x1"), Failing(99), lying(eth_blockNumber="0x3"))
    assert await reader.ask_each(question, lambda answers: len(answers) == 2) == [1, 3]
    with pytest.raises(ChainError):
        await reader_of(Failing(99)).ask_each(question, bool)
