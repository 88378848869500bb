"""Resolves the recipe to a lock: newest versions of Debian's verified indices, wheels of the requirement locks.

The only step, besides fetching, that talks to a network. What it finds is shown as a change of the lock and reviewed
there.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from enclave_image.agree import requirement_blocks
from enclave_image.apt import AptRoot
from enclave_image.errors import LockError
from enclave_image.fetch import Cache, download_wheels
from enclave_image.lock import (
    SOURCE_SUFFIXES,
    Lock,
    LockedDeb,
    LockedSuite,
    LockedWheel,
    Use,
    read_sources,
    tree_digest,
)
from enclave_image.recipe import Recipe
from enclave_image.wheel import normal_name


def _resolve_wheels(use: Use, blocks: dict[str, str], cache: Cache, directory: Path) -> list[LockedWheel]:
    directory.mkdir()
    download_wheels("".join(blocks[name] for name in sorted(blocks)), directory)
    wheels = []
    for path in sorted(directory.glob("*.whl")):
        data = path.read_bytes()
        wheels.append(LockedWheel(use, path.name, len(data), cache.put(data)))
    return wheels


def _resolve_debs(recipe: Recipe, apt: AptRoot) -> list[LockedDeb]:
    wanted = {
        Use.RUNTIME: apt.candidates(recipe.runtime_debs),
        Use.BUILD: apt.closure(recipe.build_debs),
        Use.KERNEL: apt.candidates([recipe.kernel_deb]),
    }
    return [
        LockedDeb(use, found.name, found.version, found.architecture, found.size_bytes, found.sha256)
        for use, packages in wanted.items()
        for found in apt.describe(packages)
    ]


def lock_sources(root: Path) -> dict[str, str]:
    """Digests of the project's own source trees as they are now."""
    return {tree: tree_digest(read_sources(root, tree)) for tree in SOURCE_SUFFIXES}


def resolve_lock(recipe: Recipe, root: Path, cache: Cache, say: Callable[[str], None]) -> Lock:
    """A new lock for the recipe; `root` is the checkout with the requirement locks and the sources.

    Errors: `LockError` for names that resolve to nothing, `StepError` when a client fails or a signature is bad.
    """
    with tempfile.TemporaryDirectory(prefix="nova-kms-lock-") as temporary:
        directory = Path(temporary)
        apt = AptRoot(directory / "apt", recipe.suites, recipe.architecture)
        say("reading Debian's signed indices with apt")
        apt.update()
        debs = _resolve_debs(recipe, apt)
        suites = tuple(LockedSuite(*found) for found in apt.suites())
        say("resolving wheels with pip")
        runtime = requirement_blocks((root / recipe.runtime_requirements).read_text(encoding="utf-8"))
        unneeded = {normal_name(name) for name in recipe.without_wheels}
        wheels = _resolve_wheels(
            Use.RUNTIME,
            {name: block for name, block in runtime.items() if name not in unneeded},
            cache,
            directory / "runtime",
        )
        build = requirement_blocks((root / recipe.build_requirements).read_text(encoding="utf-8"))
        missing = [name for name in recipe.build_wheels if name not in build]
        if missing:
            raise LockError(f"{recipe.build_requirements} does not pin {', '.join(missing)}")
        wheels += _resolve_wheels(
            Use.BUILD, {name: build[name] for name in recipe.build_wheels}, cache, directory / "build"
        )
    return Lock(tuple(sorted(suites)), tuple(sorted(debs)), tuple(sorted(wheels)), lock_sources(root))
