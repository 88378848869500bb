"""Opening and sealing: the registered key only, once, in one direction, under the caller's label (protocol §3)."""

import json
import os

import anyio
import pytest

from appliance.auth.envelopes import (
    EnvelopeGate,
    LabelMemory,
    encode_inner,
    encode_long_inner,
    parse_inner,
    parse_sender,
)
from appliance.tee.port import LongText, TeeProvider
from appliance.tee.software.provider import SoftwareTee
from kmscore.envelope import LABELS, Envelope, TeePublicKey, parse_envelope, parse_tee_pubkey
from kmscore.errors import Reason, Rejected
from kmscore.message import STEP_BYTES
from kmscore.nonce import EnvelopeNonces
from tests.support import wire

pytestmark = pytest.mark.anyio

NONCE = "the proof's nonce"


class CountingTee:
    """A provider that counts how often it was asked to decrypt."""

    def __init__(self, tee: TeeProvider) -> None:
        self._tee = tee
        self.opened = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._tee, name)

    async def open(self, envelope: Envelope, peer: TeePublicKey) -> tuple[bytes, str | None]:
        self.opened += 1
        return await self._tee.open(envelope, peer)


class Bench:
    """A node's gate and a caller who speaks the other reading of the protocol."""

    def __init__(self, tee: SoftwareTee, node_der: bytes) -> None:
        self.tee = CountingTee(tee)
        self.node_der = node_der
        self.labels = LabelMemory(LABELS[0], max_keys=2)
        self.gate = EnvelopeGate(self.tee, EnvelopeNonces(), self.labels, max_items=100)
        self.caller = wire.TeeKey(7)
        self.registered = parse_tee_pubkey(self.caller.der)

    def sealed(self, inner: object, label: str = LABELS[0]) -> Envelope:
        plaintext = inner if isinstance(inner, bytes) else json.dumps(inner).encode()
        return self.envelope(wire.seal(self.caller, self.node_der, label, plaintext))

    def envelope(self, members: dict[str, str]) -> Envelope:
        return parse_envelope(json.dumps(members).encode())

    async def open(self, envelope: Envelope, nonce: str = NONCE) -> tuple[dict[str, object], str | None]:
        return await self.gate.open_request(envelope, self.registered, nonce)

    async def refusal(self, envelope: Envelope) -> Reason:
        with pytest.raises(Rejected) as error:
            await self.open(envelope)
        return error.value.reason


@pytest.fixture
async def bench() -> Bench:
    tee = SoftwareTee.generate(os.urandom)
    return Bench(tee, (await tee.identity()).tee_pubkey.der)


@pytest.mark.parametrize("label", LABELS)
async def test_a_request_is_opened_under_every_label_and_the_label_is_remembered(bench: Bench, label: str) -> None:
    assert await bench.open(bench.sealed({"path": "disk"}, label)) == ({"path": "disk"}, label)
    assert bench.labels.get(bench.registered) == label


async def test_another_key_is_refused_before_anything_is_decrypted(bench: Bench) -> None:
    envelope = bench.sealed({})
    bench.registered = parse_tee_pubkey(wire.TeeKey(8).der)
    assert await bench.refusal(envelope) is Reason.SENDER_KEY
    assert bench.tee.opened == 0


async def test_a_sender_that_is_no_der_key_is_malformed(bench: Bench) -> None:
    for sender in (bench.caller.sec1, bench.caller.der + b"\x00", b"", bench.caller.der[:-1] + b"\x00"):
        with pytest.raises(Rejected) as error:
            parse_sender(sender)
        assert error.value.reason is Reason.MALFORMED


async def test_an_envelope_is_opened_once(bench: Bench) -> None:
    envelope = bench.sealed({})
    await bench.open(envelope)
    assert await bench.refusal(envelope) is Reason.REPLAY


async def test_what_does_not_open_uses_no_nonce_up_and_teaches_no_label(bench: Bench) -> None:
    members = wire.seal(bench.caller, bench.node_der, LABELS[1], b"{}")
    spoilt = {**members, "encrypted_data": "00" * 20}
    assert await bench.refusal(bench.envelope(spoilt)) is Reason.UNDECRYPTABLE
    assert bench.labels.get(bench.registered) == LABELS[0]
    await bench.open(bench.envelope(members))


async def test_our_own_answer_handed_back_is_a_replay(bench: Bench) -> None:
    answer = await bench.gate.seal(b"{}", bench.registered, None)
    members = json.loads(answer.canonical)
    reflected = bench.envelope({**members, "sender_tee_pubkey": bench.caller.der.hex()})
    assert await bench.refusal(reflected) is Reason.REPLAY


@pytest.mark.parametrize("member", ["app_id", "answer_to"])
async def test_a_member_that_only_answers_have_is_refused(bench: Bench, member: str) -> None:
    for value in (None, 0, NONCE):
        assert await bench.refusal(bench.sealed({member: value})) is Reason.MALFORMED


@pytest.mark.parametrize("pop_nonce", ["", "other", None, 7, [NONCE]])
async def test_a_body_for_another_proof_is_refused(bench: Bench, pop_nonce: object) -> None:
    assert await bench.refusal(bench.sealed({"pop_nonce": pop_nonce})) is Reason.NONCE


async def test_a_body_for_this_proof_is_opened(bench: Bench) -> None:
    assert (await bench.open(bench.sealed({"pop_nonce": NONCE})))[0] == {"pop_nonce": NONCE}


@pytest.mark.parametrize(
    "plaintext", [b"", b"[]", b"null", b'{"a":1,"a":1}', b"\xff", b"[" * 50_000, b'{"a":[' + b"1," * 100 + b"1]}"]
)
async def test_an_inner_text_that_is_no_bounded_object_is_malformed(bench: Bench, plaintext: bytes) -> None:
    assert await bench.refusal(bench.sealed(plaintext)) is Reason.MALFORMED


async def test_an_answer_must_belong_to_the_request(bench: Bench) -> None:
    for inner in ({}, {"answer_to": NONCE}, {"app_id": 1}):
        assert await bench.gate.open_answer(bench.sealed(inner), bench.registered, NONCE) == inner
    with pytest.raises(Rejected) as error:
        await bench.gate.open_answer(bench.sealed({"answer_to": "other"}), bench.registered, NONCE)
    assert error.value.reason is Reason.NONCE


async def test_answers_are_sealed_under_the_given_label_or_the_remembered_one(bench: Bench) -> None:
    async def label_of(label: str | None) -> str:
        envelope = await bench.gate.seal(b"{}", bench.registered, label)
        return wire.open_envelope(bench.caller, json.loads(envelope.canonical))[1]

    assert await label_of(None) == LABELS[0]
    assert await label_of(LABELS[2]) == LABELS[2]
    await bench.open(bench.sealed({}, LABELS[1]))
    assert await label_of(None) == LABELS[1]


async def test_the_memory_of_labels_is_bounded_and_forgets_the_longest_unused() -> None:
    memory = LabelMemory("default", max_keys=2)
    keys = [parse_tee_pubkey(wire.TeeKey(number).der) for number in (1, 2, 3)]
    memory.remember(keys[0], "a")
    memory.remember(keys[1], "b")
    memory.remember(keys[0], "c")
    memory.remember(keys[2], "d")
    assert [memory.get(key) for key in keys] == ["c", "default", "d"]
    memory.remember(keys[0], None)
    assert memory.get(keys[0]) == "c"


async def test_inner_objects_are_compact_utf8_and_finite() -> None:
    assert encode_inner({"b": "é", "a": [1, None]}) == '{"b":"é","a":[1,null]}'.encode()
    with pytest.raises(ValueError, match="not finite"):
        encode_inner({"a": float("nan")})


async def test_data_may_be_encoded_already() -> None:
    assert encode_inner({"a": 1, "data": b'{"1":[]}'}) == b'{"data":{"1":[]},"a":1}'
    assert encode_inner({"data": b"{}"}) == b'{"data":{}}'
    assert encode_inner({"data": {"1": []}}) == b'{"data":{"1":[]}}'


@pytest.mark.parametrize("inner", [{}, {"status": "ok", "answer_to": "ä"}])
async def test_data_may_be_made_while_it_is_sent(inner: dict[str, object]) -> None:
    text = encode_long_inner(inner, LongText(8, iter([b'{"1"', b":[]}"])))
    parts = list(text.parts)
    assert len(parts) == 4
    assert b"".join(parts) == encode_inner({**inner, "data": b'{"1":[]}'})
    assert text.size_bytes == len(b"".join(parts))


async def test_a_long_inner_object_is_read_in_steps() -> None:
    text = b'{"data":{"1":[%b]}}' % b",".join([b'{"key":"%b"}' % (b"k" * 1000)] * 2000)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(others)
        inner = await parse_inner(text, max_items=10_000)
        group.cancel_scope.cancel()
    assert turns >= len(text) // STEP_BYTES
    assert inner == json.loads(text)
    with pytest.raises(Rejected):
        await parse_inner(text, max_items=100)
