"""Root file systems from made-up packages: what is taken, moved below usr, linked and bundled."""

import dataclasses
import io
import lzma
import tarfile

from enclave_image.recipe import RootfsRules
from enclave_image.rootfs import Selection, assemble_application, assemble_base

RULES = RootfsRules(
    directories=("proc", "tmp"),
    links={"lib": "usr/lib", "bin": "usr/bin"},
    extra_links={"usr/bin/python3": "python3.13"},
    ca_certificates="usr/share/ca-certificates/mozilla/",
    ca_bundle="etc/ssl/certs/ca-certificates.crt",
    ca_links=("usr/lib/python3/dist-packages/certifi/cacert.pem", "usr/lib/python3/dist-packages/absent.pem"),
    site="usr/lib/python3/dist-packages",
    application_site="usr/local/lib/python3.13/dist-packages",
    files={"etc/passwd": "root:x:0:0::/:\n"},
    prune=("usr/share/*", "*.pyx"),
    keep=("usr/share/ca-certificates/mozilla/*",),
)


def deb(files: dict[str, bytes]) -> bytes:
    def tar(held: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for path, data in held.items():
                info = tarfile.TarInfo("./" + path)
                info.size, info.mode = len(data), 0o755 if "bin/" in path else 0o640
                archive.addfile(info, io.BytesIO(data))
        return lzma.compress(buffer.getvalue())

    parts = [b"!<arch>\n"]
    for name, data in (
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", tar({"control": b"Package: x\n", "postinst": b"exit 1"})),
        ("data.tar.xz", tar(files)),
    ):
        parts.append(
            f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
        )
    return b"".join(parts)


PACKAGE = deb(
    {
        "lib/x86_64-linux-gnu/libz.so.1": b"library",
        "usr/bin/python3.13": b"python",
        "usr/share/doc/x/copyright": b"words",
        "usr/share/ca-certificates/mozilla/B.crt": b"-----B-----\n",
        "usr/share/ca-certificates/mozilla/A.crt": b"-----A-----",
        "usr/lib/python3/dist-packages/certifi/cacert.pem": b"another list",
    }
)


def test_the_base_has_what_the_packages_hold_and_the_rules_add():
    tree = assemble_base(RULES, [PACKAGE], {}, {"main.py": b"pass"})
    assert tree.manifest().text() == assemble_base(RULES, [PACKAGE], {}, {"main.py": b"pass"}).manifest().text()
    entries = tree.manifest().by_path()
    assert [path for path in tree.paths() if entries[path].kind != "dir"] == [
        "bin",
        "dev/console",
        "etc/passwd",
        "etc/ssl/certs/ca-certificates.crt",
        "init",
        "lib",
        "usr/bin/python3",
        "usr/bin/python3.13",
        "usr/lib/python3/dist-packages/certifi/cacert.pem",
        "usr/lib/python3/dist-packages/enclave_init/main.py",
        "usr/lib/x86_64-linux-gnu/libz.so.1",
    ]
    assert tree.read("etc/ssl/certs/ca-certificates.crt") == b"-----A-----\n-----B-----\n"
    assert entries["usr/lib/python3/dist-packages/certifi/cacert.pem"].target == "/etc/ssl/certs/ca-certificates.crt"
    assert (entries["usr/lib/x86_64-linux-gnu/libz.so.1"].mode, entries["usr/bin/python3.13"].mode) == (0o644, 0o755)
    assert (entries["tmp"].mode, entries["proc"].mode) == (0o1777, 0o755)
    assert entries["dev/console"].device == (5, 1)


def test_the_application_has_sources_extensions_and_its_configuration():
    sources = {"kmscore/pop.py": b"1", "kmscore/_pop.pyx": b"2", "appliance/chain/artifacts/a.json": b"{}"}
    tree = assemble_application(RULES, sources, {"kmscore/_pop.so": b"ELF"}, b"[service]\n")
    site = RULES.application_site
    assert tree.files() == [
        "etc/nova-kms/appliance.toml",
        f"{site}/appliance/chain/artifacts/a.json",
        f"{site}/kmscore/_pop.so",
        f"{site}/kmscore/pop.py",
    ]


def test_a_kept_path_wins_over_a_pruned_one():
    selection = Selection(RULES.prune, RULES.keep)
    assert selection.takes("usr/share/ca-certificates/mozilla/A.crt")
    assert not selection.takes("usr/share/doc/x")


def test_the_order_of_packages_does_not_matter():
    other = deb({"usr/lib/other": b"1"})
    rules = dataclasses.replace(RULES, ca_links=())
    one = assemble_base(rules, [PACKAGE, other], {}, {})
    two = assemble_base(rules, [other, PACKAGE], {}, {})
    assert one.manifest() == two.manifest()
