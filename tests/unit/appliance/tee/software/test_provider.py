"""Keys in this process: where they come from, that they go, and that nobody overlooks what they are."""

import itertools
import json
import logging
import os
import ssl
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from appliance.main import open_tee
from appliance.settings import Settings
from appliance.tee.attestation.document import parse_document
from appliance.tee.attestation.measurements import Measurements
from appliance.tee.attestation.statement import CONFIG_PCR, extend_config
from appliance.tee.local import INLINE_BYTES, OPEN_FACTOR, LocalTee
from appliance.tee.port import LongText
from appliance.tee.software.provider import SOFTWARE_MEASUREMENTS, SoftwareTee
from kmscore.envelope import LABELS, AgreementKey
from kmscore.errors import ConfigError, InvariantBroken, Rejected
from kmscore.pop import WalletKey
from kmscore.secret import SecretBytes

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def software_settings(**variables: str) -> Settings:
    return Settings.from_environ({"IN_ENCLAVE": "false", "TEE_PROVIDER": "software", **variables})


def counting(first: int = 1) -> Callable[[int], bytes]:
    """A random source that is none: 1, 2, 3 … in as many bytes as asked for."""
    numbers = itertools.count(first)
    return lambda size: next(numbers).to_bytes(size)


async def test_both_keys_come_from_the_injected_source_alone() -> None:
    first, second = SoftwareTee.generate(counting()), SoftwareTee.generate(counting())

    assert await first.identity() == await second.identity()
    assert await first.identity() != await SoftwareTee.generate(counting(100)).identity()


async def test_keys_of_the_systems_source_differ() -> None:
    identities = {await SoftwareTee.generate(os.urandom).identity() for _ in range(3)}

    assert len(identities) == 3


def test_a_draw_outside_the_group_is_repeated() -> None:
    zero, one = bytes(32), bytes(31) + b"\x01"
    draws = iter([zero, b"blinding" * 4, one, b"blinding" * 4, b"\xff" * 48, bytes(47) + b"\x01"])

    SoftwareTee.generate(lambda _: next(draws))

    assert next(draws, None) is None


def test_a_source_that_never_yields_a_key_is_a_bug() -> None:
    with pytest.raises(InvariantBroken):
        SoftwareTee.generate(bytes)


def test_its_construction_warns(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "appliance.tee.software.provider"):
        SoftwareTee.generate(os.urandom)

    assert "development" in caplog.text
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_its_registers_say_in_plain_words_that_it_is_no_enclave() -> None:
    document = parse_document(await SoftwareTee.generate(os.urandom).attest(None))

    texts = [document.pcrs[index].decode("ascii") for index in (0, 1, 2)]
    assert texts == [f"Nova KMS software TEE, no enclave: PCR{index}........." for index in (0, 1, 2)]
    assert SOFTWARE_MEASUREMENTS.match(document.pcrs)


def test_the_file_that_commands_verify_against_holds_its_registers() -> None:
    content = (Path(__file__).parents[5] / "deploy/software-measurements.json").read_bytes()

    assert Measurements.parse(content) == SOFTWARE_MEASUREMENTS
    assert json.loads(content)["code_measurement"] == f"0x{SOFTWARE_MEASUREMENTS.code_measurement.hex()}"


@pytest.mark.parametrize("digest", [None, b"\xab" * 48])
async def test_its_configuration_register_is_locked_with_or_without_a_digest(digest: bytes | None) -> None:
    document = parse_document(await SoftwareTee.generate(os.urandom, config_digest=digest).attest(None))

    # A document shows locked registers alone.
    assert document.pcrs[CONFIG_PCR] == (bytes(48) if digest is None else extend_config(digest))


async def test_every_process_has_a_root_of_its_own_in_both_forms() -> None:
    first, second = SoftwareTee.generate(os.urandom), SoftwareTee.generate(os.urandom)

    assert first.root_der != second.root_der
    assert ssl.PEM_cert_to_DER_cert(first.root_pem.decode()) == first.root_der


async def test_a_node_writes_the_root_where_the_setting_says(tmp_path: Path) -> None:
    file = tmp_path / "root.pem"
    tee = await open_tee(software_settings(SOFTWARE_TEE_ROOT_FILE=str(file)), httpx.AsyncClient())

    assert isinstance(tee, SoftwareTee)
    assert file.read_bytes() == tee.root_pem


async def test_a_root_that_cannot_be_written_keeps_the_node_from_starting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="SOFTWARE_TEE_ROOT_FILE"):
        await open_tee(software_settings(SOFTWARE_TEE_ROOT_FILE=f"{tmp_path}/missing/root.pem"), httpx.AsyncClient())


async def test_an_image_without_the_package_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "appliance.tee.software.provider", None)

    with pytest.raises(ConfigError, match="TEE_PROVIDER='software'"):
        await open_tee(software_settings(), httpx.AsyncClient())


async def test_closing_wipes_the_wallet_key() -> None:
    key = WalletKey(SecretBytes(b"\x01" * 32))
    tee = LocalTee(key, AgreementKey.generate(), os.urandom)

    await tee.aclose()

    with pytest.raises(InvariantBroken):
        key.sign_message(b"x")


async def test_a_label_that_is_not_the_protocols_is_a_bug() -> None:
    tee = SoftwareTee.generate(os.urandom)

    with pytest.raises(InvariantBroken):
        await tee.seal(b"{}", (await tee.identity()).tee_pubkey, "a-label-of-its-own")
    with pytest.raises(InvariantBroken):
        await tee.seal_long(LongText(2, iter([b"{}"])), (await tee.identity()).tee_pubkey, "a-label-of-its-own")


async def test_a_random_source_that_returns_too_little_is_a_bug() -> None:
    tee = LocalTee(WalletKey(SecretBytes(b"\x01" * 32)), AgreementKey.generate(), lambda size: bytes(size // 2))

    with pytest.raises(InvariantBroken):
        await tee.random_bytes(32)


@pytest.mark.parametrize("size", [0, 1, INLINE_BYTES, INLINE_BYTES + 1, OPEN_FACTOR * INLINE_BYTES])
@pytest.mark.parametrize("label", LABELS)
async def test_envelopes_of_every_size_open_here_or_in_a_thread(size: int, label: str) -> None:
    ours, theirs = SoftwareTee.generate(os.urandom), SoftwareTee.generate(os.urandom)
    ours_pubkey, theirs_pubkey = (await ours.identity()).tee_pubkey, (await theirs.identity()).tee_pubkey

    envelope = await ours.seal(b"x" * size, theirs_pubkey, label)

    assert await theirs.open(envelope, ours_pubkey) == (b"x" * size, label)


async def test_a_refusal_from_a_thread_is_the_same_refusal() -> None:
    tee = SoftwareTee.generate(os.urandom)
    other = SoftwareTee.generate(os.urandom)
    envelope = await tee.seal(bytes(2 * OPEN_FACTOR * INLINE_BYTES), (await other.identity()).tee_pubkey, None)

    with pytest.raises(Rejected):
        await tee.open(envelope, (await SoftwareTee.generate(os.urandom).identity()).tee_pubkey)
