"""Keeps this process's memory, where the keys are, from being written anywhere.

What it does not do: it does not stop root, a debugger that was attached before, or the hypervisor, and it does not wipe
what Python or a library has copied. `PR_SET_DUMPABLE` 0 also makes the files of /proc/self belong to root, so a process
of the same user can neither attach nor read them; execve of another program sets it back. Swap is kept away only when
the system lets us lock all memory; an enclave has no swap.
"""

import ctypes
import logging
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kmscore.errors import ConfigError

# <linux/prctl.h>
PR_SET_DUMPABLE = 4
# <asm-generic/mman.h>
MCL_CURRENT = 1
MCL_FUTURE = 2
MCL_ONFAULT = 4
# <linux/capability.h>
CAP_IPC_LOCK = 14

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hardening:
    """What holds now. `memory_locked` is False when the system does not allow it, which is not an error."""

    core_dumps_off: bool
    memory_locked: bool


class SystemCalls(Protocol):
    """What hardening asks of the system."""

    def forbid_core_files(self) -> bool:
        """RLIMIT_CORE 0, soft and hard; whether that worked."""
        ...

    def prctl(self, option: int, value: int) -> int:
        """0 or an errno."""
        ...

    def mlockall(self, flags: int) -> int:
        """0 or an errno."""
        ...

    def may_lock_everything(self) -> bool:
        """Whether RLIMIT_MEMLOCK does not bound this process."""
        ...


class LinuxCalls:
    """`SystemCalls` of this kernel, through the C library the interpreter is linked with."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
        self._libc.prctl.restype = ctypes.c_int
        self._libc.mlockall.argtypes = [ctypes.c_int]
        self._libc.mlockall.restype = ctypes.c_int

    def forbid_core_files(self) -> bool:
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        except (OSError, ValueError):
            return False
        return True

    def prctl(self, option: int, value: int) -> int:
        return 0 if self._libc.prctl(option, value, 0, 0, 0) == 0 else ctypes.get_errno()

    def mlockall(self, flags: int) -> int:
        return 0 if self._libc.mlockall(flags) == 0 else ctypes.get_errno()

    def may_lock_everything(self) -> bool:
        soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        return soft == resource.RLIM_INFINITY or bool(_effective_capabilities() >> CAP_IPC_LOCK & 1)


def harden_process(calls: SystemCalls, *, lock_memory: bool) -> Hardening:
    """Switch core dumps and same-user debugging off, and with `lock_memory` try to keep memory out of swap.

    Called first thing in `main`, before any key exists. ConfigError when core dumps cannot be switched off.
    """
    forbid_core_dumps(calls)
    return Hardening(core_dumps_off=True, memory_locked=lock_memory and try_lock_memory(calls))


def raise_descriptor_limit() -> None:
    """As many file descriptors as the hard limit allows, at most 65,536: the usual 1,024 are soon used up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def forbid_core_dumps(calls: SystemCalls) -> None:
    """RLIMIT_CORE 0, soft and hard, and PR_SET_DUMPABLE 0, which also covers dumps that are piped to a program (those
    ignore the limit). ConfigError."""
    if not calls.forbid_core_files():
        raise ConfigError("core dumps cannot be switched off: setrlimit(RLIMIT_CORE) failed")
    if calls.prctl(PR_SET_DUMPABLE, 0) != 0:
        raise ConfigError("core dumps cannot be switched off: prctl(PR_SET_DUMPABLE) failed")


def try_lock_memory(calls: SystemCalls) -> bool:
    """Lock present and future pages as they are touched; False, and a log line that says why, when that is not allowed.

    With a finite RLIMIT_MEMLOCK and no CAP_IPC_LOCK the call could succeed now and make later allocations fail, so it
    is not tried then.
    """
    if not calls.may_lock_everything():
        _logger.warning("memory is not locked: RLIMIT_MEMLOCK is finite and CAP_IPC_LOCK is missing")
        return False
    errno = calls.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT)
    if errno != 0:
        _logger.warning("memory is not locked: mlockall failed", extra={"errno": errno})
        return False
    _logger.info("memory is locked")
    return True


def _effective_capabilities() -> int:
    """The bits of this process's effective capabilities (proc(5)); none when they cannot be read."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    return next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0)
