"""`nova-kms host run`: its options, and its sentences when it cannot."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from appliance.cli import cli

pytestmark = pytest.mark.own_logging


def host_run(tmp_path: Path, *options: str) -> Result:
    (tmp_path / "nova-kms.eif").write_bytes(b"EIF")
    return CliRunner().invoke(
        cli,
        ["host", "run", "--eif", str(tmp_path / "nova-kms.eif"), "--listen", "127.0.0.1:0", *options],
        env={"PATH": str(tmp_path)},
    )


def test_it_explains_itself() -> None:
    result = CliRunner().invoke(cli, ["host", "run", "--help"], prog_name="nova-kms")
    assert result.exit_code == 0
    assert result.output.startswith("Usage: nova-kms host run ")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--allow", "rpc.example.org"], "expected host:port"),
        (["--listen", "443"], "--listen is not host:port"),
        (["--listen", "unix:/x"], "--listen is not host:port"),
        (["--instance-url", "http://kms.example.org"], "--instance-url is not accepted"),
        (["--enclave-cid", "3"], "--enclave-cid"),
        (["--node-log-level", "CRITICAL"], "--node-log-level"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_an_option_that_is_not_accepted_is_a_sentence(tmp_path: Path, options: list[str], sentence: str) -> None:
    result = host_run(tmp_path, *options)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.output
