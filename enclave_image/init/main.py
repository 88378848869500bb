"""Entry of the first process: boot, supervise, power off; whatever goes wrong is printed and ends the enclave."""

import signal
import sys
from typing import NoReturn

from .boot import boot
from .errors import BootError
from .platform import LinuxPlatform, Platform
from .supervise import describe_end, supervise


def say(text: str) -> None:
    """One line on the console, at once."""
    sys.stdout.write(f"init: {text}\n")
    sys.stdout.flush()


def run(platform: Platform) -> NoReturn:
    """Boot the enclave on `platform`; comes back only by powering off."""
    try:
        service = boot(platform, say)
        say(f"service ended with {describe_end(supervise(platform, service, say))}")
    except BootError as error:
        say(f"FAILED: {error}")
    except OSError as error:
        say(f"FAILED: {error.strerror or type(error).__name__} ({error.filename or 'no path'})")
    except Exception as error:  # noqa: BLE001 -- the top: a bug ends the enclave too; its text may hold anything, so not shown
        say(f"FAILED: {type(error).__name__} in the first process")
    say("powering off")
    platform.power_off()


def main() -> NoReturn:
    """The first process of the image."""
    # Kept pending for `wait`, which takes it: a child that ends between two looks is not missed.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    run(LinuxPlatform())
