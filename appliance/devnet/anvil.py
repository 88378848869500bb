"""A private EVM chain in a child process: anvil, started on a port, waited for, paused, stopped.

For development and tests only: anvil holds its accounts' keys, which are public knowledge, and signs for whoever asks.
"""

import platform
import random
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
import anyio.to_thread

from kmscore.errors import ConfigError, Unavailable

HOST = "127.0.0.1"
DEVNET_CHAIN_ID = 31337

LOWEST_PORT = 10_240
PORT_TRIES = 100
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 5.0
POLL_S = 0.02

_NODE_MODULES = Path(__file__).resolve().parents[2] / "tools" / "node_modules"
_PACKAGES = {"x86_64": "anvil-linux-amd64", "aarch64": "anvil-linux-arm64"}


def find_anvil() -> str:
    """The path of the anvil that set-up installs, else of one on PATH. Raises ConfigError if there is none."""
    installed = _NODE_MODULES / "@foundry-rs" / _PACKAGES.get(platform.machine(), "") / "bin" / "anvil"
    if installed.is_file():
        return str(installed)
    found = shutil.which("anvil")
    if found is None:
        raise ConfigError("anvil, the chain of the devnet, is not installed: run `make setup`")
    return found


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on at this moment.

    It lies below those that the system gives to outgoing connections: none of them can take it before a listener does.
    Raises OSError when there is none.
    """
    first_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    for port in random.sample(range(LOWEST_PORT, first_outgoing), PORT_TRIES):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise OSError("no free TCP port was found")


class Anvil:
    """One anvil process; starts when constructed and must be stopped, most easily as a context manager.

    `block_time_s` None mines a block for each transaction. With `state_file` the chain is loaded from that file if it
    exists and saved to it when the process is stopped (not when it is killed).
    Raises ConfigError if anvil is not installed.
    """

    def __init__(
        self,
        port: int,
        *,
        chain_id: int = DEVNET_CHAIN_ID,
        block_time_s: float | None = None,
        state_file: Path | None = None,
    ) -> None:
        command = [find_anvil(), "--host", HOST, "--port", str(port), "--chain-id", str(chain_id), "--silent"]
        if block_time_s is not None:
            command += ["--block-time", str(block_time_s)]
        if state_file is not None:
            command += ["--state", str(state_file), "--preserve-historical-states"]
        self.port = port
        self.url = f"http://{HOST}:{port}"
        # Errors go to our own standard error: a pipe would have to be read for as long as the chain runs.
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id of anvil."""
        return self._process.pid

    async def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Returns when anvil accepts connections. Raises Unavailable if it ended, or does not within the time."""
        with anyio.move_on_after(timeout_s):
            while self._process.poll() is None:
                try:
                    stream = await anyio.connect_tcp(HOST, self.port)
                except OSError:
                    await anyio.sleep(POLL_S)
                else:
                    await stream.aclose()
                    return
            raise Unavailable(f"anvil ended with code {self._process.returncode}")
        raise Unavailable(f"anvil does not listen on port {self.port} after {timeout_s} s")

    def pause(self) -> None:
        """Stops the process where it is: connections are accepted by the kernel and nobody answers."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets a paused process go on."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Ends the process at once, without saving its state."""
        self._process.kill()
        self._process.wait(STOP_TIMEOUT_S)

    def stop(self) -> None:
        """Ends the process, which saves its state; kills it if it does not within a few seconds. Blocks; idempotent."""
        if self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    async def aclose(self) -> None:
        """`stop` without blocking the event loop."""
        await anyio.to_thread.run_sync(self.stop)
