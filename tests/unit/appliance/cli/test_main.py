"""The command as a whole: help, exit codes, and what it does not import."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from appliance.cli import COMMANDS, LazyCommand, LazyGroup, cli
from appliance.devnet.profile import DevelopmentKeys
from kmscore.errors import ConfigError, InvariantBroken, KmsError, Unavailable


def test_help_lists_every_command_and_shows_how_to_begin() -> None:
    result = CliRunner().invoke(cli, ["--help"], prog_name="nova-kms")
    assert result.exit_code == 0
    assert all(f"  {name} " in result.output for name in COMMANDS)
    assert "nova-kms app put greeting hello" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["app"],
        ["status"],
        ["nodes"],
        ["attest"],
        ["attest", "verify"],
        ["provision"],
        *(["app", name] for name in ("derive", "put", "get", "list", "delete")),
    ],
    ids=" ".join,
)
def test_every_command_explains_itself(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, [*arguments, "--help"], prog_name="nova-kms")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: nova-kms {' '.join(arguments)} ")


def test_an_unknown_command_is_a_usage_error() -> None:
    result = CliRunner().invoke(cli, ["sttaus"])
    assert result.exit_code == 2
    assert "sttaus" in result.stderr


def test_help_imports_neither_the_chain_nor_the_server() -> None:
    script = (
        "import sys\n"
        "from appliance.cli import cli\n"
        "cli(['--help'], standalone_mode=False)\n"
        "heavy = {'web3', 'httpx', 'uvicorn', 'starlette', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_python_m_is_the_same_command() -> None:
    result = subprocess.run([sys.executable, "-m", "appliance", "--version"], capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stdout.startswith("nova-kms")


def test_an_unreachable_chain_is_one_sentence_and_no_log_line(tmp_path: Path) -> None:
    DevelopmentKeys.generate(os.urandom).save(tmp_path / "key.json")
    arguments = ["app", "list", "--key-file", "key.json", "--rpc-url", "http://127.0.0.1:9", "--timeout", "0.5"]
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).resolve().parents[4])}
    result = subprocess.run(
        [sys.executable, "-m", "appliance", *arguments], cwd=tmp_path, env=environ, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("nova-kms: ")
    assert result.stderr.count("\n") == 1


class Group(LazyGroup):
    """The group without lazy commands of its own."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return click.Group.get_command(self, ctx, cmd_name)


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (ConfigError("CHAIN_ID='x' is not accepted"), 2),
        (Unavailable("the chain is away"), 1),
        (KmsError("no such key"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_expected_failure_is_one_sentence_on_stderr(error: KmsError, exit_code: int) -> None:
    result = _run_raising(error)
    assert result.exit_code == exit_code
    assert result.stderr == f"nova-kms: {error}\n"
    assert result.stdout == ""


def test_a_bug_is_not_dressed_up_as_an_expected_failure() -> None:
    assert isinstance(_run_raising(InvariantBroken("impossible")).exception, InvariantBroken)


def _run_raising(error: Exception) -> "click.testing.Result":
    @click.command()
    def fail() -> None:
        raise error

    group = Group("nova-kms")
    group.add_command(fail)
    return CliRunner().invoke(group, ["fail"])


def test_a_lazy_command_says_where_it_lives() -> None:
    assert COMMANDS["serve"] == LazyCommand("appliance.cli.serve", "serve", "Run one node.")
