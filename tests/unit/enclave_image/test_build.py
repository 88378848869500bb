"""The parts of a build that need no tools: recipe, metadata, revision, SBOM, interpreter, unpacking, verifying."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from enclave_image.agree import check_recipe
from enclave_image.build import Image, check_size, encode_metadata, project_version, source_revision
from enclave_image.buildroot import merged, tree_seal, unpack
from enclave_image.deb import DebEntry
from enclave_image.eif import Eif, Section, SectionType, encode_eif
from enclave_image.errors import LockError, MalformedError, StepError
from enclave_image.lock import Lock, LockedDeb, LockedWheel, Use, load_lock
from enclave_image.manifest import EntryType
from enclave_image.measure import measure_eif
from enclave_image.recipe import RECIPE_FILE, load_recipe, parse_recipe
from enclave_image.rootfs import COMPILER_OPTIONS
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


@pytest.mark.parametrize("layout", ["detached", "loose", "packed", "work tree"])
def test_the_revision_is_read_from_the_files_of_git(tmp_path, layout):
    revision = "0123456789abcdef0123456789abcdef01234567"
    git = tmp_path / ".git"
    if layout == "work tree":
        own = tmp_path / "main/.git/worktrees/other"
        own.mkdir(parents=True)
        git.write_text(f"gitdir: {own}\n")
        (own / "commondir").write_text("../..\n")
        (own / "HEAD").write_text("ref: refs/heads/other\n")
        (tmp_path / "main/.git/refs/heads").mkdir(parents=True)
        (tmp_path / "main/.git/refs/heads/other").write_text(revision + "\n")
        assert source_revision(tmp_path) == revision
        return
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


RECIPE = load_recipe()
CHECKOUT = Path(__file__).parents[3]
COMMITTED = load_lock(CHECKOUT / "enclave_image/image.lock")
REQUIREMENTS = [(CHECKOUT / path).read_text() for path in (RECIPE.runtime_requirements, RECIPE.build_requirements)]


def test_the_committed_lock_is_what_the_recipe_and_the_requirements_ask_for():
    check_recipe(RECIPE, COMMITTED, *REQUIREMENTS)


def changed_debs(change: Callable[[LockedDeb], LockedDeb | None], *more: LockedDeb) -> Lock:
    kept = [found for deb in COMMITTED.debs if (found := change(deb)) is not None]
    return dataclasses.replace(COMMITTED, debs=(*kept, *more))


def without(use: Use, name: str) -> Lock:
    return changed_debs(lambda deb: None if (deb.use, deb.name) == (use, name) else deb)


def other_python(deb: LockedDeb) -> LockedDeb:
    if (deb.use, deb.name) == (Use.BUILD, "libc6"):
        return dataclasses.replace(deb, sha256="b" * 64)
    return deb


def changed_wheel(start: str, **changes: str) -> Lock:
    wheels = [dataclasses.replace(w, **changes) if w.file_name.startswith(start) else w for w in COMMITTED.wheels]
    return dataclasses.replace(COMMITTED, wheels=tuple(wheels))


OUT_OF_STEP = {
    "package missing": (without(Use.RUNTIME, "libssl3t64"), "asks for packages .* libssl3t64: lock anew"),
    "package too many": (
        changed_debs(lambda deb: deb, locked(Use.RUNTIME, "dash", "a" * 64)),
        "has packages that the recipe does not ask for: dash",
    ),
    "no kernel": (without(Use.KERNEL, RECIPE.kernel_deb), "asks for kernel sources"),
    "two kernels": (
        changed_debs(lambda deb: deb, locked(Use.KERNEL, "linux-source-6.1", "a" * 64)),
        "kernel sources that the recipe does not ask for: linux-source-6.1",
    ),
    "compiler missing": (without(Use.BUILD, "gcc"), "asks for build packages .* gcc"),
    "another interpreter for the byte code": (changed_debs(other_python), "different packages libc6"),
    "wheel of another hash": (changed_wheel("web3-", sha256="a" * 64), "web3-.* is not the release that requirements/"),
    "wheel of another project": (
        changed_wheel("web3-", file_name="webx-1.0-py3-none-any.whl"),
        "webx-1.0-py3-none-any.whl is not the release",
    ),
    "wheel that the recipe leaves out": (
        changed_wheel("web3-", file_name="rich-1.0-py3-none-any.whl"),
        "which the recipe leaves out",
    ),
    "build tool missing": (changed_wheel("cython-", use=Use.RUNTIME), "asks for build wheels .* cython"),
}


@pytest.mark.parametrize(("lock", "reason"), OUT_OF_STEP.values(), ids=OUT_OF_STEP)
def test_a_lock_of_another_recipe_is_refused_with_the_command_that_locks_anew(lock, reason):
    with pytest.raises(LockError, match=reason) as raised:
        check_recipe(RECIPE, lock, *REQUIREMENTS)
    assert "nova-kms image lock" in str(raised.value)


def test_a_requirement_that_moved_on_needs_a_new_lock():
    moved = REQUIREMENTS[0].replace("\nweb3==", "\nweb3==99").replace("--hash=sha256:", "--hash=sha256:0")
    with pytest.raises(LockError, match=r"is not the release that requirements/runtime\.lock pins"):
        check_recipe(RECIPE, COMMITTED, moved, REQUIREMENTS[1])


def test_an_image_that_is_too_large_is_refused_with_both_sizes():
    check_size(80_000_000, 80_000_000)
    with pytest.raises(StepError, match=r"80000001 bytes \(80\.0 MB\), at most 80000000 .* prune more in the recipe"):
        check_size(80_000_001, 80_000_000)


def test_byte_code_is_made_with_the_fixed_seed_of_hashes():
    code = "import sys; print(sys.flags.hash_randomization, sys.flags.safe_path, sys.flags.no_user_site)"
    done = subprocess.run(
        [sys.executable, *COMPILER_OPTIONS, "-c", code], env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True
    )
    assert done.stdout == "0 True 1\n"


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


def test_a_build_root_is_sealed_by_its_paths_modes_targets_and_contents(tmp_path):
    def root(
        name: str, *, data: bytes = b"tool", mode: int = 0o755, target: str = "tool", backwards: bool = False
    ) -> str:
        made = tmp_path / name
        (made / "usr/bin").mkdir(parents=True)
        steps = [
            lambda: (made / "usr/bin/tool").write_bytes(data),
            lambda: (made / "usr/bin/alias").symlink_to(target),
            (made / "empty").mkdir,
        ]
        for step in reversed(steps) if backwards else steps:
            step()
        (made / "usr/bin/tool").chmod(mode)
        return tree_seal(made)

    seals = [
        root("a"), root("b", data=b"TOOL"), root("c", mode=0o644), root("d", target="other"),
    ]  # fmt: skip
    assert len(set(seals)) == 4
    assert root("e", backwards=True) == seals[0]
    (tmp_path / "e/more").write_bytes(b"")
    assert tree_seal(tmp_path / "e") != seals[0]


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
