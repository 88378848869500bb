"""The real image boots, attests, refuses what it must, and joins a cluster of ordinary nodes.

Run with `pytest -m image tests/integration/test_image_node.py`; builds the images when `make image devnet-image` did
not, which takes minutes the first time.
"""

import contextlib
import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.cli.emulator import obtain_qemu
from appliance.clock import SystemClock
from appliance.devnet.anvil import free_port
from appliance.devnet.emulator.machine import EmulatedEnclave, EnclaveOptions
from appliance.devnet.emulator.qemu import Qemu
from appliance.host.parameters import PORT as PARAMETERS_PORT
from enclave_image.eif import Eif, encode_eif, parse_eif
from tests.support.cluster import NOVA_COMMAND, eventually
from tests.support.local_chain import ROOT
from tests.support.node_images import BuiltImage, built_image
from tests.support.running_devnet import RunningDevnet

pytestmark = [pytest.mark.image, pytest.mark.timeout(1800), pytest.mark.xdist_group("emulator")]

NOVA = NOVA_COMMAND[0]
BOOT_TIMEOUT_S = 120.0
DEVNET_TIMEOUT_S = 240.0


@pytest.fixture(scope="session")
def image() -> BuiltImage:
    return built_image("image", "appliance.toml")


@pytest.fixture(scope="session")
def devnet_image() -> BuiltImage:
    return built_image("devnet-image", "devnet.toml")


@pytest.fixture(scope="session")
def qemu() -> Qemu:
    return obtain_qemu(None)


def nova(*arguments: str, code: int = 0) -> str:
    """What a command prints, on both streams; it must exit with `code`."""
    done = subprocess.run([NOVA, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=BOOT_TIMEOUT_S)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@contextlib.contextmanager
def emulated(eif: Path, directory: Path, *options: str) -> Iterator[str]:
    """`nova-kms image run` until the node in it serves; gives its URL."""
    port, output = free_port(), directory / "console"
    command = [NOVA, "image", "run", str(eif), "--emulate", "--listen", f"127.0.0.1:{port}", *options]
    with output.open("wb") as sink:
        process = subprocess.Popen(command, cwd=ROOT, stdout=sink, stderr=sink, start_new_session=True)
    try:

        def serving() -> bool:
            assert process.poll() is None, output.read_text()
            return '"message":"serving"' in output.read_text()

        eventually(serving, BOOT_TIMEOUT_S)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(60) == 0, output.read_text()
        assert "Traceback" not in output.read_text()


# --- one image, by itself ---


def test_the_image_boots_and_attests_the_registers_that_the_build_published(
    image: BuiltImage, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root, other = tmp_path / "root.pem", tmp_path / "other.json"
    published = json.loads(image.measurements.read_text())
    other.write_text(json.dumps({**published, "PCR2": "ab" * 48}))
    begun = time.monotonic()
    with emulated(image.eif, tmp_path, "--attest-root", str(root)) as url:
        listening = f"{time.monotonic() - begun:.1f} s after the command, in software emulation"
        with capfd.disabled():
            print(f"\n{image.eif.stat().st_size / 1e6:.1f} MB, listening {listening}")
        proven = nova("attest", "verify", url, "--root", str(root), "--measurements", str(image.measurements))
        for name in ("PCR0", "PCR1", "PCR2"):
            assert published[name] in proven
        refused = nova("attest", "verify", url, "--root", str(root), "--measurements", str(other), code=1)
        assert "refused at measurements" in refused
        assert "refused at root" in nova("attest", "verify", url, code=1), "nobody believes an emulator by default"


def test_an_image_in_debug_mode_is_refused_by_its_zero_registers(image: BuiltImage, tmp_path: Path) -> None:
    root = tmp_path / "root.pem"
    with emulated(image.eif, tmp_path, "--attest-root", str(root), "--debug-mode") as url:
        refused = nova("attest", "verify", url, "--root", str(root), "--measurements", str(image.measurements), code=1)
    assert "refused at debug" in refused


def test_a_corrupted_image_is_not_booted(image: BuiltImage, tmp_path: Path) -> None:
    data = bytearray(image.eif.read_bytes())
    data[len(data) // 2] ^= 1
    damaged = tmp_path / "damaged.eif"
    damaged.write_bytes(data)
    said = nova("image", "run", str(damaged), "--emulate", code=2)
    assert re.search("checksum|CRC", said), said


def fails_with(eif: bytes, qemu: Qemu, options: EnclaveOptions, parameters: bytes | None = None) -> str:
    """Boot an image that must end by itself, and give what it said when it failed."""
    with EmulatedEnclave(eif, qemu, SystemClock(), options) as enclave, enclave.listen(PARAMETERS_PORT) as parent:

        def answer() -> None:
            with contextlib.suppress(ConnectionAbortedError), parent.accept() as connection:
                connection.sendall(parameters or b"{}")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        enclave.wait_power_off(BOOT_TIMEOUT_S)
        console = enclave.console.text()
    assert "init: powering off" in console, console
    assert "service started" not in console, console
    (failure,) = re.findall("init: FAILED: (.*)", console)
    return str(failure)


def test_without_a_secure_module_the_image_powers_off(image: BuiltImage, qemu: Qemu) -> None:
    failure = fails_with(image.eif.read_bytes(), qemu, EnclaveOptions(secure_module=False))
    assert "the secure module does not answer DescribeNSM: No such file" in failure


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (b'{"CHAIN_ID":"1"}', "instance_url, log_level, egress and nothing else"),
        (b'{"instance_url":"file:///etc/passwd"}', "instance_url has a value that is not accepted"),
        (b"[1,2", "not JSON"),
        (b'"' + b"a" * 5000 + b'"', "Message too long"),
    ],
    ids=["not on the list", "a value that is none", "not JSON", "too long"],
)
def test_what_the_parent_may_not_set_ends_the_boot(
    image: BuiltImage, qemu: Qemu, parameters: bytes, expected: str
) -> None:
    assert expected in fails_with(image.eif.read_bytes(), qemu, EnclaveOptions(), parameters)


# --- in a cluster ---


@contextlib.contextmanager
def running_devnet(image: BuiltImage, directory: Path, *options: str) -> Iterator[RunningDevnet]:
    """Two ordinary nodes and one from the image; stopped in order at the end."""
    devnet = RunningDevnet(directory, "--nodes", "2", "--eif", str(image.eif), *options)
    try:
        devnet.await_ready(DEVNET_TIMEOUT_S)
        yield devnet
        devnet.process.terminate()
        assert devnet.await_end() == 0, devnet.output()
        assert devnet.left_over() == set()
    finally:
        devnet.close()


def test_a_node_from_the_image_joins_ordinary_nodes_and_serves_the_same_keys(
    devnet_image: BuiltImage, tmp_path: Path
) -> None:
    with running_devnet(devnet_image, tmp_path) as devnet:
        assert re.search("compare the keys.*all.*equal", devnet.output()), devnet.output()
        assert re.search("read it after replication.*image-node.*same value", devnet.output()), devnet.output()
        report = json.loads(devnet.run("status", "--json"))
    assert (report["serving"], len(report["nodes"])) == (3, 3)


def test_a_booted_image_is_provisioned_and_then_joins_by_itself(
    devnet_image: BuiltImage, image: BuiltImage, tmp_path: Path
) -> None:
    with running_devnet(devnet_image, tmp_path, "--unregistered") as devnet:
        root, bundle = devnet.directory / "attest-root.pem", tmp_path / "bundle.json"
        asked = ["provision", "--url", "http://image-node.devnet.test:8000", "--root", str(root)]
        asked += ["--devnet", str(devnet.directory), "--out", str(bundle), "--register"]
        refused = nova(*asked, "--measurements", str(image.measurements), code=1)
        assert "measurements" in refused
        assert not bundle.exists()
        assert "2 of 2" in devnet.run("status"), "what was refused is not registered"

        nova(*asked, "--measurements", str(devnet_image.measurements))
        eventually(lambda: json.loads(devnet.run("status", "--json"))["serving"] == 3, BOOT_TIMEOUT_S)
        listed = json.loads(devnet.run("status", "--json"))["nodes"]
        assert json.loads(bundle.read_text())["wallet"] in json.dumps(listed), "the wallet that was attested is listed"


def test_an_image_for_another_chain_is_refused_by_the_devnet(image: BuiltImage, tmp_path: Path) -> None:
    said = nova("devnet", "--nodes", "1", "--once", "--dir", str(tmp_path), "--eif", str(image.eif), code=2)
    assert "the image is for another chain" in said
    assert "nova-kms image build --config enclave_image/devnet.toml" in said


def test_an_image_without_a_node_is_refused_by_the_devnet(image: BuiltImage, tmp_path: Path) -> None:
    sections = parse_eif(image.eif.read_bytes()).sections
    base_only = tmp_path / "base.eif"
    base_only.write_bytes(encode_eif(Eif(sections[:-1])))
    said = nova("devnet", "--nodes", "1", "--once", "--dir", str(tmp_path), "--eif", str(base_only), code=2)
    assert "it is not an image of a node" in said
