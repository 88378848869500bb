"""`nova-kms devnet`: a cluster that works, and of which nothing is left when it is told to stop."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import NOVA_COMMAND, eventually
from tests.support.local_chain import ROOT

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("devnet")]

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

    def await_ready(self) -> None:
        def ready() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError(f"the devnet ended with {self.process.returncode}:\n{self.output()}")
            return READY in self.output()

        eventually(ready, READY_S)
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


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[RunningDevnet]]:
    """Devnets of the test; whatever they leave behind is killed after it."""
    devnets: list[RunningDevnet] = []
    yield devnets
    for devnet in devnets:
        devnet.close()


@pytest.mark.parametrize(("number", "nodes"), [(signal.SIGINT, 2), (signal.SIGTERM, 1)])
def test_a_running_devnet_can_be_used_and_stops_everything_it_started(
    started: list[RunningDevnet], tmp_path: Path, number: signal.Signals, nodes: int
) -> None:
    devnet = RunningDevnet(tmp_path, "--nodes", str(nodes))
    started.append(devnet)
    devnet.await_ready()
    assert len(devnet.seen) > nodes, "the nodes and their chain"
    assert f"{nodes} of {nodes}" in devnet.run("status")
    devnet.run("app", "put", "greeting", "hello")
    assert devnet.run("app", "get", "greeting").strip() == "hello"
    if number is signal.SIGINT:
        os.killpg(devnet.process.pid, number)  # a terminal sends Ctrl-C to the whole group
    else:
        devnet.process.send_signal(number)
    code = devnet.await_end()
    assert devnet.left_over() == set()
    assert "Traceback" not in devnet.output(), devnet.output()
    assert code == 0, devnet.output()
    for number_of_node in range(1, nodes + 1):
        log = (devnet.directory / f"node-{number_of_node}.log").read_text()
        assert "stopped serving" in log, "nodes are stopped in order, not killed"
        assert "CRITICAL" not in log


def test_a_devnet_that_is_interrupted_while_it_starts_leaves_nothing(
    started: list[RunningDevnet], tmp_path: Path
) -> None:
    devnet = RunningDevnet(tmp_path, "--nodes", "2")
    started.append(devnet)
    eventually(lambda: len(devnet.look_for_children()) >= 2, READY_S)
    devnet.process.send_signal(signal.SIGTERM)
    devnet.look_for_children()
    devnet.await_end()
    assert devnet.left_over() == set()
    assert "Traceback" not in devnet.output(), devnet.output()


def test_once_demonstrates_and_ends_with_0(started: list[RunningDevnet], tmp_path: Path) -> None:
    devnet = RunningDevnet(tmp_path, "--nodes", "2", "--once")
    started.append(devnet)

    def ended() -> bool:
        devnet.look_for_children()
        return devnet.process.poll() is not None

    eventually(ended, READY_S + STOPPED_S)
    assert devnet.process.returncode == 0, devnet.output()
    assert devnet.left_over() == set()
    assert "What the example app did" in devnet.output()
