"""The lock: every input of an image by SHA-256, in one reviewed file (enclave §1).

Names, versions and hashes only: which mirror serves them is the business of the machine's own apt and pip. A build
takes nothing that is not listed here, and nothing with another hash.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from enclave_image.errors import LockError, MalformedError
from enclave_image.manifest import path_order

FORMAT: Final = 1
# Names and versions become arguments of apt and pip, and parts of paths: what could be an option or a way out is none.
_FORMS: Final = {
    "sha256": re.compile(r"[0-9a-f]{64}"),
    "inrelease_sha256": re.compile(r"[0-9a-f]{64}"),
    "name": re.compile(r"[a-z0-9][a-z0-9+.-]{1,127}"),
    "version": re.compile(r"[0-9][0-9A-Za-z.+:~-]{0,127}"),
    "architecture": re.compile(r"[a-z0-9]{2,16}"),
    "file_name": re.compile(r"[A-Za-z0-9][A-Za-z0-9._!+-]{1,254}\.whl"),
}
_WORDS: Final = {"sha256": "64 hexadecimal digits", "inrelease_sha256": "64 hexadecimal digits"}

# Which files of the source tree an image is made from; everything else there does not reach it.
SOURCE_SUFFIXES: Final = {
    "kmscore": (".py", ".pyx", ".pxd", ".pyi", "py.typed"),
    "appliance": (".py", ".json", ".sol", "py.typed"),
    "enclave_image": (".py", ".toml", ".config"),
}
SOURCE_FILES: Final = ("setup.py",)
LOCK_SOURCES: Final = "nova-kms image lock --sources-only"


class Use(StrEnum):
    """What a locked file is for."""

    RUNTIME = "runtime"
    BUILD = "build"
    KERNEL = "kernel"


@dataclass(frozen=True, slots=True, order=True)
class LockedDeb:
    """One Debian package."""

    use: Use
    name: str
    version: str
    architecture: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, order=True)
class LockedWheel:
    """One wheel, by the file name that says what it was built for."""

    use: Use
    file_name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, order=True)
class LockedSuite:
    """The signed index that the packages were resolved from: provenance, not an input."""

    suite: str
    date: str
    inrelease_sha256: str


@dataclass(frozen=True, slots=True)
class Lock:
    """Everything an image is made from."""

    suites: tuple[LockedSuite, ...]
    debs: tuple[LockedDeb, ...]
    wheels: tuple[LockedWheel, ...]
    trees: Mapping[str, str]

    def debs_for(self, use: Use) -> tuple[LockedDeb, ...]:
        """Packages with this use, sorted by name."""
        return tuple(deb for deb in self.debs if deb.use is use)

    def wheels_for(self, use: Use) -> tuple[LockedWheel, ...]:
        """Wheels with this use, sorted by file name."""
        return tuple(wheel for wheel in self.wheels if wheel.use is use)


def _rows(rows: Iterable[Mapping[str, object]]) -> str:
    return ",\n".join("    " + json.dumps(row, ensure_ascii=True) for row in rows)


def encode_lock(lock: Lock) -> str:
    """The lock file: JSON with one input per line, sorted, so that a change of one input is a change of one line."""
    suites = _rows(
        {"suite": s.suite, "date": s.date, "inrelease_sha256": s.inrelease_sha256} for s in sorted(lock.suites)
    )
    debs = _rows(
        {
            "use": deb.use,
            "name": deb.name,
            "version": deb.version,
            "architecture": deb.architecture,
            "size_bytes": deb.size_bytes,
            "sha256": deb.sha256,
        }
        for deb in sorted(lock.debs)
    )
    wheels = _rows(
        {"use": wheel.use, "file_name": wheel.file_name, "size_bytes": wheel.size_bytes, "sha256": wheel.sha256}
        for wheel in sorted(lock.wheels)
    )
    trees = ",\n".join(f'    "{name}": "{lock.trees[name]}"' for name in sorted(lock.trees))
    return (
        f'{{\n  "format": {FORMAT},\n  "suites": [\n{suites}\n  ],\n  "debs": [\n{debs}\n  ],\n'
        f'  "wheels": [\n{wheels}\n  ],\n  "trees": {{\n{trees}\n  }}\n}}\n'
    )


def _row(value: object, names: tuple[str, ...], what: str) -> list[str]:
    if not isinstance(value, dict) or set(value) != set(names):
        raise MalformedError(f"the lock has {what} with other members than {', '.join(names)}")
    row = []
    for name in names:
        held = value[name]
        size = name == "size_bytes"
        if not isinstance(held, int if size else str) or isinstance(held, bool):
            raise MalformedError(f"the lock has {what} whose {name} has the wrong type")
        if isinstance(held, int) and held <= 0:
            raise MalformedError(f"the lock has {what} whose {name} is not above 0")
        if name in _FORMS and not _FORMS[name].fullmatch(str(held)):
            raise MalformedError(f"the lock has {what} whose {name} is not {_WORDS.get(name, 'one')}")
        row.append(str(held))
    return row


def _use(text: str) -> Use:
    try:
        return Use(text)
    except ValueError as error:
        raise MalformedError(f"the lock names the unknown use {text!r}") from error


def parse_lock(text: str) -> Lock:
    """The lock in `text`.

    Errors: `MalformedError` for another format, members that are missing, unknown or of the wrong type, inputs that
    appear twice, and for a lock in the middle of a merge.
    """
    if re.search(r"(?m)^(?:<{7}|>{7}) ", text):
        raise MalformedError(
            "the lock has the marks of a merge conflict: take one side with `git checkout --ours "
            f"enclave_image/image.lock`, then run `{LOCK_SOURCES}`"
        )
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedError("the lock is not JSON") from error
    members = ("format", "suites", "debs", "wheels", "trees")
    if not isinstance(value, dict) or set(value) != set(members) or value["format"] != FORMAT:
        raise MalformedError(f"the lock is not of format {FORMAT}: it has {', '.join(members)}")
    if not all(isinstance(value[name], list) for name in ("suites", "debs", "wheels")):
        raise MalformedError("the lock lists suites, debs and wheels")
    suites = [LockedSuite(*_row(row, ("suite", "date", "inrelease_sha256"), "a suite")) for row in value["suites"]]
    debs = []
    for row in value["debs"]:
        use, name, version, architecture, size, digest = _row(
            row, ("use", "name", "version", "architecture", "size_bytes", "sha256"), "a package"
        )
        debs.append(LockedDeb(_use(use), name, version, architecture, int(size), digest))
    wheels = []
    for row in value["wheels"]:
        use, file_name, size, digest = _row(row, ("use", "file_name", "size_bytes", "sha256"), "a wheel")
        wheels.append(LockedWheel(_use(use), file_name, int(size), digest))
    trees = value["trees"]
    if not isinstance(trees, dict) or not all(
        isinstance(held, str) and _FORMS["sha256"].fullmatch(held) for held in trees.values()
    ):
        raise MalformedError("the lock's trees are not names with SHA-256")
    for what, keys in (
        ("package", [(deb.use, deb.name) for deb in debs]),
        ("wheel", [(wheel.use, wheel.file_name) for wheel in wheels]),
    ):
        if len(set(keys)) != len(keys):
            raise MalformedError(f"the lock lists a {what} twice")
    return Lock(tuple(sorted(suites)), tuple(sorted(debs)), tuple(sorted(wheels)), trees)


def load_lock(path: Path) -> Lock:
    """The lock in this file.

    Errors: `LockError` when there is none, `MalformedError` as `parse_lock`.
    """
    try:
        return parse_lock(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LockError(f"{path} is missing: make it with `nova-kms image lock`") from error


def changes(before: Lock | None, after: Lock) -> list[str]:
    """What a new lock changes, one sentence per input, sorted; empty when it changes nothing that is built from."""

    def inputs(lock: Lock | None) -> dict[str, str]:
        if lock is None:
            return {}
        found = {f"{deb.use} package {deb.name}": f"{deb.version} {deb.sha256[:16]}" for deb in lock.debs}
        found |= {f"{wheel.use} wheel {wheel.file_name}": wheel.sha256[:16] for wheel in lock.wheels}
        return found | {f"source tree {name}": digest[:16] for name, digest in lock.trees.items()}

    old, new = inputs(before), inputs(after)
    sentences = []
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            sentences.append(f"- {name} {old[name]}")
        elif name not in old:
            sentences.append(f"+ {name} {new[name]}")
        elif old[name] != new[name]:
            sentences.append(f"~ {name} {old[name]} -> {new[name]}")
    return sentences


# --- the project's own sources ---


def source_paths(root: Path, tree: str) -> list[str]:
    """Paths of the files of a source tree that reach an image, relative to `root`, sorted by their bytes."""
    suffixes = SOURCE_SUFFIXES[tree]
    found = [
        path.relative_to(root).as_posix()
        for path in (root / tree).rglob("*")
        if path.is_file() and path.name.endswith(suffixes) and "__pycache__" not in path.parts
    ]
    return sorted(found, key=path_order)


def read_sources(root: Path, tree: str) -> dict[str, bytes]:
    """Contents of a source tree by path relative to `root`, sorted; the build file belongs to the core it builds.

    Errors: `LockError` when the tree is missing.
    """
    paths = source_paths(root, tree) + (list(SOURCE_FILES) if tree == "kmscore" else [])
    if not (root / tree).is_dir():
        raise LockError(f"the source tree {tree} is missing below {root}: run the command in a checkout")
    return {path: (root / path).read_bytes() for path in paths}


def tree_digest(files: Mapping[str, bytes]) -> str:
    """SHA-256 over the sorted lines `sha256 path` of a source tree; modes and times do not count."""
    lines = [f"{hashlib.sha256(files[path]).hexdigest()} {path}\n" for path in sorted(files, key=path_order)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_trees(lock: Lock, sources: Mapping[str, Mapping[str, bytes]]) -> None:
    """Check that every source tree is the locked one.

    Errors: `LockError` naming the first tree with another hash, and the command that locks it.
    """
    for name, files in sources.items():
        expected, found = lock.trees.get(name, "nothing"), tree_digest(files)
        if expected != found:
            raise LockError(
                f"the source tree {name} is not the locked one: expected {expected}, found {found}. "
                f"Lock it with `{LOCK_SOURCES}`, or build what is there with `--unlocked-sources`"
            )
