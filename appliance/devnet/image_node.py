"""A node of a devnet that runs from an enclave image in the emulator, with the parent's side as on real hardware.

Unlike an ordinary node it is not believed: its keys are registered as its attestation document states them.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import anyio

from appliance.client.attestation import DocumentUnavailable, fetch_document
from appliance.clock import SystemClock
from appliance.devnet.anvil import HOST
from appliance.devnet.emulator.host import EmulatedHost
from appliance.devnet.emulator.machine import EnclaveOptions
from appliance.devnet.emulator.qemu import Qemu
from appliance.devnet.names import Names
from appliance.devnet.nodes import DevnetError, NodeStatus, read_status
from appliance.devnet.profile import DevnetProfile
from appliance.host.nitro_cli import EnclaveStart
from appliance.host.run import HostPlan, default_memory_mib, run_host
from appliance.http import new_http_client
from appliance.tee.attestation.errors import Refused
from appliance.tee.attestation.measurements import Measurements
from appliance.tee.attestation.verify import AttestedIdentity, VerificationPolicy, attested_identity, verify_document
from appliance.variables import TcpAddress
from enclave_image.cpio import read_cpio
from enclave_image.eif import Eif, parse_eif
from enclave_image.errors import ImageError
from enclave_image.init.config import CONFIG_FILE, parse_measured_config
from enclave_image.init.errors import BootError
from enclave_image.measure import measure_eif
from kmscore.errors import ConfigError, KmsError

NONCE_BYTES: Final = 32
LOOK_EVERY_S: Final = 1.0
CPUS: Final = 2
SHOWN_LINES: Final = 12
BUILD_COMMAND: Final = "nova-kms image build --config enclave_image/devnet.toml --out dist/devnet-image"


@dataclass(frozen=True, slots=True)
class NodeImage:
    """An image that a devnet can run: its file, its measurements and the registry's code measurement of it."""

    file: Path
    eif_bytes: int
    measurements: Measurements
    code_measurement: bytes


def load_image(file: Path, profile: DevnetProfile) -> NodeImage:
    """Read and measure an image. Raises `ConfigError` for one that is no image or is not for this devnet's chain."""
    try:
        data = file.read_bytes()
        eif = parse_eif(data)
        _check_chain(eif, profile)
        measured = measure_eif(eif)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except (ImageError, BootError) as error:
        raise ConfigError(f"{file} is not an image of a node: {error}") from error
    pcrs = Measurements({0: measured.pcr0, 1: measured.pcr1, 2: measured.pcr2})
    return NodeImage(file, len(data), pcrs, measured.code_measurement)


def _check_chain(eif: Eif, profile: DevnetProfile) -> None:
    files = {f"/{record.path}": record.data for ramdisk in eif.ramdisks() for record in read_cpio(ramdisk)}
    if CONFIG_FILE not in files:
        raise ConfigError(f"the image has no {CONFIG_FILE}: it is not an image of a node")
    held = parse_measured_config(files[CONFIG_FILE]).environment
    wanted = {
        name: value
        for name, value in profile.environ().items()
        if name in ("CHAIN_ID", "NOVA_APP_REGISTRY_ADDRESS", "KMS_REGISTRY_ADDRESS", "KMS_APP_ID")
    }
    wrong = [name for name, value in wanted.items() if held.get(name) != value]
    if wrong:
        raise ConfigError(
            f"the image is for another chain than a devnet's: its measured configuration has another {wrong[0]}. "
            f"Build one for devnets with `{BUILD_COMMAND}`"
        )


class ImageNode:
    """One emulated enclave with a node in it; its console goes to a file.

    `run` is a task beside it; `stop` ends it. The enclave reaches the chain and its peers by `names` alone.
    """

    def __init__(
        self, name: str, port: int, image: NodeImage, qemu: Qemu, names: Names, log_path: Path, *, registered_url: str
    ) -> None:
        self.name = name
        self.url = f"http://{HOST}:{port}"
        self.registered_url = registered_url
        self.log_path = log_path
        self._image = image
        self._qemu = qemu
        self._names = names
        self._port = port
        self._host: EmulatedHost | None = None
        self._ended: str | None = None
        self._begun = False
        self._stopped = anyio.Event()
        self._scope = anyio.CancelScope()

    async def run(self) -> None:
        """Boot the enclave and serve as its parent until `stop`, or until it ends by itself."""
        self._begun = True
        plan = HostPlan(
            EnclaveStart(self._image.file, default_memory_mib(self._image.eif_bytes), CPUS),
            TcpAddress(HOST, self._port),
            allowed=self._names.allowed,
            instance_url=self.registered_url,
            look_every_s=LOOK_EVERY_S,
            dial=self._names.dial,
        )
        try:
            with self._scope, self.log_path.open("ab", buffering=0) as log:

                def keep(piece: bytes) -> None:
                    log.write(piece)

                with EmulatedHost(self._qemu, SystemClock(), EnclaveOptions(show_console=keep)) as self._host:
                    await run_host(plan, self._host, self._host, lambda _: None)
        except* KmsError as group:
            self._ended = "; ".join(str(error) for error in _leaves(group))
        finally:
            self._stopped.set()

    @property
    def attest_root_der(self) -> bytes:
        """The throw-away root of this enclave's documents. Raises `DevnetError` before it was started."""
        if self._host is None or self._host.enclave is None:
            raise DevnetError(f"{self.name} has not started")
        return self._host.enclave.attest_root_der

    async def status(self) -> NodeStatus | None:
        self._require_running()
        return await read_status(self.url)

    async def attest(self) -> AttestedIdentity:
        """The keys that the enclave proves to hold, in exactly this image. Raises `DevnetError`."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        try:
            async with new_http_client() as http:
                document = await fetch_document(http, self.url, nonce)
            policy = VerificationPolicy(self.attest_root_der, datetime.now(UTC), nonce, [self._image.measurements])
            return attested_identity(verify_document(document, policy))
        except (DocumentUnavailable, Refused) as error:
            raise DevnetError(f"{self.name} does not attest its image: {error}") from error

    async def stop(self) -> None:
        self._scope.cancel()
        if self._begun:
            with anyio.CancelScope(shield=True):
                await self._stopped.wait()

    def _require_running(self) -> None:
        if self._stopped.is_set():
            tail = self.log_path.read_text(errors="replace").strip().splitlines()[-SHOWN_LINES:]
            raise DevnetError("\n".join([f"{self.name} has ended: {self._ended or 'it was stopped'}", *tail]))


def _leaves(group: BaseExceptionGroup[KmsError]) -> Sequence[KmsError]:
    found: list[KmsError] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found
