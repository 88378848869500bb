"""How the platform's tool is called, and what becomes of its answers."""

import json
import sys
from pathlib import Path

import pytest

from appliance.host.nitro_cli import EnclaveStart, NitroCli, RunningEnclave, start_timeout_s
from kmscore.errors import ConfigError, Unavailable
from tests.support import fake_nitro_cli
from tests.support.fake_nitro_cli import ENCLAVE_ID

pytestmark = pytest.mark.anyio

START = EnclaveStart(Path("/images/nova-kms.eif"), 1024, 2)


def cli_of(state: Path) -> NitroCli:
    return NitroCli([sys.executable, fake_nitro_cli.__file__, str(state)])


def saying(text: str) -> NitroCli:
    """A tool that prints this and succeeds."""
    return NitroCli([sys.executable, "-c", f"print({text!r})"])


def calls(state: Path) -> list[list[str]]:
    return [json.loads(line) for line in (state / "calls").read_text().splitlines()]


async def test_an_enclave_is_started_seen_and_ended(tmp_path: Path) -> None:
    cli = cli_of(tmp_path)
    enclave = await cli.run_enclave(START)
    assert enclave == RunningEnclave(ENCLAVE_ID, 16, "RUNNING")
    assert await cli.describe_enclaves() == [enclave]
    await cli.terminate_enclave(ENCLAVE_ID)
    assert await cli.describe_enclaves() == []
    assert calls(tmp_path)[0] == [
        "run-enclave", "--eif-path", "/images/nova-kms.eif", "--memory", "1024", "--cpu-count", "2",
    ]  # fmt: skip
    assert calls(tmp_path)[2] == ["terminate-enclave", "--enclave-id", ENCLAVE_ID]


async def test_context_id_and_debug_mode_are_passed_on(tmp_path: Path) -> None:
    enclave = await cli_of(tmp_path).run_enclave(EnclaveStart(Path("x.eif"), 2048, 4, cid=20, debug=True))
    assert enclave.cid == 20
    assert calls(tmp_path)[0][-3:] == ["--enclave-cid", "20", "--debug-mode"]


async def test_the_console_is_passed_on_until_the_enclave_ends(tmp_path: Path) -> None:
    shown: list[bytes] = []
    await cli_of(tmp_path).console(ENCLAVE_ID, shown.append)
    assert b"".join(shown) == b"init: mounts\n"


async def test_a_missing_tool_is_a_sentence_with_its_package() -> None:
    with pytest.raises(ConfigError, match="aws-nitro-enclaves-cli"):
        await NitroCli(["/nonexistent/nitro-cli"]).run_enclave(START)


async def test_a_refusal_says_what_the_tool_said(tmp_path: Path) -> None:
    (tmp_path / "fail").write_text("[ E26 ] Insufficient memory requested.\n  See the log.\n")
    with pytest.raises(Unavailable, match=r"run-enclave failed: \[ E26 \] Insufficient memory requested\. See the log"):
        await cli_of(tmp_path).run_enclave(START)


@pytest.mark.parametrize(
    "text",
    ["", "not JSON", "[]", "{}", '{"EnclaveID": 1, "EnclaveCID": 16}', '{"EnclaveID": "x", "EnclaveCID": "16"}',
     '{"EnclaveID": "x", "EnclaveCID": true}'],
    ids=lambda text: text[:20] or "nothing",
)  # fmt: skip
async def test_another_answer_is_not_guessed_at(text: str) -> None:
    with pytest.raises(Unavailable):
        await saying(text).run_enclave(START)


async def test_an_answer_without_end_is_cut_off() -> None:
    with pytest.raises(Unavailable, match="something else"):
        await NitroCli([sys.executable, "-c", "while True: print('x' * 65536)"]).run_enclave(START)


async def test_a_list_is_expected_of_a_description() -> None:
    with pytest.raises(Unavailable):
        await saying("{}").describe_enclaves()


@pytest.mark.parametrize(("memory_mib", "waits_s"), [(1024, 180), (25 << 10, 270), (101 << 10, 630)])
def test_the_tool_is_given_longer_than_it_waits_for_the_heartbeat(memory_mib: int, waits_s: int) -> None:
    assert start_timeout_s(memory_mib) == waits_s + 20
