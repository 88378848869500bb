"""Which QEMU is taken, and what it is told."""

from itertools import pairwise
from pathlib import Path

import pytest

from appliance.devnet.emulator.qemu import Boot, Qemu, boot_command, find_qemu, install_qemu, main
from kmscore.errors import ConfigError

GOOD = "echo 'name \"vhost-user-test-device\", bus virtio-bus'"
OLD = "echo 'name \"vhost-user-vsock-device\", bus virtio-bus'"


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that is PATH, empty."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    return directory


def unpacked(cache: Path, script: str) -> Path:
    """A cache whose QEMU is this script; its loader runs it."""
    return program(cache / "root/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", script)


def test_the_qemu_on_path_is_taken_if_it_has_the_device(path: Path, tmp_path: Path) -> None:
    found = program(path / "qemu-system-x86_64", GOOD)

    assert find_qemu(tmp_path) == Qemu((str(found),))


def test_an_old_qemu_on_path_gives_way_to_the_one_in_the_cache(path: Path, tmp_path: Path) -> None:
    program(path / "qemu-system-x86_64", OLD)
    loader = unpacked(tmp_path / "cache", GOOD)
    found = find_qemu(tmp_path / "cache")

    root = tmp_path / "cache/root"
    assert found.command[:3] == (str(loader), "--library-path", str(loader.parent))
    assert found.command[3] == str(root / "usr/bin/qemu-system-x86_64")
    assert found.environment == {"QEMU_MODULE_DIR": str(loader.parent / "qemu")}
    assert install_qemu(tmp_path / "cache", print) == found


def test_without_any_the_error_says_how_to_get_one(path: Path, tmp_path: Path) -> None:
    program(path / "qemu-system-x86_64", OLD)
    with pytest.raises(ConfigError, match=r"QEMU 11 or newer.*trixie-backports.*python -m appliance"):
        find_qemu(tmp_path)


def test_the_one_that_is_given_is_taken_or_refused(path: Path, tmp_path: Path) -> None:
    program(path / "qemu-system-x86_64", GOOD)
    mine = program(tmp_path / "mine", GOOD)

    assert find_qemu(tmp_path, mine) == Qemu((str(mine),))
    for other in (program(tmp_path / "old", OLD), program(tmp_path / "broken", "exit 1"), tmp_path / "none"):
        with pytest.raises(ConfigError, match="QEMU 11"):
            find_qemu(tmp_path, other)


def options(command: list[str], name: str) -> list[str]:
    return [value for option, value in pairwise(command) if option == name]


def test_the_machine_is_what_the_platform_announces_without_kvm_or_network() -> None:
    boot = Boot(Path("/run/a,b"), "console=ttyS0 quiet", memory_mib=512, cpus=2)
    command = boot_command(Qemu(("qemu", "-L", "share")), boot)

    assert command[:3] == ["qemu", "-L", "share"]
    assert options(command, "-machine") == ["microvm,acpi=off,pcie=off,memory-backend=memory"]
    assert options(command, "-object") == ["memory-backend-memfd,id=memory,size=512M,share=on"]
    assert options(command, "-accel") == ["tcg"]
    assert options(command, "-append") == ["console=ttyS0 quiet"]
    assert (options(command, "-kernel"), options(command, "-initrd")) == (["/run/a,b/kernel"], ["/run/a,b/initrd"])
    assert options(command, "-chardev") == [
        "socket,id=vsock,path=/run/a,,b/vsock.sock",
        "socket,id=nsm,path=/run/a,,b/nsm.sock",
    ]
    assert options(command, "-device")[-1] == (
        "vhost-user-test-device,chardev=nsm,virtio-id=33,num_vqs=1,config_size=0"
    )
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(command)
    assert not {"-netdev", "-nic", "-enable-kvm", "-monitor"} & set(command)


def test_the_secure_module_can_be_left_out() -> None:
    boot = Boot(Path("/run"), "", memory_mib=512, cpus=1, secure_module=False)

    assert options(boot_command(Qemu(("qemu",)), boot), "-device") == ["i8042", "vhost-user-vsock-device,chardev=vsock"]


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), ([], 2), (["--no-such-option"], 2), (["a", "b"], 2)])
def test_nothing_is_fetched_for_words_that_are_no_directory(
    words: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fetch(*_: object) -> None:
        raise AssertionError("nothing may be fetched")

    monkeypatch.setattr("appliance.devnet.emulator.qemu.install_qemu", fetch)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == code
    said = capsys.readouterr()
    assert "usage: python -m appliance.devnet.emulator.qemu" in said.out + said.err


def test_a_fetch_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fetch(*_: object) -> None:
        raise ConfigError("QEMU cannot be fetched: no mirror")

    monkeypatch.setattr("appliance.devnet.emulator.qemu.install_qemu", fetch)
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path)])
    assert ended.value.code == "QEMU cannot be fetched: no mirror"
