"""The steps of the boot, in order; each one either leaves the enclave in the state its name says, or raises.

The order is enclave §2: mounts, secure module, entropy, heartbeat, loopback, clock, configuration, service.
"""

import errno
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .config import (
    CONFIG_FILE,
    CONFIG_PCR,
    MAX_PARAMETER_BYTES,
    MeasuredConfig,
    parameters_digest,
    parse_measured_config,
    parse_parameters,
    service_environment,
)
from .errors import BootError
from .nsm import PCR_BYTES, Nsm
from .platform import MS_NODEV, MS_NOEXEC, MS_NOSUID, Platform

HEARTBEAT: Final = b"\xb7"  # what the platform sends back; its absence ends the enclave
HEARTBEAT_TIMEOUT_S: Final = 30.0
PARAMETERS_TIMEOUT_S: Final = 10.0
SEED_BYTES: Final = 512
RNG_CURRENT: Final = "/sys/class/misc/hw_random/rng_current"
NSM_RNG: Final = b"nsm-hwrng"
PTP_DIRECTORY: Final = "/sys/class/ptp"
KVM_CLOCK_NAME: Final = b"KVM virtual PTP"
MAX_CLOCK_STEP_NS: Final = 24 * 3600 * 10**9  # a hypervisor whose two clocks are a day apart is not to be believed
BOOT_LOCKED_PCRS: Final = frozenset(range(16))

_MOUNTS: Final = (
    ("devtmpfs", "/dev", MS_NOSUID | MS_NOEXEC, "mode=0755"),
    ("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "hidepid=2"),
    ("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, ""),
    ("tmpfs", "/run", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0755,size=16m"),
    ("tmpfs", "/tmp", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777,size=64m"),  # noqa: S108 -- a mount point
)
_DEVICE_LINKS: Final = (
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
)


@dataclass(frozen=True, slots=True)
class Service:
    """What the boot leads to: the program, its environment, and as whom it runs."""

    command: tuple[str, ...]
    environment: dict[str, str]
    user: int
    group: int


def mount_file_systems(platform: Platform) -> None:
    """Mount what the kernel provides, and make the root read-only: the image does not change after its measurement."""
    for kind, target, flags, options in _MOUNTS:
        platform.mount(kind, target, flags, options)
    for target, path in _DEVICE_LINKS:
        platform.link(target, path)
    platform.remount_read_only("/")


def open_secure_module(nsm: Nsm) -> bool:
    """Check that the module answers and measures, and lets PCR16 be extended; returns whether this is debug mode.

    In debug mode the module reports PCR0 to PCR2 as zero, and no verifier accepts its documents.
    """
    description = nsm.describe()
    if not description.locked_pcrs >= BOOT_LOCKED_PCRS or description.max_pcrs <= CONFIG_PCR:
        raise BootError("the secure module has not locked the registers of the image")
    if CONFIG_PCR in description.locked_pcrs:
        raise BootError(f"PCR{CONFIG_PCR} is locked before the configuration was extended into it")
    return nsm.pcr(0)[0] == bytes(PCR_BYTES)


def seed_entropy(platform: Platform, nsm: Nsm) -> None:
    """Credit the module's randomness to the kernel's pool, and check that the kernel goes on taking it from there."""
    source = platform.read(RNG_CURRENT).strip()
    if source != NSM_RNG:
        raise BootError("the kernel's source of hardware randomness is not the secure module")
    platform.add_entropy(nsm.random(SEED_BYTES), 8 * SEED_BYTES)


def send_heartbeat(platform: Platform, config: MeasuredConfig) -> None:
    """Tell the parent that the enclave runs, as the platform demands."""
    echoed = platform.call(
        config.parent_cid, config.heartbeat_port, HEARTBEAT, len(HEARTBEAT), HEARTBEAT_TIMEOUT_S, close=False
    )
    if echoed != HEARTBEAT:
        raise BootError("the parent did not echo the heartbeat")


def step_clock(platform: Platform, limit_ns: int = MAX_CLOCK_STEP_NS) -> int | None:
    """Step the clock forward to the hypervisor's, if it offers one; returns the step in nanoseconds, None without one.

    Never backwards: timestamps that were given out stay in the past. Errors: `BootError` for a step of more than the
    limit.
    """
    for name in platform.names(PTP_DIRECTORY):
        if platform.read(f"{PTP_DIRECTORY}/{name}/clock_name").strip() != KVM_CLOCK_NAME:
            continue
        step_ns = platform.device_time_ns(f"/dev/{name}") - platform.time_ns()
        if abs(step_ns) > limit_ns:
            raise BootError("the hypervisor's clock is too far from the system's")
        if step_ns <= 0:
            return 0
        platform.set_time_ns(platform.time_ns() + step_ns)
        return step_ns
    return None


def receive_parameters(platform: Platform, config: MeasuredConfig) -> dict[str, str]:
    """Run-time parameters of the parent; a parent that does not offer the port sets none."""
    try:
        data = platform.call(
            config.parent_cid, config.parameters_port, b"", MAX_PARAMETER_BYTES, PARAMETERS_TIMEOUT_S, close=True
        )
    except OSError as error:
        if error.errno not in (errno.ECONNRESET, errno.ECONNREFUSED, errno.ENODEV):
            raise
        return {}
    return parse_parameters(data)


def bind_parameters(nsm: Nsm, parameters: dict[str, str]) -> bytes:
    """Extend the digest of the parameters into PCR16, lock it, check what is locked, and return the digest.

    What must be there is computed here and not taken from the module's answer: a register that held something before,
    or an extension that went elsewhere, would bind other parameters than those in force.
    """
    digest = parameters_digest(parameters)
    nsm.extend(CONFIG_PCR, digest)
    nsm.lock(CONFIG_PCR)
    expected = hashlib.sha384(bytes(PCR_BYTES) + digest).digest()
    if nsm.pcr(CONFIG_PCR) != (expected, True):
        raise BootError(f"PCR{CONFIG_PCR} is not what it was locked at")
    return digest


def boot(platform: Platform, say: Callable[[str], None]) -> Service:
    """Every step up to the start of the service.

    Errors: `BootError` or `OSError` of the step that failed; `say` was told its name before.
    """
    say("mounts")
    mount_file_systems(platform)
    config = parse_measured_config(platform.read(CONFIG_FILE))
    say("secure module")
    nsm = Nsm(platform.nsm)
    if open_secure_module(nsm):
        say("DEBUG MODE: documents of this enclave have zero registers, no verifier accepts them")
    say("entropy")
    seed_entropy(platform, nsm)
    say("heartbeat")
    send_heartbeat(platform, config)
    say("loopback")
    platform.raise_interface("lo")
    say("clock")
    if step_clock(platform) is None:
        say("no clock of the hypervisor: the boot clock stays")
    say("configuration")
    parameters = receive_parameters(platform, config)
    digest = bind_parameters(nsm, parameters)
    say(f"parameters {', '.join(sorted(parameters)) or 'none'}, digest {digest.hex()[:16]}")
    return Service(config.command, service_environment(config, parameters, digest), config.user, config.group)
