"""The EIF writer and reader against the known-answer image, and against files that break each rule."""

import hashlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_image import eif
from enclave_image.describe import describe_eif
from enclave_image.eif import (
    CRC_OFFSET,
    HEADER_BYTES,
    Eif,
    Section,
    SectionType,
    encode_eif,
    load_eif,
    parse_eif,
    read_eif,
    strip_signature,
)
from enclave_image.errors import MalformedError
from enclave_image.measure import extend, measure_eif, pcr3_of_role, pcr4_of_instance

METADATA = (
    b'{"ImageName":"t","ImageVersion":"1","BuildMetadata":{"BuildTime":"1970-01-01T00:00:00+00:00","BuildTool":"x",'
    b'"BuildToolVersion":"0","OperatingSystem":"Linux","KernelVersion":"0"},"DockerInfo":null,"CustomMetadata":null}'
)
VECTOR = Eif(
    (
        Section(SectionType.KERNEL, b"KERNEL-BYTES"),
        Section(SectionType.CMDLINE, b"console=ttyS0"),
        Section(SectionType.METADATA, METADATA),
        Section(SectionType.RAMDISK, b"RAMDISK-ONE"),
        Section(SectionType.RAMDISK, b"RAMDISK-TWO"),
    )
)
VECTOR_BYTES = encode_eif(VECTOR)


def test_the_known_answer_image_has_the_known_layout_and_digest():
    reading = read_eif(VECTOR_BYTES)
    assert reading.offsets == (548, 572, 597, 828, 851)
    assert (len(VECTOR_BYTES), reading.stored_crc32) == (874, 0x0538CA5F)
    assert (
        hashlib.sha256(VECTOR_BYTES).hexdigest() == "38e772caba3586b69d2ccfbece12d1d7ff5815d111c9999d8978837a7d68ae02"
    )
    assert reading.eif == VECTOR
    assert reading.problems == ()


def test_the_known_answer_image_has_the_known_registers():
    measured = measure_eif(VECTOR)
    assert measured.pcr0.hex() == (
        "5977171bd1dcd06787b148c2670c0361aefaef65fa6c2cea27617e250d0864d08b369665a60a358aaa37703948e32b21"
    )
    assert measured.pcr1.hex() == (
        "e6d49ada9f00648b0e453b0042c62d140e44d801cc5fbbf478d3b2fa3b6eda66f623f22dba6bd464f386326a2efacb61"
    )
    assert measured.pcr2.hex() == (
        "f33eabf2c1c9c8488352690b8d9f5dded507ecfe30ea2d738e6f60c53adad8f499733128196224d78b0ae05b7be6544e"
    )


def test_registers_of_the_parent_and_extension_have_the_known_values():
    assert pcr3_of_role("arn:aws:iam::123456789012:role/example").hex() == (
        "7159fd02ae1a4546d45f0fae770b820d349d25ee3bd529ba3fedef45cb7d4fb3268455322c19f16d90da8b522725993e"
    )
    assert pcr4_of_instance("i-0123456789abcdef0").hex() == (
        "d6432900ac1c343cb40286898792c55e962aef0cc35c4910c0c286145b51af19e782cb21cc31a042671d7dfbd398251c"
    )
    assert extend(bytes(48), bytes.fromhex("aabb")).hex() == (
        "d58f2de0e0ef657cb6e39b23bc7835e2c842df0c3007be5a9c35a4752154c637d9b67f46e39188cabde1e57d6b66841b"
    )


def test_an_image_with_one_ramdisk_has_equal_pcr0_and_pcr1_and_the_constant_pcr2():
    measured = measure_eif(Eif(VECTOR.sections[:4]))
    assert measured.pcr0 == measured.pcr1
    assert measured.pcr2.hex() == (
        "21b9efbc184807662e966d34f390821309eeac6802309798826296bf3e8bec7c10edb30948c90ba67310f7b964fc500a"
    )


def patched(offset: int, replacement: bytes) -> bytes:
    return VECTOR_BYTES[:offset] + replacement + VECTOR_BYTES[offset + len(replacement) :]


UNREADABLE = {
    "empty": (b"", "0 bytes"),
    "header cut": (VECTOR_BYTES[: HEADER_BYTES - 1], "547 bytes"),
    "another magic": (patched(0, b"FIE."), "starts with"),
    "too many sections": (patched(0x1A, struct.pack(">H", 33)), "33 sections"),
    "offset past the end": (patched(0x1C, struct.pack(">Q", 1 << 63)), "section 0 claims"),
    "offset inside the header": (patched(0x1C, struct.pack(">Q", 100)), "section 0 claims"),
    "size past the end": (patched(0x11C, struct.pack(">Q", 875)), "the sections claim"),
    "unknown type": (patched(548, struct.pack(">H", 6)), "type 6"),
    "last byte missing": (VECTOR_BYTES[:-1], "the sections claim"),
}


@pytest.mark.parametrize(("data", "reason"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_that_cannot_be_read_is_refused_by_name(data, reason):
    with pytest.raises(MalformedError, match=reason):
        read_eif(data)


ILL_FORMED = {
    "flipped byte": (patched(560, b"k"), "checksum"),
    "version": (patched(4, struct.pack(">H", 5)), "header version 5"),
    "flags of another product": (patched(6, struct.pack(">H", 0x240)), "header flags 0x0240"),
    "reserved": (patched(0x18, b"\1"), "reserved"),
    "section flags": (patched(550, b"\0\1"), "section 0: flags 0x0001"),
    "section size": (patched(559, b"\x0d"), "its header says 13 bytes, the table says 12"),
    "trailing bytes": (VECTOR_BYTES + b"x", "1 bytes after the last section"),
    "unused slot": (patched(0x1C + 8 * 5, b"\1"), "unused slots"),
    "repeated kernel": (patched(572, struct.pack(">H", 1)), "kernel sections: found 2"),
}


@pytest.mark.parametrize(("data", "reason"), ILL_FORMED.values(), ids=ILL_FORMED)
def test_an_ill_formed_image_is_described_but_not_parsed(data, reason):
    assert any(reason in problem for problem in read_eif(data).problems)
    assert describe_eif(data).problems
    with pytest.raises(MalformedError):
        parse_eif(data)


def test_sections_out_of_order_are_not_written():
    with pytest.raises(MalformedError, match="not in the order"):
        encode_eif(Eif((*VECTOR.sections[3:], *VECTOR.sections[:3])))


def test_more_sections_than_the_table_holds_are_not_written():
    with pytest.raises(MalformedError, match="at most 32"):
        encode_eif(Eif((*VECTOR.sections, *VECTOR.sections[3:4] * 28)))


def test_stripping_a_signature_gives_the_unsigned_bytes_back():
    signed = encode_eif(Eif((*VECTOR.sections, Section(SectionType.SIGNATURE, b"anything"))))
    assert strip_signature(signed) == VECTOR_BYTES
    assert strip_signature(VECTOR_BYTES) == VECTOR_BYTES


def test_two_sections_in_one_place_are_a_problem_and_never_larger_than_the_file():
    both = patched(0x1C + 8 * 4, struct.pack(">Q", 828))  # the second ramdisk where the first is
    reading = read_eif(both)
    assert (
        "section 4 starts at 828, the one before ends at 851: tools that walk the file cannot read it"
        in reading.problems
    )
    everywhere = patched(0x1C, struct.pack(">32Q", *[548] * 32))[:0x11C] + struct.pack(">32Q", *[200] * 32)
    with pytest.raises(MalformedError, match="the sections claim"):
        read_eif(patched(0x1A, struct.pack(">H", 32))[:0x1C] + everywhere[0x1C:] + VECTOR_BYTES[0x21C:])


def test_a_gap_between_sections_is_a_problem():
    gap = VECTOR_BYTES[:828] + b"\0" + VECTOR_BYTES[828:]
    moved = gap[:0x1C] + struct.pack(">5Q", 548, 572, 597, 829, 852) + gap[0x1C + 40 :]
    assert "section 3 starts at 829, the one before ends at 828: tools that walk the file cannot read it" in (
        read_eif(moved).problems
    )


def test_a_file_is_read_only_as_far_as_it_can_be_an_image(tmp_path, monkeypatch):
    path = tmp_path / "x.eif"
    path.write_bytes(VECTOR_BYTES)
    assert load_eif(path) == VECTOR_BYTES
    with pytest.raises(MalformedError, match=r"not an EIF: it starts with 00000000"):
        load_eif(Path("/dev/zero"))  # has no end
    monkeypatch.setattr(eif, "MAX_FILE_BYTES", len(VECTOR_BYTES))
    assert load_eif(path) == VECTOR_BYTES
    path.write_bytes(VECTOR_BYTES + b"x")
    with pytest.raises(MalformedError, match=f"x.eif has more than {len(VECTOR_BYTES)} bytes"):
        load_eif(path)


@given(st.binary(max_size=1200))
def test_no_random_file_breaks_the_reader(data):
    with pytest.raises(MalformedError):
        describe_eif(data)


@given(st.integers(0, len(VECTOR_BYTES) - 1), st.integers(0, 255))
def test_no_single_byte_change_breaks_the_description_or_goes_unseen(offset, value):
    changed = patched(offset, bytes([value]))
    if changed == VECTOR_BYTES:
        return
    try:
        description = describe_eif(changed)
    except MalformedError:
        return
    assert description.problems
    assert not description.crc32_matches or offset >= CRC_OFFSET + 4


@given(
    st.binary(max_size=64),
    st.binary(max_size=64),
    st.lists(st.binary(max_size=64), max_size=4),
    st.sampled_from([0, 1]),
)
def test_what_is_written_reads_back(kernel, cmdline, ramdisks, flags):
    sections = (
        Section(SectionType.KERNEL, kernel),
        Section(SectionType.CMDLINE, cmdline),
        Section(SectionType.METADATA, METADATA),
        *(Section(SectionType.RAMDISK, ramdisk) for ramdisk in ramdisks),
    )
    written = Eif(sections, flags)
    assert parse_eif(encode_eif(written)) == written
