"""A devnet as a terminal would start it, watched from outside: its output, its processes, what is left of them."""

import os
import signal
import subprocess
from pathlib import Path

from tests.support.cluster import NOVA_COMMAND, eventually
from tests.support.local_chain import ROOT

NOVA = NOVA_COMMAND[0]
READY = "Running until Ctrl-C"
READY_S = 60.0
STOPPED_S = 40.0


class RunningDevnet:
    """One devnet in a session of its own, as a terminal would start it."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.directory = directory / "net"
        self._output = directory / "output"
        environ = {**os.environ, "PYTHONUNBUFFERED": "1", "TERM": "dumb"}
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [NOVA, "devnet", "--dir", str(self.directory), *arguments],
                cwd=ROOT,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.seen: set[int] = set()

    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def look_for_children(self) -> set[int]:
        """Every descendant that lives now; remembered."""
        children = descendants(self.process.pid)
        self.seen |= children
        return children

    def await_ready(self, timeout_s: float = READY_S) -> None:
        def ready() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError(f"the devnet ended with {self.process.returncode}:\n{self.output()}")
            return READY in self.output()

        eventually(ready, timeout_s)
        self.look_for_children()

    def run(self, *arguments: str) -> str:
        """What another command, told this devnet's directory, prints."""
        command = [NOVA, *arguments, "--devnet", str(self.directory)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True).stdout

    def await_end(self) -> int:
        eventually(lambda: self.process.poll() is not None, STOPPED_S)
        return self.process.returncode

    def left_over(self) -> set[int]:
        return {pid for pid in self.seen if alive(pid)}

    def close(self) -> None:
        for pid in [self.process.pid, *self.seen, *descendants(self.process.pid)]:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def descendants(pid: int) -> set[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, queue = set(), [pid]
    while queue:
        parent = queue.pop()
        children = {child for child, its_parent in parents.items() if its_parent == parent} - found
        found |= children
        queue.extend(children)
    return found


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
