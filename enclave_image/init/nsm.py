"""What the boot asks of the Nitro Secure Module: is it there, randomness, and PCR16 (nitro-facts §3.2)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .cbor import CborError, decode_cbor, encode_cbor
from .errors import BootError

PCR_BYTES: Final = 48
MAX_RANDOM_BYTES: Final = 4096  # what is accepted of one answer; 256 are usual


@dataclass(frozen=True, slots=True)
class NsmDescription:
    """Identity and state of the module."""

    module_id: str
    version: tuple[int, int, int]
    max_pcrs: int
    locked_pcrs: frozenset[int]


class Nsm:
    """Requests over `request`, which carries one CBOR message to the device and its answer back."""

    def __init__(self, request: Callable[[bytes], bytes]) -> None:
        self._request = request

    def _ask(self, message: object, name: str) -> object:
        try:
            answer = decode_cbor(self._request(encode_cbor(message)))
        except OSError as error:
            raise BootError(f"the secure module does not answer {name}: {error.strerror}") from error
        except CborError as error:
            raise BootError(f"the secure module's answer to {name} is not CBOR: {error}") from error
        if answer == name:
            return None
        if not isinstance(answer, dict) or len(answer) != 1:
            raise BootError(f"the secure module's answer to {name} has another shape")
        if isinstance(answer.get("Error"), str):
            raise BootError(f"the secure module refuses {name}: {answer['Error'][:40]}")
        if name not in answer:
            raise BootError(f"the secure module's answer to {name} has another shape")
        return answer[name]

    def describe(self) -> NsmDescription:
        """Identity and state of the module; refuses one that measures with something else than SHA-384."""
        held = self._ask("DescribeNSM", "DescribeNSM")
        match held:
            case {
                "module_id": str(module_id),
                "version_major": int(major),
                "version_minor": int(minor),
                "version_patch": int(patch),
                "max_pcrs": int(max_pcrs),
                "locked_pcrs": list(locked),
                "digest": "SHA384",
            } if all(isinstance(index, int) for index in locked):
                return NsmDescription(module_id, (major, minor, patch), max_pcrs, frozenset(locked))
        raise BootError("the secure module describes itself in another way than SHA-384 modules do")

    def random(self, size_bytes: int) -> bytes:
        """Random bytes of the module, in as many requests as it takes."""
        gathered = b""
        while len(gathered) < size_bytes:
            match self._ask("GetRandom", "GetRandom"):
                case {"random": bytes(part)} if 0 < len(part) <= MAX_RANDOM_BYTES:
                    gathered += part
                case _:
                    raise BootError("the secure module gave no random bytes")
        return gathered[:size_bytes]

    def pcr(self, index: int) -> tuple[bytes, bool]:
        """Value (48 bytes) and lock of a register."""
        match self._ask({"DescribePCR": {"index": index}}, "DescribePCR"):
            case {"lock": bool(locked), "data": bytes(value)} if len(value) == PCR_BYTES:
                return value, locked
        raise BootError(f"the secure module describes PCR{index} in another way than expected")

    def extend(self, index: int, data: bytes) -> bytes:
        """Extend a register and return its new value."""
        match self._ask({"ExtendPCR": {"index": index, "data": data}}, "ExtendPCR"):
            case {"data": bytes(value)} if len(value) == PCR_BYTES:
                return value
        raise BootError(f"the secure module gave no new value of PCR{index}")

    def lock(self, index: int) -> None:
        """Lock a register until the end of the enclave."""
        self._ask({"LockPCR": {"index": index}}, "LockPCR")
