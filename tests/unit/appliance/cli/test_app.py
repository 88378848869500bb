"""`nova-kms app` over fake nodes."""

import base64
import json
import stat
from pathlib import Path

import pytest

from appliance.cli import app as app_module
from tests.support import fake_node, wire
from tests.support.client_bench import APP_ID
from tests.support.fake_node import MASTER_SECRET, VALUE_TIME_MS, refuses

KEY = wire.derive_key(MASTER_SECRET, APP_ID, "disk")


def test_a_value_goes_in_and_comes_out_byte_for_byte(devnet) -> None:
    assert devnet.run("app", "put", "k", stdin=b"\x00\xff\n").output == "stored 3 bytes under k\n"
    assert devnet.run("app", "get", "k").stdout_bytes == b"\x00\xff\n"
    assert devnet.run("app", "list").output == "k\n"
    assert devnet.run("app", "delete", "k").output == "deleted k\n"
    assert devnet.bench.store == {}


def test_every_run_of_one_app_asks_the_same_node_first(devnet) -> None:
    for _ in range(6):
        devnet.run("app", "list")
    assert sorted(len(node.ran) for node in devnet.bench.nodes) == [0, 6]


def test_a_value_can_be_an_argument_or_a_file(devnet, tmp_path: Path) -> None:
    (tmp_path / "value").write_bytes(b"from a file")
    devnet.run("app", "put", "a", "from the line")
    devnet.run("app", "put", "b", "--file", str(tmp_path / "value"))
    assert devnet.bench.store == {"a": b"from the line", "b": b"from a file"}


def test_get_writes_a_file_that_only_its_owner_can_read(devnet, tmp_path: Path) -> None:
    devnet.bench.store["k"] = b"value"
    result = devnet.run("app", "get", "k", "--file", str(tmp_path / "out"))
    assert (result.exit_code, result.output) == (0, "")
    assert (tmp_path / "out").read_bytes() == b"value"
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("form", "expected"),
    [("base64", base64.b64encode(KEY) + b"\n"), ("hex", KEY.hex().encode() + b"\n"), ("raw", KEY)],
)
def test_a_derived_key_is_printed_in_the_form_that_was_asked_for(devnet, form: str, expected: bytes) -> None:
    result = devnet.run("app", "derive", "disk", "--format", form)
    assert (result.stdout_bytes, result.stderr) == (expected, "")


def test_context_and_length_derive_another_key(devnet) -> None:
    result = devnet.run("app", "derive", "disk", "--context", "v2", "--length", "48", "--format", "hex")
    assert result.output.strip() == wire.derive_key(MASTER_SECRET, APP_ID, "disk", "v2", 48).hex()


def test_raw_key_bytes_on_a_terminal_come_with_a_warning(devnet, monkeypatch: pytest.MonkeyPatch) -> None:
    import click.testing

    monkeypatch.setattr(click.testing._NamedTextIOWrapper, "isatty", lambda _: True, raising=False)
    result = devnet.run("app", "derive", "disk", "--format", "raw")
    assert result.stdout_bytes == KEY
    assert "warning" in result.stderr


def test_json_is_one_object_for_each_command(devnet) -> None:
    stored = json.loads(devnet.run("app", "put", "k", "value", "--json").output)
    assert stored == {"key": "k", "bytes": 5, "updated_at_ms": VALUE_TIME_MS}
    got = json.loads(devnet.run("app", "get", "k", "--json").output)
    assert got == {"key": "k", "value": "dmFsdWU=", "updated_at_ms": VALUE_TIME_MS}
    assert json.loads(devnet.run("app", "list", "--json").output) == {"keys": ["k"], "count": 1}
    assert json.loads(devnet.run("app", "delete", "k", "--json").output) == {"key": "k", "deleted": True}
    derived = json.loads(devnet.run("app", "derive", "disk", "--json").output)
    assert derived == {"path": "disk", "context": "", "length": 32, "key": base64.b64encode(KEY).decode()}


def test_a_key_that_would_move_the_cursor_is_shown_as_a_json_string(devnet) -> None:
    devnet.bench.store["\x1b[2J"] = b""
    assert devnet.run("app", "list").output == '"\\u001b[2J"\n'


def test_the_time_to_live_reaches_the_node(devnet) -> None:
    devnet.bench.nodes.pop()
    assert devnet.run("app", "put", "k", "v", "--ttl-ms", "5000").exit_code == 0
    assert devnet.bench.nodes[0].last_inner["ttl_ms"] == 5000


def test_a_missing_key_is_one_sentence_and_exit_code_1(devnet) -> None:
    result = devnet.run("app", "get", "missing")
    assert (result.exit_code, result.stderr) == (1, "nova-kms: it says not_found\n")


def test_no_node_available_names_the_nodes(devnet) -> None:
    for node in devnet.bench.nodes:
        node.always_at_nonce = refuses(503)
    result = devnet.run("app", "list")
    assert result.exit_code == 1
    assert all(node.url in result.stderr for node in devnet.bench.nodes)
    assert result.stderr.count("\n") == 1


def test_a_put_whose_outcome_is_unknown_says_so(devnet) -> None:
    for node in devnet.bench.nodes:
        node.always = fake_node.is_cut_after_running
    result = devnet.run("app", "put", "k", "v")
    assert result.exit_code == 1
    assert "may or may not have happened" in result.stderr


def test_an_unreadable_chain_is_one_sentence_and_exit_code_1(devnet) -> None:
    devnet.chain_fails = True
    result = devnet.run("app", "list")
    assert result.exit_code == 1
    assert result.stderr.startswith("nova-kms: the registry that lists the nodes cannot be read")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        pytest.param(["put", "k", "v", "--file", "f"], "exclude each other", id="two values"),
        pytest.param(["put", "k", "--file", "/no/such/file"], "cannot be read", id="no such file"),
        pytest.param(["get", "k", "--json", "--file", "f"], "exclude each other", id="json and a file"),
        pytest.param(["derive", "p", "--length", "2000"], "--length", id="length out of range"),
        pytest.param(["list", "--odyn", "ftp://x"], "--odyn", id="a URL that is none"),
        pytest.param(["list", "--odyn", "http://127.0.0.1:1", "--key-file", "f"], "exclude", id="two identities"),
        pytest.param(["list", "--key-file", "/no/such/file"], "cannot be read", id="no such key file"),
        pytest.param(["list", "--chain-id", "x"], "CHAIN_ID", id="a number that is none"),
        pytest.param(["list", "--timeout", "0"], "--timeout", id="no time"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_asks_nobody(devnet, arguments: list[str], hint: str) -> None:
    result = devnet.run("app", *arguments)
    assert result.exit_code == 2
    assert hint in result.stderr
    assert "Traceback" not in result.stderr
    assert all(node.asked == [] for node in devnet.bench.nodes)


def test_a_terminal_without_a_value_is_told_how_to_give_one(devnet, monkeypatch: pytest.MonkeyPatch) -> None:
    import click.testing

    monkeypatch.setattr(click.testing._NamedTextIOWrapper, "isatty", lambda _: True, raising=False)
    result = devnet.run("app", "put", "k")
    assert result.exit_code == 2
    assert "pipe it in" in result.stderr


def test_a_value_beyond_what_is_read_into_memory_is_refused(devnet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "MAX_VALUE_BYTES", 4)
    result = devnet.run("app", "put", "k", stdin=b"12345")
    assert result.exit_code == 2
    assert "larger" in result.stderr


def test_without_an_identity_the_options_are_named(desk) -> None:
    result = desk.run("app", "list")
    assert result.exit_code == 2
    assert "--key-file" in result.stderr


def test_a_key_file_that_others_can_read_is_refused(devnet) -> None:
    key_file = devnet.directory / ".devnet" / "app-key.json"
    key_file.chmod(0o640)
    result = devnet.run("app", "list")
    assert result.exit_code == 2
    assert "chmod 600" in result.stderr
