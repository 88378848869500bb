"""What a devnet writes for the commands, and what they refuse to read."""

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.devnet.profile import (
    APP_KEY_FILE,
    MAX_FILE_BYTES,
    PROFILE_FILE,
    DevelopmentKeys,
    DevnetProfile,
    read_private,
    write_private,
)
from appliance.settings import Settings
from kmscore.errors import ConfigError, InvariantBroken
from kmscore.secret import SecretBytes
from tests.support import wire


def profile_in(directory: Path) -> DevnetProfile:
    return DevnetProfile(
        rpc_url="http://127.0.0.1:8545",
        chain_id=31337,
        nova_app_registry="0x" + "0a" * 20,
        kms_registry="0x" + "0b" * 20,
        kms_app_id=1,
        app_key_file=directory / APP_KEY_FILE,
        node_urls=("http://127.0.0.1:8001", "http://127.0.0.1:8002"),
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """One whose name needs quoting."""
    return tmp_path / "it's a devnet"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_saved_profile_is_loaded_as_it_was(directory: Path) -> None:
    profile = profile_in(directory)
    profile.save(directory)
    assert DevnetProfile.load(directory) == profile


def test_nobody_but_the_owner_can_read_what_is_written(directory: Path) -> None:
    old_mask = os.umask(0)
    try:
        profile_in(directory).save(directory)
        DevelopmentKeys.generate(os.urandom).save(directory / APP_KEY_FILE)
    finally:
        os.umask(old_mask)
    assert (mode_of(directory), mode_of(directory / PROFILE_FILE)) == (0o700, 0o600)
    assert mode_of(directory / APP_KEY_FILE) == 0o600
    assert sorted(path.name for path in directory.iterdir()) == [APP_KEY_FILE, PROFILE_FILE]


def test_a_shell_that_sources_the_profile_gets_the_same_values(directory: Path) -> None:
    path = profile_in(directory).save(directory)
    script = f'set -a; . "$1"; exec {shutil.which("env")} -0'
    run = subprocess.run(["sh", "-euc", script, "sh", str(path)], capture_output=True, env={}, check=True)
    environ = dict(line.split("=", 1) for line in run.stdout.decode().split("\0") if line)
    assert environ["NOVA_KMS_APP_KEY_FILE"] == str(directory / APP_KEY_FILE)
    assert Settings.from_environ({"IN_ENCLAVE": "false", **environ}).kms_app_id == 1


def test_the_chain_part_is_what_settings_understand(directory: Path) -> None:
    settings = Settings.from_environ({"IN_ENCLAVE": "false", **profile_in(directory).environ()})
    assert (settings.chain_id, settings.chain_confirmations) == (31337, 0)


def test_a_profile_is_replaced_as_a_whole(directory: Path) -> None:
    profile_in(directory).save(directory)
    newer = replace(profile_in(directory), chain_id=5)
    newer.save(directory)
    assert DevnetProfile.load(directory) == newer


SPOILED_PROFILES: dict[str, Callable[[str], str]] = {
    "a variable missing": lambda text: text.replace("KMS_APP_ID=", "OTHER="),
    "a variable empty": lambda text: text.replace("CHAIN_ID=31337", "CHAIN_ID="),
    "a number that is none": lambda text: text.replace("31337", "many"),
    "an address that is none": lambda text: text.replace("0a0a", "zz"),
    "a node URL with credentials": lambda text: text.replace("http://127.0.0.1:8001", "http://a:b@127.0.0.1:8001"),
    "no assignment": lambda text: text + "word\n",
    "an open quotation": lambda text: text + "X='\n",
    "not text": lambda _: "\x00\ufffd",
    "empty": lambda _: "",
}


@pytest.mark.parametrize("spoil", SPOILED_PROFILES.values(), ids=SPOILED_PROFILES.keys())
def test_a_file_that_is_no_profile_is_a_configuration_error_with_its_name(
    directory: Path, spoil: Callable[[str], str]
) -> None:
    path = profile_in(directory).save(directory)
    path.write_text(spoil(path.read_text()))
    with pytest.raises(ConfigError, match=PROFILE_FILE):
        DevnetProfile.load(directory)


def test_keys_are_loaded_as_they_were_generated(tmp_path: Path) -> None:
    keys = DevelopmentKeys.generate(os.urandom)
    keys.save(tmp_path / "key.json")
    loaded = DevelopmentKeys.load(tmp_path / "key.json")
    assert loaded.wallet_key().address == keys.wallet_key().address
    assert loaded.agreement_key().public == keys.agreement_key().public


def test_the_file_names_the_public_halves_as_another_implementation_computes_them(tmp_path: Path) -> None:
    wallet, scalar = b"\x01" * 32, 0x1234
    DevelopmentKeys(SecretBytes(wallet), SecretBytes(scalar.to_bytes(48, "big"))).save(tmp_path / "key.json")
    content = json.loads((tmp_path / "key.json").read_text())
    assert content["wallet"] == wire.Wallet(wallet).address
    assert content["tee_pubkey"] == wire.TeeKey(scalar).der.hex()


def test_keys_stay_out_of_their_repr() -> None:
    assert repr(DevelopmentKeys.generate(os.urandom)) == "DevelopmentKeys()"


def test_a_random_source_that_yields_no_key_is_found_out() -> None:
    with pytest.raises(InvariantBroken):
        DevelopmentKeys.generate(bytes)


SPOILED_KEYS: dict[str, dict[str, object]] = {
    "another format": {"format": "nova-kms-development-key-2"},
    "no wallet key": {"wallet_private_key": None},
    "a short wallet key": {"wallet_private_key": "01"},
    "the wallet key zero": {"wallet_private_key": "00" * 32},
    "a wallet key beyond the order": {"wallet_private_key": "ff" * 32},
    "the TEE key zero": {"tee_private_key": "00" * 48},
    "a TEE key beyond the order": {"tee_private_key": "ff" * 48},
    "hex with a prefix": {"tee_private_key": "0x" + "01" * 47},
}


@pytest.mark.parametrize("spoilt", SPOILED_KEYS.values(), ids=SPOILED_KEYS.keys())
def test_a_file_that_holds_no_usable_keys_is_a_configuration_error_without_them(
    tmp_path: Path, spoilt: dict[str, object]
) -> None:
    path = tmp_path / "key.json"
    DevelopmentKeys.generate(os.urandom).save(path)
    content = json.loads(path.read_text()) | spoilt
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"key\.json") as caught:
        DevelopmentKeys.load(path)
    assert not any(str(value) in str(caught.value) for name, value in content.items() if name.endswith("private_key"))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_file_that_is_open_to_others_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key.json"
    write_private(path, b"{}")
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_private(path)


def test_what_is_no_small_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_private(tmp_path / "missing")
    with pytest.raises(ConfigError):
        read_private(tmp_path)
    write_private(tmp_path / "large", bytes(MAX_FILE_BYTES + 1))
    with pytest.raises(ConfigError, match="too large"):
        read_private(tmp_path / "large")
