"""The machine's fingerprint, and which machines are of one kind."""

import importlib.metadata
import os
import platform
import re
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.backends.openssl import backend

UNKNOWN: Final = "unknown"


@dataclass(frozen=True, slots=True)
class Machine:
    """What the figures depend on. `load_average` is that of the last minute when the run began."""

    cpu: str
    cores: int
    kernel: str
    python: str
    openssl: str
    libcrypto: str
    libsecp256k1: str
    cython: str
    revision: str
    load_average: float

    @property
    def kind(self) -> str:
        """A short name shared by machines whose figures can be compared: CPU model, cores, Python's minor version."""
        model = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*", " ", self.cpu.lower())
        python = ".".join(self.python.split(".")[:2])
        return re.sub("[^a-z0-9.]+", "-", f"{model} {self.cores} cores python {python}").strip("-")


def read_machine() -> Machine:
    """This machine, now. What cannot be found out is `unknown`."""
    return Machine(
        cpu=_cpu_model(Path("/proc/cpuinfo")),
        cores=len(os.sched_getaffinity(0)),
        kernel=platform.release(),
        python=platform.python_version(),
        openssl=f"{ssl.OPENSSL_VERSION} (hashlib), {backend.openssl_version_text()} (cryptography)",
        libcrypto=_output("pkg-config", "--modversion", "libcrypto"),
        libsecp256k1=_output("pkg-config", "--modversion", "libsecp256k1"),
        cython=importlib.metadata.version("Cython"),
        revision=_revision(),
        load_average=os.getloadavg()[0],
    )


def _cpu_model(cpuinfo: Path) -> str:
    for line in cpuinfo.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine() or UNKNOWN


def _revision() -> str:
    revision = _output("git", "rev-parse", "--short=12", "HEAD")
    changed = _output("git", "status", "--porcelain", "--untracked-files=no")
    return revision if changed in ("", UNKNOWN) else f"{revision} with changes"


def _output(*command: str) -> str:
    try:
        finished = subprocess.run(command, check=True, capture_output=True, text=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return UNKNOWN
    return finished.stdout.strip()
