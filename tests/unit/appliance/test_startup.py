"""What a node has imported when it begins to listen: in the enclave under emulation every import costs seconds."""

import os
import subprocess
import sys

# Each takes between a tenth of a second and a whole one to import, and is needed for the chain alone.
HEAVY = ("aiohttp", "eth_abi", "eth_account", "eth_utils", "pydantic", "web3")

UNTIL_LISTENING = f"""
import sys
import anyio
from appliance import main
from appliance.settings import Settings

async def listening(settings, node, reader, server, listener, rng):
    print(listener.getsockname(), [name for name in {HEAVY} if name in sys.modules])

main._run = listening
anyio.run(main.serve, Settings.from_environ(
    {{"IN_ENCLAVE": "false", "TEE_PROVIDER": "software", "BIND_ADDR": "127.0.0.1:0", "KMS_APP_ID": "1"}}
))
"""


def test_a_node_listens_before_it_imports_the_chain_libraries() -> None:
    # In a process of its own: this one has imported everything.
    command = [sys.executable, "-W", "error", "-c", UNTIL_LISTENING]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("('127.0.0.1', ")
    assert done.stdout.endswith("[]\n")
