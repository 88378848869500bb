"""The real image: built twice under different circumstances to the same bytes, within its size, with all it imports.

Needs the fetched inputs (`nova-kms image fetch`); takes minutes, so it runs only with `-m image`.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from enclave_image.compare import compare_eif
from enclave_image.cpio import read_cpio
from enclave_image.describe import describe_eif
from enclave_image.eif import parse_eif
from enclave_image.manifest import parse_manifest

CHECKOUT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("NOVA_KMS_IMAGE_CACHE", Path.home() / ".cache/nova-kms/image"))
TREES = ("enclave_image", "kmscore", "appliance")
NOBODY = 65534

pytestmark = [pytest.mark.image, pytest.mark.timeout(3600)]

# Runs under the interpreter and the user that the test chooses; needs the standard library alone.
BUILD = """
import os, sys
from pathlib import Path
from enclave_image.build import BuildPlace, build_image
from enclave_image.fetch import Cache
from enclave_image.lock import load_lock
from enclave_image.recipe import load_recipe

checkout, lock, cache, store, scratch, out, jobs, reuse = sys.argv[1:]
os.umask(int(os.environ["BUILD_UMASK"], 8))
place = BuildPlace(Path(checkout), Cache(Path(cache)), Path(store), Path(scratch), int(jobs), reuse == "reuse")
image = build_image(
    load_recipe(), load_lock(Path(lock)), place,
    config=(Path(checkout) / "enclave_image/appliance.toml").read_bytes(),
    unlocked_sources=True, revision="", say=print,
)
image.write(Path(out))
"""


def copy_checkout(source: Path, target: Path, *, backwards: bool) -> None:
    """Copy what a build reads, in the other order of names when `backwards`: file systems list by creation."""
    paths = [
        path
        for tree in TREES
        for path in sorted((source / tree).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    ]
    for path in reversed([*paths, source / "setup.py"]) if backwards else [*paths, source / "setup.py"]:
        placed = target / path.relative_to(source)
        placed.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, placed)
        os.utime(placed, (0, 86400 * len(path.name)) if backwards else None)


def build(directory: Path, sources: Path, *, other: bool, cache: Path, reuse_kernel: bool) -> Path:
    """Build below `directory` and return the output directory; `other` changes everything that must not matter."""
    store = cache / "built"
    checkout, out = directory / "checkout", directory / "out"
    copy_checkout(sources, checkout, backwards=other)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(checkout), "HOME": str(Path.home())}
    environment |= {"BUILD_UMASK": "022", "LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONDONTWRITEBYTECODE": "1"}
    interpreter = [sys.executable]
    if other:
        environment |= {
            "BUILD_UMASK": "077",
            "LC_ALL": "de_DE.ISO-8859-1",
            "TZ": "Pacific/Kiritimati",
            "HOME": "/nonexistent",
        }
        environment |= {
            "USER": "somebody",
            "CFLAGS": "-march=native -O0",
            "PYTHONHASHSEED": "12345",
            "SOURCE_DATE_EPOCH": "1",
        }
        if os.geteuid() == 0:  # another user, another host name and another interpreter take root and a system's Python
            for path in (directory, cache):
                subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(path)], check=True)
            script = 'hostname other-builder-host; exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"'
            interpreter = [
                "unshare",
                "--uts",
                "sh",
                "-c",
                script,
                "sh",
                shutil.which("python3", path="/usr/bin") or sys.executable,
            ]
    jobs, reuse = ("1" if other else "2"), ("reuse" if reuse_kernel else "compile")
    lock = Path(os.environ.get("NOVA_KMS_IMAGE_LOCK", CHECKOUT / "enclave_image/image.lock"))
    shutil.copy(lock, directory / "lock")
    arguments = [checkout, directory / "lock", cache, store, directory / "scratch", out, jobs, reuse]
    command = [*interpreter, "-c", BUILD, *map(str, arguments)]
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working tree as it is when the tests start: both builds read the same, whoever edits meanwhile."""
    made = tmp_path_factory.mktemp("sources")
    copy_checkout(CHECKOUT, made, backwards=False)
    return made


@contextmanager
def reachable_directory() -> Iterator[Path]:
    """A temporary directory that another user can reach; pytest's own are closed again by every run that starts."""
    directory = Path(tempfile.mkdtemp(prefix="nova-kms-image-test-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def cache_copy() -> Iterator[Path]:
    """A copy of the cache with its inputs and kernels, but without build roots: those are unpacked anew."""
    with reachable_directory() as made:
        shutil.copytree(CACHE / "sha256", made / "sha256")
        for kernel in (CACHE / "built").glob("kernel-*"):
            shutil.copytree(kernel, made / "built" / kernel.name)
        yield made


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, sources: Path) -> Path:
    """The image of the working tree, with the kernel from the cache where it is there."""
    return build(tmp_path_factory.mktemp("first"), sources, other=False, cache=CACHE, reuse_kernel=True)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that another user can reach."""
    with reachable_directory() as made:
        yield made


def test_a_build_under_other_circumstances_gives_the_same_bytes(built, sources, cache_copy, open_directory):
    again = build(open_directory, sources, other=True, cache=cache_copy, reuse_kernel=True)
    first, second = (built / "nova-kms.eif").read_bytes(), (again / "nova-kms.eif").read_bytes()
    assert [str(difference) for difference in compare_eif(first, second)] == []
    for name in ("base.manifest", "application.manifest", "kernel.config", "sbom.json", "measurements.json"):
        assert (built / name).read_bytes() == (again / name).read_bytes(), name


def test_the_image_keeps_its_size_and_is_well_formed(built):
    data = (built / "nova-kms.eif").read_bytes()
    description = describe_eif(data)
    assert description.problems == ()
    assert len(data) <= 80_000_000
    measurements = json.loads((built / "measurements.json").read_text())
    assert measurements["PCR0"] == description.measurements.pcr0.hex()
    assert measurements["eif_sha256"] == hashlib.sha256(data).hexdigest()
    assert measurements["code_measurement"] == "0x" + description.measurements.code_measurement.hex()


def test_the_manifests_say_what_is_in_the_ramdisks(built):
    ramdisks = parse_eif((built / "nova-kms.eif").read_bytes()).ramdisks()
    for name, ramdisk in zip(("base", "application"), ramdisks, strict=True):
        entries = parse_manifest((built / f"{name}.manifest").read_text()).entries
        records = read_cpio(ramdisk)
        assert [entry.path for entry in entries] == [record.path for record in records]
        for entry, record in zip(entries, records, strict=True):
            assert (entry.mode, entry.uid, entry.gid) == (record.mode & 0o7777, record.uid, record.gid)
            if entry.kind == "file":
                assert hashlib.sha256(record.data).hexdigest() == entry.sha256


def test_every_module_of_the_project_imports_in_the_image(built, tmp_path):
    modules = []
    for ramdisk in parse_eif((built / "nova-kms.eif").read_bytes()).ramdisks():
        for record in read_cpio(ramdisk):
            path = tmp_path / record.path
            path.parent.mkdir(parents=True, exist_ok=True)
            match record.mode >> 12:
                case 0o04:
                    path.mkdir(exist_ok=True)
                case 0o12:
                    path.symlink_to(record.data.decode())
                case 0o10:
                    path.write_bytes(record.data)
                    path.chmod(record.mode & 0o777)
            _, _, module = record.path.partition("/local/lib/python3.13/dist-packages/")
            if module.endswith(".pyc") and not module.endswith("__main__.pyc"):
                modules.append(module.removesuffix(".pyc").removesuffix("/__init__").replace("/", "."))
    assert {"kmscore.pop", "appliance.main", "appliance.cli"} <= set(modules)
    # No code that could sign a document under a root of its own making.
    assert [module for module in modules if "software" in module] == []
    statements = "\n".join(f"import {module}" for module in [*modules, "enclave_init.main", "web3", "uvicorn"])
    enter = ["unshare", "--user", "--map-root-user", "--mount", "chroot", str(tmp_path)]
    done = subprocess.run(
        [*enter, "/usr/bin/python3.13", "-IB", "-c", statements],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/sbin:/usr/bin"},
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_kernel_compiled_elsewhere_with_other_jobs_is_the_same(built, sources, cache_copy, open_directory):
    again = build(open_directory, sources, other=True, cache=cache_copy, reuse_kernel=False)
    first, second = (built / "nova-kms.eif").read_bytes(), (again / "nova-kms.eif").read_bytes()
    assert [str(difference) for difference in compare_eif(first, second)] == []
