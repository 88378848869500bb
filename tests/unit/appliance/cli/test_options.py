"""Which cluster a command means."""

from pathlib import Path

import pytest

from appliance.cli.options import find_cluster
from kmscore.errors import ConfigError

PUBLIC_CHAIN, DEVNET_CHAIN = 84532, 31337


def found(desk, *, devnet: Path | None = None, **flags: str):
    return find_cluster(desk.toolbox(), devnet, flags)


def test_without_anything_it_is_the_public_cluster(desk) -> None:
    settings, profile = found(desk)
    assert (settings.chain_id, settings.kms_app_id, profile) == (PUBLIC_CHAIN, 49, None)


def test_a_devnet_in_this_directory_is_found_by_itself(devnet) -> None:
    settings, profile = found(devnet)
    assert settings.chain_id == DEVNET_CHAIN
    assert settings.chain_confirmations == 0
    assert settings.helios_rpc_urls == ("http://127.0.0.1:8545",)
    assert profile is not None


def test_the_environment_is_the_nodes_own_and_hides_a_devnet_that_nobody_named(devnet) -> None:
    devnet.environ |= {"HELIOS_RPC_URL": "https://rpc.example", "CHAIN_ID": "5"}
    settings, profile = found(devnet)
    assert (settings.helios_rpc_urls, settings.chain_id, profile) == (("https://rpc.example",), 5, None)


def test_a_devnet_that_is_named_hides_the_environment_as_a_whole(devnet, tmp_path: Path) -> None:
    devnet.write_devnet(tmp_path / "other")
    devnet.environ |= {"HELIOS_RPC_URL": "https://rpc.example", "KMS_APP_ID": "7"}
    settings, _ = found(devnet, devnet=tmp_path / "other")
    assert (settings.helios_rpc_urls, settings.kms_app_id) == (("http://127.0.0.1:8545",), 49)


def test_a_flag_replaces_one_value(devnet) -> None:
    settings, _ = found(devnet, rpc_url="https://rpc.example", confirmations="2")
    assert (settings.helios_rpc_urls, settings.chain_confirmations) == (("https://rpc.example",), 2)
    assert settings.chain_id == DEVNET_CHAIN


def test_variables_that_concern_a_node_only_do_not_disturb_a_command(desk) -> None:
    desk.environ |= {"IN_ENCLAVE": "perhaps", "BIND_ADDR": "nonsense", "HELIOS_RPC_URL": "http://rpc.example"}
    assert found(desk)[0].helios_rpc_urls == ("http://rpc.example",)


@pytest.mark.parametrize(
    ("environ", "named"), [({"CHAIN_ID": "x"}, "CHAIN_ID"), ({"CHAIN_RPC_QUORUM": "2"}, "CHAIN_RPC_QUORUM")]
)
def test_a_value_that_is_not_accepted_is_named(desk, environ: dict[str, str], named: str) -> None:
    desk.environ |= environ
    with pytest.raises(ConfigError, match=named):
        found(desk)


def test_a_directory_without_a_devnet_is_named(desk, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        found(desk, devnet=tmp_path)


@pytest.mark.parametrize("allowed", [False, True])
def test_nodes_without_tls_are_asked_by_a_devnet_or_on_request_only(desk, allowed: bool) -> None:
    node = desk.bench.add_node()
    node.url = "http://127.0.0.1:8001"
    profile = desk.write_devnet(desk.directory / "elsewhere")
    desk.environ |= profile.environ()
    result = desk.run("app", "list", "--key-file", str(profile.app_key_file), *(["--allow-http"] if allowed else []))
    assert result.exit_code == (0 if allowed else 1)
    assert bool(node.asked) is allowed
    assert desk.run("app", "list", "--devnet", str(desk.directory / "elsewhere")).exit_code == 0
