"""Every rule of a root file system, with a tree that breaks it."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_image.elf import read_elf
from enclave_image.errors import LintError, MalformedError
from enclave_image.lint import check, findings
from enclave_image.manifest import Tree


def elf(needed: tuple[str, ...] = (), run_path: str = "", interpreter: str = "") -> bytes:
    """A shared object with one segment that is the whole file, and just the tables that the loader reads."""
    strings = b"\0"
    tags: list[tuple[int, int]] = []
    for tag, text in (*((1, name) for name in needed), *(((29, run_path),) if run_path else ())):
        tags.append((tag, len(strings)))
        strings += text.encode() + b"\0"
    headers = 3 if interpreter else 2
    dynamic_at = 64 + 56 * headers
    dynamic_size = 16 * (len(tags) + 2)
    strings_at = dynamic_at + dynamic_size
    interpreter_at = strings_at + len(strings)
    tags.append((5, strings_at))
    dynamic = b"".join(struct.pack("<QQ", *tag) for tag in [*tags, (0, 0)])
    size = interpreter_at + len(interpreter) + 1
    segments = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, size, size, 4096)
    segments += struct.pack("<IIQQQQQQ", 2, 4, dynamic_at, dynamic_at, 0, dynamic_size, dynamic_size, 8)
    if interpreter:
        segments += struct.pack("<IIQQQQQQ", 3, 4, interpreter_at, 0, 0, len(interpreter) + 1, 0, 1)
    head = (
        b"\x7fELF\x02\x01\x01"
        + bytes(9)
        + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, headers, 0, 0, 0)
    )
    return head + segments + dynamic + strings + interpreter.encode() + b"\0"


def good() -> Tree:
    tree = Tree()
    tree.add_link("lib64", "usr/lib64")
    tree.add_file("usr/lib/x86_64-linux-gnu/libc.so.6", elf(), 0o755)
    tree.add_file("usr/lib64/ld-linux-x86-64.so.2", elf(), 0o755)
    tree.add_file("usr/bin/python3.13", elf(("libc.so.6",), interpreter="/lib64/ld-linux-x86-64.so.2"), 0o755)
    tree.add_directory("tmp", 0o1777)
    return tree


def application() -> Tree:
    tree = Tree()
    tree.add_file("etc/nova-kms/appliance.toml", b"")
    return tree


SITE = "usr/lib/python3/dist-packages"


def with_file(path: str, data: bytes = b"", mode: int = 0o644) -> Tree:
    tree = good()
    tree.add_file(path, data, mode)
    return tree


def with_link(path: str, target: str) -> Tree:
    tree = good()
    tree.add_link(path, target)
    return tree


def with_directory(path: str, mode: int) -> Tree:
    tree = good()
    tree.add_directory(path, mode)
    return tree


ROWS = {
    "dangling link": (with_link(f"{SITE}/x", "nowhere"), "x: the link to nowhere leads nowhere"),
    "set-user-id": (with_file(f"{SITE}/x", mode=0o4755), "x: set-user-id"),
    "writable file": (with_file(f"{SITE}/x", mode=0o666), "x: writable by others"),
    "writable directory": (with_directory("run", 0o777), "run: writable by everybody"),
    "shell": (with_file("usr/bin/dash", mode=0o755), "usr/bin/dash: must not be in an image"),
    "package manager": (with_file("usr/lib/apt/methods/http"), "usr/lib/apt/methods/http: must not be"),
    "resolver": (with_file("etc/resolv.conf"), "etc/resolv.conf: must not be"),
    "installer record": (with_file(f"{SITE}/a-1.dist-info/RECORD"), "RECORD: must not be"),
    "start-up code": (with_file(f"{SITE}/evil.pth"), "evil.pth: must not be"),
    "unknown place": (with_file("opt/tool"), "opt/tool: in no place"),
    "unknown program": (with_file("usr/bin/perl", mode=0o755), "usr/bin/perl: in no place"),
    "missing library": (
        with_file(f"{SITE}/x.so", elf(("libmissing.so.1",))),
        "x.so: the library libmissing.so.1 is not",
    ),
    "missing interpreter": (with_file(f"{SITE}/x.so", elf(interpreter="/lib/ld.so")), "its interpreter /lib/ld.so"),
    "absolute run path": (with_file(f"{SITE}/x.so", elf(run_path="/home/me")), "its run path /home/me is absolute"),
    "broken ELF": (with_file(f"{SITE}/x.so", b"\x7fELF\x02\x01"), "x.so: an ELF file whose tables"),
    "checked byte code": (with_file(f"{SITE}/x.pyc", b"abcd\0\0\0\0"), "x.pyc: byte code that is not"),
    "host leak": (with_file(f"{SITE}/x", b"built in /home/builder/src"), "x: holds '/home/builder'"),
}


@pytest.mark.parametrize(("tree", "sentence"), ROWS.values(), ids=ROWS)
def test_each_breach_has_its_sentence(tree, sentence):
    (found,) = findings(tree, application(), ["/home/builder", "vm"])
    assert sentence in found


def test_a_tree_that_keeps_the_rules_passes():
    check(good(), application(), ["/home/builder"])


def test_libraries_beside_a_module_are_found_through_its_run_path():
    tree = with_file(f"{SITE}/pkg/x.so", elf(("libown.so.1",), run_path="$ORIGIN/../pkg.libs"))
    tree.add_file(f"{SITE}/pkg.libs/libown.so.1", elf())
    check(tree, application())


def test_the_application_may_not_replace_a_file_of_the_base():
    above = application()
    above.add_file("usr/bin/python3.13", b"other", 0o755)
    with pytest.raises(LintError, match="the application replaces a file of the base"):
        check(good(), above)


@given(st.integers(0, 399), st.binary(min_size=1, max_size=8))
def test_no_damaged_elf_file_breaks_the_reader(at, noise):
    data = elf(("libc.so.6", "libm.so.6"), run_path="$ORIGIN", interpreter="/lib64/ld.so")
    try:
        read_elf(data[:at] + noise + data[at + len(noise) :])
    except MalformedError:
        return
