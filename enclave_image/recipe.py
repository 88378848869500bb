"""The recipe of the image, `image.toml`: typed, every value required, nothing else allowed."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from enclave_image.errors import MalformedError

RECIPE_FILE = Path(__file__).parent / "image.toml"


@dataclass(frozen=True, slots=True)
class RootfsRules:
    """What of the inputs reaches the root file system, and what is made beside them; paths are relative."""

    directories: tuple[str, ...]
    links: Mapping[str, str]
    extra_links: Mapping[str, str]
    ca_certificates: str
    ca_bundle: str
    ca_links: tuple[str, ...]
    site: str
    application_site: str
    files: Mapping[str, str]
    prune: tuple[str, ...]
    keep: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the image is made of, before names are resolved to versions."""

    name: str
    operating_system: str
    architecture: str
    suites: tuple[str, ...]
    epoch_s: int
    max_eif_bytes: int
    default_memory_bytes: int
    default_cpus: int
    cmdline: tuple[str, ...]
    runtime_debs: tuple[str, ...]
    runtime_requirements: str
    without_wheels: tuple[str, ...]
    build_debs: tuple[str, ...]
    build_requirements: str
    build_wheels: tuple[str, ...]
    kernel_deb: str
    kernel_config: str
    rootfs: RootfsRules


class _Table:
    """One table of the file; what is not taken out of it is an unknown name."""

    def __init__(self, name: str, value: object) -> None:
        if not isinstance(value, dict):
            raise MalformedError(f"the recipe lacks the table [{name}]")
        self._name = name
        self._held = dict(value)

    def _take(self, name: str) -> object:
        if name not in self._held:
            raise MalformedError(f"the recipe lacks {name} in [{self._name}]")
        return self._held.pop(name)

    def text(self, name: str) -> str:
        value = self._take(name)
        if not isinstance(value, str):
            raise MalformedError(f"{name} in [{self._name}] of the recipe must be text")
        return value

    def number(self, name: str) -> int:
        value = self._take(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise MalformedError(f"{name} in [{self._name}] of the recipe must be a number, zero or more")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self._take(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise MalformedError(f"{name} in [{self._name}] of the recipe must be a list of text")
        return tuple(value)

    def mapping(self, name: str) -> dict[str, str]:
        value = self._take(name)
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            raise MalformedError(f"{name} in [{self._name}] of the recipe must map text to text")
        return value

    def end(self) -> None:
        if self._held:
            raise MalformedError(f"the recipe has unknown names in [{self._name}]: {', '.join(sorted(self._held))}")


def parse_recipe(text: str) -> Recipe:
    """The recipe in `text`.

    Errors: `MalformedError` naming the first value that is missing, unknown or of the wrong type.
    """
    try:
        held = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise MalformedError(f"the recipe is not TOML: {error}") from error
    names = ("image", "runtime", "build", "kernel", "rootfs")
    if unknown := sorted(held.keys() - set(names)):
        raise MalformedError(f"the recipe has unknown tables: {', '.join(unknown)}")
    image, runtime, build, kernel, rootfs = (_Table(name, held.get(name)) for name in names)
    recipe = Recipe(
        name=image.text("name"),
        operating_system=image.text("operating_system"),
        architecture=image.text("architecture"),
        suites=image.texts("suites"),
        epoch_s=image.number("epoch_s"),
        max_eif_bytes=image.number("max_eif_bytes"),
        default_memory_bytes=image.number("default_memory_bytes"),
        default_cpus=image.number("default_cpus"),
        cmdline=image.texts("cmdline"),
        runtime_debs=runtime.texts("debs"),
        runtime_requirements=runtime.text("requirements"),
        without_wheels=runtime.texts("without_wheels"),
        build_debs=build.texts("debs"),
        build_requirements=build.text("requirements"),
        build_wheels=build.texts("wheels"),
        kernel_deb=kernel.text("deb"),
        kernel_config=kernel.text("config"),
        rootfs=RootfsRules(
            directories=rootfs.texts("directories"),
            links=rootfs.mapping("links"),
            extra_links=rootfs.mapping("extra_links"),
            ca_certificates=rootfs.text("ca_certificates"),
            ca_bundle=rootfs.text("ca_bundle"),
            ca_links=rootfs.texts("ca_links"),
            site=rootfs.text("site"),
            application_site=rootfs.text("application_site"),
            files=rootfs.mapping("files"),
            prune=rootfs.texts("prune"),
            keep=rootfs.texts("keep"),
        ),
    )
    for table in (image, runtime, build, kernel, rootfs):
        table.end()
    return recipe


def load_recipe(path: Path = RECIPE_FILE) -> Recipe:
    """The recipe in this file, by default the one of this package."""
    return parse_recipe(path.read_text(encoding="utf-8"))
