"""Puts the root file systems together in memory: unpacked inputs, pruning, and a declarative step instead of scripts.

Two trees come out: the base (C library, Python, libraries, the first process) and the application. Nothing is run
here; what needs a tool of the image's own Debian (stripping, byte code) is done in the build root by `finish`.
"""

import json
import posixpath
import shutil
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Final

from enclave_image.buildroot import WORK, BuildRoot, merged
from enclave_image.deb import read_deb
from enclave_image.elf import is_elf
from enclave_image.errors import StepError
from enclave_image.manifest import EntryType, Tree
from enclave_image.recipe import RootfsRules
from enclave_image.wheel import read_wheel

INIT_PACKAGE: Final = "enclave_init"
APPLICATION_CONFIG: Final = "etc/nova-kms/appliance.toml"
_SCRIPT: Final = b"#!/usr/bin/python3.13 -IB\nfrom enclave_init.main import main\n\nmain()\n"

# Isolated from everything but the environment: `-I` would ignore the build root's fixed seed of hashes, too.
COMPILER_OPTIONS: Final = ("-s", "-P", "-B")

# Runs in the build root, under the interpreter of the image, in one process: byte code depends on nothing but its
# input.
_COMPILER: Final = """
import json, py_compile
mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
for job in json.load(open("jobs.json")):
    py_compile.compile(job["from"], job["to"], job["shown"], doraise=True, invalidation_mode=mode)
"""


class Selection:
    """Which paths of the inputs are taken: those that no pattern of `prune` matches, or one of `keep` does."""

    def __init__(self, prune: Iterable[str], keep: Iterable[str]) -> None:
        self._prune = tuple(prune)
        self._keep = tuple(keep)

    def takes(self, path: str) -> bool:
        """Whether the image takes this path."""
        pruned = any(fnmatchcase(path, pattern) for pattern in self._prune)
        return not pruned or any(fnmatchcase(path, pattern) for pattern in self._keep)


def add_deb(tree: Tree, data: bytes, selection: Selection) -> None:
    """Add what is taken of a package, with everything moved below `usr` that the links of `usr` cover."""
    for entry in read_deb(data).entries:
        path = merged(entry.path)
        if entry.kind is EntryType.DIRECTORY or not selection.takes(path):
            continue  # parents are made for files; empty directories of packages mean nothing here
        if entry.kind is EntryType.LINK:
            tree.add_link(path, entry.target)
        else:
            tree.add_file(path, entry.data, 0o755 if entry.mode & 0o111 else 0o644)


def add_wheel(tree: Tree, site: str, file_name: str, data: bytes, selection: Selection) -> None:
    """Add what is taken of a wheel below the site directory."""
    for path, contents in read_wheel(file_name, data).files:
        placed = posixpath.join(site, path)
        if selection.takes(placed):
            tree.add_file(placed, contents)


def _add_ca_bundle(tree: Tree, rules: RootfsRules) -> None:
    """One file with every certificate, sorted by the names of their files; the files themselves go."""
    names = [path for path in tree.files() if path.startswith(rules.ca_certificates) and path.endswith(".crt")]
    if not names:
        raise StepError(f"no certificate below {rules.ca_certificates}: the package of certificate authorities changed")
    bundle = b"".join(tree.read(name).rstrip(b"\n") + b"\n" for name in names)
    tree.remove(rules.ca_certificates.rstrip("/"))
    tree.remove_empty_directories()
    tree.add_file(rules.ca_bundle, bundle)
    for link in rules.ca_links:
        if tree.get(link) is not None:
            tree.remove(link)
            tree.add_link(link, "/" + rules.ca_bundle)


def assemble_base(
    rules: RootfsRules, debs: Iterable[bytes], wheels: Mapping[str, bytes], init: Mapping[str, bytes]
) -> Tree:
    """The base: packages, wheels by file name, and the first process's package by path inside it."""
    tree = Tree()
    selection = Selection(rules.prune, rules.keep)
    for data in debs:
        add_deb(tree, data, selection)
    for name in sorted(wheels):
        add_wheel(tree, rules.site, name, wheels[name], selection)
    _add_ca_bundle(tree, rules)
    for name, contents in init.items():
        tree.add_file(posixpath.join(rules.site, INIT_PACKAGE, name), contents)
    tree.add_file("init", _SCRIPT, 0o755)
    for path, contents_text in rules.files.items():
        tree.add_file(path, contents_text.encode())
    for path, target in {**rules.links, **rules.extra_links}.items():
        if tree.get(path) is None:
            tree.add_link(path, target)
    for path in rules.directories:
        tree.add_directory(path, 0o1777 if path == "tmp" else 0o755)
    tree.add_device("dev/console", 5, 1, 0o600)  # the kernel opens it for the first process before anything is mounted
    return tree


def assemble_application(
    rules: RootfsRules, sources: Mapping[str, bytes], extensions: Mapping[str, bytes], config: bytes
) -> Tree:
    """The application: Python sources and data by path, compiled extensions by path, and the measured configuration."""
    tree = Tree()
    selection = Selection(rules.prune, rules.keep)
    for path, contents in {**sources, **extensions}.items():
        placed = posixpath.join(rules.application_site, path)
        if selection.takes(placed):
            tree.add_file(placed, contents)
    tree.add_file(APPLICATION_CONFIG, config)
    return tree


def compile_sources(tree: Tree, build_root: BuildRoot) -> None:
    """Replace every Python source by its unchecked-hash byte code, made by the build root's interpreter in one process.

    The sources do not go along: they would be a fifth of the image, and the byte code is what is measured and run.
    Errors: `StepError` when a source does not compile: such a file does not belong into an image.
    """
    work = build_root.work / "bytecode"
    work.mkdir(exist_ok=True)
    paths = [path for path in tree.files() if path.endswith(".py")]
    jobs = []
    for number, path in enumerate(paths):
        (work / f"{number}.py").write_bytes(tree.read(path))
        jobs.append({"from": f"{number}.py", "to": f"{number}.pyc", "shown": "/" + path})
    (work / "jobs.json").write_text(json.dumps(jobs), encoding="ascii")
    (work / "compile.py").write_text(_COMPILER, encoding="ascii")
    build_root.run(["/usr/bin/env", "-C", f"{WORK}/bytecode", "python3.13", *COMPILER_OPTIONS, "compile.py"])
    for number, path in enumerate(paths):
        tree.remove(path)
        tree.add_file(f"{path}c", (work / f"{number}.pyc").read_bytes())
    shutil.rmtree(work)


def strip_libraries(tree: Tree, build_root: BuildRoot, below: Iterable[str]) -> int:
    """Strip the ELF files below these directories with the build root's tool; returns how many bytes went.

    Debian's own packages come stripped and are left alone, so that they stay comparable with what Debian ships.
    """
    work = build_root.work / "strip"
    work.mkdir(exist_ok=True)
    prefixes = tuple(f"{directory}/" for directory in below)
    paths = [path for path in tree.files() if path.startswith(prefixes) and is_elf(tree.read(path))]
    for number, path in enumerate(paths):
        (work / str(number)).write_bytes(tree.read(path))
    if paths:
        names = [f"strip/{number}" for number in range(len(paths))]
        build_root.run(["strip", "--strip-unneeded", "--enable-deterministic-archives", *names])
    saved = 0
    for number, path in enumerate(paths):
        stripped = (work / str(number)).read_bytes()
        saved += len(tree.read(path)) - len(stripped)
        tree.replace_file(path, stripped)
    shutil.rmtree(work)
    return saved
