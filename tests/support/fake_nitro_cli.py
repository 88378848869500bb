"""A stand-in for `nitro-cli`, with the answers of the real one; its enclaves are files in a directory.

`python fake_nitro_cli.py STATE WORDS…`: `STATE/enclave` exists while one runs, `STATE/calls` lists what was asked,
`STATE/fail` makes everything but `terminate-enclave` fail with what the file says.
"""

import json
import sys
import time
from pathlib import Path

ENCLAVE_ID = "i-0123456789abcdef0-enc0123456789abcde"


def main(state: Path, words: list[str]) -> int:
    with (state / "calls").open("a") as calls:
        calls.write(json.dumps(words) + "\n")
    command = words[0]
    enclave = state / "enclave"
    if (state / "fail").exists() and command != "terminate-enclave":
        sys.stderr.write((state / "fail").read_text())
        return 1
    if command == "run-enclave":
        cid = int(words[words.index("--enclave-cid") + 1]) if "--enclave-cid" in words else 16
        enclave.write_text(str(cid))
        sys.stderr.write("Start allocating memory...\nStarted enclave with enclave-cid: 16\n")
        memory, cpus = (int(words[words.index(name) + 1]) for name in ("--memory", "--cpu-count"))
        started = {"EnclaveName": "nova-kms", "EnclaveID": ENCLAVE_ID, "ProcessID": 4242, "EnclaveCID": cid}
        print(json.dumps(started | {"NumberOfCPUs": cpus, "CPUIDs": [1, 3], "MemoryMiB": memory}))
    elif command == "describe-enclaves":
        cid = int(enclave.read_text()) if enclave.exists() else 0
        known = [{"EnclaveID": ENCLAVE_ID, "EnclaveCID": cid, "State": "RUNNING"}]
        print(json.dumps(known if enclave.exists() else []))
    elif command == "terminate-enclave":
        enclave.unlink(missing_ok=True)
        print(json.dumps({"EnclaveName": "nova-kms", "EnclaveID": ENCLAVE_ID, "Terminated": True}))
    elif command == "console":
        print("init: mounts", flush=True)
        while enclave.exists():
            time.sleep(0.01)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
