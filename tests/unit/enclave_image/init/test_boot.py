"""The boot step by step on a platform in memory: order, what each step leaves behind, and what stops it."""

import errno
import hashlib
import re
from collections.abc import Callable

import pytest

from enclave_image.init.boot import MAX_CLOCK_STEP_NS, boot, step_clock
from enclave_image.init.config import CONFIG_FILE
from enclave_image.init.errors import BootError
from enclave_image.init.main import run
from enclave_image.init.platform import Platform
from enclave_image.init.supervise import supervise
from tests.support.enclave_platform import FakeNsm, FakePlatform, PoweredOff

CONFIG = b"""
[service]
command = ["/usr/bin/python3.13", "-m", "appliance"]
user = 1000
group = 1000
[parent]
cid = 3
heartbeat_port = 9000
parameters_port = 9001
[environment]
IN_ENCLAVE = "true"
LOG_LEVEL = "INFO"
"""


def platform(nsm: FakeNsm | None = None, parameters: bytes | None = b'{"log_level":"DEBUG"}') -> FakePlatform:
    made = FakePlatform(nsm=nsm or FakeNsm())
    made.files = {CONFIG_FILE: CONFIG, "/sys/class/misc/hw_random/rng_current": b"nsm-hwrng\n"}
    made.parent = {9000: lambda data: data}
    if parameters is not None:
        made.parent[9001] = lambda _: parameters
    return made


def said(target: FakePlatform) -> tuple[list[str], object]:
    lines: list[str] = []
    port: Platform = target
    return lines, boot(port, lines.append)


def test_a_boot_goes_through_every_step_in_order_and_gives_the_service():
    target = platform()
    lines, service = said(target)
    assert [line for line in lines if " " not in line or line == "secure module"] == [
        "mounts", "secure module", "entropy", "heartbeat", "loopback", "clock", "configuration",
    ]  # fmt: skip
    assert [call[:3] for call in target.log if call[0] != "link"] == [
        ("mount", "devtmpfs", "/dev"),
        ("mount", "proc", "/proc"),
        ("mount", "sysfs", "/sys"),
        ("mount", "tmpfs", "/run"),
        ("mount", "tmpfs", "/tmp"),
        ("remount_read_only", "/"),
        ("add_entropy", 512, 4096),
        ("call", 3, 9000),
        ("raise_interface", "lo"),
        ("call", 3, 9001),
    ]
    assert service.command == ("/usr/bin/python3.13", "-m", "appliance")
    assert service.environment["LOG_LEVEL"] == "DEBUG"
    assert service.environment["IN_ENCLAVE"] == "true"


def test_the_digest_of_the_parameters_is_in_pcr16_and_the_register_is_locked():
    nsm = FakeNsm()
    _, service = said(platform(nsm))
    digest = hashlib.sha384(b'{"log_level":"DEBUG"}').digest()
    assert nsm.pcrs[16] == hashlib.sha384(bytes(48) + digest).digest()
    assert 16 in nsm.locked
    assert service.environment["ENCLAVE_CONFIG_DIGEST"] == digest.hex()


def test_a_parent_without_the_parameter_port_sets_none_and_that_is_bound_too():
    nsm = FakeNsm()
    said(platform(nsm, parameters=None))
    assert nsm.pcrs[16] == hashlib.sha384(bytes(48) + hashlib.sha384(b"{}").digest()).digest()


def test_debug_mode_is_said_aloud():
    lines, _ = said(platform(FakeNsm(pcr0=bytes(48))))
    assert any(line.startswith("DEBUG MODE") for line in lines)


def change(name: str, answer: object) -> Callable[[FakePlatform], None]:
    def apply(target: FakePlatform) -> None:
        assert isinstance(target.nsm, FakeNsm)
        target.nsm.answers[name] = answer

    return apply


def describe(**changes: object) -> object:
    described = FakeNsm().DescribeNSM()
    assert isinstance(described, dict)
    return {"DescribeNSM": {**described["DescribeNSM"], **changes}}


def fail(call: str, number: int) -> Callable[[FakePlatform], None]:
    return lambda target: target.failures.update({call: OSError(number, "failed")})


def serve(port: int, answer: bytes) -> Callable[[FakePlatform], None]:
    return lambda target: target.parent.update({port: lambda _: answer})


def without_module(target: FakePlatform) -> None:
    def missing(_: bytes) -> bytes:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "/dev/nsm")

    target.nsm = missing


STOPS: dict[str, tuple[Callable[[FakePlatform], None], str, int]] = {
    # what is wrong, what is said, how many steps were begun
    "no secure module": (without_module, "does not answer DescribeNSM: No such file or directory", 2),
    "module of another digest": (change("DescribeNSM", describe(digest="SHA256")), "describes itself", 2),
    "module that answers garbage": (change("DescribeNSM", b"\xff"), "is not CBOR", 2),
    "module that answers another shape": (change("DescribeNSM", ["x"]), "another shape", 2),
    "module that refuses": (change("DescribeNSM", {"Error": "InternalError"}), "refuses DescribeNSM: InternalError", 2),
    "registers not locked": (change("DescribeNSM", describe(locked_pcrs=[0])), "has not locked", 2),
    "PCR16 locked already": (change("DescribeNSM", describe(locked_pcrs=list(range(17)))), "PCR16 is locked", 2),
    "no random bytes": (change("GetRandom", {"GetRandom": {"random": b""}}), "no random bytes", 3),
    "another source of randomness": (
        lambda target: target.files.update({"/sys/class/misc/hw_random/rng_current": b"tpm-rng\n"}),
        "is not the secure module",
        3,
    ),
    "heartbeat not echoed": (serve(9000, b"\x00"), "did not echo", 4),
    "PCR16 refuses": (change("ExtendPCR", {"Error": "ReadOnlyIndex"}), "refuses ExtendPCR: ReadOnlyIndex", 7),
    "lock that does not hold": (
        change("DescribePCR", {"DescribePCR": {"lock": False, "data": b"\x01" * 48}}),
        "not what it was locked at",
        7,
    ),
    "register that held something before": (
        lambda t: t.nsm.pcrs.update({16: b"\1" * 48}),
        "not what it was locked at",
        7,
    ),
    "register that lies about its new value": (
        change("ExtendPCR", {"ExtendPCR": {"data": b"\x02" * 48}}),
        "refuses|not what it was locked at",
        7,
    ),
    "unknown parameter": (serve(9001, b'{"chain_id":"1"}'), "nothing else", 7),
}


@pytest.mark.parametrize(("apply", "reason", "steps"), STOPS.values(), ids=STOPS)
def test_each_step_stops_the_boot(apply, reason, steps):
    target = platform()
    apply(target)
    lines: list[str] = []
    with pytest.raises(BootError, match=reason):
        boot(target, lines.append)
    known = {"mounts", "secure module", "entropy", "heartbeat", "loopback", "clock", "configuration"}
    assert len([line for line in lines if line in known]) == steps


@pytest.mark.parametrize(("apply", "reason", "steps"), STOPS.values(), ids=STOPS)
def test_each_stop_is_printed_and_ends_the_enclave_before_the_service(apply, reason, steps, capsys):
    target = platform()
    apply(target)
    with pytest.raises(PoweredOff):
        run(target)
    *_, failure, end = capsys.readouterr().out.splitlines()
    assert re.match(f"init: FAILED: .*({reason})", failure)
    assert end == "init: powering off"
    assert target.log[-1] == ("power_off",)
    assert not any(done[0] == "spawn" for done in target.log)


def test_nothing_of_the_parents_is_printed_but_names_of_the_list(capsys):
    target = platform(parameters=b'{"instance_url":"https://user:secret@kms.example/","log_level":"INFO"}')
    target.ended = [(7, 0)]
    with pytest.raises(PoweredOff):
        run(target)
    out = capsys.readouterr().out
    assert "parameters instance_url, log_level, digest" in out
    assert "secret" not in out
    target = platform(parameters=b'{"instance_url":"https://secret","\\u001b[2Jsecret":"x"}')
    with pytest.raises(PoweredOff):
        run(target)
    out = capsys.readouterr().out
    assert "an object with instance_url, log_level, egress and nothing else" in out
    assert "secret" not in out


@pytest.mark.parametrize("call", ["mount", "remount_read_only", "add_entropy", "raise_interface"])
def test_a_system_call_that_fails_ends_the_enclave(call, capsys):
    target = platform()
    fail(call, errno.EPERM)(target)
    with pytest.raises(PoweredOff):
        run(target)
    assert "init: FAILED: failed" in capsys.readouterr().out
    assert not any(done[0] == "spawn" for done in target.log)


def test_a_parent_that_keeps_the_parameters_open_ends_the_enclave():
    target = platform()
    target.failures["call"] = TimeoutError("timed out")
    with pytest.raises(PoweredOff):
        run(target)


def test_random_bytes_are_gathered_from_short_answers():
    nsm = FakeNsm()
    nsm.random_sizes = [1, 100, 300, 300]
    target = platform(nsm)
    said(target)
    assert ("add_entropy", 512, 4096) in target.log


# --- clock ---


def with_clock(step_ns: int) -> FakePlatform:
    target = platform()
    target.directories = {"/sys/class/ptp": ["ptp0", "ptp1"]}
    target.files |= {
        "/sys/class/ptp/ptp0/clock_name": b"other\n",
        "/sys/class/ptp/ptp1/clock_name": b"KVM virtual PTP\n",
    }
    target.device_ns = target.now_ns + step_ns
    return target


def test_the_clock_steps_forward_to_the_hypervisors():
    target = with_clock(5)
    assert step_clock(target) == 5
    assert target.log == [("device_time_ns", "/dev/ptp1"), ("set_time_ns", 10**18 + 5)]


@pytest.mark.parametrize("step_ns", [0, -1, -MAX_CLOCK_STEP_NS])
def test_the_clock_never_goes_backwards(step_ns):
    target = with_clock(step_ns)
    assert step_clock(target) == 0
    assert target.now_ns == 10**18


@pytest.mark.parametrize("step_ns", [MAX_CLOCK_STEP_NS + 1, -MAX_CLOCK_STEP_NS - 1])
def test_a_clock_that_is_too_far_away_is_not_believed(step_ns):
    with pytest.raises(BootError, match="too far"):
        step_clock(with_clock(step_ns))


def test_without_a_clock_of_the_hypervisor_the_boot_clock_stays():
    assert step_clock(platform()) is None


# --- supervision ---


def test_the_end_of_the_service_ends_the_enclave_and_orphans_are_reaped(capsys):
    target = platform()
    target.ended = [(99, 0), None, (98, 256), (7, 2 << 8)]
    with pytest.raises(PoweredOff):
        run(target)
    (spawned,) = (call for call in target.log if call[0] == "spawn")
    assert spawned[1:4] == (("/usr/bin/python3.13", "-m", "appliance"), 1000, 1000)
    assert target.log[-1] == ("power_off",)
    assert "service ended with status 2" in capsys.readouterr().out


def test_a_killed_service_is_said_to_be_killed(capsys):
    target = platform()
    target.ended = [(7, 9)]
    with pytest.raises(PoweredOff):
        run(target)
    assert "service ended with killed by SIGKILL" in capsys.readouterr().out


def test_the_clock_is_looked_at_again_while_the_service_runs():
    target = with_clock(5)
    target.ended = [None, (7, 0)]
    _, service = said(with_clock(0))
    supervise(target, service, lambda _: None)
    assert ("set_time_ns", 10**18 + 5) in target.log


def test_a_bug_ends_the_enclave_without_its_text(capsys):
    target = platform()
    target.parent[9000] = lambda _: 1 // 0
    with pytest.raises(PoweredOff):
        run(target)
    out = capsys.readouterr().out
    assert "ZeroDivisionError in the first process" in out
    assert "division" not in out
