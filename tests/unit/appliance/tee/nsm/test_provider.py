"""Keys made from two sources, and documents that state them."""

import itertools
import os
from collections.abc import Callable

import httpx
import pytest

from appliance.main import open_tee
from appliance.settings import Settings
from appliance.tee.attestation.cbor import encode_cbor
from appliance.tee.nsm.device import NSM_DEVICE
from appliance.tee.nsm.module import SecureModule
from appliance.tee.nsm.provider import NsmTee, mix
from appliance.tee.port import TeeIdentity
from kmscore.envelope import AgreementKey
from kmscore.errors import ConfigError, InvariantBroken, Unavailable
from tests.support.secure_module import CONFIG_DIGEST, SecureModuleBench

pytestmark = pytest.mark.anyio

PEER = AgreementKey.from_scalar(7).public


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def bench() -> SecureModuleBench:
    return SecureModuleBench().bind()


def repeating(first: int) -> Callable[[int], bytes]:
    """A source that everybody can predict."""
    numbers = itertools.count(first)
    return lambda size: next(numbers).to_bytes(8, "big") * (size // 8)


def answering(first: int) -> Callable[[bytes], bytes]:
    """A module whose random bytes everybody can predict."""
    source = repeating(first)
    return lambda _: encode_cbor({"GetRandom": {"random": source(256)}})


async def identity_from(module: Callable[[bytes], bytes], kernel: Callable[[int], bytes]) -> TeeIdentity:
    tee = await NsmTee.generate(SecureModule(module), config_digest=None, kernel=kernel)
    return await tee.identity()


async def generate(bench: SecureModuleBench) -> NsmTee:
    return await NsmTee.generate(SecureModule(bench.exchange), config_digest=CONFIG_DIGEST)


async def test_keys_depend_on_both_sources_and_on_nothing_else() -> None:
    first = await identity_from(answering(1), repeating(1))

    assert await identity_from(answering(1), repeating(1)) == first
    for other in (
        await identity_from(answering(2), repeating(1)),
        await identity_from(answering(1), repeating(2)),
    ):
        assert other.wallet != first.wallet
        assert other.tee_pubkey != first.tee_pubkey


@pytest.mark.parametrize("stuck", ["module", "kernel"])
async def test_keys_differ_while_one_source_is_stuck(stuck: str, bench: SecureModuleBench) -> None:
    def zeros(_: bytes) -> bytes:
        return encode_cbor({"GetRandom": {"random": bytes(256)}})

    module, kernel = (zeros, os.urandom) if stuck == "module" else (bench.nsm.handle, bytes)
    identities = {await identity_from(module, kernel) for _ in range(3)}

    assert len({identity.wallet for identity in identities}) == 3
    assert len({identity.tee_pubkey for identity in identities}) == 3


async def test_random_bytes_are_fresh_from_both_sources() -> None:
    async def draw(module: int, kernel: int) -> list[bytes]:
        tee = await NsmTee.generate(SecureModule(answering(module)), config_digest=None, kernel=repeating(kernel))
        return [await tee.random_bytes(32) for _ in range(2)]

    first = await draw(1, 1)
    assert await draw(1, 1) == first
    everything = [*first, *await draw(100, 1), *await draw(1, 100)]
    assert len(set(everything)) == 6


def test_mixing_is_hkdf_over_both() -> None:
    mixed = mix(b"\1" * 64, b"\2" * 64, b"key 0", 32)

    assert mixed != mix(b"\2" * 64, b"\1" * 64, b"key 0", 32)
    assert mixed != mix(b"\1" * 64, b"\2" * 64, b"key 1", 32)
    assert mixed == mix(b"\1" * 64, b"\2" * 64, b"key 0", 32)


async def test_its_document_proves_its_identity_and_configuration(bench: SecureModuleBench) -> None:
    tee = await generate(bench)
    identity = await tee.identity()

    stated = bench.identity_in(await tee.attest(b"nonce"), b"nonce")

    assert (stated.wallet, stated.tee_pubkey) == (identity.wallet, identity.tee_pubkey)
    assert stated.config_digest == CONFIG_DIGEST


async def test_a_configuration_that_is_not_the_locked_one_ends_the_start(bench: SecureModuleBench) -> None:
    for other in (SecureModuleBench(), SecureModuleBench().bind(bytes(48))):
        with pytest.raises(ConfigError, match="PCR16"):
            await generate(other)


async def test_a_configuration_that_is_not_locked_ends_the_start() -> None:
    bench = SecureModuleBench()
    bench.nsm.handle(encode_cbor({"ExtendPCR": {"index": 16, "data": CONFIG_DIGEST}}))

    with pytest.raises(ConfigError, match="PCR16"):
        await generate(bench)


async def test_envelopes_and_signatures_do_not_wait_for_the_module(bench: SecureModuleBench) -> None:
    tee = await generate(bench)
    bench.requests.clear()

    await tee.seal(b"{}", PEER, None)
    await tee.sign_message(b"x")

    assert bench.requests == []


async def test_a_module_that_does_not_answer_yields_no_keys(bench: SecureModuleBench) -> None:
    bench.respond = lambda _: encode_cbor({"Error": "InternalError"})

    with pytest.raises(Unavailable):
        await generate(bench)


async def test_a_module_that_fails_later_leaves_the_keys_usable(bench: SecureModuleBench) -> None:
    tee = await generate(bench)
    bench.respond = lambda _: encode_cbor({"Error": "InternalError"})

    for call in (lambda: tee.attest(None), lambda: tee.random_bytes(32)):
        with pytest.raises(Unavailable):
            await call()
    assert await tee.sign_message(b"x")


async def test_another_document_than_was_asked_for_never_leaves(bench: SecureModuleBench) -> None:
    tee, stranger = await generate(bench), await generate(bench)
    documents = {
        "another nonce": await tee.attest(b"another"),
        "no nonce": await tee.attest(None),
        "another identity": await stranger.attest(b"nonce"),
        "no document": b"\xa0",
    }
    for document in documents.values():
        bench.respond = lambda _, document=document: encode_cbor({"Attestation": {"document": document}})  # type: ignore[misc]
        with pytest.raises(Unavailable, match="another document"):
            await tee.attest(b"nonce")


async def test_closing_ends_it(bench: SecureModuleBench) -> None:
    tee = await generate(bench)
    await tee.aclose()

    for call in (tee.identity, lambda: tee.attest(None), lambda: tee.random_bytes(1)):
        with pytest.raises(InvariantBroken):
            await call()


@pytest.mark.skipif(os.path.exists(NSM_DEVICE), reason="this machine has a secure module")  # noqa: PTH110
async def test_the_settings_choose_it_and_a_machine_without_a_module_is_told() -> None:
    async with httpx.AsyncClient() as http:
        with pytest.raises(ConfigError, match="/dev/nsm"):
            await open_tee(Settings.from_environ({}), http)
