"""Every kind of difference between two images has its own sentence."""

import gzip
import struct

import pytest

from enclave_image.compare import compare_eif, compare_registers
from enclave_image.cpio import encode_cpio
from enclave_image.eif import Eif, Section, SectionType, encode_eif
from enclave_image.manifest import Tree


def kernel(options: str, version: str = "6.12.1 (nova-kms@enclave)", *, tail: bytes = b"") -> bytes:
    config = b"IKCFG_ST" + gzip.compress(options.encode(), mtime=0) + b"IKCFG_ED" + tail
    payload = gzip.compress(b"\x7fELF" + config, mtime=0)
    head = bytearray(2048)
    head[0x1F1] = 1  # one setup sector, so the payload counts from 1024
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, 0x300)
    head[0x500 : 0x500 + len(version)] = version.encode()
    struct.pack_into("<II", head, 0x248, 1024, len(payload))
    return bytes(head) + payload


def tree(data: bytes = b"one\ntwo\n", mode: int = 0o644, extra: str = "") -> Tree:
    made = Tree()
    made.add_file("usr/file", data, mode)
    made.add_link("link", extra or "usr/file")
    return made


def image(
    *,
    kernel_bytes: bytes = kernel("CONFIG_NSM=y\n# CONFIG_PCI is not set\n"),
    cmdline: bytes = b"reboot=k panic=-1",
    metadata: bytes = b'{"ImageName":"a","BuildMetadata":{"BuildTime":"x"}}',
    first: Tree | None = None,
    mtime_s: int = 0,
    flags: int = 0,
) -> bytes:
    first = first or tree()
    return encode_eif(
        Eif(
            (
                Section(SectionType.KERNEL, kernel_bytes),
                Section(SectionType.CMDLINE, cmdline),
                Section(SectionType.METADATA, metadata),
                Section(SectionType.RAMDISK, encode_cpio(first.manifest(), first.contents(), mtime_s)),
            ),
            flags,
        )
    )


ROWS = {
    "file contents": (
        image(first=tree(b"one\nTWO\n")),
        "ramdisk 1, usr/file: contents differ from line 2: 'two' against 'TWO'",
    ),
    "binary contents": (
        image(first=tree(b"one\ntwo\0")),
        "ramdisk 1, usr/file: contents differ from offset 7: 0a against 00",
    ),
    "mode bit": (image(first=tree(mode=0o755)), "ramdisk 1, usr/file: mode 0644 against 0755"),
    "link": (image(first=tree(extra="usr")), "ramdisk 1, link: points to usr/file against usr"),
    "time": (image(mtime_s=5), "ramdisk 1, link: time 0 against 5"),
    "kernel option": (
        image(kernel_bytes=kernel("CONFIG_NSM=y\nCONFIG_PCI=y\n")),
        "kernel option: CONFIG_PCI n against y",
    ),
    "kernel version": (
        image(kernel_bytes=kernel("CONFIG_NSM=y\n# CONFIG_PCI is not set\n", "6.12.2")),
        "kernel: version '6.12.1 (nova-kms@enclave)' against '6.12.2'",
    ),
    "cmdline": (image(cmdline=b"reboot=k panic=1"), "cmdline: only the first has 'panic=-1'"),
    "cmdline order": (image(cmdline=b"panic=-1 reboot=k"), "cmdline: the same words in another order"),
    "metadata": (
        image(metadata=b'{"ImageName":"a","BuildMetadata":{"BuildTime":"y"}}'),
        'metadata: BuildMetadata.BuildTime "x" against "y"',
    ),
    "header": (image(flags=1), "header: flags 0 against 1"),
}


@pytest.mark.parametrize(("other", "sentence"), ROWS.values(), ids=ROWS)
def test_the_first_difference_is_named(other, sentence):
    assert str(compare_eif(image(), other)[0]).startswith(sentence)


def test_equal_images_have_no_difference():
    assert compare_eif(image(), image()) == []


def test_a_file_on_one_side_only_is_named():
    more = tree()
    more.add_file("zz", b"")
    assert [str(difference) for difference in compare_eif(image(), image(first=more))] == [
        "ramdisk 1, zz: only in the second"
    ]


ONE_CHANGE = {
    "one file": image(first=tree(b"one\nTWO\n")),
    "one mode bit": image(first=tree(mode=0o645)),
    "one kernel option": image(kernel_bytes=kernel("CONFIG_NSM=y\nCONFIG_PCI=y\n")),
    "one word of the command line": image(cmdline=b"reboot=k panic=-1 quiet"),
    "one file longer": image(first=tree(b"one\ntwo\nthree\n")),
}


@pytest.mark.parametrize("other", ONE_CHANGE.values(), ids=ONE_CHANGE)
def test_one_change_is_one_difference(other):
    assert len(compare_eif(image(), other)) == 1


def test_a_long_line_is_shown_around_the_place_where_it_differs():
    long = b"[" + b"1," * 500
    (found,) = compare_eif(image(first=tree(long + b"2]")), image(first=tree(long + b"33]")))
    assert "1,2]' against '" in found.what
    assert "1,33]'" in found.what
    assert len(found.what) < 250


def test_nothing_of_a_strangers_image_reaches_the_terminal_unescaped():
    escape = "\x1b[2J"
    differences = [
        *compare_eif(image(), image(metadata=b'{"\\u001b[2J":1}')),
        *compare_eif(image(), image(metadata=b'{"a":"\\u001b[2J"}')),
        *compare_eif(image(), image(kernel_bytes=kernel(f"CONFIG_NSM={escape}\n"))),
        *compare_eif(image(), image(kernel_bytes=kernel("CONFIG_NSM=y\n", version=escape))),
        *compare_eif(image(), image(cmdline=escape.encode())),
        *compare_eif(image(), image(first=tree(extra=escape))),
        *compare_eif(image(), image(first=tree(escape.encode()))),
    ]
    assert len(differences) > 10
    assert all(str(difference).isprintable() for difference in differences)


def test_the_registers_say_which_part_a_verifier_sees_differ():
    assert compare_registers(image(), image(metadata=b"{}")) == (
        "registers: PCR0 is the same, PCR1 is the same, PCR2 is the same"
    )
    assert compare_registers(image(), image(cmdline=b"x")) == "registers: PCR0 differs, PCR1 differs, PCR2 is the same"


def test_a_kernel_that_differs_for_no_visible_reason_says_so():
    other = kernel("CONFIG_NSM=y\n# CONFIG_PCI is not set\n", tail=b"\1")
    (difference,) = compare_eif(image(), image(kernel_bytes=other))
    assert "another compiler, source or build time" in str(difference)
