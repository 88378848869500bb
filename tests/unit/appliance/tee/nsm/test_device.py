"""The ioctl, byte for byte, against a driver that is a function."""

import ctypes
import errno
import os
import struct
from pathlib import Path

import pytest

from appliance.tee.nsm.device import MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, NSM_IOCTL, NsmDevice
from kmscore.errors import ConfigError


class Driver:
    """What the kernel does with the ioctl: bounds, and a response cut to the caller's buffer without a word."""

    def __init__(self, response: bytes) -> None:
        self.response = response
        self.requests: list[bytes] = []
        self.claims_bytes: int | None = None

    def ioctl(self, _device: int, command: int, message: bytearray) -> int:
        if command != 0xC0200A00:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        assert len(message) == 32
        request_at, request_bytes, response_at, response_bytes = struct.unpack("=QQQQ", message)
        if request_bytes > 0x1000:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        assert response_bytes == 0x3000
        self.requests.append(ctypes.string_at(request_at, request_bytes))
        sent = self.response[:response_bytes]
        ctypes.memmove(response_at, sent, len(sent))
        struct.pack_into("=Q", message, 24, len(sent) if self.claims_bytes is None else self.claims_bytes)
        return 0


@pytest.fixture
def node(tmp_path: Path) -> str:
    """Something that opens for reading and writing."""
    path = tmp_path / "nsm"
    path.touch()
    return str(path)


def test_the_command_is_the_drivers() -> None:
    assert NSM_IOCTL == 3 << 30 | 32 << 16 | 0x0A << 8 | 0


@pytest.mark.parametrize("response", [b"", b"\0", b"\xa1" + bytes(300), bytes(MAX_RESPONSE_BYTES)])
def test_request_and_response_travel_unchanged(node: str, response: bytes) -> None:
    driver = Driver(response)
    request = bytes(range(256)) * 16

    assert NsmDevice(node, ioctl=driver.ioctl)(request) == response
    assert driver.requests == [request]


def test_no_device_stays_open(node: str) -> None:
    device = NsmDevice(node, ioctl=Driver(b"x").ioctl)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - how many, not which

    for _ in range(10):
        device(b"x")

    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_response_longer_than_the_buffer_is_what_the_buffer_holds(node: str) -> None:
    driver = Driver(b"x" * MAX_RESPONSE_BYTES)
    driver.claims_bytes = 2**40

    assert NsmDevice(node, ioctl=driver.ioctl)(b"x") == b"x" * MAX_RESPONSE_BYTES


def test_what_the_driver_refuses_is_an_os_error(node: str) -> None:
    with pytest.raises(OSError, match="too long"):
        NsmDevice(node, ioctl=Driver(b"").ioctl)(bytes(MAX_REQUEST_BYTES + 1))


def test_a_file_that_is_no_device_is_an_os_error(node: str) -> None:
    with pytest.raises(OSError, match="ioctl"):
        NsmDevice(node)(b"x")


def test_a_machine_without_the_device_is_told_so(tmp_path: Path) -> None:
    absent = NsmDevice(str(tmp_path / "nsm"))

    with pytest.raises(ConfigError, match="no Nitro enclave"):
        absent.require_present()
    with pytest.raises(FileNotFoundError):
        absent(b"x")


def test_a_device_that_is_there_is_enough(node: str) -> None:
    NsmDevice(node).require_present()
