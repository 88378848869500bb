"""One suite for every TEE provider: what the port promises holds on our own keys and on the platform's runtime."""

import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime

import httpx
import pytest
from eth_account import Account
from eth_account.typed_transactions import TypedTransaction
from hexbytes import HexBytes

from appliance.http import new_http_client
from appliance.tee.attestation.errors import Refused, Step
from appliance.tee.attestation.root import aws_root
from appliance.tee.attestation.verify import VerificationPolicy, VerifiedDocument, attested_identity, verify_document
from appliance.tee.nsm.module import SecureModule
from appliance.tee.nsm.provider import NsmTee
from appliance.tee.odyn import OdynTee
from appliance.tee.port import MAX_ATTESTATION_NONCE_BYTES, Eip1559Transaction, LongText, TeeProvider
from appliance.tee.software.provider import SOFTWARE_MEASUREMENTS, SoftwareTee
from kmscore.envelope import LABELS, Envelope, encode_envelope, parse_envelope
from kmscore.errors import InvariantBroken, Reason, Rejected, Unavailable
from kmscore.pop import recover_signer
from tests.support.odyn_emulator import OdynEmulator, serve_odyn
from tests.support.secure_module import CONFIG_DIGEST, SecureModuleBench

pytestmark = pytest.mark.anyio

Verify = Callable[[bytes, bytes | None], VerifiedDocument]

RUNTIMES = [f"odyn, {label}" for label in LABELS]
TRANSACTIONS = {
    "a call with data": Eip1559Transaction(
        84532, 7, 1_000_000, 3_000_000_000, 90_000, "0x" + "6a" * 20, 0, b"\x01" * 36
    ),
    "zero everywhere it may be": Eip1559Transaction(1, 0, 0, 0, 0, "0x" + "00" * 20, 0, b""),
    "leading zero bytes": Eip1559Transaction(31337, 256, 1, 2, 21_000, "0x00" + "0b" * 19, 1 << 200, b"\x00\x00\x01"),
    "long data": Eip1559Transaction(84532, 1, 1, 2, 21_000, "0x" + "ff" * 20, 5, bytes(range(256)) * 8),
}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with new_http_client() as client:
        yield client


@pytest.fixture(scope="module")
def module() -> SecureModuleBench:
    """The secure module of the enclave that every provider here stands in."""
    return SecureModuleBench().bind()


@pytest.fixture(scope="module")
def runtimes(module: SecureModuleBench) -> Iterator[dict[str, str]]:
    """One runtime for each label it may have: label -> base URL."""
    with ExitStack() as servers:
        yield {
            label: servers.enter_context(serve_odyn(OdynEmulator(label=label, secure_module=module.exchange)))
            for label in LABELS
        }


@pytest.fixture(params=["software", "nsm", *RUNTIMES])
async def tee(
    request: pytest.FixtureRequest, client: httpx.AsyncClient, runtimes: dict[str, str], module: SecureModuleBench
) -> AsyncIterator[TeeProvider]:
    provider: TeeProvider
    if request.param == "software":
        provider = SoftwareTee.generate(os.urandom, config_digest=CONFIG_DIGEST)
    elif request.param == "nsm":
        provider = await NsmTee.generate(SecureModule(module.exchange), config_digest=CONFIG_DIGEST)
    else:
        provider = OdynTee(client, runtimes[request.param.removeprefix("odyn, ")])
    yield provider
    await provider.aclose()


@pytest.fixture
def verify(tee: TeeProvider, module: SecureModuleBench) -> Verify:
    """Verifies a document of `tee` under the root and the measurements that are its own."""
    if not isinstance(tee, SoftwareTee):
        return module.verify
    root_der = tee.root_der

    def verify_software(document: bytes, nonce: bytes | None) -> VerifiedDocument:
        return verify_document(
            document, VerificationPolicy(root_der, datetime.now(UTC), nonce, [SOFTWARE_MEASUREMENTS])
        )

    return verify_software


@pytest.fixture
async def peer() -> SoftwareTee:
    """Who is on the other side: an implementation of the envelope with every label."""
    return SoftwareTee.generate(os.urandom)


async def sealed_to(tee: TeeProvider, peer: SoftwareTee, plaintext: bytes, label: str | None = None) -> Envelope:
    return await peer.seal(plaintext, (await tee.identity()).tee_pubkey, label)


def runtime_label(request: pytest.FixtureRequest) -> str | None:
    name = request.node.callspec.params["tee"]
    return name.removeprefix("odyn, ") if name.startswith("odyn, ") else None


async def test_the_identity_stays_the_same_and_is_canonical(tee: TeeProvider) -> None:
    identity = await tee.identity()

    assert identity == await tee.identity() == await tee.refresh_identity()
    assert identity.wallet == identity.wallet.lower()
    assert len(bytes.fromhex(identity.wallet.removeprefix("0x"))) == 20
    assert len(identity.tee_pubkey.der) == 120


@pytest.mark.parametrize("message", [b"x", 'héllo\n"\\ \u2028 🔑'.encode(), b"NovaKMS:Auth:" + b"A" * 4096])
async def test_a_signature_recovers_to_the_wallet_with_v_zero_or_one(tee: TeeProvider, message: bytes) -> None:
    signature = await tee.sign_message(message)

    assert len(signature) == 132
    assert signature[:2] == "0x"
    assert signature[-2:] in ("00", "01")
    assert signature == signature.lower()
    assert recover_signer(message, signature) == (await tee.identity()).wallet


@pytest.mark.parametrize("tx", TRANSACTIONS.values(), ids=TRANSACTIONS)
async def test_a_transaction_decodes_to_what_was_asked_for_and_recovers_to_the_wallet(
    tee: TeeProvider, tx: Eip1559Transaction
) -> None:
    raw = await tee.sign_transaction(tx)

    decoded = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
    wanted = {
        "chainId": tx.chain_id,
        "nonce": tx.nonce,
        "maxPriorityFeePerGas": tx.max_priority_fee_per_gas,
        "maxFeePerGas": tx.max_fee_per_gas,
        "gas": tx.gas_limit,
        "to": bytes.fromhex(tx.to[2:]),
        "value": tx.value,
        "data": tx.data,
        "accessList": (),
    }
    assert {name: decoded[name] for name in wanted} == wanted
    assert Account.recover_transaction(raw).lower() == (await tee.identity()).wallet


@pytest.mark.parametrize("label", LABELS)
async def test_it_opens_what_a_peer_sealed_under_its_label(
    tee: TeeProvider, peer: SoftwareTee, label: str, request: pytest.FixtureRequest
) -> None:
    only = runtime_label(request)
    envelope = await sealed_to(tee, peer, b'{"type":"delta"}', label)

    if only is not None and only != label:
        with pytest.raises(Rejected) as refusal:
            await tee.open(envelope, (await peer.identity()).tee_pubkey)
        assert refusal.value.reason is Reason.UNDECRYPTABLE
        return
    plaintext, used = await tee.open(envelope, (await peer.identity()).tee_pubkey)
    assert plaintext == b'{"type":"delta"}'
    assert used == (None if only else label)


@pytest.mark.parametrize("label", LABELS)
async def test_a_peer_opens_what_it_sealed(
    tee: TeeProvider, peer: SoftwareTee, label: str, request: pytest.FixtureRequest
) -> None:
    envelope = await tee.seal('{"key":"ä\\n\u0000"}'.encode(), (await peer.identity()).tee_pubkey, label)

    assert envelope.sender == (await tee.identity()).tee_pubkey.der
    assert parse_envelope(envelope.canonical) == envelope
    plaintext, used = await peer.open(envelope, (await tee.identity()).tee_pubkey)
    assert plaintext == '{"key":"ä\\n\u0000"}'.encode()
    assert used == (runtime_label(request) or label)


async def test_a_label_left_open_is_the_providers_choice_and_opens(tee: TeeProvider, peer: SoftwareTee) -> None:
    envelope = await tee.seal(b"{}", (await peer.identity()).tee_pubkey, None)

    assert (await peer.open(envelope, (await tee.identity()).tee_pubkey))[0] == b"{}"


async def test_a_megabyte_travels_both_ways(
    tee: TeeProvider, peer: SoftwareTee, request: pytest.FixtureRequest
) -> None:
    plaintext = json.dumps({"value": "ab" * (1 << 19)}).encode()
    ours, theirs = (await tee.identity()).tee_pubkey, (await peer.identity()).tee_pubkey

    assert (await tee.open(await peer.seal(plaintext, ours, runtime_label(request)), theirs))[0] == plaintext
    assert (await peer.open(await tee.seal(plaintext, theirs, None), ours))[0] == plaintext


@pytest.mark.parametrize(
    "parts", [[b"{}"], [b'{"value":"', *[b"ab" * 50_000] * 5, b'"}'], ["ä".encode()[:1], "ä".encode()[1:]]]
)
async def test_a_long_text_travels_part_by_part(tee: TeeProvider, peer: SoftwareTee, parts: list[bytes]) -> None:
    ours, theirs = (await tee.identity()).tee_pubkey, (await peer.identity()).tee_pubkey

    sealed = await tee.seal_long(LongText(sum(map(len, parts)), iter(parts)), theirs, None)
    body = b"".join([piece async for piece in sealed.pieces])

    assert len(body) == sealed.body_bytes
    envelope = parse_envelope(body)
    assert (envelope.sender, envelope.nonce, envelope.canonical) == (ours.der, sealed.nonce, body)
    assert (await peer.open(envelope, ours))[0] == b"".join(parts)


async def test_every_envelope_has_a_nonce_of_its_own(tee: TeeProvider, peer: SoftwareTee) -> None:
    theirs = (await peer.identity()).tee_pubkey

    assert len({(await tee.seal(b"{}", theirs, None)).nonce for _ in range(5)}) == 5


@pytest.mark.parametrize("change", ["a flipped bit", "a cut tag", "another nonce", "another sender"])
async def test_a_tampered_envelope_is_refused_as_undecryptable(
    tee: TeeProvider, peer: SoftwareTee, change: str, request: pytest.FixtureRequest
) -> None:
    envelope = await sealed_to(tee, peer, b'{"type":"delta"}', runtime_label(request))
    sender = (await peer.identity()).tee_pubkey
    nonce, ciphertext = envelope.nonce, envelope.ciphertext
    if change == "a flipped bit":
        ciphertext = bytes([ciphertext[0] ^ 1]) + ciphertext[1:]
    elif change == "a cut tag":
        ciphertext = ciphertext[:-1]
    elif change == "another nonce":
        nonce = bytes(12)
    else:
        sender = (await SoftwareTee.generate(os.urandom).identity()).tee_pubkey

    with pytest.raises(Rejected) as refusal:
        await tee.open(encode_envelope(sender.der, nonce, ciphertext), sender)

    assert refusal.value.reason is Reason.UNDECRYPTABLE


@pytest.mark.parametrize("size", [0, 1, 12, 32, 33, 1024])
async def test_random_bytes_have_the_size_asked_for(tee: TeeProvider, size: int) -> None:
    first, second = await tee.random_bytes(size), await tee.random_bytes(size)

    assert len(first) == len(second) == size
    assert size < 12 or first != second


async def test_more_random_bytes_than_anything_needs_are_a_bug(tee: TeeProvider) -> None:
    with pytest.raises(InvariantBroken):
        await tee.random_bytes(1025)


@pytest.mark.parametrize("nonce", [None, b"\0", b"nonce", bytes(64), bytes(range(256)) * 2])
async def test_its_document_states_its_identity_and_carries_the_nonce(
    tee: TeeProvider, verify: Verify, nonce: bytes | None
) -> None:
    identity = await tee.identity()

    document = verify(await tee.attest(nonce), nonce)

    assert document.nonce == nonce
    stated = attested_identity(document)
    assert (stated.wallet, stated.tee_pubkey) == (identity.wallet, identity.tee_pubkey)


async def test_only_a_provider_that_extended_it_states_a_configuration(
    tee: TeeProvider, verify: Verify, request: pytest.FixtureRequest
) -> None:
    stated = attested_identity(verify(await tee.attest(None), None))

    assert stated.config_digest == (None if runtime_label(request) else CONFIG_DIGEST)


async def test_every_document_is_made_anew(tee: TeeProvider) -> None:
    assert len({await tee.attest(None) for _ in range(3)}) == 3


async def test_a_nonce_larger_than_a_document_takes_is_a_bug(tee: TeeProvider) -> None:
    with pytest.raises(InvariantBroken):
        await tee.attest(bytes(MAX_ATTESTATION_NONCE_BYTES + 1))


async def test_a_production_verifier_refuses_the_document_of_a_root_that_is_not_aws(tee: TeeProvider) -> None:
    policy = VerificationPolicy(aws_root(), datetime.now(UTC), b"nonce", None)

    with pytest.raises(Refused) as refusal:
        verify_document(await tee.attest(b"nonce"), policy)

    assert refusal.value.step is Step.ROOT


@pytest.mark.parametrize("tee", ["nsm", *RUNTIMES], indirect=True)
async def test_a_module_that_does_not_answer_makes_attestation_unavailable_and_nothing_else(
    tee: TeeProvider, module: SecureModuleBench
) -> None:
    await tee.identity()
    module.respond = lambda _: b"\xa1\x65Error\x6dInternalError"
    try:
        with pytest.raises(Unavailable):
            await tee.attest(b"nonce")
        assert await tee.sign_message(b"x")
    finally:
        module.respond = module.nsm.handle


async def test_nothing_works_after_closing_which_may_happen_twice(tee: TeeProvider, peer: SoftwareTee) -> None:
    theirs = (await peer.identity()).tee_pubkey
    envelope = await sealed_to(tee, peer, b"{}")
    await tee.identity()

    await tee.aclose()
    await tee.aclose()

    for call in (
        tee.identity,
        tee.refresh_identity,
        lambda: tee.sign_message(b"x"),
        lambda: tee.sign_transaction(TRANSACTIONS["long data"]),
        lambda: tee.seal(b"{}", theirs, None),
        lambda: tee.seal_long(LongText(2, iter([b"{}"])), theirs, None),
        lambda: tee.open(envelope, theirs),
        lambda: tee.random_bytes(1),
        lambda: tee.attest(None),
    ):
        with pytest.raises(InvariantBroken):
            await call()
