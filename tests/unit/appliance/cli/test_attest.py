"""`nova-kms attest verify`: of files, of nodes, and what it says when it does not check something."""

import json
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.attestation import CONFIG_DIGEST, MODULE_ID, NONCE, PCRS, TEE_PUBKEY, WALLET, document, root_der
from tests.support.attestation_vectors import DIRECTORY
from tests.support.fake_node import FakeClock
from tests.support.node_attestation import Attesters, answers
from tests.support.secure_module import IMAGE

MEASUREMENTS = {f"PCR{index}": PCRS[index].hex() for index in (0, 1, 2)} | {"code_measurement": "0x00", "sources": {}}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A directory with a document, its root in both forms, and measurements."""
    (tmp_path / "document.bin").write_bytes(document())
    (tmp_path / "root.der").write_bytes(root_der())
    pem = x509.load_der_x509_certificate(root_der()).public_bytes(Encoding.PEM)
    (tmp_path / "root.pem").write_bytes(pem)
    (tmp_path / "measurements.json").write_text(json.dumps(MEASUREMENTS))
    return tmp_path


@pytest.fixture
def archived(files: Path) -> list[str]:
    """Everything that a file from long ago needs to pass."""
    return [
        "attest", "verify", str(files / "document.bin"), "--root", str(files / "root.der"), "--at-document-time",
        "--measurements", str(files / "measurements.json"), "--nonce", NONCE.hex(),
    ]  # fmt: skip


def test_a_genuine_document_is_shown(desk, archived) -> None:
    result = desk.run(*archived)

    assert result.exit_code == 0
    shown = dict(line.split(maxsplit=1) for line in result.stdout.splitlines()[1:])
    assert shown["module"] == MODULE_ID
    assert shown["time"] == "2026-01-15T12:00:00.000+00:00"
    assert shown["wallet"] == WALLET
    assert shown["teePubkey"] == TEE_PUBKEY.der.hex()
    assert shown["PCR0"] == PCRS[0].hex()
    assert shown["config"] == CONFIG_DIGEST.hex()
    assert "PCR5" not in shown
    assert [line.partition("warning: ")[2][:30] for line in result.stderr.splitlines()] == [
        "this is not the AWS root: the ",
        "verified at the document's own",
    ]


def test_json_holds_the_same_and_every_register(desk, archived) -> None:
    result = desk.run(*archived, "--json")

    shown = json.loads(result.stdout)
    assert (shown["wallet"], shown["tee_pubkey"], shown["module_id"]) == (WALLET, TEE_PUBKEY.der.hex(), MODULE_ID)
    assert len(shown["pcrs"]) == 17
    assert (shown["nonce"], shown["config"]) == (NONCE.hex(), CONFIG_DIGEST.hex())
    assert len(shown["warnings"]) == 2


@pytest.mark.parametrize("root", ["root.der", "root.pem"])
def test_a_root_is_taken_in_both_forms(desk, archived, files: Path, root: str) -> None:
    assert desk.run(*archived, "--root", str(files / root)).exit_code == 0


def test_everything_that_was_not_checked_is_said(desk, files: Path) -> None:
    result = desk.run(
        "attest", "verify", str(files / "document.bin"), "--root", str(files / "root.der"), "--at-document-time"
    )

    assert result.exit_code == 0
    assert [word in result.stderr for word in ("AWS root", "own time", "no nonce", "no measurements")] == [True] * 4


def test_a_document_of_another_program_has_no_nodes_keys(desk, files: Path, archived) -> None:
    (files / "document.bin").write_bytes(document(user_data=b"\0", public_key=b"key"))

    result = desk.run(*archived, "--json")

    assert result.exit_code == 0
    assert json.loads(result.stdout)["wallet"] is None
    assert "no keys of a node" in result.stderr


def test_a_configuration_that_pcr16_does_not_hold_is_pointed_out(desk, files: Path, archived) -> None:
    (files / "document.bin").write_bytes(document(pcrs=PCRS))

    result = desk.run(*archived)

    assert "none stated" in result.stdout
    assert "PCR16" in result.stderr


def test_aws_is_trusted_unless_told_otherwise_and_the_present_is_now(desk, files: Path, archived) -> None:
    for options, step in ((("--at-document-time",), "root"), (("--root", str(files / "root.der")), "chain")):
        result = desk.run("attest", "verify", str(files / "document.bin"), *options)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert result.stderr.startswith(f"nova-kms: attestation refused at {step}: ")


@pytest.mark.parametrize(
    ("name", "step"),
    [
        (name, description["refused_at"])
        for name, description in json.loads((DIRECTORY / "index.json").read_text())["documents"].items()
    ],
)
def test_a_refusal_names_its_step(desk, archived, name: str, step: str | None) -> None:
    archived[2] = str(DIRECTORY / name)

    result = desk.run(*archived)

    # At its own time an expired certificate of the committed documents is still expired.
    assert result.exit_code == (0 if step is None else 1)
    assert step is None or f"attestation refused at {step}: " in result.stderr


WRONG_USE = {
    "two nonces": ["FILE", "--nonce", "00", "--fresh"],
    "a fresh file": ["FILE", "--fresh"],
    "a node in the past": ["https://node.example", "--at-document-time"],
    "a nonce that is none": ["FILE", "--nonce", "xyz!"],
    "an empty nonce": ["FILE", "--nonce", ""],
    "a nonce that a node does not take": ["https://node.example", "--nonce", "00" * 65],
    "no such file": ["missing.bin"],
    "a directory": ["."],
    "no such root": ["FILE", "--root", "missing.pem"],
    "a root that is none": ["FILE", "--root", "FILE"],
    "no such measurements": ["FILE", "--measurements", "missing.json"],
    "measurements that are none": ["FILE", "--measurements", "FILE"],
    "a URL with a password": ["https://user:password@node.example"],
    "no source": [],
}


@pytest.mark.parametrize("arguments", WRONG_USE.values(), ids=WRONG_USE)
def test_wrong_use_is_exit_code_two_and_one_sentence(desk, files: Path, arguments: list[str]) -> None:
    given = [str(files / "document.bin") if argument == "FILE" else argument for argument in arguments]

    result = desk.run("attest", "verify", *given)

    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_a_file_larger_than_any_document_is_not_read(desk, files: Path, archived) -> None:
    (files / "document.bin").write_bytes(bytes(16 * 1024 + 1))

    assert desk.run(*archived).exit_code == 2


# --- nodes ---


@pytest.fixture
def attesters() -> Attesters:
    return Attesters(FakeClock(wall_ms=int(time.time() * 1000)))


@pytest.fixture
def node(desk, attesters: Attesters, tmp_path: Path) -> list[str]:
    """Verify a node that attests honestly."""
    desk.bench.add_node().attestation = attesters.honest()
    (tmp_path / "root.der").write_bytes(attesters.root_der)
    registers = {f"PCR{index}": value.hex() for index, value in IMAGE.pcrs.items()}
    (tmp_path / "image.json").write_text(json.dumps(registers))
    return [
        "attest", "verify", "https://node0.example/", "--root", str(tmp_path / "root.der"),
        "--measurements", str(tmp_path / "image.json"),
    ]  # fmt: skip


@pytest.mark.parametrize("fresh", [[], ["--fresh"]])
def test_a_node_is_asked_with_a_random_nonce(desk, node, attesters: Attesters, fresh: list[str]) -> None:
    results = [desk.run(*node, *fresh, "--json") for _ in range(2)]

    shown = [json.loads(result.stdout) for result in results]
    assert [bytes.fromhex(each["nonce"]) for each in shown] == attesters.nonces
    assert {len(nonce) for nonce in attesters.nonces} == {32}
    assert len(set(attesters.nonces)) == 2
    assert shown[0]["wallet"] == desk.bench.nodes[0].wallet.address
    assert [warning.partition(":")[0] for warning in shown[0]["warnings"]] == ["this is not the AWS root"]


@pytest.mark.parametrize("text", ["6e6f6e6365", "0x6E6F6E6365", "bm9uY2U="])
def test_a_node_is_asked_with_the_nonce_that_is_given(desk, node, attesters: Attesters, text: str) -> None:
    assert desk.run(*node, "--nonce", text).exit_code == 0
    assert attesters.nonces == [b"nonce"]


def test_a_node_that_repeats_an_old_document_is_refused(desk, node, attesters: Attesters) -> None:
    desk.bench.nodes[0].attestation = attesters.honest(nonce=b"nonce of another call")

    result = desk.run(*node)

    assert (result.exit_code, result.stdout) == (1, "")
    assert "refused at nonce" in result.stderr


def test_a_node_must_state_its_keys(desk, node, attesters: Attesters) -> None:
    desk.bench.nodes[0].attestation = attesters.honest(tee_pubkey=b"key")

    result = desk.run(*node)

    assert (result.exit_code, result.stdout) == (1, "")
    assert "refused at identity" in result.stderr


UNANSWERED = {
    "an older node": (answers(404), "does not offer attestation"),
    "a node that cannot": (answers(503), "answered 503"),
    "a redirect": (answers(302), "answered 302"),
    "too much": (answers(200, bytes(20_000)), "too large"),
}


@pytest.mark.parametrize(("fault", "words"), UNANSWERED.values(), ids=UNANSWERED)
def test_a_node_without_a_document_is_one_sentence(desk, node, fault, words: str) -> None:
    desk.bench.nodes[0].attestation = fault

    result = desk.run(*node)

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1].startswith("nova-kms: https://node0.example gave no document: ")
    assert words in result.stderr
