"""The newc writer against an independent reader, and the reader against broken archives."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_image.cpio import encode_cpio, read_cpio
from enclave_image.errors import MalformedError
from enclave_image.manifest import Manifest, Tree


def small_tree() -> Tree:
    tree = Tree()
    tree.add_file("usr/bin/tool", b"#!tool\n", 0o755)
    tree.add_file("usr/lib/data", b"12345")
    tree.add_link("bin", "usr/bin")
    tree.add_device("dev/console", 5, 1, 0o600)
    tree.add_directory("tmp", 0o1777)
    return tree


def encoded(tree: Tree, mtime_s: int = 86400) -> bytes:
    return encode_cpio(tree.manifest(), tree.contents(), mtime_s)


def test_a_record_has_the_bytes_that_the_format_defines():
    tree = Tree()
    tree.add_file("a", b"xyz", 0o640)
    assert encoded(tree)[:116] == (
        b"070701"
        b"00000001000081A00000000000000000"  # inode, mode, uid, gid
        b"000000010001518000000003"  # links, time, size
        b"00000000000000000000000000000000"  # device and what it would stand for
        b"0000000200000000"  # name size, check
        b"a\0xyz\0"
    )


def test_archives_end_aligned_for_the_next_one():
    assert len(encoded(small_tree())) % 512 == 0
    assert len(encoded(Tree())) == 512


def test_parents_come_before_children_and_inodes_count_from_one():
    records = read_cpio(encoded(small_tree()))
    assert [record.path for record in records] == [
        "bin", "dev", "dev/console", "tmp", "usr", "usr/bin", "usr/bin/tool", "usr/lib", "usr/lib/data",
    ]  # fmt: skip
    assert [record.inode for record in records] == list(range(1, 10))
    assert {record.links for record in records} == {1}
    assert {(record.uid, record.gid, record.mtime_s) for record in records} == {(0, 0, 86400)}


def test_paths_sort_by_bytes_not_by_path_parts():
    tree = Tree()
    tree.add_file("a/b", b"")
    tree.add_file("a-c", b"")
    assert [record.path for record in read_cpio(encoded(tree))] == ["a", "a-c", "a/b"]


def test_the_cpio_program_reads_what_we_write():
    listed = subprocess.run(
        ["cpio", "--list", "--verbose", "--numeric-uid-gid", "--quiet"],
        input=encoded(small_tree()), capture_output=True, check=True, env={"LC_ALL": "C", "PATH": "/usr/bin"},
    ).stdout.decode()  # fmt: skip
    assert [line.split()[0] for line in listed.splitlines()] == [
        "lrwxrwxrwx", "drwxr-xr-x", "crw-------", "drwxrwxrwt", "drwxr-xr-x", "drwxr-xr-x", "-rwxr-xr-x", "drwxr-xr-x",
        "-rw-r--r--",
    ]  # fmt: skip
    assert "bin -> usr/bin" in listed


def test_missing_contents_are_named():
    manifest = small_tree().manifest()
    with pytest.raises(MalformedError, match="usr/bin/tool"):
        encode_cpio(manifest, {}, 0)


GOOD = encoded(small_tree())
BROKEN = {
    "empty": b"",
    "no trailer": GOOD[: GOOD.index(b"TRAILER!!!") - 110],
    "another magic": b"070702" + GOOD[6:],
    "not hexadecimal": GOOD[:6] + b"0000000g" + GOOD[14:],
    "size past the end": GOOD[:54] + b"FFFFFFFF" + GOOD[62:],
    "name without end": GOOD[:94] + b"00000003" + GOOD[102:],
    "empty name": GOOD[:94] + b"00000001" + GOOD[102:],
    "garbage after the trailer": GOOD[:-1] + b"x",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_a_broken_archive_is_refused(data):
    with pytest.raises(MalformedError):
        read_cpio(data)


@given(st.binary(max_size=300), st.integers(0, 300))
def test_no_archive_breaks_the_reader(noise, at):
    try:
        read_cpio(GOOD[:at] + noise)
    except MalformedError:
        return


def test_an_empty_manifest_is_an_archive_with_only_a_trailer():
    assert read_cpio(encode_cpio(Manifest(()), {}, 0)) == []
