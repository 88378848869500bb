"""`nova-kms devnet`: a cluster that works, and of which nothing is left when it is told to stop."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import eventually
from tests.support.running_devnet import READY_S, STOPPED_S, RunningDevnet

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("devnet")]


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
