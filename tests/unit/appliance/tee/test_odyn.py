"""The platform's API as a provider, when that API is slow, dropped, wrong, restarted or gone."""

import json
import os
from collections.abc import AsyncIterator, Callable, Iterator

import anyio
import httpx
import pytest

from appliance.http import new_http_client
from appliance.tee.odyn import MAX_ANSWER_BYTES, MAX_REQUEST_BYTES, OdynTee
from appliance.tee.port import Eip1559Transaction, LongText
from appliance.tee.software.provider import SoftwareTee
from kmscore.envelope import AgreementKey, Envelope, TeePublicKey, encode_envelope
from kmscore.errors import InvariantBroken, KmsError, Reason, Rejected, Unavailable
from tests.support.odyn_emulator import OdynEmulator, serve_odyn
from tests.support.secure_module import SecureModuleBench

pytestmark = pytest.mark.anyio

ADDRESS = "/v1/eth/address"
SIGN = "/v1/eth/sign"
SIGN_TX = "/v1/eth/sign-tx"
RANDOM = "/v1/random"
PUBLIC_KEY = "/v1/encryption/public_key"
ENCRYPT = "/v1/encryption/encrypt"
DECRYPT = "/v1/encryption/decrypt"
ATTEST = "/v1/attestation"

TX = Eip1559Transaction(84532, 0, 1, 2, 21_000, "0x" + "6a" * 20, 0, b"\x01")
PEER = AgreementKey.from_scalar(7).public


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[OdynEmulator, str]]:
    emulator = OdynEmulator(secure_module=SecureModuleBench().exchange)
    with serve_odyn(emulator) as url:
        yield emulator, url


@pytest.fixture
def emulator(served: tuple[OdynEmulator, str]) -> OdynEmulator:
    """The runtime, just started: without faults, with keys that no test has seen."""
    emulator, _ = served
    emulator.restart()
    emulator.faults = type(emulator.faults)()
    emulator.calls.clear()
    return emulator


@pytest.fixture(scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with new_http_client() as client:
        yield client


@pytest.fixture
async def tee(client: httpx.AsyncClient, served: tuple[OdynEmulator, str], emulator: OdynEmulator) -> OdynTee:
    tee = OdynTee(client, served[1])
    await tee.identity()
    emulator.calls.clear()
    return tee


async def envelope_for(tee: OdynTee) -> tuple[Envelope, TeePublicKey]:
    peer = SoftwareTee.generate(os.urandom)
    return await peer.seal(b"{}", (await tee.identity()).tee_pubkey, None), (await peer.identity()).tee_pubkey


async def every_call(tee: OdynTee) -> dict[str, Callable[[], object]]:
    envelope, peer = await envelope_for(tee)
    return {
        SIGN: lambda: tee.sign_message(b"x"),
        SIGN_TX: lambda: tee.sign_transaction(TX),
        RANDOM: lambda: tee.random_bytes(32),
        ENCRYPT: lambda: tee.seal(b"{}", PEER, None),
        DECRYPT: lambda: tee.open(envelope, peer),
        ADDRESS: tee.refresh_identity,
        PUBLIC_KEY: tee.refresh_identity,
        ATTEST: lambda: tee.attest(b"nonce"),
    }


ALL = (SIGN, SIGN_TX, RANDOM, ENCRYPT, DECRYPT, ADDRESS, PUBLIC_KEY, ATTEST)


async def test_the_identity_is_read_once_even_by_many_at_a_time(
    client: httpx.AsyncClient, served: tuple[OdynEmulator, str], emulator: OdynEmulator
) -> None:
    tee = OdynTee(client, served[1] + "/")
    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(tee.identity)

    assert (await tee.identity()).wallet == emulator.address
    assert (await tee.identity()).tee_pubkey.der == emulator.public_der
    assert emulator.calls == {ADDRESS: 1, PUBLIC_KEY: 1, SIGN: 1}


@pytest.mark.parametrize("path", [path for path in ALL if path != DECRYPT])
@pytest.mark.parametrize("when", ["drop_before", "drop_after"])
async def test_one_dropped_connection_is_not_noticed(
    tee: OdynTee, emulator: OdynEmulator, path: str, when: str
) -> None:
    call = (await every_call(tee))[path]
    getattr(emulator.faults, when)[path] = 1

    assert await call()  # type: ignore[misc]
    assert emulator.calls[path] == 2


@pytest.mark.parametrize("path", [path for path in ALL if path != DECRYPT])
async def test_a_second_drop_is_unavailable_and_not_tried_a_third_time(
    tee: OdynTee, emulator: OdynEmulator, path: str
) -> None:
    call = (await every_call(tee))[path]
    emulator.faults.drop_before[path] = 3

    with pytest.raises(Unavailable):
        await call()  # type: ignore[misc]
    assert emulator.calls[path] == 2


@pytest.mark.parametrize("when", ["drop_before", "drop_after"])
async def test_decrypting_is_never_sent_twice_because_the_runtime_burns_the_nonce(
    tee: OdynTee, emulator: OdynEmulator, when: str
) -> None:
    envelope, peer = await envelope_for(tee)
    getattr(emulator.faults, when)[DECRYPT] = 1

    with pytest.raises(Unavailable):
        await tee.open(envelope, peer)
    assert emulator.calls[DECRYPT] == 1


async def test_an_envelope_that_is_opened_twice_is_refused(tee: OdynTee) -> None:
    envelope, peer = await envelope_for(tee)
    await tee.open(envelope, peer)

    with pytest.raises(Rejected) as refusal:
        await tee.open(envelope, peer)
    assert refusal.value.reason is Reason.UNDECRYPTABLE


@pytest.mark.parametrize("path", ALL)
async def test_an_answer_that_comes_too_late_is_unavailable(
    client: httpx.AsyncClient, served: tuple[OdynEmulator, str], emulator: OdynEmulator, path: str
) -> None:
    tee = OdynTee(client, served[1], timeout_s=0.5)
    call = (await every_call(tee))[path]
    emulator.faults.latency_s[path] = 5.0

    with pytest.raises(Unavailable, match="in time"):
        await call()  # type: ignore[misc]


async def test_a_runtime_that_is_not_there_is_unavailable(client: httpx.AsyncClient) -> None:
    tee = OdynTee(client, "http://127.0.0.1:1")

    for call in (tee.identity, tee.refresh_identity, lambda: tee.sign_message(b"x"), lambda: tee.random_bytes(1)):
        with pytest.raises(Unavailable, match="cannot be reached"):
            await call()


UNUSABLE = {
    "no JSON": (200, b"internal"),
    "not UTF-8": (200, b'{"address":"\xff"}'),
    "not an object": (200, b"[]"),
    "an empty object": (200, b"{}"),
    "a member twice": (200, b'{"address":"a","address":"b"}'),
    "nothing": (200, b""),
    "members of other types": (
        200,
        json.dumps(
            dict.fromkeys(
                ["address", "public_key_der", "signature", "raw_transaction", "random_bytes", "nonce", "plaintext"], 7
            )
        ).encode(),
    ),
    "members that are not hex": (
        200,
        json.dumps(
            dict.fromkeys(["address", "public_key_der", "signature", "raw_transaction", "random_bytes", "nonce"], "0xé")
        ).encode(),
    ),
    "a server error": (500, b"panic"),
    "a redirect": (307, b"{}"),
    "no such endpoint": (404, b""),
    "not configured": (503, b"not configured"),
    "another success": (201, b"{}"),
}


@pytest.mark.parametrize("path", ALL)
@pytest.mark.parametrize("answer", UNUSABLE.values(), ids=UNUSABLE)
async def test_an_answer_that_cannot_be_used_is_unavailable_and_not_repeated(
    tee: OdynTee, emulator: OdynEmulator, path: str, answer: tuple[int, bytes]
) -> None:
    call = (await every_call(tee))[path]
    emulator.faults.answers[path] = answer

    with pytest.raises(Unavailable) as failure:
        await call()  # type: ignore[misc]
    assert str(failure.value) in (
        "the TEE runtime gave an answer that cannot be used",
        "the TEE runtime refuses a call",
    )


@pytest.mark.parametrize("path", [SIGN, SIGN_TX, RANDOM, ADDRESS, PUBLIC_KEY, ATTEST])
async def test_an_answer_without_end_is_cut(tee: OdynTee, emulator: OdynEmulator, path: str) -> None:
    call = (await every_call(tee))[path]
    emulator.faults.answers[path] = (200, b" " * (MAX_ANSWER_BYTES + 1) + b"{}")

    with pytest.raises(Unavailable):
        await call()  # type: ignore[misc]


@pytest.mark.parametrize(("path", "status", "error"), [
    (ATTEST, 400, Unavailable),
    (SIGN, 400, Unavailable), (SIGN_TX, 400, Unavailable), (RANDOM, 400, Unavailable), (ENCRYPT, 400, Unavailable),
    (DECRYPT, 400, Rejected), (ENCRYPT, 413, Rejected), (DECRYPT, 413, Rejected),
])  # fmt: skip
async def test_only_the_envelopes_own_faults_are_the_callers(
    tee: OdynTee, emulator: OdynEmulator, path: str, status: int, error: type[KmsError]
) -> None:
    call = (await every_call(tee))[path]
    emulator.faults.answers[path] = (status, b"Decryption failed: of something secret")

    with pytest.raises(error) as failure:
        await call()  # type: ignore[misc]
    assert "secret" not in str(failure.value)


WRONG_MEMBERS = {
    "a signature with v of 27": (SIGN, {"signature": "0x" + "11" * 64 + "1b"}),
    "a signature that is too short": (SIGN, {"signature": "0x" + "11" * 64}),
    "a signature of zeros": (SIGN, {"signature": "0x" + "00" * 65}),
    "another message's signature": (SIGN, {"signature": "0x" + "11" * 64 + "00"}),
    "an unsigned transaction": (SIGN_TX, {"raw_transaction": "0x02c0"}),
    "random bytes that are too few": (RANDOM, {"random_bytes": "0x" + "11" * 31}),
    "random bytes with spaces": (RANDOM, {"random_bytes": "0x" + "11 " * 32}),
    "a nonce of another size": (ENCRYPT, {"nonce": "00" * 32}),
    "a ciphertext that is too short": (ENCRYPT, {"encrypted_data": "00" * 17}),
    "another sender's key": (ENCRYPT, {"enclave_public_key": PEER.der.hex()}),
    "no sender's key": (ENCRYPT, {"enclave_public_key": None}),
    "a plaintext that is null": (DECRYPT, {"plaintext": None}),
    "an address of another key": (ADDRESS, {"address": "0x" + "11" * 20}),
    "an address that is none": (ADDRESS, {"address": "0x11"}),
    "a public key off the curve": (PUBLIC_KEY, {"public_key_der": "0x" + PEER.der.hex()[:-2] + "00"}),
    "a public key with a byte more": (PUBLIC_KEY, {"public_key_der": "0x" + PEER.der.hex() + "00"}),
    "a compressed public key": (PUBLIC_KEY, {"public_key_der": "0x02" + PEER.sec1[1:49].hex()}),
}


@pytest.mark.parametrize(("path", "members"), WRONG_MEMBERS.values(), ids=WRONG_MEMBERS)
async def test_a_wrong_member_is_unavailable_and_the_provider_lives_on(
    tee: OdynTee, emulator: OdynEmulator, path: str, members: dict[str, object]
) -> None:
    call = (await every_call(tee))[path]
    emulator.faults.members[path] = members

    with pytest.raises(Unavailable):
        await call()  # type: ignore[misc]
    emulator.faults.members.clear()
    assert await tee.refresh_identity() == await tee.identity()


@pytest.mark.parametrize("path", [SIGN, SIGN_TX])
async def test_a_signature_by_another_key_never_leaves(tee: OdynTee, emulator: OdynEmulator, path: str) -> None:
    call = (await every_call(tee))[path]
    emulator.faults.sign_with_another_key = True

    with pytest.raises(Unavailable):
        await call()  # type: ignore[misc]


async def test_an_identity_whose_key_does_not_sign_for_it_is_not_taken(
    client: httpx.AsyncClient, served: tuple[OdynEmulator, str], emulator: OdynEmulator
) -> None:
    emulator.faults.sign_with_another_key = True
    tee = OdynTee(client, served[1])

    with pytest.raises(Unavailable):
        await tee.identity()
    emulator.faults.sign_with_another_key = False
    assert (await tee.identity()).wallet == emulator.address


@pytest.mark.parametrize("path", [SIGN, SIGN_TX, ENCRYPT, ADDRESS, ATTEST])
async def test_a_restarted_runtime_is_noticed_and_ends_the_provider(
    tee: OdynTee, emulator: OdynEmulator, path: str
) -> None:
    calls = await every_call(tee)
    emulator.restart()

    with pytest.raises(InvariantBroken, match="start it anew"):
        await calls[path]()  # type: ignore[misc]
    for call in calls.values():
        with pytest.raises(InvariantBroken, match="start it anew"):
            await call()  # type: ignore[misc]
    with pytest.raises(InvariantBroken, match="start it anew"):
        await tee.identity()


async def test_a_change_of_the_agreement_key_alone_is_noticed_too(tee: OdynTee, emulator: OdynEmulator) -> None:
    emulator.faults.members[PUBLIC_KEY] = {"public_key_der": "0x" + PEER.der.hex()}

    with pytest.raises(InvariantBroken):
        await tee.refresh_identity()


async def test_a_failed_refresh_keeps_the_identity(tee: OdynTee, emulator: OdynEmulator) -> None:
    before = await tee.identity()
    emulator.faults.answers[PUBLIC_KEY] = (500, b"")

    with pytest.raises(Unavailable):
        await tee.refresh_identity()
    assert await tee.identity() == before
    assert await tee.sign_message(b"x")


async def test_what_is_too_large_for_the_runtime_is_not_sent(tee: OdynTee, emulator: OdynEmulator) -> None:
    large = encode_envelope(PEER.der, bytes(12), bytes(MAX_REQUEST_BYTES // 2))
    for call in (
        lambda: tee.seal(b"x" * (MAX_REQUEST_BYTES + 1), PEER, None),
        lambda: tee.seal(b'"' * (MAX_REQUEST_BYTES // 2), PEER, None),
        lambda: tee.seal_long(LongText(MAX_REQUEST_BYTES + 1, iter([])), PEER, None),
        lambda: tee.seal("é".encode() * (MAX_REQUEST_BYTES // 2), PEER, None),
        lambda: tee.open(large, PEER),
    ):
        with pytest.raises(Rejected) as refusal:
            await call()
        assert refusal.value.reason is Reason.TOO_LARGE
    assert not emulator.calls


async def test_bytes_that_are_not_text_are_a_bug(tee: OdynTee) -> None:
    with pytest.raises(InvariantBroken) as failure:
        await tee.seal(b"\xff\xfe", PEER, None)

    assert failure.value.__context__ is None
    with pytest.raises(InvariantBroken):
        await tee.sign_message(b"\xff")


async def test_a_document_that_was_not_made_for_this_call_never_leaves(tee: OdynTee, emulator: OdynEmulator) -> None:
    for document in (await tee.attest(b"another"), await tee.attest(None)):
        emulator.faults.answers[ATTEST] = (200, document)
        with pytest.raises(Unavailable, match="cannot be used"):
            await tee.attest(b"nonce")
    assert await tee.refresh_identity() == await tee.identity()


async def test_a_runtime_that_attests_to_nothing_is_unavailable(tee: OdynTee, emulator: OdynEmulator) -> None:
    emulator.faults.attestation = "refuse"

    with pytest.raises(Unavailable, match="refuses"):
        await tee.attest(None)


async def test_random_bytes_are_joined_from_as_many_blocks_as_needed(tee: OdynTee, emulator: OdynEmulator) -> None:
    assert len(await tee.random_bytes(65)) == 65
    assert emulator.calls[RANDOM] == 3


@pytest.mark.parametrize("path", ALL)
async def test_a_cancelled_call_leaves_the_provider_usable(tee: OdynTee, emulator: OdynEmulator, path: str) -> None:
    call = (await every_call(tee))[path]
    emulator.faults.latency_s[path] = 5.0

    with anyio.move_on_after(0.2) as scope:
        await call()  # type: ignore[misc]

    assert scope.cancelled_caught
    emulator.faults.latency_s.clear()
    assert await tee.refresh_identity() == await tee.identity()
