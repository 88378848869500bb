"""Descriptions of images: what a person reads, and that no file can break the reader."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_image.bzimage import read_boot_image
from enclave_image.compare import compare_eif
from enclave_image.cpio import encode_cpio
from enclave_image.describe import describe_eif
from enclave_image.eif import Eif, Section, SectionType, encode_eif
from enclave_image.errors import MalformedError
from enclave_image.init.cbor import CborError, decode_cbor, encode_cbor
from enclave_image.manifest import Tree
from enclave_image.signature import (
    encode_signature_section,
    read_signature_section,
    signed_payload,
)


def image(signature: bytes | None = None, ramdisk: bytes | None = None, metadata: bytes = b"{}") -> bytes:
    tree = Tree()
    tree.add_file("init", b"#!", 0o755)
    sections = [
        Section(SectionType.KERNEL, b"not a kernel"),
        Section(SectionType.CMDLINE, b"a=1"),
        Section(SectionType.METADATA, metadata),
        Section(SectionType.RAMDISK, encode_cpio(tree.manifest(), tree.contents(), 0) if ramdisk is None else ramdisk),
    ]
    if signature is not None:
        sections.append(Section(SectionType.SIGNATURE, signature))
    return encode_eif(Eif(tuple(sections)))


def test_a_description_tells_sections_registers_and_what_could_not_be_read():
    description = describe_eif(image())
    assert [section.kind.name for section in description.sections] == ["KERNEL", "CMDLINE", "METADATA", "RAMDISK"]
    assert description.sections[3].summary == "1 paths, 1 files, 2 bytes"
    assert description.problems == (
        "section 0 (kernel): the kernel is not an x86 boot image: a hypervisor would not start it",
    )
    assert description.as_json()["PCR8"] is None


def test_a_compressed_ramdisk_is_named_and_not_unpacked():
    assert describe_eif(image(ramdisk=b"\x28\xb5\x2f\xfdrest")).sections[3].summary == "zstd, not looked into"


def nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


ABSURD_METADATA = {
    "not UTF-8": (b"\xff", "it is not UTF-8 JSON"),
    "cut": (b"{", "it is not UTF-8 JSON"),
    "without end": (b"[" * 100_000, "it is not UTF-8 JSON"),
    "number of 5000 digits": (b"1" * 5000, "it is not UTF-8 JSON"),
    "nested": (nested(33), "it is nested deeper than 32 levels"),
    "nested as deep as the parser goes": (nested(900), "it is nested deeper than 32 levels"),
    "no number": (b'{"a":NaN}', "it has the number NaN, which JSON does not know"),
    "large": (b" " * (1 << 20) + b"1", "it has 1048577 bytes, at most 1048576 are read"),
}


@pytest.mark.parametrize(("metadata", "reason"), ABSURD_METADATA.values(), ids=ABSURD_METADATA)
def test_absurd_metadata_is_a_problem_of_its_section(metadata, reason):
    description = describe_eif(image(metadata=metadata))
    assert f"section 2 (metadata): {reason}" in description.problems
    assert json.loads(json.dumps(description.as_json(), indent=2))["metadata"] is None
    (difference,) = compare_eif(image(), image(metadata=metadata))
    assert difference.place == "metadata"


def test_metadata_may_be_nested_as_deep_as_a_container_description():
    assert describe_eif(image(metadata=nested(32))).metadata == json.loads(nested(32))


PEM = b"-----BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----\n"


def test_a_signature_gives_pcr8_and_is_compared_with_pcr0():
    section = encode_signature_section(PEM, signed_payload(bytes(48)), bytes(96))
    description = describe_eif(image(section))
    assert description.pcr8 is not None
    assert "the signature is for another PCR0 than this image has" in description.problems
    good = encode_signature_section(PEM, signed_payload(description.measurements.pcr0), bytes(96))
    assert not any("signature" in problem for problem in describe_eif(image(good)).problems)


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_no_signature_section_breaks_the_reader(data):
    assert describe_eif(image(data)).pcr8 is None


SECTION = encode_signature_section(PEM, signed_payload(bytes(48)), bytes(96))


@given(st.integers(0, len(SECTION) - 1), st.integers(0, 255))
def test_no_changed_signature_section_breaks_the_reader(at, value):
    try:
        read_signature_section(SECTION[:at] + bytes([value]) + SECTION[at + 1 :])
    except MalformedError:
        return


VALUES = st.recursive(
    st.integers(-(1 << 63), (1 << 64) - 1) | st.binary(max_size=40) | st.text(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.integers(0, 9) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(VALUES)
def test_cbor_reads_back_unless_it_is_nested_too_deep(value):
    try:
        assert decode_cbor(encode_cbor(value)) == value
    except CborError:
        return  # nested deeper than any signature section


@given(st.binary(max_size=1000))
def test_no_boot_image_breaks_the_reader(noise):
    head = bytearray(noise.ljust(0x260, b"\0"))
    head[0x202:0x206] = b"HdrS"
    try:
        read_boot_image(bytes(head))
    except MalformedError:
        return
