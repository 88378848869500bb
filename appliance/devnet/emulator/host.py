"""The emulator as a parent instance: starts an image like `nitro-cli`, and carries its vsock ports like a host kernel.

With it the very parent side that runs on real hardware (`appliance.host.run`) runs on any machine. Ports of the parent
are Unix sockets in a private directory.
"""

import dataclasses
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import anyio
import anyio.to_thread
from anyio.abc import SocketStream

from appliance.clock import Clock
from appliance.devnet.emulator.host_ports import unix_port
from appliance.devnet.emulator.machine import GUEST_CID, EmulatedEnclave, EnclaveOptions
from appliance.devnet.emulator.qemu import Qemu
from appliance.host.nitro_cli import EnclaveStart, RunningEnclave
from appliance.host.streams import BACKLOG
from kmscore.errors import ConfigError, Unavailable

# From QEMU's start: the kernel, the unpacking of the image and Python's start, all in software.
HEARTBEAT_TIMEOUT_S: Final = 90.0
ENDED_POLL_S: Final = 1.0


class EmulatedHost:
    """`EnclaveTool` and `Wires` of one emulated enclave; a context manager, which ends it if nobody did.

    `options` say what the enclave is beside what `EnclaveStart` says; its console goes to their `show_console` whether
    or not it is in debug mode.
    """

    def __init__(self, qemu: Qemu, clock: Clock, options: EnclaveOptions) -> None:
        self._qemu = qemu
        self._clock = clock
        self._options = options
        self._directory = tempfile.TemporaryDirectory(prefix="nova-kms-parent-")
        self._ports: dict[int, Path] = {}
        self.enclave: EmulatedEnclave | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.enclave is not None:
            self.enclave.stop()
        self._directory.cleanup()

    # --- EnclaveTool ---

    async def run_enclave(self, start: EnclaveStart) -> RunningEnclave:
        """Boot the image and wait for its heartbeat.

        Raises `ConfigError` for an image that cannot be booted, `Unavailable` when it sends none or one runs already.
        """
        if self.enclave is not None:
            raise Unavailable("the emulator runs one enclave, and that was started already")
        options = dataclasses.replace(
            self._options, debug=start.debug, cpus=start.cpu_count, memory_mib=start.memory_mib
        )
        try:
            eif = start.eif.read_bytes()
        except OSError as error:
            raise ConfigError(f"{start.eif} cannot be read: {error.strerror}") from error
        enclave = EmulatedEnclave(eif, self._qemu, self._clock, options)
        for port, path in self._ports.items():
            enclave.serve(port, unix_port(path))
        self.enclave = enclave
        await anyio.to_thread.run_sync(enclave.__enter__)
        try:
            await anyio.to_thread.run_sync(enclave.wait_heartbeat, HEARTBEAT_TIMEOUT_S)
        except BaseException:
            await anyio.to_thread.run_sync(enclave.stop)
            raise
        return self._describe(enclave)

    async def describe_enclaves(self) -> list[RunningEnclave]:
        """The enclave, while it runs."""
        return [] if self.enclave is None or self.enclave.ended else [self._describe(self.enclave)]

    async def terminate_enclave(self, enclave_id: str) -> None:
        """End the enclave. Raises `Unavailable` when there is none of this name."""
        if self.enclave is None or self.enclave.module_id != enclave_id:
            raise Unavailable("there is no such enclave")
        await anyio.to_thread.run_sync(self.enclave.stop)

    async def console(self, enclave_id: str, show: Callable[[bytes], None]) -> None:  # noqa: ARG002 - it is shown anyway
        """Returns when the enclave has ended."""
        while await self.describe_enclaves():  # noqa: ASYNC110 - QEMU's end is another thread's news
            await anyio.sleep(ENDED_POLL_S)

    # --- Wires ---

    def listen(self, port: int) -> socket.socket:
        """A listener for the guest's connections to a port of its parent, from the next start on."""
        path = Path(self._directory.name) / str(port)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(path))
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            raise ConfigError(f"port {port} of the emulated parent cannot be bound: {error.strerror}") from error
        self._ports[port] = path
        return listener

    async def connect(self, cid: int, port: int) -> SocketStream:  # noqa: ARG002 - there is one guest
        """A connection to a port of the guest. Raises `OSError`."""
        if self.enclave is None:
            raise ConnectionRefusedError("the enclave is not running")
        connection = await anyio.to_thread.run_sync(self.enclave.connect_to_guest, port)
        return await SocketStream.from_socket(connection)

    @staticmethod
    def _describe(enclave: EmulatedEnclave) -> RunningEnclave:
        return RunningEnclave(enclave.module_id, GUEST_CID, "RUNNING")
