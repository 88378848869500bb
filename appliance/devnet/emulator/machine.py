"""A whole emulated enclave: secure module, vsock and QEMU, started together and stopped together.

The parent's side that the platform itself has is here (the heartbeat); what an operator runs on the parent is reached
through the same ports and is not.
"""

import logging
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from appliance.clock import Clock
from appliance.devnet.emulator.console import Console
from appliance.devnet.emulator.heartbeat import PORT as HEARTBEAT_PORT
from appliance.devnet.emulator.heartbeat import answer_heartbeat
from appliance.devnet.emulator.host_ports import GuestListener
from appliance.devnet.emulator.image import boot_pcrs, parse_boot_image
from appliance.devnet.emulator.nsm_device import NsmDevice
from appliance.devnet.emulator.qemu import Boot, Qemu, boot_command
from appliance.devnet.emulator.reactor import Reactor
from appliance.devnet.emulator.vhost_user import VhostUserBackend
from appliance.devnet.emulator.vsock import HOST_CIDS, PARENT_CID, HostPort, VsockDevice
from appliance.tee.software.nsm import PcrBank, SoftwareNsm
from appliance.tee.software.pki import ThrowAwayRoot
from kmscore.errors import ConfigError, InvariantBroken, Unavailable

GUEST_CID: Final = 16
MIN_MEMORY_MIB: Final = 1024
# The platform's own rule: four times the file.
MEMORY_PER_EIF: Final = 4
START_TIMEOUT_S: Final = 30.0
CONNECT_TIMEOUT_S: Final = 5.0
STOP_TIMEOUT_S: Final = 5.0
MAX_FAULTS: Final = 16
_INSTANCE_ID: Final = re.compile("i-([0-9a-f]{8}|[0-9a-f]{17})")
_PIECE_BYTES: Final = 65536
_DIAGNOSTIC_BYTES: Final = 2000

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EnclaveOptions:
    """How an image is started.

    `debug` zeroes the image's registers. `secure_module` False leaves that device out, which no parent can do.
    `memory_mib` None means what the platform would want but at least 1 GiB. `role_arn` and `instance_id` are the
    pretended parent's and go into PCR3 and PCR4. `attest_root` is a file that the throw-away root is written to, PEM.
    `show_console` gets what the guest prints.
    """

    debug: bool = False
    secure_module: bool = True
    cpus: int = 2
    memory_mib: int | None = None
    role_arn: str | None = None
    instance_id: str | None = None
    attest_root: Path | None = None
    show_console: Callable[[bytes], None] | None = None


class EmulatedEnclave:
    """One image running in QEMU between `__enter__` and `__exit__`; its methods may be called from any thread.

    `root` signs the documents; without one there is a root for this enclave alone. Raises `ConfigError` for an image
    that cannot be booted, and for an instance id that is none; on entering, when QEMU cannot be started or a file not
    be written.
    """

    def __init__(
        self,
        eif: bytes,
        qemu: Qemu,
        clock: Clock,
        options: EnclaveOptions | None = None,
        *,
        root: ThrowAwayRoot | None = None,
    ) -> None:
        self._options = options or EnclaveOptions()
        self._image = parse_boot_image(eif)
        self._qemu = qemu
        self._root = root or ThrowAwayRoot(datetime.fromtimestamp(clock.now_ms() / 1000, UTC))
        instance_id = self._options.instance_id or f"i-{os.urandom(9).hex()[:17]}"
        if not _INSTANCE_ID.fullmatch(instance_id):
            raise ConfigError("an instance id is i- and 8 or 17 hexadecimal digits")
        self.module_id = f"{instance_id}-enc{os.urandom(8).hex()}"
        self.pcrs = boot_pcrs(
            self._image, role_arn=self._options.role_arn, instance_id=instance_id, debug=self._options.debug
        )
        self._nsm = SoftwareNsm(self.module_id, PcrBank(self.pcrs), self._root.issuer(self.module_id), clock)
        self.faults: deque[str] = deque(maxlen=MAX_FAULTS)
        self._news = threading.Condition()
        self.console = Console(self._news, self._options.show_console)
        self._reactor = Reactor()
        self._vsock = VsockDevice(self._reactor, GUEST_CID)
        self._heartbeat = GuestListener()
        self._backends: list[VhostUserBackend] = []
        self._threads: dict[str, threading.Thread] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: Path | None = None
        self._alive = False
        self._ended = False
        self._diagnostics = b""

    # --- life ---

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self) -> None:
        if self._options.attest_root is not None:
            self._write_root(self._options.attest_root)
        self._directory = Path(tempfile.mkdtemp(prefix="nova-kms-enclave-"))
        memory = self._options.memory_mib or default_memory_mib(self._image.eif_bytes)
        boot = Boot(
            self._directory,
            self._image.cmdline,
            memory,
            self._options.cpus,
            secure_module=self._options.secure_module,
        )
        boot.kernel.write_bytes(self._image.kernel)
        boot.initrd.write_bytes(self._image.initrd)
        self._backends = [VhostUserBackend(boot.vsock_socket, self._vsock, self._reactor, self._note_fault)]
        if self._options.secure_module:
            module = NsmDevice(self._nsm, self._reactor)
            self._backends.append(VhostUserBackend(boot.nsm_socket, module, self._reactor, self._note_fault))
        self._vsock.listen(HEARTBEAT_PORT, self._heartbeat, [PARENT_CID])
        started: Future[None] = Future()
        self._begin(self._run_devices, "devices")
        self._begin(self._await_heartbeat, "heartbeat")
        # QEMU ends with the thread that started it, so that it never outlives us: this one lives as long as QEMU does.
        self._begin(lambda: self._run_qemu(boot_command(self._qemu, boot), started), "qemu")
        try:
            started.result(START_TIMEOUT_S)
        except OSError as error:
            raise ConfigError("QEMU cannot be started") from error

    def _write_root(self, file: Path) -> None:
        try:
            file.write_bytes(self._root.pem)
        except OSError as error:
            raise ConfigError(f"{file} cannot be written: {error.strerror}") from error

    def stop(self) -> None:
        """End the machine and everything around it, whatever state it is in; idempotent, blocks for some seconds."""
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
        self._reactor.stop()
        self._join("devices")
        # Closes every connection, and with them whatever the other threads wait for.
        for backend in self._backends:
            backend.close()
        self._backends.clear()
        self._reactor.close()
        self._heartbeat.close()
        self._join("heartbeat")
        self._join("qemu")
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    # --- the parent's side ---

    @property
    def ended(self) -> bool:
        """Whether QEMU has ended, by itself or by `stop`."""
        return self._ended

    @property
    def attest_root_der(self) -> bytes:
        """The root that documents of this enclave are to be verified under."""
        return self._root.der

    def listen(self, port: int, cids: Sequence[int] = HOST_CIDS) -> GuestListener:
        """Accept connections of the guest to this port of CID 2 and 3, or of those given; the caller closes it."""
        listener = GuestListener()
        self.serve(port, listener, cids)
        return listener

    def serve(self, port: int, serve: HostPort, cids: Sequence[int] = HOST_CIDS) -> None:
        """Have connections to a port served by something of the caller's, such as `unix_port`."""
        self._reactor.post(lambda: self._vsock.listen(port, serve, cids))

    def connect_to_guest(self, port: int, timeout_s: float = CONNECT_TIMEOUT_S) -> socket.socket:
        """A connection to a port of the guest, blocking.

        Raises `ConnectionRefusedError` when the guest refuses it or is gone, `TimeoutError` when it does not answer.
        """
        waiting: Future[socket.socket] = Future()
        if not self._reactor.post(lambda: self._vsock.connect(port, waiting)):
            raise ConnectionRefusedError("the enclave is not running")
        try:
            return waiting.result(timeout_s)
        except TimeoutError:
            if waiting.cancel():
                self._reactor.post(lambda: self._vsock.abandon(waiting))
                raise
            return waiting.result()

    # --- waiting ---

    def wait_heartbeat(self, timeout_s: float) -> None:
        """Returns when the guest has sent its heartbeat. Raises `Unavailable` when it ends before, or takes longer."""
        self._wait(lambda: self._alive, timeout_s, "send its heartbeat")

    def wait_console(self, text: str, timeout_s: float) -> None:
        """Returns when the guest has printed this. Raises `Unavailable` likewise."""
        self._wait(lambda: text in self.console.text(), timeout_s, "print what was waited for")

    def wait_power_off(self, timeout_s: float) -> None:
        """Returns when the guest has ended, QEMU with it. Raises `Unavailable` when it takes longer or QEMU failed."""
        self._wait(lambda: self._ended, timeout_s, "power off")
        if self._process is None or self._process.returncode:
            raise Unavailable(f"QEMU failed{self._reason()}")

    def _wait(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        with self._news:
            self._news.wait_for(lambda: condition() or self._ended, timeout_s)
            if condition():
                return
            ended = self._ended
        when = "before it ended" if ended else f"within {timeout_s} s"
        raise Unavailable(f"the enclave did not {what} {when}{self._reason()}")

    def _reason(self) -> str:
        said = [*self.faults, self._diagnostics.decode("utf-8", "replace").strip()]
        return "".join(f"; {sentence}" for sentence in said if sentence)

    # --- threads ---

    def _begin(self, work: Callable[[], None], name: str) -> None:
        self._threads[name] = thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()

    def _join(self, name: str) -> None:
        thread = self._threads.pop(name, None)
        if thread is not None:
            thread.join(STOP_TIMEOUT_S)
            if thread.is_alive():
                raise InvariantBroken(f"the emulator's {name} thread does not end")

    def _run_devices(self) -> None:
        try:
            self._reactor.run()
        except BaseException:
            # A bug of ours: a guest without devices would only hang.
            self._note_fault("the emulator's devices failed")
            if self._process is not None:
                self._process.kill()
            raise

    def _await_heartbeat(self) -> None:
        if answer_heartbeat(self._heartbeat):
            with self._news:
                self._alive = True
                self._news.notify_all()
        self._heartbeat.close()

    def _run_qemu(self, command: list[str], started: "Future[None]") -> None:
        with tempfile.TemporaryFile() as diagnostics:
            try:
                process = subprocess.Popen(
                    command,
                    env=dict(self._qemu.environment),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=diagnostics,
                )
            except OSError as error:
                started.set_exception(error)
                return
            # Known before anybody is told: whoever is interrupted while waiting still ends it.
            self._process = process
            started.set_result(None)
            with process:
                self._pump(process.stdout)
            diagnostics.seek(0)
            self._set_ended(diagnostics.read(_DIAGNOSTIC_BYTES))

    def _pump(self, console: IO[bytes] | None) -> None:
        if console is not None:
            while data := os.read(console.fileno(), _PIECE_BYTES):
                self.console.feed(data)

    def _set_ended(self, diagnostics: bytes) -> None:
        with self._news:
            self._diagnostics = diagnostics
            self._ended = True
            self._news.notify_all()

    def _note_fault(self, sentence: str) -> None:
        logger.warning("the emulated enclave broke a protocol", extra={"reason": sentence})
        with self._news:
            self.faults.append(sentence)


def default_memory_mib(eif_bytes: int) -> int:
    """Memory for an image of this size: what the platform asks for, but at least 1 GiB."""
    return max(MIN_MEMORY_MIB, -(-eif_bytes * MEMORY_PER_EIF >> 20))
