"""The real images for tests that boot them: built by `make image` and `make devnet-image`, or when they are missing."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.cluster import NOVA_COMMAND
from tests.support.local_chain import ROOT

BUILD_TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """One image and what was published beside it."""

    directory: Path

    @property
    def eif(self) -> Path:
        return self.directory / "nova-kms.eif"

    @property
    def measurements(self) -> Path:
        return self.directory / "measurements.json"


def built_image(name: str, config: str) -> BuiltImage:
    """`dist/<name>` with the image of the sources as they are; the builder's store makes a second build short."""
    found = BuiltImage(Path(os.environ.get("NOVA_KMS_IMAGES", ROOT / "dist")) / name)
    if not found.eif.exists():
        command = [NOVA_COMMAND[0], "image", "build", "--unlocked-sources", "--config", f"enclave_image/{config}"]
        subprocess.run([*command, "--out", str(found.directory)], cwd=ROOT, check=True, timeout=BUILD_TIMEOUT_S)
    return found
