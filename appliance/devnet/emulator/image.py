"""What the hypervisor does with an image before it starts: cut it into what boots, and measure it (nitro facts §1)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from enclave_image.eif import FLAG_AARCH64, Eif, SectionType, parse_eif
from enclave_image.errors import ImageError
from enclave_image.measure import measure_eif, pcr3_of_role, pcr4_of_instance, pcr8_of_certificate
from enclave_image.signature import read_signature_section
from kmscore.errors import ConfigError

PCR_BYTES: Final = 48
# Zeroed by the platform for an enclave in debug mode; its words include PCR8.
DEBUG_PCRS: Final = (0, 1, 2, 8)


@dataclass(frozen=True, slots=True)
class BootImage:
    """The parts that a machine boots, and the size of the file they came in."""

    kernel: bytes = field(repr=False)
    initrd: bytes = field(repr=False)
    cmdline: str
    eif_bytes: int
    image_pcrs: Mapping[int, bytes] = field(repr=False)


def parse_boot_image(data: bytes) -> BootImage:
    """The parts and the measurements of an EIF.

    Raises `ConfigError` when it is not well-formed, has a signature section that cannot be read, is for aarch64, or has
    a command line that is not printable ASCII. The signature itself is not verified.
    """
    try:
        eif = parse_eif(data)
        pcrs = _image_pcrs(eif)
    except ImageError as error:
        raise ConfigError(f"the image cannot be booted: {error}") from error
    if eif.flags & FLAG_AARCH64:
        raise ConfigError("the image cannot be booted: it is for aarch64, and this machine is x86_64")
    kernel, cmdline = eif.first(SectionType.KERNEL) or b"", eif.first(SectionType.CMDLINE) or b""
    text = cmdline.decode("latin-1")
    if not (text.isascii() and text.isprintable()):
        raise ConfigError("the image cannot be booted: its kernel command line is not printable ASCII")
    return BootImage(kernel, b"".join(eif.ramdisks()), text, len(data), pcrs)


def _image_pcrs(eif: Eif) -> dict[int, bytes]:
    measured = measure_eif(eif)
    pcrs = {0: measured.pcr0, 1: measured.pcr1, 2: measured.pcr2}
    signature = eif.first(SectionType.SIGNATURE)
    if signature is not None:
        pcrs[8] = pcr8_of_certificate(read_signature_section(signature).certificate_der())
    return pcrs


def boot_pcrs(
    image: BootImage, *, role_arn: str | None = None, instance_id: str | None = None, debug: bool = False
) -> dict[int, bytes]:
    """What the module holds when the enclave starts: PCR0 to PCR2, and PCR3, PCR4, PCR8 where something is measured.

    `role_arn` and `instance_id` are the parent's, ASCII. In debug mode the image's registers are zero, those not.
    """
    pcrs = dict(image.image_pcrs)
    if debug:
        pcrs.update({index: bytes(PCR_BYTES) for index in DEBUG_PCRS})
    if role_arn is not None:
        pcrs[3] = pcr3_of_role(role_arn)
    if instance_id is not None:
        pcrs[4] = pcr4_of_instance(instance_id)
    return pcrs
