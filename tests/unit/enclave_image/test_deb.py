"""Debian packages: made here byte by byte, read without running anything, broken ones refused."""

import bz2
import gzip
import io
import lzma
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_image import deb as debian
from enclave_image.deb import read_deb
from enclave_image.errors import MalformedError
from enclave_image.manifest import EntryType


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.uid, info.mtime = kind, target, mode, 1000, 12345
    return info


def ar(*members: tuple[str, bytes]) -> bytes:
    parts = [b"!<arch>\n"]
    for name, data in members:
        parts.append(
            f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
        )
    return b"".join(parts)


CHECKOUT = Path(__file__).parents[3]
CONTROL = tar((member("./control"), b"Package: tool\nVersion: 1.2-3\nDescription: a tool\n more words\n"))


def deb(data_tar: bytes, control: bytes = CONTROL, name: str = "data.tar.xz") -> bytes:
    packed = lzma.compress(data_tar) if name.endswith(".xz") else data_tar
    return ar(("debian-binary", b"2.0\n"), ("control.tar.xz", lzma.compress(control)), (name, packed))


def test_a_package_gives_its_fields_and_paths_without_owners_and_times():
    package = read_deb(
        deb(
            tar(
                (member("./", tarfile.DIRTYPE, mode=0o755), b""),
                (member("./usr/bin/", tarfile.DIRTYPE, mode=0o755), b""),
                (member("./usr/bin/tool", mode=0o4755), b"ELF"),
                (member("./usr/bin/alias", tarfile.SYMTYPE, "tool"), b""),
                (member("./usr/bin/hard", tarfile.LNKTYPE, "./usr/bin/tool"), b""),
            )
        )
    )
    assert package.control["Package"] == "tool"
    assert package.control["Description"] == "a tool\nmore words"
    assert [(e.path, e.kind, e.mode, e.data, e.target) for e in package.entries] == [
        ("usr/bin", EntryType.DIRECTORY, 0o755, b"", ""),
        ("usr/bin/tool", EntryType.FILE, 0o4755, b"ELF", ""),
        ("usr/bin/alias", EntryType.LINK, 0o777, b"", "tool"),
        ("usr/bin/hard", EntryType.FILE, 0o4755, b"ELF", ""),
    ]


def sparse() -> bytes:
    """A tar of one file of 8 EiB that has no contents: a reader that believes its size fills the memory."""
    info = member("./hole", tarfile.GNUTYPE_SPARSE)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"\x80\0\0\0" + (1 << 62).to_bytes(8, "big")
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + bytes(1024)


READ_NAME = """
import sys
from enclave_image.deb import read_deb
print(ascii(read_deb(sys.stdin.buffer.read()).entries[0].path))
"""


def test_names_are_utf_8_whatever_the_locale():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8") as archive:
        archive.addfile(member("./Főtanúsítvány"))
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-c", READ_NAME]
    done = subprocess.run(command, env=ascii_only, input=deb(buffer.getvalue()), capture_output=True)
    assert done.stderr == b""
    assert done.stdout.decode().strip() == ascii("Főtanúsítvány")


EMPTY = tar()
REFUSED = {
    "no ar": b"!<arch>",
    "ar header cut": b"!<arch>\n" + b"x" * 59,
    "member too long": deb(EMPTY)[:-40],
    "not a deb": ar(("something", b"2.0\n")),
    "no data": ar(("debian-binary", b"2.0\n"), ("control.tar", CONTROL)),
    "unknown compression": deb(EMPTY, name="data.tar.zst"),
    "damaged xz": ar(("debian-binary", b"2.0\n"), ("control.tar", CONTROL), ("data.tar.xz", b"\xfd7zXZ\0broken")),
    "parent path": deb(tar((member("../etc/passwd"), b""))),
    "absolute path": deb(tar((member("/etc/passwd"), b""))),
    "device": deb(tar((member("./dev/null", tarfile.CHRTYPE), b""))),
    "hard link to nothing": deb(tar((member("./a", tarfile.LNKTYPE, "./b"), b""))),
    "sparse file": deb(sparse()),
    "tar that is none": deb(b"x" * 1024),
}


@pytest.mark.parametrize(
    ("name", "pack"), [("data.tar.xz", lzma.compress), ("data.tar.gz", gzip.compress), ("data.tar.bz2", bz2.compress)]
)
def test_a_member_that_unpacks_to_more_than_the_limit_is_refused(name, pack, monkeypatch):
    data = tar((member("./a"), b"1"))
    package = ar(("debian-binary", b"2.0\n"), ("control.tar", CONTROL), (name, pack(data)))
    monkeypatch.setattr(debian, "MAX_UNPACKED_BYTES", len(data))
    assert read_deb(package).entries[0].data == b"1"
    monkeypatch.setattr(debian, "MAX_UNPACKED_BYTES", len(data) - 1)
    with pytest.raises(MalformedError, match=f"{name} unpacks to more than"):
        read_deb(package)


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_a_broken_package_is_refused(data):
    with pytest.raises(MalformedError):
        read_deb(data)


GOOD = deb(tar((member("./a"), b"1")), name="data.tar")


@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=4))
def test_no_damaged_package_breaks_the_reader(at, noise):
    try:
        read_deb(GOOD[:at] + noise + GOOD[at + len(noise) :])
    except MalformedError:
        return
