"""Whether the lock still is what the recipe and the requirement locks ask for: a changed recipe needs a new lock.

Offline, so that a build can refuse: otherwise a package that was added, or a wheel that was updated, would silently not
be in the image.
"""

import re
from collections.abc import Iterable
from typing import Final

from enclave_image.errors import LockError
from enclave_image.lock import Lock, LockedWheel, Use
from enclave_image.recipe import Recipe
from enclave_image.wheel import normal_name, split_wheel_name

_ANEW: Final = "lock anew with `nova-kms image lock`"
_REQUIREMENT: Final = re.compile(r"(?m)^([A-Za-z0-9._-]+)==(?:[^\n]*\\\n)*[^\n]*\n")
# The interpreter and its libraries: byte code is made by the very one that runs it.
_PYTHON_PACKAGES: Final = ("python3.13-minimal", "libpython3.13-minimal", "libpython3.13-stdlib", "libc6")


def requirement_blocks(text: str) -> dict[str, str]:
    """Pinned requirements of a requirement lock by name, each with its hashes and markers as written.

    Errors: `LockError` for a requirement without hash.
    """
    blocks = {normal_name(match[1]): match[0] for match in _REQUIREMENT.finditer(text)}
    for name, block in blocks.items():
        if "--hash=sha256:" not in block:
            raise LockError(f"{name} has no hash in the requirement lock")
    return blocks


def _same_names(what: str, wanted: Iterable[str], locked: Iterable[str]) -> None:
    asked, held = set(wanted), set(locked)
    if missing := sorted(asked - held):
        raise LockError(f"the recipe asks for {what} that the lock does not have: {', '.join(missing)}: {_ANEW}")
    if unasked := sorted(held - asked):
        raise LockError(f"the lock has {what} that the recipe does not ask for: {', '.join(unasked)}: {_ANEW}")


def _check_wheels(wheels: Iterable[LockedWheel], blocks: dict[str, str], source: str) -> None:
    for wheel in wheels:
        name, _ = split_wheel_name(wheel.file_name)
        if f"--hash=sha256:{wheel.sha256}" not in blocks.get(name, ""):
            raise LockError(f"{wheel.file_name} is not the release that {source} pins: {_ANEW}")


def check_recipe(recipe: Recipe, lock: Lock, runtime_requirements: str, build_requirements: str) -> None:
    """Check that the lock resolves this recipe and these requirement locks, given as their texts.

    Which wheels of the requirements are for another system is known to the resolver alone; those that are locked must
    be pinned. Errors: `LockError` naming the first input that does not fit, and the command that locks anew.
    """
    _same_names("packages", recipe.runtime_debs, [deb.name for deb in lock.debs_for(Use.RUNTIME)])
    _same_names("kernel sources", [recipe.kernel_deb], [deb.name for deb in lock.debs_for(Use.KERNEL)])
    build = {deb.name: deb for deb in lock.debs_for(Use.BUILD)}
    _same_names("build packages", recipe.build_debs, build.keys() & set(recipe.build_debs))
    build_wheels = lock.wheels_for(Use.BUILD)
    named = [split_wheel_name(wheel.file_name)[0] for wheel in build_wheels]
    _same_names("build wheels", map(normal_name, recipe.build_wheels), named)
    unneeded = set(map(normal_name, recipe.without_wheels))
    runtime = lock.wheels_for(Use.RUNTIME)
    for wheel in runtime:
        if split_wheel_name(wheel.file_name)[0] in unneeded:
            raise LockError(f"the lock has {wheel.file_name}, which the recipe leaves out: {_ANEW}")
    _check_wheels(runtime, requirement_blocks(runtime_requirements), recipe.runtime_requirements)
    _check_wheels(build_wheels, requirement_blocks(build_requirements), recipe.build_requirements)
    of_the_image = {deb.name: deb for deb in lock.debs_for(Use.RUNTIME)}
    for name in _PYTHON_PACKAGES:
        if name not in of_the_image or name not in build or of_the_image[name].sha256 != build[name].sha256:
            raise LockError(f"the lock has different packages {name} for the build and for the image: {_ANEW}")
