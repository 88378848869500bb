"""`nova-kms provision` over fake nodes and a fake registry: what it asks, shows, writes and refuses."""

import base64
import json
import time
from pathlib import Path

import anyio
import pytest

from tests.support.attestation import root_der as foreign_root_der
from tests.support.fake_node import FakeClock, hangs
from tests.support.fake_registry import FakeRegistry
from tests.support.node_attestation import Attesters, answers
from tests.support.secure_module import IMAGE

KMS_APP_ID = 49
URL = "https://node0.example"


@pytest.fixture
def attesters() -> Attesters:
    return Attesters(FakeClock(wall_ms=int(time.time() * 1000)))


@pytest.fixture
def registry(desk) -> FakeRegistry:
    """The KMS app with an old version and, in version 2, the image that the node runs."""
    desk.registry = FakeRegistry()
    anyio.run(desk.registry.register_app, KMS_APP_ID)
    anyio.run(desk.registry.enroll_version, KMS_APP_ID, "old")
    anyio.run(desk.registry.enroll_version, KMS_APP_ID, "new", IMAGE.code_measurement)
    return desk.registry


@pytest.fixture
def command(desk, registry: FakeRegistry, attesters: Attesters, tmp_path: Path) -> list[str]:
    """Provision a node that attests honestly; no secret is set, and its wallet has money."""
    desk.secret_hash = bytes(32)
    desk.bench.add_node().attestation = attesters.honest()
    (tmp_path / "root.der").write_bytes(attesters.root_der)
    write_measurements(tmp_path / "image.json", IMAGE.pcrs)
    return [
        "provision", "--url", URL, "--root", str(tmp_path / "root.der"), "--measurements", str(tmp_path / "image.json"),
    ]  # fmt: skip


def write_measurements(file: Path, pcrs: dict[int, bytes]) -> None:
    file.write_text(json.dumps({f"PCR{index}": value.hex() for index, value in pcrs.items()}))


def default_bundle(desk) -> Path:
    return desk.directory / f"registration-{desk.bench.nodes[0].wallet.address[2:10]}.json"


def register_node(desk, **changes: object) -> None:
    node = desk.bench.nodes[0]
    facts = {"wallet": node.wallet.address, "url": URL, "tee_pubkey": node.tee.der} | changes

    async def register() -> None:
        await desk.registry.register_instance(KMS_APP_ID, 2, **facts)

    anyio.run(register)


def test_everything_that_a_registration_needs_is_shown(desk, command) -> None:
    result = desk.run(*command)

    assert result.exit_code == 0, result.stderr
    node = desk.bench.nodes[0]
    shown = {line[:18].strip(): line[18:] for line in result.stdout.splitlines()}
    assert shown == {
        "instance URL": URL,
        "wallet": node.wallet.address,
        "teePubkey": node.tee.der.hex(),
        **{f"PCR{index}": IMAGE.pcrs[index].hex() for index in (0, 1, 2)},
        "config digest": "none stated",
        "code measurement": "0x" + IMAGE.code_measurement.hex(),
        "version": 'version 2 ("new") of app 49 is ENROLLED',
        "registration": "not registered",
        "seeding": "needed, by the first node",
        "seeding costs": "at most 0.0002 ETH: 100000 gas at 2 gwei",
        "balance": "1 ETH, which suffices",
        "bundle": str(default_bundle(desk)),
    }


def test_progress_and_warnings_go_to_the_other_stream(desk, command) -> None:
    result = desk.run(*command)

    for step in (f"Asking {URL} for its attestation", "Verifying the attestation document", "Reading the chain"):
        assert f"✓ {step}" in result.stderr
    assert [line for line in result.stderr.splitlines() if "warning" in line] == [
        "nova-kms: warning: this is not the AWS root: the document proves as much as whoever holds that root's key says"
    ]


def test_the_bundle_holds_the_document_that_was_asked_for_with_a_random_nonce(desk, command, attesters) -> None:
    assert desk.run(*command).exit_code == 0

    bundle = json.loads(default_bundle(desk).read_text())
    assert bundle["format"] == "nova-kms-registration-1"
    assert (bundle["app_id"], bundle["version_id"], bundle["chain_id"]) == (KMS_APP_ID, 2, 84532)
    assert [bytes.fromhex(bundle["nonce"])] == attesters.nonces
    assert len(attesters.nonces[0]) == 32
    assert attesters.nonces[0] in base64.b64decode(bundle["attestation_document"])


def test_json_is_one_object_for_programs(desk, command, tmp_path: Path) -> None:
    result = desk.run(*command, "--json", "--out", str(tmp_path / "bundle.json"))

    shown = json.loads(result.stdout)
    assert shown["version"] == {"id": 2, "name": "new", "status": "ENROLLED"}
    assert shown["registration"] == {"state": "not registered", "instance_id": None}
    assert shown["seeding"] == {
        "needed": True,
        "gas": 100_000,
        "max_fee_per_gas_wei": 2 * 10**9,
        "cost_wei": 2 * 10**14,
        "balance_wei": 10**18,
        "sufficient": True,
    }
    assert shown["bundle"] == str(tmp_path / "bundle.json")
    assert json.loads((tmp_path / "bundle.json").read_text())["wallet"] == shown["wallet"]
    assert [warning.partition(":")[0] for warning in shown["warnings"]] == ["this is not the AWS root"]


def test_a_wallet_without_money_is_a_warning_with_the_amount(desk, command) -> None:
    desk.balance_wei = 0

    result = desk.run(*command)

    assert result.exit_code == 0
    assert "0 ETH, which does not suffice" in result.stdout
    assert "send at least 0.0002 ETH to the wallet" in result.stderr


def test_a_cluster_that_has_its_secret_needs_no_money(desk, command) -> None:
    desk.secret_hash, desk.balance_wei = b"\1" * 32, 0

    result = desk.run(*command)

    assert "not needed" in result.stdout
    assert "send at least" not in result.stderr


def test_an_enclave_that_is_registered_already_is_said_to_be(desk, command) -> None:
    register_node(desk)

    assert "registered, as instance 1" in desk.run(*command).stdout


def test_a_registration_with_another_key_is_a_clear_warning(desk, command) -> None:
    register_node(desk, tee_pubkey=b"another")

    result = desk.run(*command)

    assert result.exit_code == 0
    assert "registered with another teePubkey, as instance 1" in result.stdout
    assert "a restarted enclave has new keys" in result.stderr


def test_the_instance_that_this_enclave_was_before_its_restart_is_pointed_out(desk, command) -> None:
    register_node(desk, wallet="0x" + "0d" * 20, url=URL + "/")

    assert "instance 1 is listed at this URL with wallet 0x0d0d" in desk.run(*command).stderr


def test_the_newest_version_of_an_image_is_taken(desk, command, registry: FakeRegistry) -> None:
    anyio.run(registry.enroll_version, KMS_APP_ID, "again", IMAGE.code_measurement)
    anyio.run(registry.enroll_version, KMS_APP_ID, "another", bytes(32))

    assert json.loads(desk.run(*command, "--json").stdout)["version"]["id"] == 3


def test_a_version_that_is_named_is_the_only_one_looked_at(desk, command, registry: FakeRegistry) -> None:
    anyio.run(registry.enroll_version, KMS_APP_ID, "again", IMAGE.code_measurement)

    assert json.loads(desk.run(*command, "--json", "--version-id", "2").stdout)["version"]["id"] == 2
    assert {read[2] for read in registry.reads if read[0] == "get_version"} == {2}


def refuses(desk, command: list[str], sentence: str) -> None:
    """The command fails with this sentence, prints no result and leaves no bundle."""
    result = desk.run(*command)

    assert (result.exit_code, result.stdout) == (1, "")
    assert sentence in result.stderr.splitlines()[-1]
    assert list(desk.directory.glob("registration-*")) == []


def test_an_image_that_no_version_has_is_refused(desk, command, registry: FakeRegistry, attesters, tmp_path) -> None:
    other = dict(IMAGE.pcrs) | {2: b"\2" * 48}
    write_measurements(tmp_path / "image.json", other)
    desk.bench.nodes[0].attestation = attesters.honest(pcrs=other)

    refuses(desk, command, "no version of app 49 has this code measurement: enrol it first")


def test_a_revoked_version_is_refused(desk, command, registry: FakeRegistry) -> None:
    anyio.run(registry.set_version_status, KMS_APP_ID, 2, 2)

    refuses(desk, command, 'version 2 ("new") of app 49 is REVOKED')


def test_a_named_version_of_another_image_is_refused(desk, command) -> None:
    refuses(desk, [*command, "--version-id", "1"], 'version 1 ("old") of app 49')


def test_an_app_that_the_registry_does_not_know_is_refused(desk, command) -> None:
    refuses(desk, [*command, "--kms-app-id", "50"], "the registry knows no app 50")


def test_other_measurements_are_refused_at_their_step(desk, command, tmp_path: Path) -> None:
    write_measurements(tmp_path / "image.json", dict(IMAGE.pcrs) | {0: b"\1" * 48})

    refuses(desk, command, "attestation refused at measurements")


def test_an_enclave_in_debug_mode_is_refused_at_its_step(desk, command, attesters) -> None:
    desk.bench.nodes[0].attestation = attesters.honest(pcrs={})

    refuses(desk, command, "attestation refused at debug")


def test_a_document_under_another_root_is_refused_at_its_step(desk, command, tmp_path: Path) -> None:
    (tmp_path / "root.der").write_bytes(foreign_root_der())

    refuses(desk, command, "attestation refused at root")


def test_without_a_root_only_aws_is_trusted(desk, command) -> None:
    del command[3:5]

    refuses(desk, command, "attestation refused at root")


def test_an_old_document_is_refused_at_its_step(desk, command, attesters) -> None:
    desk.bench.nodes[0].attestation = attesters.honest(nonce=b"nonce of another call")

    refuses(desk, command, "attestation refused at nonce")


def test_a_document_that_states_no_keys_is_refused_at_its_step(desk, command, attesters) -> None:
    desk.bench.nodes[0].attestation = attesters.honest(tee_pubkey=b"key")

    refuses(desk, command, "attestation refused at identity")


def test_a_node_that_does_not_attest_is_one_sentence(desk, command) -> None:
    desk.bench.nodes[0].attestation = answers(503)

    refuses(desk, command, f"{URL} gave no document: answered 503")


def test_a_node_that_does_not_answer_is_one_sentence(desk, command) -> None:
    desk.bench.nodes[0].attestation = hangs

    refuses(desk, [*command, "--timeout", "0.1"], f"{URL} gave no document: no answer in time")


def test_a_chain_that_does_not_answer_is_one_sentence(desk, command, registry: FakeRegistry) -> None:
    registry.before_read = anyio.sleep_forever

    refuses(desk, [*command, "--timeout", "0.1"], "the chain was not read within 0.1 seconds")


# --- the file ---


@pytest.mark.parametrize("named", [False, True])
def test_a_bundle_that_is_there_is_not_overwritten(desk, command, attesters, named: bool) -> None:
    bundle = desk.directory / "mine.json" if named else default_bundle(desk)
    bundle.write_text("older")

    result = desk.run(*command, *(["--out", str(bundle)] if named else []))

    assert (result.exit_code, result.stdout, bundle.read_text()) == (2, "", "older")
    assert "--force" in result.stderr
    assert len(attesters.nonces) == (0 if named else 1), "a named file is looked at before anybody is asked"


def test_force_overwrites_it(desk, command) -> None:
    default_bundle(desk).write_text("older")

    assert desk.run(*command, "--force").exit_code == 0
    assert json.loads(default_bundle(desk).read_text())["version_id"] == 2


def test_a_bundle_that_cannot_be_written_is_one_sentence(desk, command, tmp_path: Path) -> None:
    result = desk.run(*command, "--out", str(tmp_path / "missing" / "bundle.json"))

    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].endswith("bundle.json cannot be written: No such file or directory")


# --- wrong use ---


def test_a_url_without_tls_is_refused_with_the_way_out(desk, command) -> None:
    command[2] = "http://node0.example"

    result = desk.run(*command)

    assert (result.exit_code, result.stdout) == (2, "")
    assert "--url is not accepted: the URL must use https; --allow-http allows http" in result.stderr
    desk.bench.nodes[0].url = command[2]
    assert desk.run(*command, "--allow-http").exit_code == 0


@pytest.mark.parametrize("missing", ["--url", "--measurements"])
def test_whom_to_ask_and_what_to_expect_must_be_said(desk, command, missing: str) -> None:
    at = command.index(missing)
    del command[at : at + 2]

    result = desk.run(*command)

    assert result.exit_code == 2
    assert f"Missing option '{missing}'" in result.stderr


def test_measurements_that_are_none_are_named(desk, command, tmp_path: Path) -> None:
    (tmp_path / "image.json").write_text("{}")

    result = desk.run(*command)

    assert result.exit_code == 2
    assert "image.json holds no measurements" in result.stderr


NO_DEVNET = {
    "no profile": ([], "which --devnet names"),
    "a chain elsewhere": (["--devnet", ".", "--rpc-url", "https://rpc.example"], "whose chain is on this machine"),
    "another chain": (["--devnet", ".", "--chain-id", "84532"], "whose chain id is 31337"),
}


@pytest.mark.parametrize(("options", "words"), NO_DEVNET.values(), ids=NO_DEVNET)
def test_registering_is_refused_outside_of_a_devnet(desk, command, attesters, options: list[str], words: str) -> None:
    desk.write_devnet(desk.directory / "net")
    options = [str(desk.directory / "net") if option == "." else option for option in options]

    result = desk.run(*command, "--register", *options)

    assert (result.exit_code, result.stdout, attesters.nonces) == (2, "", [])
    assert words in result.stderr
