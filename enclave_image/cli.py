"""`nova-kms image …`: lock, fetch, build, describe, compare, sign and verify the enclave image."""

import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

import click

from enclave_image.apt import AptRoot
from enclave_image.build import EIF_FILE, BuildPlace, Image, build_image, source_revision
from enclave_image.compare import compare_eif, compare_registers
from enclave_image.describe import describe_eif, printable
from enclave_image.eif import SectionType, load_eif, parse_eif
from enclave_image.errors import ImageError
from enclave_image.fetch import Cache, fetch_locked
from enclave_image.lock import LOCK_SOURCES, Lock, changes, encode_lock, load_lock
from enclave_image.recipe import Recipe, load_recipe
from enclave_image.resolve import lock_sources, resolve_lock
from enclave_image.verify import verify_rebuilt

CHECKOUT = Path(__file__).resolve().parent.parent
LOCK_FILE = Path(__file__).parent / "image.lock"
CONFIG_FILE = Path(__file__).parent / "appliance.toml"

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
DIRECTORY = click.Path(file_okay=False, path_type=Path)

cache_option = click.option(
    "--cache",
    type=DIRECTORY,
    envvar="NOVA_KMS_IMAGE_CACHE",
    default=lambda: Path.home() / ".cache/nova-kms/image",
    show_default="~/.cache/nova-kms/image",
    help="Where fetched inputs lie, each named by its hash and checked; may be a copy of somebody else's.",
)
store_option = click.option(
    "--store",
    type=DIRECTORY,
    envvar="NOVA_KMS_IMAGE_STORE",
    default=lambda: Path.home() / ".cache/nova-kms/image/built",
    show_default="~/.cache/nova-kms/image/built",
    help="Where this machine keeps the build root and kernels that it made; believed, so never somebody else's.",
)
lock_option = click.option(
    "--lock",
    "lock_file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="NOVA_KMS_IMAGE_LOCK",
    default=lambda: LOCK_FILE,
    show_default="enclave_image/image.lock",
    help="Another lock, such as one resolved today where mirrors have dropped what the project's names.",
)
jobs_option = click.option(
    "--jobs", type=click.IntRange(1), default=lambda: os.cpu_count() or 1, help="Compilers at a time."
)
config_option = click.option(
    "--config",
    type=FILE,
    default=CONFIG_FILE,
    show_default="enclave_image/appliance.toml",
    help="The measured configuration of the application; another file gives another PCR2.",
)
unlocked_option = click.option(
    "--unlocked-sources",
    is_flag=True,
    help="Take the project's sources as they are, also when the lock has others; the measurements say so.",
)


class ImageGroup(click.Group):
    """Turns the package's errors into one message and exit status 1."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; what it raises on purpose is for the person at the terminal."""
        try:
            return super().invoke(ctx)
        except ImageError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:  # a full disk, a directory that is not ours
            raise click.ClickException(f"{error.strerror or error}: {error.filename or 'a file'}") from error


def progress() -> Callable[[str], None]:
    """A function that shows one line per step with the time since the start, on standard error."""
    started_s = time.monotonic()

    def say(text: str) -> None:
        click.echo(f"[{time.monotonic() - started_s:6.1f} s] {text}", err=True)

    return say


def counted(count: int, noun: str) -> str:
    """A number with its noun, such as `2 differences`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


@click.group(
    cls=ImageGroup,
    epilog="""\b
From nothing to an image:
  nova-kms image fetch
  nova-kms image build --out dist/image

\b
Somebody else's image:
  nova-kms image describe theirs.eif
  nova-kms image compare theirs.eif dist/image/nova-kms.eif
  nova-kms image verify theirs.eif

docs/image.md explains all of it.""",
)
def image() -> None:
    """Build, explain and verify the enclave image (an EIF file)."""


@image.command()
@cache_option
@lock_option
@click.option("--sources-only", is_flag=True, help="Lock the project's own sources anew, and nothing else; offline.")
@click.option("--check", is_flag=True, help="Change nothing; exit with status 1 when something would change.")
def lock(cache: Path, lock_file: Path, sources_only: bool, check: bool) -> None:
    """Resolve every input anew and write the lock; shows what changed."""
    before: Lock | None = load_lock(lock_file) if lock_file.exists() else None
    if sources_only:
        if before is None:
            raise click.ClickException(f"{lock_file} is missing: lock everything first")
        after = Lock(before.suites, before.debs, before.wheels, lock_sources(CHECKOUT))
    else:
        after = resolve_lock(load_recipe(), CHECKOUT, Cache(cache), progress())
    changed = changes(before, after)
    for sentence in changed:
        click.echo(sentence)
    click.echo(counted(len(changed), "change") if changed else "nothing changed", err=True)
    if check:
        if changed:
            command = LOCK_SOURCES if sources_only else "nova-kms image lock"
            click.echo(f"{lock_file.name} is out of date: run `{command}`, read the change and commit it", err=True)
        raise SystemExit(bool(changed))
    if changed:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        lock_file.write_text(encode_lock(after), encoding="ascii")


@image.command()
@cache_option
@lock_option
def fetch(cache: Path, lock_file: Path) -> None:
    """Bring every locked input into the cache: packages with apt, wheels with pip, all verified by hash."""
    recipe = load_recipe()
    count = fetch_locked(
        load_lock(lock_file), Cache(cache), lambda place: AptRoot(place, recipe.suites, recipe.architecture), progress()
    )
    click.echo(f"{count} inputs fetched; the cache is complete", err=True)


def _scratch(keep: Path | None) -> AbstractContextManager[str]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        return nullcontext(str(keep))
    return tempfile.TemporaryDirectory(prefix="nova-kms-image-")


def _build(
    recipe: Recipe,
    cache: Path,
    store: Path | None,
    jobs: int,
    config: Path,
    lock_file: Path,
    *,
    unlocked: bool,
    reuse_kernel: bool,
    scratch: Path | None,
) -> Image:
    with _scratch(scratch) as directory:
        place = BuildPlace(
            CHECKOUT, Cache(cache), store or Path(directory) / "store", Path(directory), jobs, reuse_kernel
        )
        return build_image(
            recipe,
            load_lock(lock_file),
            place,
            config=config.read_bytes(),
            unlocked_sources=unlocked,
            revision=source_revision(CHECKOUT),
            say=progress(),
        )


def _show_measurements(image_built: Image) -> None:
    measured = image_built.measurements
    for name, value in (("PCR0", measured.pcr0), ("PCR1", measured.pcr1), ("PCR2", measured.pcr2)):
        click.echo(f"{name}  {value.hex()}")
    click.echo(f"code measurement  0x{measured.code_measurement.hex()}")


@image.command()
@cache_option
@lock_option
@store_option
@jobs_option
@config_option
@unlocked_option
@click.option("--out", type=DIRECTORY, default=Path("dist/image"), show_default=True, help="Where the files go.")
@click.option("--scratch", type=DIRECTORY, help="Where to compile; by default a temporary directory.")
@click.option("--no-kernel-cache", is_flag=True, help="Compile the kernel even when one of these inputs is there.")
def build(
    cache: Path,
    lock_file: Path,
    store: Path,
    jobs: int,
    config: Path,
    unlocked_sources: bool,
    out: Path,
    scratch: Path | None,
    no_kernel_cache: bool,
) -> None:
    """Build the image from the lock, offline: EIF, measurements, manifests, SBOM."""
    recipe = load_recipe()
    built = _build(
        recipe,
        cache,
        store,
        jobs,
        config,
        lock_file,
        unlocked=unlocked_sources,
        reuse_kernel=not no_kernel_cache,
        scratch=scratch,
    )
    built.write(out)
    _show_measurements(built)
    size = f"{len(built.eif) / 1e6:.1f} MB of at most {recipe.max_eif_bytes / 1e6:.1f} MB"
    click.echo(f"{out / EIF_FILE}: {size}", err=True)


@image.command()
@click.argument("eif", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON.")
def describe(eif: Path, as_json: bool) -> None:
    """Say what an EIF holds, also one that was not made here; exit status 1 when it breaks a rule of the format."""
    data = load_eif(eif)
    description = describe_eif(data)
    if as_json:
        click.echo(json.dumps(description.as_json(), indent=2))
    else:
        click.echo(f"EIF version {description.version}, {description.size_bytes} bytes, SHA-256 {description.sha256}")
        click.echo(f"checksum {description.crc32:08x} {'matches' if description.crc32_matches else 'DOES NOT MATCH'}")
        for section in description.sections:
            name = section.kind.name.lower()
            click.echo(f"  {name:9} at {section.offset:>9} {section.size_bytes:>9} bytes  {section.summary}")
        click.echo(f"command line  {description.cmdline}")
        click.echo(f"metadata  {printable(json.dumps(description.metadata).encode())}")
        for name, value in description.as_json().items():
            if name.startswith("PCR") or name == "code_measurement":
                click.echo(f"{name}  {value or 'zero: not signed'}")
        if description.pcr8 is not None:
            click.echo("PCR8 is that of the certificate in the file; `image verify` checks the signature", err=True)
        for problem in description.problems:
            click.echo(f"problem: {problem}", err=True)
    raise SystemExit(bool(description.problems))


@image.command()
@click.argument("first", type=FILE)
@click.argument("second", type=FILE)
def compare(first: Path, second: Path) -> None:
    """Explain how two images differ, the first difference first; exit status 1 when they do."""
    data = load_eif(first), load_eif(second)
    differences = compare_eif(*data)
    for difference in differences:
        click.echo(str(difference))
    if differences:
        click.echo(compare_registers(*data))
    click.echo(counted(len(differences), "difference") if differences else "the same bytes", err=True)
    raise SystemExit(bool(differences))


@image.command()
@cache_option
@lock_option
@store_option
@jobs_option
@config_option
@unlocked_option
@click.option(
    "--reuse-kernel",
    is_flag=True,
    help="Believe the kernel and the build root in --store instead of making them again.",
)
@click.argument("eif", type=FILE)
def verify(
    cache: Path,
    lock_file: Path,
    store: Path,
    jobs: int,
    config: Path,
    unlocked_sources: bool,
    reuse_kernel: bool,
    eif: Path,
) -> None:
    """Build the image again from the lock and compare: the same bytes, or every difference by name.

    A signature on the image is checked with the certificate beside it and then taken off; whose certificate that is
    shows in PCR8.
    """
    given = load_eif(eif)
    pcr8 = _checked_pcr8(given)  # before minutes of building
    rebuilt = _build(
        load_recipe(),
        cache,
        store if reuse_kernel else None,
        jobs,
        config,
        lock_file,
        unlocked=unlocked_sources,
        reuse_kernel=reuse_kernel,
        scratch=None,
    )
    verified = verify_rebuilt(given, rebuilt)
    _show_measurements(verified.rebuilt)
    if pcr8 is not None:
        click.echo(f"PCR8  {pcr8.hex()}")
    click.echo(f"{eif} is the image of this lock{', with a signature' if verified.signed else ''}", err=True)


def _checked_pcr8(data: bytes) -> bytes | None:
    """PCR8 of a signed image, None of an unsigned one; a signature that does not verify is an error."""
    if parse_eif(data).first(SectionType.SIGNATURE) is None:
        return None
    from enclave_image.sign import verify_signed_eif  # only signatures need `cryptography`

    return verify_signed_eif(data)


@image.command()
@click.argument("eif", type=FILE)
@click.option("--key", type=FILE, required=True, help="P-384 private key, PEM without password.")
@click.option("--certificate", type=FILE, required=True, help="Its certificate, PEM.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The signed image.")
def sign(eif: Path, key: Path, certificate: Path, out: Path) -> None:
    """Sign an image with a local key (PCR8); the unsigned bytes stay recoverable."""
    from enclave_image.sign import load_signing_key, sign_eif, verify_signed_eif  # only signatures need `cryptography`

    signed = sign_eif(load_eif(eif), load_signing_key(key.read_bytes()), certificate.read_bytes(), datetime.now(UTC))
    out.write_bytes(signed)
    click.echo(f"PCR8  {verify_signed_eif(signed).hex()}")
