"""What the machine takes out of an image: parts to boot, and the registers that the module starts with."""

import hashlib
from datetime import UTC, datetime

import pytest

from appliance.devnet.emulator.image import boot_pcrs, parse_boot_image
from appliance.tee.software.pki import ThrowAwayRoot
from enclave_image.eif import FLAG_AARCH64, Eif, Section, SectionType, encode_eif, parse_eif
from enclave_image.signature import encode_signature_section, signed_payload
from kmscore.errors import ConfigError

ZERO = bytes(48)


def an_eif(*more: Section, cmdline: bytes = b"console=ttyS0") -> bytes:
    sections = (
        Section(SectionType.KERNEL, b"kernel"),
        Section(SectionType.CMDLINE, cmdline),
        Section(SectionType.METADATA, b"{}"),
        Section(SectionType.RAMDISK, b"base"),
        Section(SectionType.RAMDISK, b"application"),
    )
    return encode_eif(Eif((*sections, *more)))


def measure(content: bytes) -> bytes:
    return hashlib.sha384(ZERO + hashlib.sha384(content).digest()).digest()


def test_an_image_is_cut_into_what_boots() -> None:
    data = an_eif()
    image = parse_boot_image(data)

    assert (image.kernel, image.initrd, image.cmdline) == (b"kernel", b"baseapplication", "console=ttyS0")
    assert image.eif_bytes == len(data)


def test_the_registers_of_the_image_and_of_the_parent() -> None:
    pcrs = boot_pcrs(parse_boot_image(an_eif()), role_arn="arn:aws:iam::1:role/r", instance_id="i-0")

    assert pcrs == {
        0: measure(b"kernelconsole=ttyS0baseapplication"),
        1: measure(b"kernelconsole=ttyS0base"),
        2: measure(b"application"),
        3: hashlib.sha384(ZERO + b"arn:aws:iam::1:role/r").digest(),
        4: hashlib.sha384(ZERO + b"i-0").digest(),
    }


def signed_eif(certificate_pem: bytes) -> bytes:
    section = encode_signature_section(certificate_pem, signed_payload(ZERO), bytes(96))
    return an_eif(Section(SectionType.SIGNATURE, section))


def test_the_signing_certificate_of_an_image_is_measured_too() -> None:
    signer = ThrowAwayRoot(datetime(2026, 1, 1, tzinfo=UTC))

    assert boot_pcrs(parse_boot_image(signed_eif(signer.pem)))[8] == measure(signer.der)


def test_debug_mode_hides_the_image_and_not_the_parent() -> None:
    signer = ThrowAwayRoot(datetime(2026, 1, 1, tzinfo=UTC))
    pcrs = boot_pcrs(parse_boot_image(signed_eif(signer.pem)), instance_id="i-0", debug=True)

    assert pcrs == {0: ZERO, 1: ZERO, 2: ZERO, 8: ZERO, 4: hashlib.sha384(ZERO + b"i-0").digest()}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        an_eif()[:-1],
        an_eif() + b"\0",
        an_eif(cmdline="ü".encode()),
        an_eif(cmdline=b"quiet\0"),
        an_eif(cmdline=b"quiet\n"),
        an_eif(Section(SectionType.SIGNATURE, b"\x80")),
        encode_eif(Eif(parse_eif(an_eif()).sections, flags=FLAG_AARCH64)),
    ],
    ids=["empty", "short", "long", "not ASCII", "NUL", "line", "signature", "aarch64"],
)
def test_an_image_that_cannot_be_read_does_not_start(data: bytes) -> None:
    with pytest.raises(ConfigError, match="cannot be booted"):
        parse_boot_image(data)
