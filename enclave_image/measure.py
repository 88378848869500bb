"""The measurements of an image: PCR0 to PCR2 and PCR8, and the code measurement that the registry lists.

The arithmetic is nitro-facts §1.4; the code measurement is keccak256(PCR0 ‖ PCR1 ‖ PCR2) (enclave §1).
"""

import hashlib
from dataclasses import dataclass
from typing import Final

from enclave_image.eif import Eif, SectionType
from enclave_image.keccak import keccak256

PCR_BYTES: Final = 48
ZERO_PCR: Final = bytes(PCR_BYTES)


def extend(register: bytes, data: bytes) -> bytes:
    """The 48-byte value of a register after `data` was extended into it: SHA384(register ‖ data)."""
    return hashlib.sha384(register + data).digest()


def measure(*contents: bytes) -> bytes:
    """The value of an empty register after the SHA-384 of the joined contents was extended into it."""
    inner = hashlib.sha384()
    for part in contents:
        inner.update(part)
    return extend(ZERO_PCR, inner.digest())


def pcr3_of_role(role_arn: str) -> bytes:
    """PCR3 of a parent instance with this IAM role, whose ARN is ASCII."""
    return extend(ZERO_PCR, role_arn.encode("ascii"))


def pcr4_of_instance(instance_id: str) -> bytes:
    """PCR4 of a parent instance with this id (`i-…`), which is ASCII."""
    return extend(ZERO_PCR, instance_id.encode("ascii"))


def pcr8_of_certificate(certificate_der: bytes) -> bytes:
    """PCR8 of an image signed with the key of this certificate."""
    return measure(certificate_der)


@dataclass(frozen=True, slots=True)
class Measurements:
    """Three 48-byte registers of an image."""

    pcr0: bytes
    pcr1: bytes
    pcr2: bytes

    @property
    def code_measurement(self) -> bytes:
        """32 bytes: what the registry lists for a version of the application."""
        return keccak256(self.pcr0 + self.pcr1 + self.pcr2)


def measure_eif(eif: Eif) -> Measurements:
    """PCR0 (everything measured), PCR1 (without the ramdisks after the first), PCR2 (the ramdisks after the first).

    Contents are taken in file order, which need not be the usual one in an image that somebody else made.
    """
    everything: list[bytes] = []
    base: list[bytes] = []
    application: list[bytes] = []
    ramdisks = 0
    for section in eif.sections:
        if section.kind not in (SectionType.KERNEL, SectionType.CMDLINE, SectionType.RAMDISK):
            continue
        everything.append(section.data)
        ramdisks += section.kind is SectionType.RAMDISK
        (application if section.kind is SectionType.RAMDISK and ramdisks > 1 else base).append(section.data)
    return Measurements(measure(*everything), measure(*base), measure(*application))
