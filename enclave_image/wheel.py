"""Reads wheels: the zip archive becomes paths and contents; nothing is installed, compiled or run.

Zip times and attributes are ignored; installer records and scripts are dropped, the package metadata is cut to its
headers.
"""

import io
import lzma
import re
import zipfile
import zlib
from dataclasses import dataclass, field
from typing import Final

from enclave_image.errors import MalformedError
from enclave_image.manifest import is_normal_path, path_order

_FILE_NAME: Final = re.compile(r"([A-Za-z0-9._]+)-([A-Za-z0-9._!+]+)(?:-\d[^-]*)?-([^-]+)-([^-]+)-([^-]+)\.whl")
MAX_UNPACKED_BYTES: Final = 256 << 20
_KEPT_METADATA: Final = "METADATA"  # packages read their own version from it


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel: its distribution and version, and its files below the site directory, sorted by path."""

    name: str
    version: str
    files: tuple[tuple[str, bytes], ...] = field(repr=False)


def normal_name(name: str) -> str:
    """A distribution's name in the one spelling that compares."""
    return re.sub(r"[-_.]+", "-", name).lower()


def split_wheel_name(file_name: str) -> tuple[str, str]:
    """Distribution (normal spelling) and version from a wheel's file name.

    Errors: `MalformedError` when it is not one.
    """
    match = _FILE_NAME.fullmatch(file_name)
    if match is None:
        raise MalformedError(f"{file_name!r} is not the file name of a wheel")
    return normal_name(match[1]), match[2]


def _site_path(path: str) -> str | None:
    """Where a member of the archive goes below the site directory, or None when it is not taken."""
    top, _, rest = path.partition("/")
    if top.endswith(".data"):
        scheme, _, inner = rest.partition("/")
        return inner if scheme in ("purelib", "platlib") and inner else None
    if top.endswith(".dist-info") and rest != _KEPT_METADATA:
        return None
    return path


def read_wheel(file_name: str, data: bytes) -> Wheel:
    """The wheel in `data`.

    Errors: `MalformedError` for a name that is none, a damaged archive, or a path outside the site directory.
    """
    name, version = split_wheel_name(file_name)
    files: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            claimed = sum(member.file_size for member in archive.infolist())
            if claimed > MAX_UNPACKED_BYTES:  # reading a member stops at the size that it claims
                raise MalformedError(f"{file_name} unpacks to {claimed} bytes, at most {MAX_UNPACKED_BYTES} are taken")
            for member in archive.infolist():
                if member.filename.endswith("/"):
                    continue
                if not is_normal_path(member.filename):
                    raise MalformedError(f"{file_name}: the path {member.filename!r} is not relative and normal")
                path = _site_path(member.filename)
                if path is None:
                    continue
                contents = archive.read(member)
                if path.endswith(f".dist-info/{_KEPT_METADATA}"):
                    contents = contents.partition(b"\n\n")[0].rstrip() + b"\n"
                if files.setdefault(path, contents) != contents:
                    raise MalformedError(f"{file_name} holds {path!r} twice")
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError, OSError) as error:
        raise MalformedError(f"{file_name}: the archive is damaged") from error
    return Wheel(name, version, tuple((path, files[path]) for path in sorted(files, key=path_order)))
