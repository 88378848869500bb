"""Node processes of a devnet: each a real `nova-kms serve`, configured by its environment alone."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import anyio
import httpx

from appliance.http import new_http_client
from kmscore.errors import KmsError

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 25.0
POLL_S = 0.2

SERVE = ("-m", "appliance", "serve")


class DevnetError(KmsError):
    """The devnet cannot go on; `str(error)` says what happened and where to look."""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What a node's `/status` says of itself. Only a devnet believes it: it started the process."""

    wallet: str
    tee_pubkey: bytes
    available: bool
    reason: str | None
    total_keys: int


class DevnetNode(Protocol):
    """One node of a devnet: an ordinary process, or an enclave in the emulator."""

    name: str
    url: str
    registered_url: str
    log_path: Path

    async def status(self) -> NodeStatus | None:
        """The node's own word, None while it does not answer. Raises `DevnetError` when it stopped."""

    async def stop(self) -> None:
        """End it, in order where it lets itself be told."""


async def read_status(url: str) -> NodeStatus | None:
    """What `/status` of the node at this URL says; None when nothing answers there."""
    try:
        async with new_http_client() as http:
            response = await http.get(f"{url}/status", timeout=5.0)
    except httpx.TransportError:
        return None
    if response.status_code != httpx.codes.OK:
        return None
    answer = response.json()
    node = answer["node"]
    return NodeStatus(
        wallet=node["tee_wallet"],
        tee_pubkey=bytes.fromhex(node["tee_pubkey"]),
        available=node["service_available"],
        reason=node["service_unavailable_reason"],
        total_keys=answer["data_store"]["total_keys"],
    )


async def wait_until_serving(node: DevnetNode, timeout_s: float = START_TIMEOUT_S) -> NodeStatus:
    """The first answer of a node. Raises `DevnetError`."""
    with anyio.move_on_after(timeout_s):
        while True:
            status = await node.status()
            if status is not None:
                return status
            await anyio.sleep(POLL_S)
    raise DevnetError(f"{node.name} does not answer after {timeout_s:.0f} s; see {node.log_path}")


class NodeProcess:
    """One running node; its log goes to a file. `url` is where it listens, `registered_url` what the registry is told:
    the same unless another is given. `arguments` are Python's: what it runs as a node.
    """

    def __init__(
        self,
        name: str,
        port: int,
        environ: Mapping[str, str],
        log_path: Path,
        *,
        registered_url: str | None = None,
        arguments: Sequence[str] = SERVE,
    ) -> None:
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self.registered_url = registered_url or self.url
        self.log_path = log_path
        # Nothing of our own environment but what a program needs to start: the node is told everything by `environ`.
        inherited = {
            name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR") if name in os.environ
        }
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                env={
                    **inherited,
                    "IN_ENCLAVE": "false",
                    "TEE_PROVIDER": "software",
                    "BIND_ADDR": f"127.0.0.1:{port}",
                    **environ,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C reaches the devnet alone, which then stops its nodes in order.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def require_running(self) -> None:
        """Raises `DevnetError` with the end of the log when the process is gone."""
        if self._process.poll() is not None:
            tail = self.log_path.read_text(errors="replace").strip().splitlines()[-5:]
            raise DevnetError("\n".join([f"{self.name} stopped with exit code {self._process.returncode}:", *tail]))

    async def status(self) -> NodeStatus | None:
        """The node's own word, None while it does not answer. Raises `DevnetError` when it stopped."""
        self.require_running()
        return await read_status(self.url)

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL for a process that does not end within its time."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        with anyio.move_on_after(STOP_TIMEOUT_S, shield=True):
            while self._process.poll() is None:  # noqa: ASYNC110 - a child has no event to wait for
                await anyio.sleep(0.05)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
