"""The kernel as the first process of the enclave sees it, in memory: files, a secure module, a parent, children."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from enclave_image.init.cbor import decode_cbor, encode_cbor


class PoweredOff(BaseException):
    """The enclave ended."""


class FakeNsm:
    """A secure module by its rules: registers 0 to 15 locked at boot, extend and lock, read-only errors."""

    def __init__(self, pcr0: bytes = b"\x01" * 48) -> None:
        self.pcrs = {index: bytes(48) for index in range(32)} | {0: pcr0}
        self.locked = set(range(16))
        self.random_sizes = [256]
        self.answers: dict[str, object] = {}  # given instead, by the name of the request
        self.requests: list[str] = []

    def __call__(self, request: bytes) -> bytes:
        message = decode_cbor(request)
        name, held = (message, {}) if isinstance(message, str) else next(iter(message.items()))
        self.requests.append(name)
        if name in self.answers:
            answer = self.answers[name]
            return answer if isinstance(answer, bytes) else encode_cbor(answer)
        return encode_cbor(getattr(self, name)(**held))

    def DescribeNSM(self) -> object:  # noqa: N802 -- names of the module's requests
        return {
            "DescribeNSM": {
                "digest": "SHA384",
                "max_pcrs": 32,
                "module_id": "i-0-enc0",
                "locked_pcrs": sorted(self.locked),
                "version_major": 1,
                "version_minor": 0,
                "version_patch": 0,
            }
        }

    def GetRandom(self) -> object:  # noqa: N802
        size = self.random_sizes.pop(0) if len(self.random_sizes) > 1 else self.random_sizes[0]
        return {"GetRandom": {"random": b"\xa5" * size}}

    def DescribePCR(self, index: int) -> object:  # noqa: N802
        return {"DescribePCR": {"lock": index in self.locked, "data": self.pcrs[index]}}

    def ExtendPCR(self, index: int, data: bytes) -> object:  # noqa: N802
        if index in self.locked:
            return {"Error": "ReadOnlyIndex"}
        self.pcrs[index] = hashlib.sha384(self.pcrs[index] + data).digest()
        return {"ExtendPCR": {"data": self.pcrs[index]}}

    def LockPCR(self, index: int) -> object:  # noqa: N802
        self.locked.add(index)
        return "LockPCR"


@dataclass
class FakePlatform:
    """Implements the platform's port; `log` has every call that changes something, in order."""

    nsm: Callable[[bytes], bytes] = field(default_factory=FakeNsm)
    files: dict[str, bytes] = field(default_factory=dict)
    directories: dict[str, list[str]] = field(default_factory=dict)
    parent: dict[int, Callable[[bytes], bytes]] = field(default_factory=dict)
    failures: dict[str, OSError] = field(default_factory=dict)
    now_ns: int = 10**18
    device_ns: int = 10**18
    ended: list[tuple[int, int] | None] = field(default_factory=list)
    log: list[tuple[object, ...]] = field(default_factory=list)

    def _do(self, *call: object) -> None:
        self.log.append(call)
        if str(call[0]) in self.failures:
            raise self.failures[str(call[0])]

    def mount(self, kind: str, target: str, flags: int, options: str) -> None:
        self._do("mount", kind, target, flags, options)

    def remount_read_only(self, target: str) -> None:
        self._do("remount_read_only", target)

    def link(self, target: str, path: str) -> None:
        self._do("link", target, path)

    def read(self, path: str) -> bytes:
        if path not in self.files:
            raise FileNotFoundError(2, "No such file or directory", path)
        return self.files[path]

    def names(self, directory: str) -> list[str]:
        return self.directories.get(directory, [])

    def add_entropy(self, data: bytes, credit_bits: int) -> None:
        self._do("add_entropy", len(data), credit_bits)

    def raise_interface(self, name: str) -> None:
        self._do("raise_interface", name)

    def call(self, cid: int, port: int, data: bytes, limit_bytes: int, timeout_s: float, *, close: bool) -> bytes:
        self._do("call", cid, port, limit_bytes, timeout_s, close)
        if port not in self.parent:
            raise ConnectionResetError(104, "Connection reset by peer")
        return self.parent[port](data)

    def time_ns(self) -> int:
        return self.now_ns

    def device_time_ns(self, path: str) -> int:
        self._do("device_time_ns", path)
        return self.device_ns

    def set_time_ns(self, value: int) -> None:
        self._do("set_time_ns", value)
        self.now_ns = value

    def spawn(self, command: Sequence[str], environment: Mapping[str, str], user: int, group: int) -> int:
        self._do("spawn", tuple(command), user, group, dict(environment))
        return 7

    def wait(self, timeout_s: float) -> tuple[int, int] | None:
        self._do("wait", timeout_s)
        return self.ended.pop(0)

    def kill(self, process: int, number: int) -> None:
        self._do("kill", process, number)

    def power_off(self) -> NoReturn:
        self._do("power_off")
        raise PoweredOff
