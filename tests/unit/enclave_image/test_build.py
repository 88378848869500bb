"""The parts of a build that need no tools: recipe, metadata, revision, SBOM, interpreter, unpacking, verifying."""

import json
from pathlib import Path

import pytest

from enclave_image.build import Image, check_interpreter, encode_metadata, project_version, source_revision
from enclave_image.buildroot import merged, unpack
from enclave_image.deb import DebEntry
from enclave_image.eif import Eif, Section, SectionType, encode_eif
from enclave_image.errors import LockError, MalformedError
from enclave_image.lock import Lock, LockedDeb, LockedWheel, Use
from enclave_image.manifest import EntryType
from enclave_image.measure import measure_eif
from enclave_image.recipe import RECIPE_FILE, load_recipe, parse_recipe
from enclave_image.sbom import encode_sbom
from enclave_image.verify import ReproductionError, verify_rebuilt

RECIPE_TEXT = RECIPE_FILE.read_text(encoding="utf-8")


def test_the_committed_recipe_is_read_whole():
    recipe = load_recipe()
    assert recipe.max_eif_bytes == 80_000_000
    assert "libsecp256k1-2" in recipe.runtime_debs
    assert "\n" not in " ".join(recipe.cmdline)


REFUSED = {
    "not TOML": ("[", "not TOML"),
    "unknown table": (RECIPE_TEXT + "\n[extra]\n", "unknown tables: extra"),
    "unknown name": (RECIPE_TEXT.replace("[kernel]", "[kernel]\nother = 1"), r"unknown names in \[kernel\]: other"),
    "missing name": (RECIPE_TEXT.replace("epoch_s", "epoch_x"), "lacks epoch_s"),
    "text for a number": (
        RECIPE_TEXT.replace("default_cpus = 2", 'default_cpus = "2"'),
        "default_cpus .* must be a number",
    ),
    "number for a list": (
        RECIPE_TEXT.replace('wheels = ["cython", "setuptools"]', "wheels = 1"),
        "wheels .* must be a list",
    ),
}


@pytest.mark.parametrize(("text", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_recipe_in_another_form_is_refused(text, reason):
    with pytest.raises(MalformedError, match=reason):
        parse_recipe(text)


def test_metadata_is_compact_ascii_in_the_order_of_the_platform():
    encoded = encode_metadata(load_recipe(), "0.1.0", "6.12.117 (nova-kms@enclave) #1 SMP")
    assert encoded.isascii()
    assert encoded.startswith(
        b'{"ImageName":"nova-kms","ImageVersion":"0.1.0","BuildMetadata":{"BuildTime":"2026-01-01T00:00:00+00:00",'
    )
    assert list(json.loads(encoded)) == ["ImageName", "ImageVersion", "BuildMetadata", "DockerInfo", "CustomMetadata"]
    assert json.loads(encoded)["BuildMetadata"]["KernelVersion"] == "6.12.117"


def test_the_version_is_the_one_that_the_application_states():
    assert project_version({"appliance/__init__.py": b'"""x"""\n__version__ = "1.2.3"\n'}) == "1.2.3"
    with pytest.raises(MalformedError):
        project_version({"appliance/__init__.py": b""})


@pytest.mark.parametrize("layout", ["detached", "loose", "packed"])
def test_the_revision_is_read_from_the_files_of_git(tmp_path, layout):
    revision = "0123456789abcdef0123456789abcdef01234567"
    git = tmp_path / ".git"
    (git / "refs/heads").mkdir(parents=True)
    (git / "HEAD").write_text(revision + "\n" if layout == "detached" else "ref: refs/heads/main\n")
    if layout == "loose":
        (git / "refs/heads/main").write_text(revision + "\n")
    else:
        (git / "packed-refs").write_text(f"# pack-refs\n{revision} refs/heads/main\n")
    assert source_revision(tmp_path) == revision


def test_there_is_no_revision_outside_git(tmp_path):
    assert source_revision(tmp_path) == ""


def locked(use: Use, name: str, digest: str) -> LockedDeb:
    return LockedDeb(use, name, "1", "amd64", 1, digest)


PYTHON = ("python3.13-minimal", "libpython3.13-minimal", "libpython3.13-stdlib", "libc6")


def test_byte_code_is_made_by_the_interpreter_that_runs_it():
    same = tuple(locked(use, name, "a" * 64) for use in (Use.BUILD, Use.RUNTIME) for name in PYTHON)
    check_interpreter(Lock((), same, (), {}))
    with pytest.raises(LockError, match="different packages libc6"):
        check_interpreter(Lock((), (*same[:3], locked(Use.BUILD, "libc6", "b" * 64), *same[4:]), (), {}))


def test_the_sbom_lists_every_input_of_the_image_and_none_of_the_build():
    lock = Lock(
        (),
        (
            locked(Use.RUNTIME, "libc6", "a" * 64),
            locked(Use.BUILD, "gcc", "b" * 64),
            locked(Use.KERNEL, "linux-source", "c" * 64),
        ),
        (LockedWheel(Use.RUNTIME, "web3-8.0.0-py3-none-any.whl", 1, "d" * 64),),
        {},
    )
    text = encode_sbom(lock, "nova-kms", "0.1.0", "e" * 64, "6.12.117 (x)")
    document = json.loads(text)
    assert text == encode_sbom(lock, "nova-kms", "0.1.0", "e" * 64, "6.12.117 (x)")
    assert [(c["name"], c["version"]) for c in document["components"]] == [
        ("libc6", "1"),
        ("web3", "8.0.0"),
        ("linux", "6.12.117"),
    ]
    assert document["components"][1]["purl"] == "pkg:pypi/web3@8.0.0"
    assert document["dependencies"][0]["dependsOn"] == [c["bom-ref"] for c in document["components"]]


def entry(path: str, kind: EntryType = EntryType.FILE, mode: int = 0o644, target: str = "") -> DebEntry:
    return DebEntry(path, kind, mode, b"data" if kind is EntryType.FILE else b"", target)


def test_unpacking_moves_below_usr_and_never_writes_through_a_link(tmp_path):
    kinds: dict[str, EntryType] = {}
    (tmp_path / "outside").mkdir()
    unpack([entry("bin/tool", mode=0o4755), entry("etc", EntryType.DIRECTORY)], tmp_path / "root", kinds)
    assert (tmp_path / "root/usr/bin/tool").stat().st_mode & 0o7777 == 0o755
    escape = [entry("etc/link", EntryType.LINK, target=str(tmp_path / "outside")), entry("etc/link/file")]
    with pytest.raises(MalformedError, match="lies below 'etc/link', which is a link"):
        unpack(escape, tmp_path / "root", kinds)
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize(
    ("path", "expected"),
    [("bin/sh", "usr/bin/sh"), ("lib64/ld.so", "usr/lib64/ld.so"), ("usr/bin/x", "usr/bin/x"), ("libx/y", "libx/y")],
)
def test_paths_of_the_old_layout_move_below_usr(path, expected):
    assert merged(path) == expected


def image(cmdline: bytes = b"a=1") -> Image:
    kinds = ((SectionType.KERNEL, b"k"), (SectionType.CMDLINE, cmdline), (SectionType.METADATA, b"{}"))
    eif = Eif(tuple(Section(*section) for section in kinds))
    return Image(encode_eif(eif), measure_eif(eif), {"measurements.json": b"{}"})


def test_the_same_bytes_verify_and_others_are_explained():
    assert not verify_rebuilt(image().eif, image()).signed
    with pytest.raises(ReproductionError, match="cmdline: only the first has 'b=1'"):
        verify_rebuilt(image(b"a=1 b=1").eif, image())


def test_an_image_is_written_with_its_companions_and_nothing_else(tmp_path):
    image().write(tmp_path / "out")
    image().write(tmp_path / "out")
    assert sorted(path.name for path in Path(tmp_path / "out").iterdir()) == ["measurements.json", "nova-kms.eif"]
