"""Kernel options asserted, keys and cache; the compiling itself is an image test."""

from pathlib import Path

import pytest

from enclave_image.bzimage import parse_config
from enclave_image.errors import StepError
from enclave_image.kernel import Kernel, check_config, kernel_key, load_cached, store_cached
from tests.unit.enclave_image.test_compare import kernel as boot_image

FRAGMENT = (Path(__file__).parents[3] / "enclave_image/kernel.config").read_text(encoding="utf-8")


def test_options_that_survive_pass():
    check_config("CONFIG_NSM=y\nCONFIG_PCI=n\n", "CONFIG_NSM=y\n# CONFIG_PCI is not set\nCONFIG_NET=y\n")
    check_config("CONFIG_PCI=n\n", "")


def test_every_option_that_did_not_survive_is_named():
    with pytest.raises(
        StepError, match=r"2 kernel options .* CONFIG_NSM: wanted y, got n; CONFIG_PCI: wanted n, got y"
    ):
        check_config("CONFIG_NSM=y\nCONFIG_PCI=n\n", "CONFIG_PCI=y\n")


def test_the_committed_options_have_what_the_enclave_needs_and_lack_what_it_must_not_have():
    options = parse_config(FRAGMENT)
    for name in (
        "NSM",
        "VIRTIO_MMIO",
        "VIRTIO_MMIO_CMDLINE_DEVICES",
        "VIRTIO_VSOCKETS",
        "PTP_1588_CLOCK_KVM",
        "IKCONFIG",
    ):
        assert options[f"CONFIG_{name}"] == "y", name
    for name in (
        "MODULES",
        "PCI",
        "IO_URING",
        "KEXEC",
        "USERFAULTFD",
        "NAMESPACES",
        "DEVMEM",
        "PROC_KCORE",
        "DEBUG_FS",
    ):
        assert options[f"CONFIG_{name}"] == "n", name


BASE = {"source_sha256": "a", "fragment": b"b", "root_key": "c", "epoch_s": 1}


@pytest.mark.parametrize(
    "change",
    [{"source_sha256": "x"}, {"fragment": b"x"}, {"root_key": "x"}, {"epoch_s": 2}],
    ids=lambda c: next(iter(c)),
)
def test_another_input_gives_another_key(change):
    assert kernel_key(**BASE) == kernel_key(**BASE)
    assert kernel_key(**BASE) != kernel_key(**{**BASE, **change})


def test_a_kernel_comes_back_from_the_cache_unless_it_was_damaged(tmp_path):
    image = boot_image("CONFIG_NSM=y\n")
    built = Kernel(image, b"CONFIG_NSM=y\n", "6.12.1 (nova-kms@enclave)", "key")
    assert load_cached(tmp_path, "key") is None
    store_cached(tmp_path, built)
    store_cached(tmp_path, built)
    assert load_cached(tmp_path, "key") == built
    (tmp_path / "kernel-key/bzImage").write_bytes(image + b"\0")
    assert load_cached(tmp_path, "key") is None
