"""What an image measures to, and which enclaves run it (nitro facts §1.4, §4.5 step 10).

A register is compared whole and in full length; one that the document lacks matches nothing.
"""

import re
from binascii import unhexlify
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from appliance.tee.attestation.document import MAX_PCRS, PCR_BYTES
from kmscore.errors import Reason, Rejected
from kmscore.json import parse_json_object
from kmscore.keccak import keccak256

IMAGE_PCRS: Final = (0, 1, 2)
MAX_MEASUREMENTS_BYTES: Final = 64 * 1024
_PCR_NAME: Final = re.compile(r"PCR(0|[1-9][0-9]?)", re.ASCII)
_PCR_HEX: Final = re.compile(r"[0-9A-Fa-f]{96}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Measurements:
    """Register → 48 bytes that an acceptable enclave has: PCR0, PCR1 and PCR2 always, any other that matters too.

    Raises `Rejected(BAD_FIELD)` when one of the three is missing or zero, which is how debug mode looks, or anything is
    not a register.
    """

    pcrs: Mapping[int, bytes] = field(repr=False)

    def __post_init__(self) -> None:
        for index in IMAGE_PCRS:
            if not any(self.pcrs.get(index, b"")):
                raise Rejected(Reason.BAD_FIELD, f"the measurements lack PCR{index}, or it is zero as in debug mode")
        if any(not 0 <= index < MAX_PCRS or len(value) != PCR_BYTES for index, value in self.pcrs.items()):
            raise Rejected(Reason.BAD_FIELD, f"a measurement is of PCR0 to PCR31 and has {PCR_BYTES} bytes")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The content of a measurements.json: members PCR0, PCR1, PCR2 and more in hex; other members are no matter.

        Raises `Rejected`: TOO_LARGE, MALFORMED, or BAD_FIELD.
        """
        if len(data) > MAX_MEASUREMENTS_BYTES:
            raise Rejected(Reason.TOO_LARGE, f"measurements have at most {MAX_MEASUREMENTS_BYTES} bytes")
        pcrs: dict[int, bytes] = {}
        for name, value in parse_json_object(data).items():
            if not name.upper().startswith("PCR"):
                continue
            # A register that is misspelt must not silently stop to matter.
            known = _PCR_NAME.fullmatch(name)
            if known is None or not isinstance(value, str) or not _PCR_HEX.fullmatch(value.removeprefix("0x")):
                raise Rejected(Reason.BAD_FIELD, "a measurement is a member PCR0 to PCR31 with 96 hex digits")
            pcrs[int(known[1])] = unhexlify(value.removeprefix("0x"))
        return cls(pcrs)

    @property
    def code_measurement(self) -> bytes:
        """What the registry lists for a version: keccak256(PCR0 ‖ PCR1 ‖ PCR2), 32 bytes (enclave §1)."""
        return keccak256(b"".join(self.pcrs[index] for index in IMAGE_PCRS))

    def match(self, pcrs: Mapping[int, bytes]) -> bool:
        """Whether every register here is in `pcrs` with the same value. None of them is a secret."""
        return all(pcrs.get(index) == value for index, value in self.pcrs.items())
