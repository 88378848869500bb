"""What the first process asks of the kernel, as one port: the real one is here, tests have their own.

Numbers are those of the kernel's headers, named after them.
"""

import ctypes
import errno
import fcntl
import os
import resource
import signal
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn, Protocol

from .errors import BootError

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32

NSM_DEVICE: Final = "/dev/nsm"
NSM_IOCTL: Final = 0xC0200A00  # _IOWR(0x0A, 0, 32 bytes)
NSM_MAX_REQUEST_BYTES: Final = 0x1000
NSM_MAX_RESPONSE_BYTES: Final = 0x3000  # a shorter buffer truncates without a word

RNDADDENTROPY: Final = 0x40085203
SIOCGIFFLAGS: Final = 0x8913
SIOCSIFFLAGS: Final = 0x8914
IFF_UP: Final = 1
PR_SET_NO_NEW_PRIVS: Final = 38
RB_AUTOBOOT: Final = 0x01234567

_IFREQ: Final = struct.Struct("16sH22x")
_MAX_FILE_BYTES: Final = 1 << 20
_OPEN_FILES: Final = 65536


class Platform(Protocol):
    """System calls of the boot. Methods raise `OSError` as the kernel reports it, unless they say otherwise."""

    def mount(self, kind: str, target: str, flags: int, options: str) -> None:
        """Mount a file system of this kind, which needs no device."""

    def remount_read_only(self, target: str) -> None:
        """Make a mounted file system read-only."""

    def link(self, target: str, path: str) -> None:
        """Make a symbolic link, unless there is one."""

    def read(self, path: str) -> bytes:
        """Contents of a small file."""

    def names(self, directory: str) -> list[str]:
        """Sorted names in a directory; none when it is missing."""

    def nsm(self, request: bytes) -> bytes:
        """One request to the secure module; at most 4096 bytes, the answer at most 12288."""

    def add_entropy(self, data: bytes, credit_bits: int) -> None:
        """Mix bytes into the kernel's pool and credit them."""

    def raise_interface(self, name: str) -> None:
        """Bring a network interface up."""

    def call(self, cid: int, port: int, data: bytes, limit_bytes: int, timeout_s: float, *, close: bool) -> bytes:
        """Connect over vsock, send `data`, and read up to `limit_bytes`; with `close` until the other side closes."""

    def time_ns(self) -> int:
        """The system's clock, nanoseconds since 1970."""

    def device_time_ns(self, path: str) -> int:
        """The clock of a PTP device, nanoseconds since 1970."""

    def set_time_ns(self, value: int) -> None:
        """Set the system's clock."""

    def spawn(self, command: Sequence[str], environment: Mapping[str, str], user: int, group: int) -> int:
        """Start a program as this user and group with no way to more privileges; returns its process id."""

    def wait(self, timeout_s: float) -> tuple[int, int] | None:
        """The next child that ended and its wait status; None when the time is over, or at once without children."""

    def kill(self, process: int, number: int) -> None:
        """Send a signal."""

    def power_off(self) -> NoReturn:
        """End the enclave."""


class LinuxPlatform:
    """The kernel itself."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def _check(self, result: int, path: str) -> None:
        if result:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)

    def mount(self, kind: str, target: str, flags: int, options: str) -> None:
        arguments = kind.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()
        self._check(self._libc.mount(*arguments), target)

    def remount_read_only(self, target: str) -> None:
        flags = ctypes.c_ulong(MS_REMOUNT | MS_RDONLY)
        self._check(self._libc.mount(None, target.encode(), None, flags, None), target)

    def link(self, target: str, path: str) -> None:
        if not os.path.lexists(path):
            Path(path).symlink_to(target)

    def read(self, path: str) -> bytes:
        with Path(path).open("rb") as file:
            return file.read(_MAX_FILE_BYTES)

    def names(self, directory: str) -> list[str]:
        try:
            return sorted(os.listdir(directory))  # noqa: PTH208 -- names, not paths
        except FileNotFoundError:
            return []

    def nsm(self, request: bytes) -> bytes:
        if len(request) > NSM_MAX_REQUEST_BYTES:
            raise BootError(f"a request to the secure module has {len(request)} bytes, at most {NSM_MAX_REQUEST_BYTES}")
        response = ctypes.create_string_buffer(NSM_MAX_RESPONSE_BYTES)
        held = ctypes.create_string_buffer(request, len(request))
        message = bytearray(
            struct.pack("=QQQQ", ctypes.addressof(held), len(request), ctypes.addressof(response), len(response))
        )
        device = os.open(NSM_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(device, NSM_IOCTL, message)
        finally:
            os.close(device)
        size = int(struct.unpack("=QQQQ", message)[3])
        return response.raw[: min(size, len(response))]

    def add_entropy(self, data: bytes, credit_bits: int) -> None:
        pool = os.open("/dev/random", os.O_WRONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(pool, RNDADDENTROPY, struct.pack("=ii", credit_bits, len(data)) + data)
        finally:
            os.close(pool)

    def raise_interface(self, name: str) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            answer = fcntl.ioctl(control, SIOCGIFFLAGS, _IFREQ.pack(name.encode(), 0))
            _, flags = _IFREQ.unpack(answer)
            fcntl.ioctl(control, SIOCSIFFLAGS, _IFREQ.pack(name.encode(), flags | IFF_UP))

    def call(self, cid: int, port: int, data: bytes, limit_bytes: int, timeout_s: float, *, close: bool) -> bytes:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect((cid, port))
            if data:  # even nothing cannot be sent to a side that has answered and closed already
                connection.sendall(data)
            received = b""
            while len(received) < limit_bytes:
                part = connection.recv(limit_bytes - len(received))
                if not part:
                    break
                received += part
            if close and len(received) == limit_bytes and connection.recv(1):
                raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
            return received

    def time_ns(self) -> int:
        return time.time_ns()

    def device_time_ns(self, path: str) -> int:
        device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return time.clock_gettime_ns((~device << 3) | 3)  # FD_TO_CLOCKID of the kernel's posix-timers.h
        finally:
            os.close(device)

    def set_time_ns(self, value: int) -> None:
        time.clock_settime_ns(time.CLOCK_REALTIME, value)

    def spawn(self, command: Sequence[str], environment: Mapping[str, str], user: int, group: int) -> int:
        process = os.fork()
        if process:
            return process
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            os.setsid()
            resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            # Nothing is ever swapped here, but the service asks for locked memory everywhere.
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            os.setgroups([])
            os.setresgid(group, group, group)
            os.setresuid(user, user, user)
            self._check(self._libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
            os.execve(command[0], list(command), dict(environment))  # noqa: S606 -- the measured command, no shell
        except (OSError, ValueError) as error:  # the latter for words that no program can be given
            reason = error.strerror if isinstance(error, OSError) else "not an argument or variable"
            os.write(2, f"init: {command[0]} does not start: {reason}\n".encode())
        finally:
            os._exit(127)

    def wait(self, timeout_s: float) -> tuple[int, int] | None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return None
            if process:
                return process, status
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return None
            signal.sigtimedwait({signal.SIGCHLD}, remaining)

    def kill(self, process: int, number: int) -> None:
        os.kill(process, number)

    def power_off(self) -> NoReturn:
        os.sync()
        # An enclave ends when it reboots; without ACPI a power-off would only stop its processors.
        self._libc.reboot(RB_AUTOBOOT)
        raise BootError("the kernel refused to reboot")
