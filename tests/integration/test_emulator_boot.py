"""A test guest boots in QEMU and does what an enclave does: heartbeat, attestation, registers, vsock, power off.

Run with `pytest -m image tests/integration/test_emulator_boot.py`. It needs a C compiler with a static libc, the kernel
that the image was built with, and QEMU 11 or newer; where there is none, this machine's apt fetches Debian's.
"""

import contextlib
import hashlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.cli.emulator import obtain_qemu
from appliance.clock import SystemClock
from appliance.devnet.emulator.host_ports import unix_port
from appliance.devnet.emulator.machine import EmulatedEnclave, EnclaveOptions
from appliance.devnet.emulator.qemu import Qemu
from appliance.tee.attestation.cbor import CborValue, decode_cbor, encode_cbor
from appliance.tee.attestation.errors import Refused, Step
from appliance.tee.attestation.measurements import Measurements
from appliance.tee.attestation.root import aws_root
from appliance.tee.attestation.verify import VerificationPolicy, VerifiedDocument, verify_document
from enclave_image.eif import SectionType, parse_eif
from enclave_image.measure import measure_eif
from tests.support.guest_image import build_agent, build_test_image
from tests.support.node_images import built_image

pytestmark = [pytest.mark.image, pytest.mark.xdist_group("emulator")]

AGENT_PORT = 5000
BOOT_TIMEOUT_S = 40.0
REPLY_TIMEOUT_S = 30.0
PARENT_CID = 3
ECONNRESET = b"\x68"


@pytest.fixture(scope="module")
def qemu() -> Qemu:
    return obtain_qemu(None)


@pytest.fixture(scope="module")
def kernel() -> bytes:
    kernel = parse_eif(built_image("image", "appliance.toml").eif.read_bytes()).first(SectionType.KERNEL)
    assert kernel is not None
    return kernel


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build_agent(tmp_path_factory.mktemp("agent"))


@pytest.fixture(scope="module")
def eif(kernel: bytes, agent: bytes) -> bytes:
    return build_test_image(kernel, agent)


@contextlib.contextmanager
def booted(eif: bytes, qemu: Qemu, **options: object) -> Iterator[EmulatedEnclave]:
    """A guest that is ready."""
    with EmulatedEnclave(eif, qemu, SystemClock(), EnclaveOptions(memory_mib=512, **options)) as guest:  # type: ignore[arg-type]
        guest.wait_heartbeat(BOOT_TIMEOUT_S)
        guest.wait_console("guest: ready", REPLY_TIMEOUT_S)
        yield guest
        assert not guest.faults


@pytest.fixture(scope="module")
def guest(eif: bytes, qemu: Qemu) -> Iterator[EmulatedEnclave]:
    """One guest for the tests that leave it running, two processors."""
    with booted(eif, qemu, instance_id="i-0123456789abcdef0") as guest:
        yield guest


def dial(guest: EmulatedEnclave, command: bytes) -> socket.socket:
    connection = guest.connect_to_guest(AGENT_PORT, REPLY_TIMEOUT_S)
    connection.settimeout(REPLY_TIMEOUT_S)
    connection.sendall(command)
    return connection


def read_to_end(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as file:
        return file.read()


def ask_nsm(guest: EmulatedEnclave, request: CborValue) -> CborValue:
    return decode_cbor(ask_nsm_raw(guest, encode_cbor(request)))


def ask_nsm_raw(guest: EmulatedEnclave, request: bytes) -> bytes:
    with dial(guest, b"N" + request) as connection:
        connection.shutdown(socket.SHUT_WR)
        return read_to_end(connection)


def attest(guest: EmulatedEnclave, eif: bytes, nonce: bytes, root_der: bytes | None = None) -> VerifiedDocument:
    answer = ask_nsm(guest, {"Attestation": {"user_data": b"data", "nonce": nonce, "public_key": b"key"}})
    assert isinstance(answer, dict)
    attested = answer["Attestation"]
    assert isinstance(attested, dict)
    document = attested["document"]
    assert isinstance(document, bytes)
    measured = measure_eif(parse_eif(eif))
    wanted = Measurements({0: measured.pcr0, 1: measured.pcr1, 2: measured.pcr2})
    root_der = guest.attest_root_der if root_der is None else root_der
    return verify_document(document, VerificationPolicy(root_der, datetime.now(UTC), nonce, [wanted]))


def carried(guest: EmulatedEnclave, cid: int, port: int) -> tuple[socket.socket, bytes]:
    """Have the guest connect to a port of the host, and carry what comes; the connection and the guest's errno."""
    connection = dial(guest, b"C" + struct.pack("<II", cid, port))
    return connection, connection.recv(1)


# --- secure module ---


def test_an_attestation_of_the_guest_verifies_against_the_image(guest: EmulatedEnclave, eif: bytes) -> None:
    verified = attest(guest, eif, b"nonce")

    assert (verified.user_data, verified.public_key, verified.nonce) == (b"data", b"key", b"nonce")
    assert verified.module_id == guest.module_id
    assert verified.pcrs[4] == hashlib.sha384(bytes(48) + b"i-0123456789abcdef0").digest()


def test_no_verifier_believes_it_without_being_told_to(guest: EmulatedEnclave, eif: bytes) -> None:
    with pytest.raises(Refused) as refused:
        attest(guest, eif, b"nonce", aws_root())

    assert refused.value.step is Step.ROOT


def test_the_kernel_passes_requests_and_refusals_through(guest: EmulatedEnclave) -> None:
    answer = ask_nsm(guest, "DescribeNSM")
    assert isinstance(answer, dict)
    description = answer["DescribeNSM"]
    assert isinstance(description, dict)
    assert (description["module_id"], description["digest"]) == (guest.module_id, "SHA384")
    assert ask_nsm(guest, {"ExtendPCR": {"index": 0, "data": b"x"}}) == {"Error": "ReadOnlyIndex"}
    assert ask_nsm(guest, "Nonsense") == {"Error": "InvalidOperation"}
    assert ask_nsm_raw(guest, bytes(4097)).startswith(b"errno ")


def test_random_bytes_differ(guest: EmulatedEnclave) -> None:
    assert ask_nsm(guest, "GetRandom") != ask_nsm(guest, "GetRandom")


def test_an_extended_register_is_attested_once_it_is_locked(guest: EmulatedEnclave, eif: bytes) -> None:
    value = hashlib.sha384(bytes(48) + b"\xaa\xbb").digest()
    assert ask_nsm(guest, {"ExtendPCR": {"index": 20, "data": b"\xaa\xbb"}}) == {"ExtendPCR": {"data": value}}
    assert 20 not in attest(guest, eif, b"before").pcrs
    assert ask_nsm(guest, {"LockPCR": {"index": 20}}) == "LockPCR"
    assert ask_nsm(guest, {"ExtendPCR": {"index": 20, "data": b"more"}}) == {"Error": "ReadOnlyIndex"}
    assert attest(guest, eif, b"after").pcrs[20] == value


# --- vsock ---


@pytest.mark.parametrize("size", [0, 1, 3776, 3777, 1_000_000])
def test_what_the_host_sends_comes_back_after_its_half_close(guest: EmulatedEnclave, size: int) -> None:
    sent = os.urandom(size)
    with dial(guest, b"E") as connection:
        sender = threading.Thread(target=lambda: (connection.sendall(sent), connection.shutdown(socket.SHUT_WR)))
        sender.start()
        received = read_to_end(connection)
        sender.join(REPLY_TIMEOUT_S)

    assert received == sent


@pytest.mark.parametrize("cid", [2, 3])
def test_the_guest_reaches_the_host_and_both_half_close(guest: EmulatedEnclave, cid: int) -> None:
    sent, back = os.urandom(300_000), os.urandom(300_000)
    with guest.listen(7000) as listener:
        connection, error = carried(guest, cid, 7000)
        with connection, listener.accept(REPLY_TIMEOUT_S) as accepted:
            assert error == b"\0"
            sender = threading.Thread(target=lambda: (connection.sendall(sent), connection.shutdown(socket.SHUT_WR)))
            sender.start()
            assert read_to_end(accepted) == sent
            sender.join(REPLY_TIMEOUT_S)
            accepted.sendall(back)
            accepted.shutdown(socket.SHUT_WR)
            assert read_to_end(connection) == back


def test_the_guest_reaches_a_unix_socket(guest: EmulatedEnclave, tmp_path: Path) -> None:
    path = tmp_path / "service.sock"
    with socket.socket(socket.AF_UNIX) as service:
        service.bind(str(path))
        service.listen()
        service.settimeout(REPLY_TIMEOUT_S)
        guest.serve(7001, unix_port(path))
        connection, error = carried(guest, PARENT_CID, 7001)
        accepted, _ = service.accept()
        with connection, accepted:
            assert error == b"\0"
            accepted.sendall(b"hello")
            assert connection.recv(5) == b"hello"


@pytest.mark.parametrize("cid", [2, 3])
def test_a_port_of_the_host_that_nobody_serves_is_reset_at_once(guest: EmulatedEnclave, cid: int) -> None:
    connection, error = carried(guest, cid, 7999)
    with connection:
        assert error == ECONNRESET


def test_a_port_of_the_guest_that_nobody_serves_is_refused_at_once(guest: EmulatedEnclave) -> None:
    with pytest.raises(ConnectionRefusedError):
        guest.connect_to_guest(5999, REPLY_TIMEOUT_S)


def test_many_connections_live_side_by_side(guest: EmulatedEnclave) -> None:
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(dial(guest, b"E%02d" % number)) for number in range(30)]
        for number, connection in enumerate(connections):
            assert connection.recv(2) == b"%02d" % number
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""


def test_a_host_that_goes_away_leaves_the_guest_well(guest: EmulatedEnclave) -> None:
    for _ in range(10):
        with dial(guest, b"E" + bytes(100_000)):
            pass
    with dial(guest, b"E") as connection:
        connection.sendall(b"still here")
        connection.shutdown(socket.SHUT_WR)
        assert read_to_end(connection) == b"still here"


def test_a_host_that_does_not_read_stalls_its_connection_alone(guest: EmulatedEnclave) -> None:
    with dial(guest, b"E") as stalled, dial(guest, b"E") as other:
        stalled.settimeout(1)
        with pytest.raises(TimeoutError):
            stalled.sendall(bytes(10_000_000))
        other.sendall(b"fine")
        assert other.recv(4) == b"fine"


# --- the whole ---


def test_a_guest_powers_off_and_everything_ends(eif: bytes, qemu: Qemu) -> None:
    with booted(eif, qemu, cpus=1) as guest:
        with dial(guest, b"P") as connection:
            guest.wait_power_off(REPLY_TIMEOUT_S)
            assert connection.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            guest.connect_to_guest(AGENT_PORT)


def test_a_guest_in_debug_mode_is_found_out(eif: bytes, qemu: Qemu) -> None:
    with booted(eif, qemu, debug=True) as guest, pytest.raises(Refused) as refused:
        attest(guest, eif, b"nonce")

    assert refused.value.step is Step.DEBUG


def test_another_application_is_found_out_by_its_registers(agent: bytes, eif: bytes, qemu: Qemu, kernel: bytes) -> None:
    with (
        booted(build_test_image(kernel, agent, "another"), qemu) as guest,
        pytest.raises(Refused) as refused,
    ):
        attest(guest, eif, b"nonce")

    assert refused.value.step is Step.MEASUREMENTS
