"""The image of the test guest: the project's own kernel and one static program, nothing that a test does not need."""

import shutil
import subprocess
from pathlib import Path

from enclave_image.cpio import encode_cpio
from enclave_image.eif import Eif, Section, SectionType, encode_eif
from enclave_image.manifest import Tree

AGENT_SOURCE = Path(__file__).with_name("guest_agent.c")
CMDLINE = "reboot=k panic=-1 console=ttyS0 quiet random.trust_cpu=on"


def build_agent(directory: Path) -> bytes:
    """The guest's one program, compiled without libraries to load."""
    compiler = shutil.which("cc") or "gcc"
    program = directory / "agent"
    command = [compiler, "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(AGENT_SOURCE)]
    subprocess.run(command, check=True)
    return program.read_bytes()


def build_test_image(kernel: bytes, agent: bytes, note: str = "") -> bytes:
    """An EIF with two ramdisks: the program, and a `note`, which changes PCR2."""
    base, more = Tree(), Tree()
    base.add_directory("dev")
    base.add_file("init", agent, 0o755)
    more.add_file("note", note.encode())
    sections = (
        Section(SectionType.KERNEL, kernel),
        Section(SectionType.CMDLINE, CMDLINE.encode()),
        Section(SectionType.METADATA, b"{}"),
        *(Section(SectionType.RAMDISK, encode_cpio(tree.manifest(), tree.contents(), 0)) for tree in (base, more)),
    )
    return encode_eif(Eif(sections))
