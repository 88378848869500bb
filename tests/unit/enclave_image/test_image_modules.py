"""What of the project the recipe takes into the image: enough to run, and nothing that could fake an enclave."""

import subprocess
import sys
from pathlib import Path

from enclave_image.recipe import load_recipe
from enclave_image.rootfs import Selection

ROOT = Path(__file__).resolve().parents[3]

# Imports every module that is taken, in a process in which those that are not cannot be found.
IMPORT_ALL = """
import importlib, sys

taken, left_out = (names.split(",") for names in sys.argv[1:])

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in left_out:
            raise ModuleNotFoundError(f"No module named {name!r}: the image does not contain it", name=name)

sys.meta_path.insert(0, Missing())
for name in taken:
    importlib.import_module(name)
"""


def modules() -> tuple[list[str], list[str]]:
    """The project's modules that the image has, and those that it has not."""
    recipe = load_recipe()
    selection = Selection(recipe.rootfs.prune, recipe.rootfs.keep)
    taken, left_out = [], []
    for path in sorted(
        path.relative_to(ROOT) for tree in ("appliance", "kmscore") for path in (ROOT / tree).rglob("*.py")
    ):
        name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        (taken if selection.takes(f"{recipe.rootfs.application_site}/{path}") else left_out).append(name)
    return [name for name in taken if not name.endswith("__main__")], left_out


def test_every_module_in_the_image_imports_without_those_that_are_not() -> None:
    taken, left_out = modules()

    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, ",".join(taken), ",".join(left_out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_image_has_the_node_and_nothing_that_signs_under_a_throw_away_root() -> None:
    taken, left_out = modules()

    assert {"appliance.main", "appliance.cli", "appliance.tee.nsm.provider"} <= set(taken)
    software = {"appliance.tee.software", *(f"appliance.tee.software.{name}" for name in ("nsm", "pki", "provider"))}
    assert software <= set(left_out)
    assert not any("software" in name or "devnet" in name for name in taken)
