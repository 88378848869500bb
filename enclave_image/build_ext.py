"""Compiles the core's extensions for the image's Python, with the project's own build file, inside the build root.

Paths and flags are fixed, the compilers are locked packages, and nothing asks which processor the builder has.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from enclave_image.buildroot import WORK, BuildRoot
from enclave_image.errors import StepError
from enclave_image.wheel import read_wheel

SOABI: Final = "cpython-313-x86_64-linux-gnu"
_PROJECT: Final = "project"  # below the work directory: a fixed path, so that no builder's path reaches a binary
_TOOLS: Final = "tools"


def compile_extensions(
    build_root: BuildRoot, sources: Mapping[str, bytes], tools: Sequence[tuple[str, bytes]]
) -> dict[str, bytes]:
    """The compiled extensions by path relative to the checkout, such as `kmscore/_pop.<soabi>.so`.

    `sources` holds the core and its build file, `tools` the wheels of the build by file name. Errors: `StepError`
    with the compiler's words, or when a source `_x.pyx` gave no extension.
    """
    for path, contents in sources.items():
        placed = build_root.work / _PROJECT / path
        placed.parent.mkdir(parents=True, exist_ok=True)
        placed.write_bytes(contents)
    for file_name, data in tools:
        for path, contents in read_wheel(file_name, data).files:
            placed = build_root.work / _TOOLS / path
            placed.parent.mkdir(parents=True, exist_ok=True)
            placed.write_bytes(contents)
    build_root.run(
        ["/usr/bin/env", "-C", f"{WORK}/{_PROJECT}", "python3.13", "setup.py", "--quiet", "build_ext", "--inplace"],
        {"PYTHONPATH": f"{WORK}/{_TOOLS}"},
    )
    built = {}
    for path in sorted(sources):
        if path.endswith(".pyx"):
            extension = f"{path.removesuffix('.pyx')}.{SOABI}.so"
            compiled = build_root.work / _PROJECT / extension
            if not compiled.is_file():
                raise StepError(f"{path} gave no extension {extension}: setup.py must list it")
            built[extension] = compiled.read_bytes()
    return built
