"""/dev/nsm, one ioctl (nitro facts §3.1). Nothing here knows what the messages mean."""

import ctypes
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from kmscore.errors import ConfigError

# One request in, its response out; blocks for as long as the module takes, and raises OSError.
NsmExchange = Callable[[bytes], bytes]

NSM_DEVICE: Final = "/dev/nsm"
NSM_IOCTL: Final = 0xC0200A00  # _IOWR(0x0A, 0, 32 bytes) of <linux/nsm.h>
MAX_REQUEST_BYTES: Final = 0x1000
# A shorter buffer truncates the response without a word.
MAX_RESPONSE_BYTES: Final = 0x3000
_MESSAGE: Final = struct.Struct("=QQQQ")  # request address and length, response address and length


class NsmDevice:
    """The device at `path`; an instance is an `NsmExchange`.

    It is opened for each call: that costs microseconds beside the milliseconds of the module, and leaves nothing open.
    """

    def __init__(self, path: str = NSM_DEVICE, *, ioctl: Callable[[int, int, bytearray], object] = fcntl.ioctl) -> None:
        self._path = path
        self._ioctl = ioctl

    def require_present(self) -> None:
        """Raises `ConfigError` when this machine has no such device."""
        if not Path(self._path).exists():
            raise ConfigError(f"the secure module needs {self._path}, which is not here: this is no Nitro enclave")

    def __call__(self, request: bytes) -> bytes:
        """The response, at most 12288 bytes. OSError; EMSGSIZE for a request of more than 4096 bytes."""
        sent = ctypes.create_string_buffer(request, len(request))
        received = ctypes.create_string_buffer(MAX_RESPONSE_BYTES)
        message = bytearray(
            _MESSAGE.pack(ctypes.addressof(sent), len(request), ctypes.addressof(received), len(received))
        )
        device = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._ioctl(device, NSM_IOCTL, message)
        finally:
            os.close(device)
        _, _, _, size = _MESSAGE.unpack(message)
        return received.raw[: min(size, MAX_RESPONSE_BYTES)]
