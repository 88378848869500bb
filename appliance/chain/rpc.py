"""Reading a chain through providers of which some may lie, be slow or be dead (chain §4).

What is believed is what `quorum` of the providers answer identically, byte for byte; with one light client that is one
of one. Reads name their block by number, always `confirmations` behind the newest, and never fall back to the newest.
This module refuses to guess: too few equal answers, a block that is not there, an answer of the wrong shape and a
passed deadline are all `ChainError`.
"""

import importlib
import logging
import random
import re
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import anyio
import anyio.to_thread

from appliance.chain.abi import Call
from appliance.chain.types import ChainError, PinnedBlock
from kmscore.errors import ConfigError

if TYPE_CHECKING:
    from web3.types import RPCEndpoint, RPCResponse

    from appliance.egress import Tunnels

logger = logging.getLogger(__name__)

T = TypeVar("T")
Heard = dict[int, list[T]]  # what each provider answered, by its place among the URLs

# One HTTP round trip carries this many reads; more are split. A KMS cluster has tens of members, so a refresh of it
# costs a constant number of round trips, and the limit keeps one answer within the provider's byte limit.
MAX_BATCH = 250

# Attempts at one provider within the deadline, with a growing wait before each but the first.
MAX_ATTEMPTS = 4
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 2.0

# After enough providers told their newest block, how long the others may still do so: without it the fastest liars
# would choose how old a block is read.
LAGGARD_GRACE_S = 1.0

# For how long after a provider did not answer the others do not wait for it.
SILENCE_S = 30.0

# How far behind a block already read a later read may go. A reorganisation or another server behind the same name goes
# back a few blocks; whoever goes back further shows the past, in which a revoked instance is still active.
MAX_REWIND_BLOCKS = 64

# JSON-RPC error code of an execution that reverted; older nodes use others and say so in the message.
REVERT_CODE = 3

_QUANTITY = re.compile("0x[0-9a-fA-F]{1,64}")
_DATA = re.compile("0x(?:[0-9a-fA-F]{2})*")


@dataclass(frozen=True, slots=True)
class Reverted:
    """The answer of a call that reverted: the contract's error as selector and arguments, b"" if it gave none."""

    data: bytes


class RpcProvider(Protocol):
    """One URL's JSON-RPC. Failures to answer are ChainError; error objects in an answer are returned."""

    async def make_batch_request(
        self, batch_requests: "list[tuple[RPCEndpoint, Any]]", /
    ) -> "list[RPCResponse] | RPCResponse":
        """Answers in the order of the requests."""

    async def disconnect(self) -> None:
        """Closes all connections."""


@dataclass(frozen=True, slots=True)
class Question(Generic[T]):
    """One JSON-RPC request and how its answer is understood.

    `parse` takes the result and `parse_error` the error object. Both raise ChainError for an answer that does not
    count; what they return must be hashable, since equal answers are counted.
    """

    method: str
    params: Sequence[object]
    parse: Callable[[object], T]
    parse_error: Callable[[Mapping[str, object]], T] | None = None


def connect_http(url: str, timeout_s: float, tunnels: "Tunnels | None" = None) -> RpcProvider:
    """web3's provider for one URL with the limits of `appliance.chain.provider`."""
    # What web3 imports raises the recursion limit of the whole process, see there. A node answers strangers while web3
    # is imported, so that one part comes first and alone, and the limit is back before the seconds that the rest takes.
    limit = sys.getrecursionlimit()
    importlib.import_module("py_ecc")
    sys.setrecursionlimit(limit)
    from appliance.chain.provider import connect

    return connect(url, timeout_s=timeout_s, tunnels=tunnels).provider


class ChainReader:
    """All providers of one chain behind one face.

    `urls` are distinct; `quorum` of them must agree; `timeout_s` bounds each exchange with them, retries included.
    `connect`, `sleep` and `jitter` (a number in [0, 1)) are there for tests. `connect` is called in a worker thread,
    when the chain is asked for the first time: web3 takes seconds to import on a slow machine, and a node must listen
    and answer before (enclave §1). An instance belongs to one event loop and must be closed with `aclose`.
    Raises ConfigError if the quorum cannot be met by these URLs, or a URL would be counted twice.
    """

    def __init__(
        self,
        urls: Sequence[str],
        quorum: int,
        chain_id: int,
        confirmations: int,
        *,
        timeout_s: float = 10.0,
        connect: Callable[[str, float], RpcProvider] = connect_http,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        if len(set(urls)) != len(urls):
            raise ConfigError("HELIOS_RPC_URL names a provider twice: it would be counted twice towards the quorum")
        if not 1 <= quorum <= len(urls):
            raise ConfigError(f"CHAIN_RPC_QUORUM is {quorum}: it must be between 1 and the number of URLs, {len(urls)}")
        self._urls = tuple(urls)
        self._connect = connect
        self._providers: list[RpcProvider] = []
        self._connecting = anyio.Lock()
        self._quorum = quorum
        self._chain_id = chain_id
        self._confirmations = confirmations
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._jitter = jitter
        self._highest_read = 0
        # Those that did not answer, by place among the URLs, and until when nobody waits for them (event loop's time).
        self._silent_until: dict[int, float] = {}

    async def _connected(self) -> list[RpcProvider]:
        """Every provider, connected to before the deadline of the first exchange begins to count."""
        async with self._connecting:
            if not self._providers:
                self._providers = await anyio.to_thread.run_sync(self._connect_all)
        return self._providers

    def _connect_all(self) -> list[RpcProvider]:
        # Half of the deadline for one attempt leaves time for a second one after a connection that hangs.
        return [self._connect(url, self._timeout_s / 2) for url in self._urls]

    async def aclose(self) -> None:
        """Closes every connection."""
        for provider in self._providers:
            await provider.disconnect()

    async def check_chain_id(self) -> None:
        """Makes sure that the providers serve the configured chain; called once at start-up.

        Raises ConfigError if fewer than the quorum do and at least one serves another chain, ChainError if too few
        answer at all.
        """

        def right_ones(heard: Heard[int]) -> int:
            return sum(answers[0] == self._chain_id for answers in heard.values())

        heard = await self._ask_all(
            [Question("eth_chainId", (), parse_quantity)], lambda heard: right_ones(heard) >= self._quorum
        )
        if right_ones(heard) >= self._quorum:
            return
        found = sorted({answers[0] for answers in heard.values()} - {self._chain_id})
        if found:
            raise ConfigError(
                f"the chain has id {found[0]}, expected {self._chain_id}: see CHAIN_ID and HELIOS_RPC_URL"
            )
        raise ChainError(f"{len(heard)} of {len(self._urls)} chain providers answer, {self._quorum} are needed")

    async def pinned_number(self) -> int:
        """The number of the block to read at: `confirmations` behind the newest that `quorum` providers have.

        Raises ChainError if too few answer, if the chain is shorter than that, and if it went back further than a
        reorganisation would.
        """
        # The quorum-th highest: at least one honest provider has it, and fewer liars than the quorum cannot raise it.
        (latest,) = await self.agree_on_numbers([Question("eth_blockNumber", (), parse_quantity)])
        number = latest - self._confirmations
        if number < 0:
            raise ChainError(f"the chain is shorter than the {self._confirmations} confirmations that a read waits for")
        if number < self._highest_read - MAX_REWIND_BLOCKS:
            raise ChainError(f"the providers went back from block {self._highest_read} to block {number}")
        return number

    async def pinned_block(self) -> PinnedBlock:
        """The block to read at, with its hash; two round trips. Raises ChainError."""
        block, _ = await self.call_batch_with_block([], await self.pinned_number())
        return block

    async def confirm_block(self, block: PinnedBlock) -> None:
        """Raises ChainError if the block's number now belongs to another hash, or cannot be read."""
        now, _ = await self.call_batch_with_block([], block.number)
        if now.hash != block.hash:
            raise ChainError(f"block {block.number} was reorganised away during a refresh")

    async def call_batch(self, calls: Sequence[Call], number: int) -> list[bytes | Reverted]:
        """What each call returns at block `number`, or that it reverts; one round trip per `MAX_BATCH` calls.

        Raises ChainError unless at least the quorum answers every call identically. An empty batch asks nothing.
        """
        if not calls:
            return []
        answers = await self.agree([call_at(call, hex(number)) for call in calls])
        self._highest_read = max(self._highest_read, number)
        return answers

    async def call_batch_with_block(
        self, calls: Sequence[Call], number: int
    ) -> tuple[PinnedBlock, list[bytes | Reverted]]:
        """As `call_batch`, and the block's hash in the same round trip."""
        questions = [block_hash_at(number), *(call_at(call, hex(number)) for call in calls)]
        block_hash, *answers = await self.agree(questions)
        self._highest_read = max(self._highest_read, number)
        if isinstance(block_hash, Reverted):
            raise ChainError("a chain provider answered for a block as if it were a call")
        return PinnedBlock(number, block_hash), answers

    async def agree(self, questions: Sequence[Question[T]]) -> list[T]:
        """The answer to each question that at least the quorum gives identically, in order.

        Providers are asked concurrently; the slower ones are left alone once the quorum is met. Raises ChainError.
        """
        positions = range(len(questions))
        heard = await self._ask_all(questions, lambda heard: all(self._verdict(heard, at) for at in positions))
        agreed: list[T] = []
        for at in positions:
            verdict = self._verdict(heard, at)
            if verdict is None:
                raise ChainError(self._disagreement(questions[at].method, heard, at))
            agreed.append(verdict[0])
        for at, answers in heard.items():
            if answers != agreed:
                logger.warning("a chain provider was outvoted", extra={"rpc_index": at})
        return agreed

    async def agree_on_numbers(self, questions: Sequence[Question[int]]) -> list[int]:
        """For each question the quorum-th highest answer: what at least one honest provider also reaches.

        Raises ChainError if fewer than the quorum answer.
        """
        heard = await self._ask_all(
            questions,
            lambda heard: len(heard) >= self._quorum,
            grace_s=LAGGARD_GRACE_S if self._quorum > 1 else 0.0,
        )
        if len(heard) < self._quorum:
            raise ChainError(self._disagreement(questions[0].method, heard, 0))
        columns = zip(*heard.values(), strict=True)
        return [sorted(numbers, reverse=True)[self._quorum - 1] for numbers in columns]

    async def ask_each(self, question: Question[T], enough: Callable[[Sequence[T]], bool]) -> list[T]:
        """What each provider answers, until `enough` holds and a moment longer, so that as many as possible are asked.

        Providers that do not answer are left out; raises ChainError if none does.
        """
        heard = await self._ask_all(
            [question],
            lambda heard: enough([answers[0] for answers in heard.values()]),
            grace_s=LAGGARD_GRACE_S,
        )
        if not heard:
            raise ChainError(self._disagreement(question.method, heard, 0))
        return [answers[0] for answers in heard.values()]

    async def _ask_all(
        self, questions: Sequence[Question[T]], enough: Callable[[Heard[T]], bool], grace_s: float = 0.0
    ) -> Heard[T]:
        """The answers of every provider that gave them by `grace_s` after `enough` held, or by the deadline."""
        providers = await self._connected()
        heard: Heard[T] = {}
        # Those that did not answer are asked again each time, but for a while nobody is kept waiting for them.
        now = anyio.current_time()
        awaited = {at for at in range(len(providers)) if self._silent_until.get(at, now) <= now}

        async def ask(at: int, provider: RpcProvider) -> None:
            try:
                heard[at] = await self._ask(provider, questions)
            except ChainError as error:
                self._note_silence(at, error)
            else:
                self._silent_until.pop(at, None)
            awaited.discard(at)
            if enough(heard):
                scope = group.cancel_scope
                scope.deadline = min(scope.deadline, anyio.current_time() + (grace_s if awaited else 0.0))

        async with anyio.create_task_group() as group:
            group.cancel_scope.deadline = anyio.current_time() + self._timeout_s
            for at, provider in enumerate(providers):
                group.start_soon(ask, at, provider)
        return heard

    def _note_silence(self, at: int, error: ChainError) -> None:
        if at not in self._silent_until:
            logger.warning("a chain provider does not answer", extra={"rpc_index": at, "reason": str(error)})
        self._silent_until[at] = anyio.current_time() + SILENCE_S

    async def _ask(self, provider: RpcProvider, questions: Sequence[Question[T]]) -> list[T]:
        for attempt in range(MAX_ATTEMPTS):
            if attempt:
                wait_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** (attempt - 1))
                await self._sleep(wait_s * (0.5 + self._jitter() / 2))
            try:
                return await self._ask_once(provider, questions)
            except ChainError as error:
                failure = error
        raise failure

    @staticmethod
    async def _ask_once(provider: RpcProvider, questions: Sequence[Question[T]]) -> list[T]:
        answers: list[T] = []
        for start in range(0, len(questions), MAX_BATCH):
            batch = questions[start : start + MAX_BATCH]
            responses = await provider.make_batch_request([(_endpoint(q.method), q.params) for q in batch])
            if not isinstance(responses, list) or len(responses) != len(batch):
                raise ChainError("a chain provider refused a batch of requests")
            answers += [_understand(question, response) for question, response in zip(batch, responses, strict=True)]
        return answers

    def _verdict(self, heard: Heard[T], at: int) -> tuple[T] | None:
        """The agreed answer at one position, in a tuple since it may be None; None if there is none yet."""
        if len(heard) < self._quorum:
            return None
        answer, votes = Counter(answers[at] for answers in heard.values()).most_common(1)[0]
        return (answer,) if votes >= self._quorum else None

    def _disagreement(self, method: str, heard: Heard[T], at: int) -> str:
        votes = max(Counter(answers[at] for answers in heard.values()).values(), default=0)
        return (
            f"{votes} of {len(self._urls)} chain providers agree on {method}, {self._quorum} are needed"
            f" ({len(heard)} answered)"
        )


def call_at(call: Call, block: str, sender: str | None = None) -> Question[bytes | Reverted]:
    """eth_call at a block (a hexadecimal number or a tag), as if sent by `sender`."""
    transaction = call.as_transaction()
    if sender is not None:
        transaction["from"] = sender
    return Question("eth_call", (transaction, block), parse_data, parse_revert)


def block_hash_at(number: int) -> Question[bytes | Reverted]:
    """The hash of the block with this number."""

    def parse(result: object) -> bytes | Reverted:
        if result is None:
            raise ChainError(f"a chain provider does not have block {number}")
        if not isinstance(result, dict) or parse_quantity(result.get("number")) != number:
            raise ChainError(f"a chain provider answered something that is not block {number}")
        block_hash = parse_data(result.get("hash"))
        if len(block_hash) != 32:
            raise ChainError(f"a chain provider answered block {number} without its hash")
        return block_hash

    return Question("eth_getBlockByNumber", (hex(number), False), parse)


def parse_quantity(value: object) -> int:
    """An unsigned integer of JSON-RPC, 0x and hexadecimal digits, below 2**256. Raises ChainError."""
    if isinstance(value, str) and _QUANTITY.fullmatch(value):
        return int(value, 16)
    raise ChainError("a chain provider answered something that is not a number")


def parse_data(value: object) -> bytes:
    """Bytes of JSON-RPC, 0x and pairs of hexadecimal digits. Raises ChainError."""
    if isinstance(value, str) and _DATA.fullmatch(value):
        return bytes.fromhex(value[2:])
    raise ChainError("a chain provider answered something that is not bytes")


def parse_revert(error: Mapping[str, object]) -> Reverted:
    """The revert that an error object reports. Raises ChainError if it reports anything else."""
    if error.get("code") != REVERT_CODE and "revert" not in str(error.get("message")).lower():
        raise ChainError("a chain provider could not execute a call")
    data = error.get("data")
    return Reverted(parse_data(data) if isinstance(data, str) and data.startswith("0x") else b"")


def _understand(question: Question[T], response: "RPCResponse") -> T:
    error = response.get("error")
    if error is None:
        return question.parse(response.get("result"))
    if not isinstance(error, dict) or question.parse_error is None:
        raise ChainError(f"a chain provider answered {question.method} with an error")
    return question.parse_error(error)


def _endpoint(method: str) -> "RPCEndpoint":
    return method  # type: ignore[return-value] # a NewType of str: importing it would import web3
