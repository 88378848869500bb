"""Child processes of the integration tests: waiting for them, ending them."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable

POLL_S = 0.05
GRACE_S = 15.0


def wait_until(predicate: Callable[[], object], *, timeout_s: float, what: str) -> None:
    """Return when `predicate` is true; TimeoutError naming `what` otherwise."""
    deadline = time.monotonic() + timeout_s
    while not predicate():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} is not there after {timeout_s} s")
        time.sleep(POLL_S)


def stop_process(process: subprocess.Popen[bytes], grace_s: float = GRACE_S) -> int:
    """End `process` with SIGTERM, with SIGKILL after `grace_s`; its exit code. A stopped process is continued first."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
