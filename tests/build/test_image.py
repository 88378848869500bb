"""The real image: built twice under different circumstances to the same bytes, within its size, with all it imports.

Needs the fetched inputs (`nova-kms image fetch`); takes minutes, so it runs only with `-m image`.
"""

import dataclasses
import gzip
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from enclave_image.bzimage import read_boot_image
from enclave_image.compare import compare_eif, compare_registers
from enclave_image.cpio import encode_cpio, read_cpio
from enclave_image.describe import describe_eif
from enclave_image.eif import Eif, Section, SectionType, encode_eif, parse_eif
from enclave_image.manifest import ManifestEntry, parse_manifest
from enclave_image.recipe import load_recipe

CHECKOUT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("NOVA_KMS_IMAGE_CACHE", Path.home() / ".cache/nova-kms/image"))
STORE = Path(os.environ.get("NOVA_KMS_IMAGE_STORE", Path.home() / ".cache/nova-kms/image/built"))
LOCK = Path(os.environ.get("NOVA_KMS_IMAGE_LOCK", CHECKOUT / "enclave_image/image.lock"))
TREES = ("enclave_image", "kmscore", "appliance")
FILES = ("setup.py", "requirements/runtime.lock", "requirements/dev.lock")
NOBODY = 65534
MEMORY_DISK = Path("/dev/shm")
MEMORY_DISK_BYTES = 6 << 30  # what a kernel and a build root take

pytestmark = [pytest.mark.image, pytest.mark.timeout(3600)]

# Runs under the interpreter and the user that the test chooses; needs the standard library alone. What it finds around
# it goes into a file, so that a test can check that everything was different.
BUILD = """
import json, locale, os, platform, sys, time
from pathlib import Path

checkout, lock, cache, store, scratch, out, jobs, reuse, facts = sys.argv[1:]
os.umask(int(os.environ["BUILD_UMASK"], 8))
if "BUILD_BACKWARDS" in os.environ:
    scandir, listdir = os.scandir, os.listdir

    class Backwards:
        def __init__(self, path="."):
            with scandir(path) as found:
                self.entries = iter(list(found)[::-1])
        def __iter__(self):
            return self
        def __next__(self):
            return next(self.entries)
        def __enter__(self):
            return self
        def __exit__(self, *_):
            self.close()
        def close(self):
            self.entries = iter(())

    os.scandir = Backwards
    os.listdir = lambda path=".": listdir(path)[::-1]

from enclave_image.build import BuildPlace, build_image
from enclave_image.fetch import Cache
from enclave_image.lock import load_lock
from enclave_image.recipe import load_recipe

Path(facts).write_text(json.dumps({
    "directory": checkout,
    "scratch": scratch,
    "umask": os.environ["BUILD_UMASK"],
    "locale": os.environ.get("LC_ALL"),
    "encoding": locale.getpreferredencoding(False),
    "time zone": time.tzname,
    "cores": len(os.sched_getaffinity(0)),
    "jobs": jobs,
    "order of names": [path.name for path in (Path(checkout) / "appliance").rglob("*.py")],
    "hash of a string": hash("nova-kms"),
    "environment": sorted(os.environ),
    "user": os.geteuid(),
    "host name": platform.node(),
    "interpreter": sys.executable,
}))
place = BuildPlace(Path(checkout), Cache(Path(cache)), Path(store), Path(scratch), int(jobs), reuse == "reuse")
image = build_image(
    load_recipe(), load_lock(Path(lock)), place,
    config=(Path(checkout) / "enclave_image/appliance.toml").read_bytes(),
    unlocked_sources=True, revision="", say=print,
)
image.write(Path(out))
"""
NEEDS_ROOT = {"user", "host name", "interpreter"}  # only root can become somebody else on another machine


def copy_checkout(source: Path, target: Path, *, backwards: bool) -> None:
    """Copy what a build reads, with other times and in the other order of names when `backwards`."""
    paths = [
        path
        for tree in TREES
        for path in sorted((source / tree).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    ]
    paths += [source / name for name in FILES]
    for path in reversed(paths) if backwards else paths:
        placed = target / path.relative_to(source)
        placed.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, placed)
        os.utime(placed, (0, 86400 * len(path.name)) if backwards else None)


def build(directory: Path, sources: Path, *, other: bool, cache: Path, store: Path, reuse_kernel: bool) -> Path:
    """Build below `directory` and return the output directory; `other` changes everything that must not matter."""
    checkout, out, facts = directory / "checkout", directory / "out", directory / "facts.json"
    copy_checkout(sources, checkout, backwards=other)
    shutil.copy(LOCK, directory / "lock")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(checkout), "HOME": str(Path.home())}
    environment |= {"BUILD_UMASK": "022", "LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONDONTWRITEBYTECODE": "1"}
    interpreter = [sys.executable]
    if other:
        environment |= {
            "BUILD_UMASK": "077",
            "BUILD_BACKWARDS": "1",
            "TZ": "Pacific/Kiritimati",
            "HOME": "/nonexistent",
        }
        # No such locale is installed: that leaves ASCII, which Python would otherwise replace by UTF-8 on its own.
        environment |= {"LC_ALL": "de_DE.ISO-8859-1", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        environment |= {"USER": "somebody", "CFLAGS": "-march=native -O0", "LDFLAGS": "-s", "MAKEFLAGS": "--silent"}
        environment |= {"PYTHONHASHSEED": "12345", "SOURCE_DATE_EPOCH": "1", "KBUILD_BUILD_USER": "somebody"}
        interpreter = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0))), *interpreter]
        if os.geteuid() == 0:
            for path in (directory, cache):
                subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(path)], check=True)
            script = 'hostname other-builder-host; exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"'
            interpreter = ["unshare", "--uts", "sh", "-c", script, "sh", *interpreter[:-1], "/usr/bin/python3"]
    jobs, reuse = ("1" if other else "2"), ("reuse" if reuse_kernel else "compile")
    arguments = [checkout, directory / "lock", cache, store, directory / "scratch", out, jobs, reuse, facts]
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


def other_disk() -> Path | None:
    """A file system in memory with enough room that programs may run from, or None for the usual place."""
    if not MEMORY_DISK.is_dir():
        return None
    found = os.statvfs(MEMORY_DISK)
    usable = not found.f_flag & os.ST_NOEXEC and found.f_bavail * found.f_frsize > MEMORY_DISK_BYTES
    return MEMORY_DISK if usable else None


@contextmanager
def reachable_directory(below: Path | None = None) -> Iterator[Path]:
    """A temporary directory that another user can reach; pytest's own are closed again by every run that starts."""
    directory = Path(tempfile.mkdtemp(prefix="nova-kms-image-test-", dir=below))
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
        for kernel in STORE.glob("kernel-*"):
            shutil.copytree(kernel, made / "built" / kernel.name)
        yield made


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, sources: Path) -> Path:
    """The image of the working tree, with the kernel from the cache where it is there."""
    return build(tmp_path_factory.mktemp("first"), sources, other=False, cache=CACHE, store=STORE, reuse_kernel=True)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that another user can reach, on another file system where there is one."""
    with reachable_directory(other_disk()) as made:
        yield made


def facts(out: Path) -> dict[str, object]:
    """What the build that wrote to `out` found around it."""
    found: dict[str, object] = json.loads((out.parent / "facts.json").read_text())
    return found


def test_a_build_under_other_circumstances_gives_the_same_bytes(built, sources, cache_copy, open_directory):
    store = open_directory / "store"
    shutil.copytree(cache_copy / "built", store)
    again = build(open_directory, sources, other=True, cache=cache_copy, store=store, reuse_kernel=True)
    here, there = facts(built), facts(again)
    assert {name for name in here if here[name] == there[name]} <= (set() if os.geteuid() == 0 else NEEDS_ROOT)
    first, second = (built / "nova-kms.eif").read_bytes(), (again / "nova-kms.eif").read_bytes()
    assert [str(difference) for difference in compare_eif(first, second)] == []
    for name in ("base.manifest", "application.manifest", "kernel.config", "sbom.json", "measurements.json"):
        assert (built / name).read_bytes() == (again / name).read_bytes(), name


def test_the_image_keeps_its_size_and_is_well_formed(built):
    data = (built / "nova-kms.eif").read_bytes()
    description = describe_eif(data)
    assert description.problems == ()
    assert len(data) <= load_recipe().max_eif_bytes == 80_000_000
    print(f"\nsize of the EIF: {len(data)} bytes, {len(data) / 1e6:.1f} MB of at most 80.0 MB")
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
    # Nothing of what the parent, a person or a development cluster runs.
    elsewhere = ("appliance.host", "appliance.client", "appliance.devnet")
    assert [module for module in modules if module.startswith(elsewhere)] == []
    statements = "\n".join(f"import {module}" for module in [*modules, "enclave_init.main", "web3", "uvicorn"])
    enter = ["unshare", "--user", "--map-root-user", "--mount", "chroot", str(tmp_path)]
    done = subprocess.run(
        [*enter, "/usr/bin/python3.13", "-IB", "-c", statements],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/sbin:/usr/bin"},
    )
    assert done.returncode == 0, done.stderr[-2000:]


# --- what compare says of the real image after one change ---


@pytest.fixture(scope="session")
def original(built: Path) -> Eif:
    """The image of the working tree, parsed."""
    return parse_eif((built / "nova-kms.eif").read_bytes())


def with_section(eif: Eif, kind: SectionType, number: int, data: bytes) -> Eif:
    """The image with other data in the section of this type with this number, counted from 0."""
    places = [place for place, section in enumerate(eif.sections) if section.kind is kind]
    sections = list(eif.sections)
    sections[places[number]] = Section(kind, data)
    return dataclasses.replace(eif, sections=tuple(sections))


def with_path(
    built: Path,
    eif: Eif,
    ramdisk: int,
    path: str,
    change: Callable[[ManifestEntry, bytes], tuple[ManifestEntry, bytes]],
) -> Eif:
    """The image, written anew by our writer, with one path changed."""
    manifest = parse_manifest((built / ("base.manifest", "application.manifest")[ramdisk]).read_text())
    contents = {hashlib.sha256(r.data).hexdigest(): r.data for r in read_cpio(eif.ramdisks()[ramdisk])}
    entries = []
    for entry in manifest.entries:
        if entry.path != path:
            entries.append(entry)
            continue
        changed, data = change(entry, contents[entry.sha256])
        digest = hashlib.sha256(data).hexdigest()
        contents[digest] = data
        entries.append(dataclasses.replace(changed, sha256=digest, size_bytes=len(data)))
    archive = encode_cpio(dataclasses.replace(manifest, entries=tuple(entries)), contents, load_recipe().epoch_s)
    return with_section(eif, SectionType.RAMDISK, ramdisk, archive)


def sentences(first: Eif, second: Eif) -> list[str]:
    """Everything that `image compare` prints on standard output for two images."""
    images = encode_eif(first), encode_eif(second)
    return [*map(str, compare_eif(*images)), compare_registers(*images)]


def test_our_writer_gives_the_image_back_when_nothing_is_changed(built, original):
    same = with_path(built, original, 0, "etc/hosts", lambda entry, data: (entry, data))
    assert encode_eif(same) == (built / "nova-kms.eif").read_bytes()


def test_one_changed_file_is_named_and_nothing_else(built, original):
    changed = with_path(built, original, 0, "etc/hosts", lambda entry, data: (entry, data + b"127.0.0.2 more\n"))
    (found, registers) = sentences(original, changed)
    assert found.startswith("ramdisk 1, etc/hosts: contents differ from line 2: '' against '127.0.0.2 more', ")
    assert registers == "registers: PCR0 differs, PCR1 differs, PCR2 is the same"


def test_one_changed_byte_of_the_application_is_named_and_nothing_else(built, original):
    path = "usr/local/lib/python3.13/dist-packages/appliance/main.pyc"
    flip = lambda entry, data: (entry, data[:-1] + bytes([data[-1] ^ 1]))  # noqa: E731
    (found, registers) = sentences(original, with_path(built, original, 1, path, flip))
    assert found.startswith(f"ramdisk 2, {path}: contents differ from offset ")
    assert registers == "registers: PCR0 differs, PCR1 is the same, PCR2 differs"


def test_one_mode_bit_is_named_and_nothing_else(built, original):
    path = "etc/nova-kms/appliance.toml"
    changed = with_path(built, original, 1, path, lambda e, data: (dataclasses.replace(e, mode=e.mode | 0o001), data))
    assert sentences(original, changed) == [
        f"ramdisk 2, {path}: mode 0644 against 0645",
        "registers: PCR0 differs, PCR1 is the same, PCR2 differs",
    ]


def with_option(image: bytes, before: bytes, after: bytes) -> bytes:
    """The boot image with one line of its embedded options replaced; it is not one that boots any more."""
    offset, size = struct.unpack_from("<II", image, 0x248)
    start = (image[0x1F1] + 1) * 512 + offset
    kernel = zlib.decompressobj(wbits=31).decompress(image[start : start + size])
    at = kernel.index(b"IKCFG_ST") + len(b"IKCFG_ST")
    unpacker = zlib.decompressobj(wbits=31)
    options = unpacker.decompress(kernel[at:])
    assert options.count(before + b"\n") == 1
    packed = gzip.compress(options.replace(before + b"\n", after + b"\n"), mtime=0)
    payload = gzip.compress(kernel[:at] + packed + unpacker.unused_data, 1, mtime=0)
    made = bytearray(image[:start] + payload)
    struct.pack_into("<I", made, 0x24C, len(payload))
    return bytes(made)


def test_one_kernel_option_is_named_and_nothing_else(original):
    kernel = original.first(SectionType.KERNEL)
    assert kernel is not None
    image = with_option(kernel, b"CONFIG_NR_CPUS=64", b"CONFIG_NR_CPUS=8")
    assert (read_boot_image(image).options or {})["CONFIG_NSM"] == "y"
    assert sentences(original, with_section(original, SectionType.KERNEL, 0, image)) == [
        "kernel option: CONFIG_NR_CPUS 64 against 8",
        "registers: PCR0 differs, PCR1 differs, PCR2 is the same",
    ]


@pytest.mark.kernel
def test_a_kernel_compiled_elsewhere_with_other_jobs_is_the_same(built, sources, cache_copy, open_directory):
    store = open_directory / "store"
    again = build(open_directory, sources, other=True, cache=cache_copy, store=store, reuse_kernel=False)
    first, second = (built / "nova-kms.eif").read_bytes(), (again / "nova-kms.eif").read_bytes()
    assert [str(difference) for difference in compare_eif(first, second)] == []
