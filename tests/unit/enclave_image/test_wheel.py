"""Wheels: paths and contents come out, installer records and scripts do not."""

import io
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_image import wheel as wheels
from enclave_image.errors import MalformedError
from enclave_image.wheel import read_wheel, split_wheel_name

NAME = "Some_Pkg-1.0-py3-none-any.whl"


def wheel(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, data in files.items():
            archive.writestr(zipfile.ZipInfo(path, (1999, 1, 1, 0, 0, 0)), data)
    return buffer.getvalue()


def test_a_wheel_gives_its_files_sorted_and_only_the_headers_of_its_metadata():
    found = read_wheel(
        NAME,
        wheel(
            {
                "some_pkg/b.py": b"b",
                "some_pkg/a.py": b"a",
                "some_pkg-1.0.data/purelib/extra.py": b"x",
                "some_pkg-1.0.data/scripts/tool": b"#!python",
                "some_pkg-1.0.dist-info/METADATA": b"Name: some-pkg\nVersion: 1.0\n\nLong words.\n",
                "some_pkg-1.0.dist-info/RECORD": b"...",
                "some_pkg-1.0.dist-info/INSTALLER": b"pip",
                "some_pkg-1.0.dist-info/direct_url.json": b"{}",
            }
        ),
    )
    assert (found.name, found.version) == ("some-pkg", "1.0")
    assert found.files == (
        ("extra.py", b"x"),
        ("some_pkg-1.0.dist-info/METADATA", b"Name: some-pkg\nVersion: 1.0\n"),
        ("some_pkg/a.py", b"a"),
        ("some_pkg/b.py", b"b"),
    )


@pytest.mark.parametrize("path", ["../x", "/x", "a/../x", "a//x", "./x"])
def test_a_path_that_leaves_the_site_directory_is_refused(path):
    with pytest.raises(MalformedError):
        read_wheel(NAME, wheel({path: b""}))


@pytest.mark.parametrize("name", ["x.whl", "x-1.0.tar.gz", "x-1.0-py3-none.whl", "x 1-py3-none-any.whl"])
def test_a_name_that_is_no_wheels_is_refused(name):
    with pytest.raises(MalformedError):
        split_wheel_name(name)


def test_names_with_build_numbers_and_several_platforms_are_split():
    assert split_wheel_name("a_b-1.0-2-cp313-cp313-manylinux2014_x86_64.manylinux_2_17_x86_64.whl") == ("a-b", "1.0")


def test_a_wheel_that_unpacks_to_more_than_the_limit_is_refused(monkeypatch):
    packed = wheel({"a.py": bytes(1000)})
    monkeypatch.setattr(wheels, "MAX_UNPACKED_BYTES", 1000)
    read_wheel(NAME, packed)
    monkeypatch.setattr(wheels, "MAX_UNPACKED_BYTES", 999)
    with pytest.raises(MalformedError, match="unpacks to 1000 bytes, at most 999 are taken"):
        read_wheel(NAME, packed)


def test_a_member_of_another_compression_that_is_damaged_is_refused():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.py", b"a" * 500)
    packed = bytearray(buffer.getvalue())
    packed[43:44] = b"\xff"  # in the head of the compressed data
    with pytest.raises(MalformedError, match="the archive is damaged"):
        read_wheel(NAME, bytes(packed))


GOOD = wheel({"a.py": b"a" * 50, "b.py": b"b"})


@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=4))
def test_no_damaged_wheel_breaks_the_reader(at, noise):
    try:
        read_wheel(NAME, GOOD[:at] + noise + GOOD[at + len(noise) :])
    except MalformedError:
        return
