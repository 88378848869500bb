"""The commands: exit status, one message per error, what they print."""

import dataclasses
import json
import re
from hashlib import sha256
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from enclave_image import cli
from enclave_image.build import BuildPlace, Image
from enclave_image.eif import Eif, Section, SectionType, encode_eif
from enclave_image.errors import StepError
from enclave_image.fetch import Cache
from enclave_image.lock import Lock, LockedDeb, LockedWheel, Use, encode_lock, load_lock
from enclave_image.resolve import lock_sources


def eif(cmdline: bytes) -> bytes:
    kinds = ((SectionType.KERNEL, b"k"), (SectionType.CMDLINE, cmdline), (SectionType.METADATA, b"{}"))
    return encode_eif(Eif(tuple(Section(*section) for section in kinds)))


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.image, [str(argument) for argument in arguments])


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    """Two images that differ in one word."""
    paths = tmp_path / "a.eif", tmp_path / "b.eif"
    for path, cmdline in zip(paths, (b"a=1", b"a=2"), strict=True):
        path.write_bytes(eif(cmdline))
    return paths


def test_compare_names_the_difference_and_exits_with_1(images):
    result = run("compare", *images)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0] == "cmdline: only the first has 'a=1'"
    assert run("compare", images[0], images[0]).exit_code == 0


def test_describe_prints_registers_and_problems(images):
    result = run("describe", images[0])
    assert result.exit_code == 1  # its kernel is none
    assert "PCR0  " in result.stdout
    assert "problem: section 0 (kernel)" in result.stderr
    described = json.loads(run("describe", "--json", images[0]).stdout)
    assert described["cmdline"] == "a=1"


def test_compare_ends_with_the_registers_that_differ(images):
    registers = run("compare", *images).stdout.splitlines()[-1]
    assert registers == "registers: PCR0 differs, PCR1 differs, PCR2 is the same"
    assert run("compare", images[0], images[0]).stdout == ""


@pytest.mark.parametrize("depth", [33, 900])
def test_an_image_with_absurd_metadata_is_described_and_compared(tmp_path, images, depth):
    path = tmp_path / "absurd.eif"
    metadata = b'{"a":' * depth + b"1" + b"}" * depth
    kinds = ((SectionType.KERNEL, b"k"), (SectionType.CMDLINE, b"a=1"), (SectionType.METADATA, metadata))
    path.write_bytes(encode_eif(Eif(tuple(Section(*section) for section in kinds))))
    for arguments in (("describe", path), ("describe", "--json", path), ("compare", images[0], path)):
        result = run(*arguments)
        assert result.exit_code == 1
        assert result.exception is None or isinstance(result.exception, SystemExit)


def test_an_image_with_a_signature_that_does_not_verify_is_not_built_again(tmp_path, images):
    path = tmp_path / "signed.eif"
    kinds = ((SectionType.KERNEL, b"k"), (SectionType.CMDLINE, b"a=1"), (SectionType.METADATA, b"{}"))
    path.write_bytes(encode_eif(Eif((*(Section(*s) for s in kinds), Section(SectionType.SIGNATURE, b"garbage")))))
    result = run("verify", "--cache", tmp_path, path)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: the signature section is not the CBOR of one")


def test_an_error_is_one_message_without_traceback(tmp_path):
    path = tmp_path / "x.eif"
    path.write_bytes(b"nothing")
    result = run("describe", path)
    assert result.exit_code == 1
    assert result.stderr == "Error: not an EIF: 7 bytes, the header alone has 548\n"


@pytest.fixture
def lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock of its own with no inputs and outdated sources."""
    path = tmp_path / "image.lock"
    path.write_text(
        encode_lock(Lock((), (), (), {"kmscore": "a" * 64, "appliance": "b" * 64, "enclave_image": "c" * 64}))
    )
    monkeypatch.setattr(cli, "LOCK_FILE", path)
    return path


def test_locking_the_sources_needs_no_network_and_shows_what_changed(lock_file):
    before = lock_file.read_text()
    checked = run("lock", "--sources-only", "--check")
    assert checked.exit_code == 1
    assert "image.lock is out of date: run `nova-kms image lock --sources-only`" in checked.stderr
    assert lock_file.read_text() == before
    result = run("lock", "--sources-only")
    assert result.exit_code == 0
    assert [line.split()[:4] for line in result.stdout.splitlines()] == [
        ["~", "source", "tree", name] for name in ("appliance", "enclave_image", "kmscore")
    ]
    assert load_lock(lock_file).trees["kmscore"] != "a" * 64
    assert run("lock", "--sources-only").stderr == "nothing changed\n"


def test_a_build_refuses_sources_that_are_not_locked(lock_file, tmp_path):
    result = run("build", "--cache", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "the source tree kmscore is not the locked one: expected aaaa" in result.stderr
    assert "nova-kms image lock --sources-only" in result.stderr


COMMITTED = load_lock(cli.LOCK_FILE)
FIRST_TOOL = COMMITTED.debs_for(Use.BUILD)[0]


def other_hash(lock: Lock, of: LockedDeb | LockedWheel) -> Lock:
    debs = tuple(dataclasses.replace(held, sha256="0" * 64) if held == of else held for held in lock.debs)
    wheels = tuple(dataclasses.replace(held, sha256="0" * 64) if held == of else held for held in lock.wheels)
    return dataclasses.replace(lock, debs=debs, wheels=wheels)


ALTERED: dict[str, tuple[Lock, bytes | None, str]] = {
    # the lock, what the cache holds for the first package of the build root, what is said
    "package in the cache": (
        COMMITTED,
        b"other",
        f"expected {FIRST_TOOL.sha256}, found {sha256(b'other').hexdigest()}",
    ),
    "package not in the cache": (COMMITTED, None, f"{FIRST_TOOL.name} .* is not in the cache .*`nova-kms image fetch`"),
    "package in the lock": (
        other_hash(COMMITTED, FIRST_TOOL),
        b"other",
        f"{FIRST_TOOL.name} .*0000.* is not in the cache",
    ),
    "wheel in the lock": (
        other_hash(COMMITTED, COMMITTED.wheels_for(Use.RUNTIME)[0]),
        None,
        r"is not the release that requirements/runtime\.lock pins: lock anew with `nova-kms image lock`",
    ),
    "source tree in the lock": (
        dataclasses.replace(COMMITTED, trees={**COMMITTED.trees, "kmscore": "0" * 64}),
        None,
        "source tree kmscore is not the locked one: expected 0000.*`nova-kms image lock --sources-only`",
    ),
}


@pytest.mark.parametrize(("lock", "cached", "reason"), ALTERED.values(), ids=ALTERED)
def test_a_build_from_an_altered_input_ends_in_the_refusal_that_names_it(lock, cached, reason, tmp_path):
    if lock.trees == COMMITTED.trees:
        lock = dataclasses.replace(lock, trees=lock_sources(cli.CHECKOUT))
    (tmp_path / "image.lock").write_text(encode_lock(lock))
    if cached is not None:
        place = Cache(tmp_path).path(FIRST_TOOL.sha256)
        place.parent.mkdir(parents=True)
        place.write_bytes(cached)
    places = ["--cache", tmp_path, "--store", tmp_path / "store", "--out", tmp_path / "out"]
    result = run("build", "--lock", tmp_path / "image.lock", *places)
    assert result.exit_code == 1
    assert re.search(f"^Error: .*{reason}", result.stderr, re.MULTILINE), result.stderr
    assert not (tmp_path / "out").exists()


STORES = {
    "build believes this machine's": (["build"], "home/.cache/nova-kms/image/built"),
    "build, another directory": (["build", "--store", "own"], "own"),
    "verify believes nothing": (["verify"], "scratch"),
    "verify, when told to": (["verify", "--reuse-kernel"], "home/.cache/nova-kms/image/built"),
}


@pytest.mark.parametrize(("arguments", "store"), STORES.values(), ids=STORES)
def test_what_was_compiled_is_never_taken_from_a_copy_of_the_inputs(arguments, store, images, tmp_path, monkeypatch):
    places: list[BuildPlace] = []

    def stop(recipe: object, lock: object, place: BuildPlace, **_: object) -> Image:
        places.append(place)
        raise StepError("stopped")

    monkeypatch.setattr(cli, "build_image", stop)
    monkeypatch.setenv("HOME", "home")
    monkeypatch.delenv("NOVA_KMS_IMAGE_STORE", raising=False)
    eif = [images[0]] if arguments[0] == "verify" else []
    assert run(*arguments, "--cache", tmp_path / "copy", *eif).stderr.endswith("Error: stopped\n")
    (place,) = places
    if store == "scratch":
        assert place.store == place.scratch / "store"
        assert not place.reuse_kernel
    else:
        assert place.store == Path(store)
    assert not place.store.is_relative_to(tmp_path / "copy")


def test_what_the_system_refuses_is_one_message_without_traceback():
    result = run("describe", "/proc/self/mem")
    assert (result.exit_code, result.stderr) == (1, "Error: Input/output error: a file\n")


def test_every_command_has_help():
    for name in cli.image.commands:
        assert run(name, "--help").exit_code == 0
