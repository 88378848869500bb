"""Compiles the Solidity sources into the committed artifacts: `python -m appliance.chain.compile [--check]`.

A developer's tool: the appliance itself reads the artifacts only on a devnet, and never runs a compiler. The output
depends on nothing but the sources and the exact compiler, so that anyone can compare a deployed contract with these.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kmscore.errors import ConfigError

Json = dict[str, Any]  # what the compiler prints: a local tool of known format, and no input from outside

CONTRACTS_DIR = Path(__file__).resolve().parent / "contracts"
ARTIFACTS_DIR = Path(__file__).resolve().parent / "artifacts"
SOLC_JS = Path(__file__).resolve().parents[2] / "tools" / "node_modules" / "solc" / "solc.js"

COMPILED = ("KMSRegistry", "NovaAppRegistry")

# Cancun is the newest fork that both the public network and every supported development node have had for a year.
EVM_VERSION = "cancun"
# The compiler's own default: a balance of the cost of deploying and the cost of calling.
OPTIMIZER_RUNS = 200
COMPILE_TIMEOUT_S = 120


def read_sources(directory: Path = CONTRACTS_DIR) -> dict[str, str]:
    """Every contract source by file name, in order of name."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(directory.glob("*.sol"))}


def sources_digest(sources: Mapping[str, str]) -> str:
    """SHA-256 over name and text of every source, each ended by a zero byte, in order of name; 64 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(sources):
        digest.update(name.encode() + b"\0" + sources[name].encode() + b"\0")
    return digest.hexdigest()


def compile_contracts(sources: Mapping[str, str]) -> dict[str, bytes]:
    """Compiles and returns each artifact's bytes by contract name.

    Raises ConfigError if node or the compiler is missing, if it fails, and if it reports an error or a warning.
    """
    output = _run_solc(
        {
            "language": "Solidity",
            "sources": {name: {"content": text} for name, text in sources.items()},
            "settings": {
                "evmVersion": EVM_VERSION,
                "optimizer": {"enabled": True, "runs": OPTIMIZER_RUNS},
                # Without the hash of the metadata a changed comment does not change the bytecode.
                "metadata": {"bytecodeHash": "none", "appendCBOR": False},
                "outputSelection": {"*": {"*": ["abi", "evm.bytecode.object", "metadata"]}},
            },
        }
    )
    problems = [str(problem["formattedMessage"]) for problem in output.get("errors", ())]
    if problems:
        raise ConfigError("the contracts do not compile without complaint:\n" + "\n".join(problems))
    return {name: _encode_artifact(output["contracts"][f"{name}.sol"][name], sources) for name in COMPILED}


def _run_solc(standard_input: Mapping[str, object]) -> Json:
    node = shutil.which("node")
    if node is None or not SOLC_JS.exists():
        raise ConfigError("node and tools/node_modules/solc are needed to compile the contracts: run `make setup`")
    # A file and not a pipe: solc-js exits without waiting for a pipe to drain, which cuts off what is over 64 KiB.
    with tempfile.TemporaryFile() as output:
        try:
            subprocess.run(  # noqa: S603 -- both paths are this repository's own
                [node, str(SOLC_JS), "--standard-json"],
                input=json.dumps(standard_input).encode(),
                stdout=output,
                stderr=subprocess.PIPE,
                check=True,
                timeout=COMPILE_TIMEOUT_S,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise ConfigError(f"the Solidity compiler failed: {error}") from error
        output.seek(0)
        text = output.read().decode()
    # solc-js announces the SMT solver it does not find on a line of its own before the JSON object.
    answer: Json = json.loads(text[text.index("{") :])
    return answer


def _encode_artifact(contract: Json, sources: Mapping[str, str]) -> bytes:
    metadata = json.loads(contract["metadata"])
    artifact = {
        "compiler": metadata["compiler"]["version"],
        "evm_version": EVM_VERSION,
        "optimizer_runs": OPTIMIZER_RUNS,
        "sources_sha256": sources_digest(sources),
        "abi": contract["abi"],
        "bytecode": "0x" + contract["evm"]["bytecode"]["object"],
    }
    return (json.dumps(artifact, indent=1, ensure_ascii=True) + "\n").encode()


def artifact_path(name: str) -> Path:
    """Where the artifact of a contract lies."""
    return ARTIFACTS_DIR / f"{name}.json"


def main(arguments: list[str] | None = None) -> int:
    """Writes the artifacts, or with --check compares them; 1 when they differ or cannot be made."""
    parser = argparse.ArgumentParser(description="Compile the Solidity sources into the committed artifacts.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if an artifact differs")
    options = parser.parse_args(arguments)
    try:
        artifacts = compile_contracts(read_sources())
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for name, content in artifacts.items():
        path = artifact_path(name)
        if not options.check:
            path.write_bytes(content)
        elif not path.exists() or path.read_bytes() != content:
            sys.stderr.write(f"{path} does not match the contract sources: run `make contracts` and commit it\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
