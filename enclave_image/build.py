"""Builds an image from the lock: every step in order, offline, with progress in words (enclave §1).

What comes out depends on the lock, the recipe and the locked sources alone; where, when and by whom it is built does
not matter, and a test varies all of that.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from enclave_image import build_ext, kernel, lint
from enclave_image.agree import check_recipe
from enclave_image.buildroot import BuildRoot, prepare_root, root_key
from enclave_image.cpio import encode_cpio
from enclave_image.eif import Eif, Section, SectionType, encode_eif
from enclave_image.errors import MalformedError, StepError
from enclave_image.fetch import Cache
from enclave_image.lock import SOURCE_SUFFIXES, Lock, Use, check_trees, encode_lock, read_sources, tree_digest
from enclave_image.measure import Measurements, measure_eif
from enclave_image.recipe import Recipe
from enclave_image.rootfs import assemble_application, assemble_base, compile_sources, strip_libraries
from enclave_image.sbom import encode_sbom

EIF_FILE: Final = "nova-kms.eif"
MEASUREMENTS_FILE: Final = "measurements.json"


@dataclass(frozen=True, slots=True)
class BuildPlace:
    """Where a build reads and writes: the checkout, the inputs, a directory for roots and kernels, scratch space."""

    checkout: Path
    cache: Cache
    store: Path
    scratch: Path
    jobs: int
    reuse_kernel: bool = True


@dataclass(frozen=True, slots=True)
class Image:
    """A built image and everything published beside it, as file contents by name."""

    eif: bytes = field(repr=False)
    measurements: Measurements
    files: Mapping[str, bytes] = field(repr=False)

    def write(self, directory: Path) -> None:
        """Write the image and its companions below `directory`, each file whole or not at all."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, contents in {EIF_FILE: self.eif, **self.files}.items():
            partial = directory / f".{name}.{os.getpid()}"
            partial.write_bytes(contents)
            partial.replace(directory / name)


def encode_metadata(recipe: Recipe, version: str, kernel_version: str) -> bytes:
    """The metadata section: fixed values and order, so that it is the same for the same inputs."""
    built = datetime.fromtimestamp(recipe.epoch_s, UTC)
    metadata = {
        "ImageName": recipe.name,
        "ImageVersion": version,
        "BuildMetadata": {
            "BuildTime": built.isoformat(),
            "BuildTool": "nova-kms image build",
            "BuildToolVersion": version,
            "OperatingSystem": recipe.operating_system,
            "KernelVersion": kernel_version.split(" ", 1)[0],
        },
        "DockerInfo": None,
        "CustomMetadata": None,
    }
    return json.dumps(metadata, separators=(",", ":"), ensure_ascii=True).encode()


def project_version(sources: Mapping[str, bytes]) -> str:
    """The version of the project, from the locked sources of the application.

    Errors: `MalformedError` when its package does not state one.
    """
    match = re.search(rb'(?m)^__version__ = "([0-9A-Za-z.+-]+)"$', sources.get("appliance/__init__.py", b""))
    if match is None:
        raise MalformedError("appliance/__init__.py does not state a __version__")
    return match[1].decode()


def check_size(size_bytes: int, limit_bytes: int) -> None:
    """Check that an EIF of this size is allowed.

    Errors: `StepError` with both sizes and what to do.
    """
    if size_bytes > limit_bytes:
        raise StepError(
            f"the image has {size_bytes} bytes ({size_bytes / 1e6:.1f} MB), at most {limit_bytes} are allowed: prune "
            "more in the recipe (the manifests of the last build list every file with its size)"
        )


def _leaks(place: BuildPlace) -> list[str]:
    """Paths of the build machine that must not occur in any file of the image.

    Not its host name and not the home directory: those of many machines are words that the inputs have anyway
    (`debian`, `localhost`), and the build root knows neither.
    """
    return [str(path) for path in (place.checkout, place.store, place.scratch) if len(path.parts) > 2]


def _kernel(
    recipe: Recipe, lock: Lock, place: BuildPlace, root: Path, fragment: bytes, say: Callable[[str], None]
) -> kernel.Kernel:
    (source,) = lock.debs_for(Use.KERNEL)
    key = kernel.kernel_key(source.sha256, fragment, root_key(lock.debs_for(Use.BUILD)), recipe.epoch_s)
    if place.reuse_kernel and (held := kernel.load_cached(place.store, key)) is not None:
        say(f"kernel {held.version.split(' ', 1)[0]} from the cache")
        return held
    with tempfile.TemporaryDirectory(prefix="kernel-", dir=place.scratch) as work:
        built = kernel.build_kernel(
            BuildRoot(root, Path(work), recipe.epoch_s),
            place.cache.read(source.sha256, source.name),
            fragment,
            key,
            epoch_s=recipe.epoch_s,
            jobs=place.jobs,
            say=say,
        )
    kernel.store_cached(place.store, built)
    return built


def _application_sources(sources: Mapping[str, Mapping[str, bytes]]) -> dict[str, bytes]:
    """What goes into the application's ramdisk: the packages, not the files of the build."""
    trees = ("kmscore", "appliance")
    return {path: data for tree in trees for path, data in sources[tree].items() if path.startswith(f"{tree}/")}


def _init_sources(sources: Mapping[str, bytes]) -> dict[str, bytes]:
    prefix = "enclave_image/init/"
    return {path.removeprefix(prefix): data for path, data in sources.items() if path.startswith(prefix)}


def build_image(
    recipe: Recipe,
    lock: Lock,
    place: BuildPlace,
    *,
    config: bytes,
    unlocked_sources: bool,
    revision: str,
    say: Callable[[str], None],
) -> Image:
    """Build the image of `recipe` and `lock`; `config` is the measured configuration of the application.

    `unlocked_sources` builds the sources that are there although the lock has others, and says so in the
    measurements. Errors: `LockError` for anything unlocked, `MalformedError` for a broken input, `StepError` for a
    failed step or an image that is too large, `LintError` for a root file system that breaks a rule.
    """
    sources = {tree: read_sources(place.checkout, tree) for tree in SOURCE_SUFFIXES}
    if not unlocked_sources:
        check_trees(lock, sources)
    requirements = (place.checkout / name for name in (recipe.runtime_requirements, recipe.build_requirements))
    check_recipe(recipe, lock, *(path.read_text(encoding="utf-8") for path in requirements))
    place.scratch.mkdir(parents=True, exist_ok=True)
    place.store.mkdir(parents=True, exist_ok=True)

    say("build root from the locked packages")
    root = prepare_root(lock.debs_for(Use.BUILD), place.cache, place.store)
    fragment = sources["enclave_image"][f"enclave_image/{recipe.kernel_config}"]
    built_kernel = _kernel(recipe, lock, place, root, fragment, say)
    with tempfile.TemporaryDirectory(prefix="image-", dir=place.scratch) as work:
        build_root = BuildRoot(root, Path(work), recipe.epoch_s)
        say("compiling the core's extensions")
        tools = [(w.file_name, place.cache.read(w.sha256, w.file_name)) for w in lock.wheels_for(Use.BUILD)]
        extensions = build_ext.compile_extensions(build_root, sources["kmscore"], tools)
        say("unpacking packages and wheels")
        base = assemble_base(
            recipe.rootfs,
            [place.cache.read(deb.sha256, f"{deb.name} {deb.version}") for deb in lock.debs_for(Use.RUNTIME)],
            {w.file_name: place.cache.read(w.sha256, w.file_name) for w in lock.wheels_for(Use.RUNTIME)},
            _init_sources(sources["enclave_image"]),
        )
        application = assemble_application(recipe.rootfs, _application_sources(sources), extensions, config)
        say("stripping libraries and making byte code")
        strip_libraries(base, build_root, [recipe.rootfs.site])
        strip_libraries(application, build_root, [recipe.rootfs.application_site])
        for tree in (base, application):
            compile_sources(tree, build_root)
    say("checking the rules of the image")
    lint.check(base, application, _leaks(place))

    say("writing archives and image")
    version = project_version(sources["appliance"])
    manifests = base.manifest(), application.manifest()
    ramdisks = [
        encode_cpio(manifest, tree.contents(), recipe.epoch_s)
        for manifest, tree in zip(manifests, (base, application), strict=True)
    ]
    cmdline = " ".join(recipe.cmdline).encode("ascii")
    eif = Eif(
        (
            Section(SectionType.KERNEL, built_kernel.image),
            Section(SectionType.CMDLINE, cmdline),
            Section(SectionType.METADATA, encode_metadata(recipe, version, built_kernel.version)),
            *(Section(SectionType.RAMDISK, ramdisk) for ramdisk in ramdisks),
        ),
        default_memory_bytes=recipe.default_memory_bytes,
        default_cpus=recipe.default_cpus,
    )
    encoded = encode_eif(eif)
    check_size(len(encoded), recipe.max_eif_bytes)
    measured = measure_eif(eif)
    eif_sha256 = hashlib.sha256(encoded).hexdigest()
    lock_text = encode_lock(lock)
    summary: dict[str, object] = {
        "PCR0": measured.pcr0.hex(),
        "PCR1": measured.pcr1.hex(),
        "PCR2": measured.pcr2.hex(),
        "code_measurement": "0x" + measured.code_measurement.hex(),
        "eif_sha256": eif_sha256,
        "kernel_sha256": hashlib.sha256(built_kernel.image).hexdigest(),
        "cmdline_sha256": hashlib.sha256(cmdline).hexdigest(),
        "lock_sha256": hashlib.sha256(lock_text.encode()).hexdigest(),
        "config_sha256": hashlib.sha256(config).hexdigest(),
        "sources": {tree: tree_digest(sources[tree]) for tree in sources},
        "sources_locked": not unlocked_sources or all(tree_digest(sources[t]) == lock.trees.get(t) for t in sources),
        "source_revision": revision,
    }
    files = {
        MEASUREMENTS_FILE: (json.dumps(summary, indent=2) + "\n").encode(),
        "base.manifest": manifests[0].text().encode(),
        "application.manifest": manifests[1].text().encode(),
        "kernel.config": built_kernel.config,
        "sbom.json": encode_sbom(lock, recipe.name, version, eif_sha256, built_kernel.version).encode(),
    }
    return Image(encoded, measured, files)


def source_revision(checkout: Path) -> str:
    """The git revision that is checked out, read from the files of git; empty outside a git checkout.

    Read and not asked: the build needs no git, and takes no configuration from it.
    """
    git = checkout / ".git"
    try:
        if git.is_file():  # a further work tree: its own directory has HEAD and says where the references are
            git = checkout / git.read_text(encoding="utf-8").strip().removeprefix("gitdir: ")
        common = git / "commondir"
        shared = git / common.read_text(encoding="utf-8").strip() if common.is_file() else git
        head = (git / "HEAD").read_text(encoding="ascii").strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        loose = shared / name
        if loose.is_file():
            return loose.read_text(encoding="ascii").strip()
        packed = (shared / "packed-refs").read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""
    match = re.search(rf"^([0-9a-f]{{40,64}}) {re.escape(name)}$", packed, re.MULTILINE)
    return match[1] if match else ""
