"""Debian's archive through this machine's own apt, in a private root: other suite, same mirror, nothing installed.

The mirror comes from the machine's apt sources and is never written anywhere else. Indices are verified by apt with
Debian's archive keyring alone; the machine's own package lists, preferences and hooks are not used.
"""

import hashlib
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from enclave_image.errors import LockError, StepError

KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_INSTALL_LINE: Final = re.compile(r"Inst (\S+) \((\S+) .*\[(\S+)\]\)?.*")
_DATE_LINE: Final = re.compile(r"^Date: (.+)$", re.MULTILINE)
_TIMEOUT_S: Final = 1800


@dataclass(frozen=True, slots=True)
class ArchivePackage:
    """One package of the archive as its verified index lists it."""

    name: str
    version: str
    architecture: str
    size_bytes: int
    sha256: str


def _run(command: Sequence[str], environment: dict[str, str] | None = None, directory: Path | None = None) -> str:
    try:
        done = subprocess.run(  # noqa: S603 -- constant program names, arguments from the lock
            command,
            env=environment,
            cwd=directory,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=_TIMEOUT_S,
        )
    except FileNotFoundError as error:
        raise StepError(f"{command[0]} is missing: fetching and locking need a Debian machine or container") from error
    except subprocess.TimeoutExpired as error:
        raise StepError(f"{command[0]} did not finish within {_TIMEOUT_S} s") from error
    if done.returncode:
        raise StepError(f"{' '.join(command[:3])} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


def machine_mirrors() -> dict[str, str]:
    """Base addresses of Debian's archives that this machine's apt uses, by the last part of their path.

    The keys are `debian` and, where configured, `debian-security`. Errors: `StepError` when the machine has no Debian
    source.
    """
    found: dict[str, str] = {}
    for line in _run(["apt-get", "indextargets", "--format", "$(REPO_URI)"]).splitlines():
        base = line.strip().rstrip("/")
        found.setdefault(urlsplit(base).path.rsplit("/", 1)[-1], base)
    wanted = ["debian", "debian-security"]
    mirrors = {name: found[name] for name in wanted if name in found}
    if "debian" not in mirrors:
        raise StepError("this machine's apt sources name no Debian archive: lock and fetch on a Debian machine")
    return mirrors


class AptRoot:
    """A private apt root in `directory` with the given suites of one architecture.

    Security suites (`*-security`) are taken from the security archive where the machine has one.
    """

    def __init__(self, directory: Path, suites: Iterable[str], architecture: str) -> None:
        self._directory = directory
        self._suites = tuple(suites)
        self._architecture = architecture
        self._updated = False
        self._environment = {
            "APT_CONFIG": str(directory / "apt.conf"),
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
        }

    def _write_configuration(self) -> None:
        for name in (
            "etc/parts",
            "etc/preferences.d",
            "etc/sources.list.d",
            "state/lists/partial",
            "cache/archives/partial",
        ):
            (self._directory / name).mkdir(parents=True, exist_ok=True)
        (self._directory / "state/status").write_bytes(b"")
        mirrors = machine_mirrors()
        stanzas = []
        for suite in self._suites:
            archive = "debian-security" if suite.endswith("-security") else "debian"
            if archive in mirrors:
                stanzas.append(
                    f"Types: deb\nURIs: {mirrors[archive]}\nSuites: {suite}\nComponents: main\nSigned-By: {KEYRING}\n"
                )
        (self._directory / "etc/sources.list.d/image.sources").write_text("\n".join(stanzas), encoding="ascii")
        machine = _run(["apt-config", "dump"]).splitlines()
        carried = [line for line in machine if line.startswith("Acquire::")]  # proxies, time-outs, clock checks
        own = [
            f'Dir "{self._directory}/";',
            'Dir::State "state/";',
            'Dir::State::status "status";',
            'Dir::Cache "cache/";',
            'Dir::Etc "etc/";',
            'Dir::Etc::parts "parts";',
            'Dir::Etc::sourcelist "/dev/null";',
            'Dir::Etc::sourceparts "sources.list.d";',
            'Dir::Etc::trusted "/dev/null";',
            'Dir::Etc::trustedparts "/dev/null";',
            f'APT::Architecture "{self._architecture}";',
            f'APT::Architectures {{ "{self._architecture}"; }};',
            'APT::Install-Recommends "false";',
            'APT::Sandbox::User "root";',
            'Acquire::Languages "none";',
        ]
        (self._directory / "apt.conf").write_text("\n".join([*carried, *own]) + "\n", encoding="utf-8")

    def update(self) -> None:
        """Load and verify the indices, once.

        Errors: `StepError` when apt refuses a signature or cannot reach its mirror.
        """
        if not self._updated:
            if not KEYRING.is_file():
                raise StepError(f"{KEYRING} is missing: install debian-archive-keyring")
            self._write_configuration()
            _run(["apt-get", "update", "--error-on=any"], self._environment)
            self._updated = True

    def suites(self) -> list[tuple[str, str, str]]:
        """Suite, date and SHA-256 of each verified InRelease file."""
        found = []
        for path in sorted((self._directory / "state/lists").glob("*_InRelease")):
            text = path.read_text(encoding="utf-8", errors="replace")
            suite = path.name.removesuffix("_InRelease").rsplit("_", 1)[-1]
            date = _DATE_LINE.search(text)
            found.append((suite, date[1] if date else "", hashlib.sha256(path.read_bytes()).hexdigest()))
        return found

    def closure(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """Names and versions that installing `names` into an empty system brings, recommendations left out."""
        text = _run(["apt-get", "--simulate", "--no-install-recommends", "install", *names], self._environment)
        found = [match for line in text.splitlines() if (match := _INSTALL_LINE.fullmatch(line))]
        return sorted({(match[1].partition(":")[0], match[2]) for match in found})

    def candidates(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """Names and newest versions of exactly these packages, dependencies left out.

        Errors: `LockError` naming a package that the suites do not have.
        """
        text = _run(["apt-cache", "policy", *names], self._environment)
        versions = re.findall(r"^(\S+):\n(?: .*\n)*?  Candidate: (\S+)$", text, re.MULTILINE)
        found = {name.partition(":")[0]: version for name, version in versions if version != "(none)"}
        for name in names:
            if name not in found:
                raise LockError(f"the suites {', '.join(self._suites)} have no package {name}")
        return sorted((name, found[name]) for name in names)

    def describe(self, packages: Iterable[tuple[str, str]]) -> list[ArchivePackage]:
        """What the verified indices say of these names and versions.

        Errors: `LockError` for a package without a SHA-256 in its index.
        """
        wanted = sorted(packages)
        text = _run(["apt-cache", "show", *(f"{name}={version}" for name, version in wanted)], self._environment)
        found: dict[tuple[str, str], ArchivePackage] = {}
        for paragraph in text.split("\n\n"):
            fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if re.match(r"[A-Z][\w-]*: ", line))
            if {"Package", "Version", "Architecture", "Size", "SHA256"} <= fields.keys():
                key = fields["Package"], fields["Version"]
                found[key] = ArchivePackage(*key, fields["Architecture"], int(fields["Size"]), fields["SHA256"])
        for name, version in wanted:
            if (name, version) not in found:
                raise LockError(f"the index gives no SHA-256 for {name} {version}")
        return [found[key] for key in wanted]

    def download(self, packages: Iterable[tuple[str, str]], directory: Path) -> dict[tuple[str, str], Path]:
        """Download these names and versions and say where each lies; what the archive lacks has a path without a file.

        Errors: `StepError` when apt fails for another reason than a missing version.
        """
        wanted = sorted(packages)
        known = _run(["apt-cache", "show", *(name for name, _ in wanted)], self._environment).split("\n\n")
        listed = {tuple(re.findall(r"^(?:Package|Version): (\S+)$", paragraph, re.MULTILINE)) for paragraph in known}
        present = [f"{name}={version}" for name, version in wanted if (name, version) in listed]
        if present:
            _run(["apt-get", "download", *present], self._environment, directory)
        placed = {}
        for path in sorted(directory.glob("*.deb")):
            name, _, rest = unquote(path.stem).partition("_")
            placed[name, rest.rpartition("_")[0]] = path
        return {package: placed.get(package, directory / "missing") for package in wanted}
