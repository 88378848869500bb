"""From a verified caller to a sealed, signed answer: nothing changes unless its answer could be given (protocol §4)."""

import hashlib
import json
import math
import os
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from starlette.responses import Response

from appliance.api.bodies import CLIENT_GONE
from appliance.api.exchange import (
    ANSWER_SIGNATURE_HEADER,
    APP_SIGNATURE_HEADER,
    NEXT_NONCE_HEADER,
    Answerer,
    Change,
    LongReading,
    Reading,
    SteppedChange,
)
from appliance.auth.envelopes import EnvelopeGate, LabelMemory
from appliance.tee.port import LongEnvelope, LongText
from appliance.tee.software.provider import SoftwareTee
from kmscore.envelope import LABELS, Envelope, TeePublicKey, parse_tee_pubkey
from kmscore.errors import InvariantBroken, Reason, Rejected, Unavailable
from kmscore.nonce import EnvelopeNonces, NonceIssuer, UsedNonces
from kmscore.proof import PopVerifier, VerifiedPop
from kmscore.secret import SecretBytes
from tests.support import wire
from tests.support.fake_node import FakeClock

pytestmark = pytest.mark.anyio

POP = VerifiedPop("0x" + "ab" * 20, "0x" + "12" * 65, "nonce", 0)


class FailingTee:
    """A software TEE that stops answering: `fails` names the methods."""

    def __init__(self, tee: SoftwareTee) -> None:
        self._tee = tee
        self.fails: set[str | None] = set()

    def __getattr__(self, name: str) -> object:
        return getattr(self._tee, name)

    async def sign_message(self, message: bytes) -> str:
        self._check("sign_message")
        return await self._tee.sign_message(message)

    async def seal(self, plaintext: bytes, peer: TeePublicKey, label: str | None) -> Envelope:
        self._check("seal")
        return await self._tee.seal(plaintext, peer, label)

    async def seal_long(self, text: LongText, peer: TeePublicKey, label: str | None) -> LongEnvelope:
        self._check("seal")
        return await self._tee.seal_long(text, peer, label)

    def _check(self, name: str) -> None:
        if name in self.fails:
            raise Unavailable("the TEE provider does not answer")


class AsgiExchange:
    """The server's side of one answer; it `takes` so many messages and then no more."""

    def __init__(self, takes: float = math.inf) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.pieces: list[bytes] = []
        self.complete = False
        self._left = takes

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    async def receive(self) -> dict[str, object]:
        raise AssertionError

    async def send(self, message: MutableMapping[str, Any]) -> None:
        assert not self.complete
        self._left -= 1
        if self._left < 0:
            await anyio.sleep_forever()
        if message["type"] == "http.response.start":
            assert not self.pieces
            self.headers = dict(message["headers"])
        else:
            self.pieces.append(message["body"])
            self.complete = not message.get("more_body", False)


class OneWriter:
    """The store's write lock, watched."""

    def __init__(self) -> None:
        self.held = False

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        assert not self.held
        self.held = True
        try:
            yield
        finally:
            self.held = False


class Bench:
    """An answerer and what it did, in order."""

    def __init__(self, tee: SoftwareTee, wallet: str) -> None:
        self.tee = FailingTee(tee)
        self.wallet = wallet
        self.caller = wire.TeeKey(7)
        self.writer = OneWriter()
        self.steps: list[str] = []
        pop = PopVerifier(
            wallet=wallet,
            issuer=NonceIssuer(SecretBytes(bytes(32)), 1000),
            used=UsedNonces(),
            clock=FakeClock(),
            random_bytes=os.urandom,
            max_age_s=1,
        )
        gate = EnvelopeGate(self.tee, EnvelopeNonces(), LabelMemory(LABELS[0]), max_items=100)
        self.answerer = Answerer(wallet=wallet, tee=self.tee, gate=gate, pop=pop, replica=self.writer)

    def step(self, name: str, answer: dict[str, object]) -> Callable[[], dict[str, object]]:
        def run() -> dict[str, object]:
            assert self.writer.held
            self.steps.append(name)
            return answer

        return run

    def change(self, planned: dict[str, object], done: dict[str, object] | None = None) -> Change:
        return Change(self.step("plan", planned), self.step("apply", planned if done is None else done))

    async def answer(
        self, operation: Reading | LongReading | Change | SteppedChange, extra: dict[str, object] | None = None
    ) -> Response:
        key = parse_tee_pubkey(self.caller.der)
        return await self.answerer.answer(operation, POP, key, None, APP_SIGNATURE_HEADER, extra=extra)

    async def refuse(self, error: Rejected | Unavailable) -> Response:
        return await self.answerer.refuse(error, POP, APP_SIGNATURE_HEADER)

    def inner(self, response: Response) -> dict[str, object]:
        return json.loads(wire.open_envelope(self.caller, json.loads(response.body))[0])

    def assert_signed(self, response: Response) -> None:
        signature = response.headers[APP_SIGNATURE_HEADER.decode()]
        assert wire.recover_signer(wire.response_text(POP.signature, self.wallet), signature) == self.wallet
        assert response.headers[NEXT_NONCE_HEADER.decode()]


@pytest.fixture
async def bench() -> Bench:
    tee = SoftwareTee.generate(os.urandom)
    return Bench(tee, (await tee.identity()).wallet)


async def test_an_answer_is_sealed_signed_and_brings_a_nonce(bench: Bench) -> None:
    response = await bench.answer(Reading({"app_id": 7}), extra={"ext": []})
    assert bench.inner(response) == {"app_id": 7, "ext": [], "answer_to": POP.nonce}
    assert response.headers["content-type"] == "application/json"
    bench.assert_signed(response)


async def test_an_answer_larger_than_a_piece_goes_out_whole_in_pieces(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.api.exchange.PIECE_BYTES", 100)
    response = await bench.answer(Reading({"status": "ok", "data": b'{"7":[1]}'}))
    exchange = AsgiExchange()
    await response({"type": "http"}, exchange.receive, exchange.send)
    assert list(exchange.headers.items()) == response.raw_headers
    assert max(map(len, exchange.pieces)) <= 100
    assert exchange.complete
    assert exchange.body == response.body
    assert bench.inner(response) == {"data": {"7": [1]}, "status": "ok", "answer_to": POP.nonce}


class LongData:
    """Data of a long answer and whether it is held; `fails_at` is the part whose making fails."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.held = False
        self._fails_at = fails_at

    @asynccontextmanager
    async def given(self) -> AsyncIterator[LongText]:
        self.held = True
        try:
            yield LongText(9, self._parts())
        finally:
            self.held = False

    def _parts(self) -> Iterator[bytes]:
        for number, part in enumerate((b'{"7":', b"[1", b"]}")):
            assert self.held
            if number == self._fails_at:
                raise InvariantBroken("a part cannot be made")
            yield part


async def test_long_data_is_sealed_while_it_is_sent_and_held_until_then(bench: Bench) -> None:
    data, exchange = LongData(), AsgiExchange()
    response = await bench.answer(LongReading({"status": "ok"}, data.given()))
    assert data.held
    await response({"type": "http"}, exchange.receive, exchange.send)
    assert not data.held
    assert exchange.headers[b"content-length"] == b"%d" % len(exchange.body)
    assert len(exchange.pieces) > 4
    assert exchange.complete
    inner = json.loads(wire.open_envelope(bench.caller, json.loads(exchange.body))[0])
    assert inner == {"data": {"7": [1]}, "status": "ok", "answer_to": POP.nonce}
    bench.assert_signed(response)


@pytest.mark.parametrize("fails", ["sign_message", "seal"])
async def test_long_data_is_let_go_when_it_cannot_be_answered(bench: Bench, fails: str) -> None:
    bench.tee.fails = {fails}
    data = LongData()
    with pytest.raises(Unavailable):
        await bench.answer(LongReading({"status": "ok"}, data.given()))
    assert not data.held


async def test_a_long_answer_that_cannot_be_made_to_its_end_is_left_unfinished(bench: Bench) -> None:
    data, exchange = LongData(fails_at=2), AsgiExchange()
    response = await bench.answer(LongReading({"status": "ok"}, data.given()))
    with pytest.raises(InvariantBroken):
        await response({"type": "http"}, exchange.receive, exchange.send)
    assert not data.held
    assert not exchange.complete


@pytest.mark.parametrize("deadline", ["LONG_ANSWER_DEADLINE_S", "PIECE_DEADLINE_S"])
async def test_a_long_answer_that_is_not_taken_in_time_is_given_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, deadline: str
) -> None:
    monkeypatch.setattr(f"appliance.api.exchange.{deadline}", 0.01)
    data, exchange = LongData(), AsgiExchange(takes=2)
    response = await bench.answer(LongReading({"status": "ok"}, data.given()))
    await response({"type": "http"}, exchange.receive, exchange.send)
    assert not data.held
    assert not exchange.complete
    assert "not taken in time" in caplog.text


async def test_nothing_more_is_made_of_a_long_answer_whose_caller_has_gone(bench: Bench) -> None:
    data, exchange = LongData(fails_at=1), AsgiExchange()
    response = await bench.answer(LongReading({"status": "ok"}, data.given()))
    scope: dict[str, object] = {"type": "http"}

    async def send(message: MutableMapping[str, Any]) -> None:
        await exchange.send(message)
        if exchange.pieces:
            scope[CLIENT_GONE] = True

    await response(scope, exchange.receive, send)
    assert len(exchange.pieces) == 1
    assert not data.held


async def test_a_large_piece_of_a_long_answer_is_sent_in_several(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.api.exchange.PIECE_BYTES", 7)
    data, exchange = LongData(), AsgiExchange()
    response = await bench.answer(LongReading({"status": "ok"}, data.given()))
    await response({"type": "http"}, exchange.receive, exchange.send)
    assert max(map(len, exchange.pieces)) == 7
    assert exchange.headers[b"content-length"] == b"%d" % len(exchange.body)


async def test_a_change_is_planned_then_applied_under_the_write_lock(bench: Bench) -> None:
    response = await bench.answer(bench.change({"updated_at_ms": 1}))
    assert bench.steps == ["plan", "apply"]
    assert bench.inner(response)["updated_at_ms"] == 1
    assert not bench.writer.held


async def test_the_answer_says_what_was_done_where_that_is_not_what_was_planned(bench: Bench) -> None:
    response = await bench.answer(bench.change({"merged": 2}, {"merged": 1}))
    assert bench.inner(response)["merged"] == 1


@pytest.mark.parametrize("fails", ["sign_message", "seal"])
async def test_without_an_answer_nothing_is_changed(bench: Bench, fails: str) -> None:
    bench.tee.fails = {fails}
    with pytest.raises(Unavailable):
        await bench.answer(bench.change({}))
    assert "apply" not in bench.steps
    assert not bench.writer.held


async def test_a_plan_that_refuses_changes_nothing(bench: Bench) -> None:
    def refuse() -> dict[str, object]:
        raise Rejected(Reason.QUOTA, "full")

    with pytest.raises(Rejected):
        await bench.answer(Change(refuse, bench.step("apply", {})))
    assert bench.steps == []
    assert not bench.writer.held


@pytest.mark.parametrize(("cancelled_in", "steps"), [("plan", ["plan"]), ("apply", ["plan", "apply", "applied"])])
async def test_a_change_in_steps_is_never_left_half_applied(bench: Bench, cancelled_in: str, steps: list[str]) -> None:
    scope = anyio.CancelScope()

    async def step(name: str) -> dict[str, object]:
        assert bench.writer.held
        bench.steps.append(name)
        if name == cancelled_in:
            scope.cancel()
        await anyio.lowlevel.checkpoint()
        return {}

    async def apply() -> dict[str, object]:
        answer = await step("apply")
        bench.steps.append("applied")
        return answer

    with scope:
        await bench.answer(SteppedChange(lambda: step("plan"), apply))
        await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert bench.steps == steps
    assert not bench.writer.held


@pytest.mark.parametrize(
    "error", [Rejected(Reason.NOT_FOUND, "no such key"), Unavailable("later", retry_after_s=3.0)], ids=["404", "503"]
)
async def test_a_refusal_is_signed_over_its_status_and_body(bench: Bench, error: Rejected | Unavailable) -> None:
    response = await bench.refuse(error)
    digest = hashlib.sha256(response.body).hexdigest()
    text = f"NovaKMS:Answer:{POP.signature}:{response.status_code}:{digest}:{bench.wallet}"
    assert wire.recover_signer(text, response.headers[ANSWER_SIGNATURE_HEADER.decode()]) == bench.wallet
    bench.assert_signed(response)


async def test_a_refusal_goes_out_unsigned_when_nobody_can_sign(bench: Bench) -> None:
    bench.tee.fails = {"sign_message"}
    response = await bench.refuse(Rejected(Reason.NOT_FOUND, "no such key"))
    assert response.status_code == 404
    assert ANSWER_SIGNATURE_HEADER.decode() not in response.headers
    assert APP_SIGNATURE_HEADER.decode() not in response.headers
