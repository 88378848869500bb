"""The image of the test guest: a kernel and one static program, and nothing that a test does not need.

Two kernels are good for it: the project's own, once the image was built on this machine, and Debian's, which is fetched
with this machine's apt and finds its devices by ACPI only.
"""

import lzma
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from appliance.devnet.emulator.qemu import SUITES
from enclave_image.apt import AptRoot
from enclave_image.cpio import encode_cpio
from enclave_image.deb import Deb, read_deb
from enclave_image.eif import Eif, Section, SectionType, encode_eif
from enclave_image.manifest import Tree

AGENT_SOURCE = Path(__file__).with_name("guest_agent.c")
CMDLINE = "reboot=k panic=-1 console=ttyS0 quiet random.trust_cpu=on"
# In the order in which they are loaded; whatever is built in has no module.
DEBIAN_MODULES = (
    "virtio_mmio",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
    "nsm",
)
_DEBIAN_KERNEL = re.compile(r"linux-image-6\.[0-9.]+\+deb13-cloud-amd64")


@dataclass(frozen=True, slots=True)
class TestKernel:
    """A kernel, the modules to load, and whether it needs ACPI to find its devices."""

    __test__ = False

    image: bytes = field(repr=False)
    modules: tuple[bytes, ...] = field(default=(), repr=False)
    acpi: bool = False


def own_kernel(image_cache: Path) -> TestKernel | None:
    """The kernel that was built last into the cache of `nova-kms image build`, or None."""
    built = sorted(image_cache.glob("built/kernel-*/bzImage"), key=lambda path: path.stat().st_mtime)
    return TestKernel(built[-1].read_bytes()) if built else None


def debian_kernel(cache: Path) -> TestKernel:
    """Debian's cloud kernel with the modules that the guest needs, fetched into `cache` when it is not there."""
    package = cache / "kernel.deb"
    if not package.exists():
        package.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            directory = Path(temporary)
            apt = AptRoot(directory / "apt", SUITES, "amd64")
            apt.update()
            closure = apt.closure(["--target-release=trixie", "linux-image-cloud-amd64"])
            (wanted,) = (found for found in closure if _DEBIAN_KERNEL.fullmatch(found[0]))
            apt.download([wanted], directory)[wanted].rename(package)
    deb = read_deb(package.read_bytes())
    (image,) = (entry.data for entry in deb.entries if entry.path.startswith("boot/vmlinuz-"))
    return TestKernel(image, tuple(_module(deb, name) for name in DEBIAN_MODULES), acpi=True)


def _module(deb: Deb, name: str) -> bytes:
    (packed,) = (entry.data for entry in deb.entries if entry.path.endswith(f"/{name}.ko.xz"))
    return lzma.decompress(packed)


def build_agent(directory: Path) -> bytes:
    """The guest's one program, compiled without libraries to load."""
    compiler = shutil.which("cc") or "gcc"
    program = directory / "agent"
    command = [compiler, "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(AGENT_SOURCE)]
    subprocess.run(command, check=True)
    return program.read_bytes()


def build_test_image(kernel: TestKernel, agent: bytes, note: str = "") -> bytes:
    """An EIF with two ramdisks: the program, and what goes with this kernel. `note` changes PCR2."""
    base, more = Tree(), Tree()
    base.add_directory("dev")
    base.add_file("init", agent, 0o755)
    more.add_file("note", note.encode())
    for number, module in enumerate(kernel.modules):
        more.add_file(f"modules/{number}.ko", module)
    sections = (
        Section(SectionType.KERNEL, kernel.image),
        Section(SectionType.CMDLINE, CMDLINE.encode()),
        Section(SectionType.METADATA, b"{}"),
        *(Section(SectionType.RAMDISK, encode_cpio(tree.manifest(), tree.contents(), 0)) for tree in (base, more)),
    )
    return encode_eif(Eif(sections))
