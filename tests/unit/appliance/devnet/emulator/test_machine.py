"""The machine around QEMU, with a script in QEMU's place: what starts is stopped, and who waits is told."""

import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.clock import SystemClock
from appliance.devnet.emulator.machine import EmulatedEnclave, EnclaveOptions, default_memory_mib
from appliance.devnet.emulator.qemu import Qemu
from enclave_image.eif import Eif, Section, SectionType, encode_eif
from enclave_image.measure import measure_eif, pcr4_of_instance
from kmscore.errors import ConfigError, Unavailable

EIF = Eif(
    (
        Section(SectionType.KERNEL, b"kernel"),
        Section(SectionType.CMDLINE, b"quiet"),
        Section(SectionType.METADATA, b"{}"),
        Section(SectionType.RAMDISK, b"ramdisk"),
    )
)


def enclave(script: str, options: EnclaveOptions | None = None) -> EmulatedEnclave:
    """An enclave whose QEMU is a shell script; `$@` are QEMU's arguments."""
    return EmulatedEnclave(encode_eif(EIF), Qemu(("/bin/sh", "-c", script, "qemu")), SystemClock(), options)


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()} & {"devices", "heartbeat", "qemu"}


def test_what_the_guest_prints_is_seen_until_it_powers_off() -> None:
    shown: list[bytes] = []
    with enclave("echo hello; echo world", EnclaveOptions(show_console=shown.append)) as running:
        running.wait_console("hello", 10)
        running.wait_power_off(10)

    assert running.console.text() == b"".join(shown).decode() == "hello\nworld\n"
    assert threads() == set()


def test_qemu_gets_the_parts_of_the_image_and_the_sockets_wait_for_it() -> None:
    script = """
    while [ $# -gt 0 ]; do
      case $1 in
        -kernel | -initrd) cat "$2"; echo; directory=${2%/*} ;;
      esac
      shift
    done
    test -S "$directory/vsock.sock" && test -S "$directory/nsm.sock" && echo "$directory"
    """
    with enclave(script) as running:
        running.wait_power_off(10)
    kernel, ramdisk, directory = running.console.text().split()

    assert (kernel, ramdisk) == ("kernel", "ramdisk")
    assert not Path(directory).exists()


def test_a_machine_that_runs_is_stopped_on_leaving() -> None:
    with enclave("echo up; exec sleep 1000") as running:
        running.wait_console("up", 10)
        assert threads() == {"devices", "heartbeat", "qemu"}
    running.stop()

    assert threads() == set()


def test_who_waits_for_what_does_not_happen_is_told_why() -> None:
    with enclave("echo about memory >&2; exit 1") as running:
        with pytest.raises(Unavailable, match="did not send its heartbeat before it ended; about memory"):
            running.wait_heartbeat(10)
        with pytest.raises(Unavailable, match="print what was waited for"):
            running.wait_console("x", 10)
        with pytest.raises(Unavailable, match="QEMU failed; about memory"):
            running.wait_power_off(10)


def test_waiting_has_an_end() -> None:
    with enclave("exec sleep 1000") as running, pytest.raises(Unavailable, match=r"did not power off within 0\.01 s"):
        running.wait_power_off(0.01)


def test_a_qemu_that_cannot_be_started_is_a_matter_of_configuration() -> None:
    machine = EmulatedEnclave(encode_eif(EIF), Qemu(("/nonexistent/qemu",)), SystemClock())
    with pytest.raises(ConfigError), machine:
        pass

    assert threads() == set()


def test_an_image_that_is_none_does_not_start() -> None:
    with pytest.raises(ConfigError, match="cannot be booted"):
        EmulatedEnclave(b"", Qemu(("true",)), SystemClock())


@pytest.mark.parametrize("instance_id", ["i-", "i-0123456", "i-0123456789abcdef01", "i-0123456G", "x" * 100])
def test_an_instance_id_that_is_none_does_not_start(instance_id: str) -> None:
    with pytest.raises(ConfigError, match="instance id"):
        enclave("true", EnclaveOptions(instance_id=instance_id))


def test_registers_are_of_the_image_and_of_the_parent() -> None:
    machine = enclave("true", EnclaveOptions(instance_id="i-01234567"))
    measured = measure_eif(EIF)

    assert machine.pcrs == {0: measured.pcr0, 1: measured.pcr1, 2: measured.pcr2, 4: pcr4_of_instance("i-01234567")}
    assert machine.module_id.startswith("i-01234567-enc")
    machine.stop()


def test_registers_of_the_image_are_zero_in_debug_mode() -> None:
    machine = enclave("true", EnclaveOptions(debug=True))

    assert [machine.pcrs[index] for index in (0, 1, 2)] == [bytes(48)] * 3
    assert machine.pcrs[4] != bytes(48)
    machine.stop()


def test_the_throw_away_root_is_written_where_a_verifier_finds_it(tmp_path: Path) -> None:
    path = tmp_path / "root.pem"
    with enclave("true", EnclaveOptions(attest_root=path)) as running:
        written = x509.load_pem_x509_certificate(path.read_bytes())
        assert written.public_bytes(Encoding.DER) == running.attest_root_der


def test_a_place_where_the_root_cannot_be_written_is_a_matter_of_configuration(tmp_path: Path) -> None:
    options = EnclaveOptions(attest_root=tmp_path / "missing" / "root.pem")
    with pytest.raises(ConfigError, match=r"root\.pem cannot be written: No such file"), enclave("exit 0", options):
        raise AssertionError("nothing may start")
    assert threads() == set()


def test_without_a_guest_nobody_is_reached() -> None:
    with enclave("exec sleep 1000") as running, pytest.raises(ConnectionRefusedError):
        running.connect_to_guest(80)
    with pytest.raises(ConnectionRefusedError):
        running.connect_to_guest(80)


def test_listeners_may_be_there_before_the_guest_is() -> None:
    running = enclave("exec sleep 1000")
    with running.listen(9001) as listener, running, pytest.raises(TimeoutError):
        listener.accept(0)


@pytest.mark.parametrize(("size", "memory"), [(0, 1024), (256 << 20, 1024), ((256 << 20) + 1, 1025), (300 << 20, 1200)])
def test_memory_is_what_the_platform_asks_for(size: int, memory: int) -> None:
    assert default_memory_mib(size) == memory
