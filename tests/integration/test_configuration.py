"""A node that is told nonsense does not start: one sentence, exit code 2, at once (node §4)."""

import os
import socket
import subprocess
import time
from collections.abc import Mapping

import pytest

from tests.support.cluster import NOVA_COMMAND
from tests.support.local_chain import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("configuration")]

# A second or two, on a machine that does other things too.
AT_ONCE_S = 4.0
GIVE_UP_S = 20.0

BASE = {
    "PATH": os.environ["PATH"],
    "IN_ENCLAVE": "false",
    "TEE_PROVIDER": "software",
    "BIND_ADDR": "127.0.0.1:0",
    "HELIOS_RPC_URL": "http://127.0.0.1:9",
}
IN_ENCLAVE = {"IN_ENCLAVE": "true", "TEE_PROVIDER": "odyn"}

# The variable that is named, and what is set. The text must name the variable, the value and what is accepted.
REFUSED = [
    ("IN_ENCLAVE", {"IN_ENCLAVE": "maybe"}),
    ("TEE_PROVIDER", {"TEE_PROVIDER": "sgx"}),
    ("TEE_PROVIDER", {"IN_ENCLAVE": "true", "TEE_PROVIDER": "software"}),
    ("ODYN_URL", {"ODYN_URL": "127.0.0.1:18000"}),
    ("ODYN_URL", {**IN_ENCLAVE, "ODYN_URL": "http://10.0.0.1:18000", "HELIOS_RPC_URL": "http://127.0.0.1:1"}),
    ("BIND_ADDR", {"BIND_ADDR": "nowhere"}),
    ("BIND_ADDR", {"BIND_ADDR": "127.0.0.1:65536"}),
    ("NODE_INSTANCE_URL", {"NODE_INSTANCE_URL": "https://user:word@node"}),
    ("NODE_INSTANCE_URL", {**IN_ENCLAVE, "NODE_INSTANCE_URL": "http://node.example"}),
    ("HELIOS_RPC_URL", {"HELIOS_RPC_URL": "ws://127.0.0.1:1"}),
    ("HELIOS_RPC_URL", {"HELIOS_RPC_URL": "http://one,http://one"}),
    ("HELIOS_RPC_URL", {**IN_ENCLAVE, "HELIOS_RPC_URL": "http://rpc.example"}),
    ("CHAIN_RPC_QUORUM", {"CHAIN_RPC_QUORUM": "2"}),
    ("CHAIN_RPC_QUORUM", {**IN_ENCLAVE, "HELIOS_RPC_URL": "https://rpc.example"}),
    ("CHAIN_ID", {"CHAIN_ID": "0x1"}),
    ("CHAIN_CONFIRMATIONS", {"CHAIN_CONFIRMATIONS": "-1"}),
    ("NOVA_APP_REGISTRY_ADDRESS", {"NOVA_APP_REGISTRY_ADDRESS": "0x1234"}),
    ("KMS_REGISTRY_ADDRESS", {"KMS_REGISTRY_ADDRESS": ""}),
    ("KMS_APP_ID", {"KMS_APP_ID": "zero"}),
    ("KMS_NODE_TICK_SECONDS", {"KMS_NODE_TICK_SECONDS": "0"}),
    ("DATA_SYNC_INTERVAL_SECONDS", {"DATA_SYNC_INTERVAL_SECONDS": "nan"}),
    ("POP_TIMEOUT_SECONDS", {"POP_TIMEOUT_SECONDS": "60", "POP_MAX_AGE_SECONDS": "61"}),
    ("RATE_LIMIT_PER_MINUTE", {"RATE_LIMIT_PER_MINUTE": "1e3"}),
    ("MAX_STORE_BYTES", {"MAX_STORE_BYTES": "1GB"}),
    ("QUOTA_POLICY", {"QUOTA_POLICY": "drop"}),
    ("E2E_LABEL", {"E2E_LABEL": "my-label"}),
    ("TRUSTED_INGRESS", {"TRUSTED_INGRESS": "0.0.0.0/0"}),
    ("LOG_LEVEL", {"LOG_LEVEL": "LOUD"}),
    ("LOG_FORMAT", {"LOG_FORMAT": "xml"}),
]


def start(environ: Mapping[str, str]) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a node until it ends by itself; what it said and how long that took."""
    started = time.monotonic()
    ended = subprocess.run(
        NOVA_COMMAND, env={**BASE, **environ}, cwd=ROOT, capture_output=True, text=True, timeout=GIVE_UP_S
    )
    return ended, time.monotonic() - started


@pytest.mark.parametrize(
    ("named", "environ"), REFUSED, ids=[f"{name}={list(environ.values())[-1]}" for name, environ in REFUSED]
)
def test_a_wrong_setting_is_one_sentence_and_exit_code_2(named: str, environ: dict[str, str]) -> None:
    ended, took_s = start(environ)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    (sentence,) = ended.stderr.splitlines()
    assert sentence.startswith(f"nova-kms: {named}="), sentence
    assert "expected" in sentence or "another name of" in sentence, "it says what is accepted"
    assert "word" not in sentence, "never a credential"
    assert took_s < AT_ONCE_S


def test_an_address_in_use_is_one_sentence_and_exit_code_2() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended, took_s = start({"BIND_ADDR": f"127.0.0.1:{taken.getsockname()[1]}"})
    assert ended.returncode == 2, ended.stderr
    said = [line for line in ended.stderr.splitlines() if line.startswith("nova-kms: ")]
    assert len(said) == 1
    assert "BIND_ADDR" in said[0]
    assert "Traceback" not in ended.stderr
    assert took_s < AT_ONCE_S


def test_a_secure_module_that_is_not_there_is_one_sentence_and_exit_code_2() -> None:
    ended, took_s = start({"IN_ENCLAVE": "true", "TEE_PROVIDER": "nsm"})
    assert ended.returncode == 2, ended.stderr
    said = [line for line in ended.stderr.splitlines() if line.startswith("nova-kms: ")]
    assert len(said) == 1
    assert "nsm" in said[0]
    assert "Traceback" not in ended.stderr
    assert took_s < AT_ONCE_S
