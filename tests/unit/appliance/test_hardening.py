"""Hardening: what the kernel says afterwards, and what happens when it does not allow something."""

import errno
import logging
import subprocess
import sys
import textwrap

import pytest

from appliance.hardening import (
    MCL_CURRENT,
    MCL_FUTURE,
    MCL_ONFAULT,
    PR_SET_DUMPABLE,
    Hardening,
    forbid_core_dumps,
    harden_process,
    try_lock_memory,
)
from kmscore.errors import ConfigError


class FakeCalls:
    """The system's answers as a test wants them."""

    def __init__(
        self, *, core_files: bool = True, prctl: int = 0, mlockall: int = 0, may_lock_everything: bool = True
    ) -> None:
        self._core_files = core_files
        self._prctl = prctl
        self._mlockall = mlockall
        self._may_lock_everything = may_lock_everything
        self.asked: list[tuple[str, int, int]] = []

    def forbid_core_files(self) -> bool:
        return self._core_files

    def prctl(self, option: int, value: int) -> int:
        self.asked.append(("prctl", option, value))
        return self._prctl

    def mlockall(self, flags: int) -> int:
        self.asked.append(("mlockall", flags, 0))
        return self._mlockall

    def may_lock_everything(self) -> bool:
        return self._may_lock_everything


def test_the_kernel_confirms_that_a_hardened_process_leaves_no_dump() -> None:
    script = """
        import ctypes, resource
        from appliance.hardening import LinuxCalls, harden_process
        assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 1
        hardened = harden_process(LinuxCalls(), lock_memory=True)
        assert hardened.core_dumps_off
        assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 0
        assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
        bytearray(64 << 20)
        print("alive")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "alive\n"


def test_a_process_that_may_dump_does_not_start() -> None:
    with pytest.raises(ConfigError, match="prctl"):
        forbid_core_dumps(FakeCalls(prctl=errno.EINVAL))


def test_a_limit_that_cannot_be_set_is_a_refusal_to_start() -> None:
    with pytest.raises(ConfigError, match="RLIMIT_CORE"):
        forbid_core_dumps(FakeCalls(core_files=False))


def test_memory_is_left_alone_unless_asked_for() -> None:
    calls = FakeCalls()

    assert harden_process(calls, lock_memory=False) == Hardening(core_dumps_off=True, memory_locked=False)
    assert calls.asked == [("prctl", PR_SET_DUMPABLE, 0)]


def test_memory_is_locked_for_now_and_later_where_that_is_allowed() -> None:
    calls = FakeCalls()

    assert harden_process(calls, lock_memory=True) == Hardening(core_dumps_off=True, memory_locked=True)
    assert calls.asked[-1] == ("mlockall", MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT, 0)


def test_a_refused_lock_is_said_in_the_log_and_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "appliance.hardening"):
        assert not try_lock_memory(FakeCalls(mlockall=errno.EPERM))

    assert "mlockall failed" in caplog.text


def test_a_lock_that_would_make_later_allocations_fail_is_not_tried(caplog: pytest.LogCaptureFixture) -> None:
    calls = FakeCalls(may_lock_everything=False)

    with caplog.at_level(logging.WARNING, "appliance.hardening"):
        assert not try_lock_memory(calls)

    assert calls.asked == []
    assert "RLIMIT_MEMLOCK is finite" in caplog.text
