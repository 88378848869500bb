"""SIGTERM and SIGINT: requests finish, the last writes leave, the process ends with 0, its log is a log (node §3)."""

import base64
import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import pytest

from tests.support import wire
from tests.support.cluster import AppHandle, Cluster, Node, eventually
from tests.support.raw_client import APP, Target, fetch_nonce, pop_headers, seal
from tests.support.scenarios import (
    Runtime,
    acknowledged,
    know_each_other,
    peer_of_our_own,
    started_and_admitted,
)

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("shutdown")]

# A final push to a peer that does not answer has ten seconds, and so have requests that are running.
DEADLINES_S = 10.0
MARGIN_S = 8.0
# No push happens within a test but the first at start and the last at the end.
NO_TICK = {"DATA_SYNC_INTERVAL_SECONDS": "600"}
EXCEPTION_LINE = re.compile(r"    [A-Za-z_.]+(: .*)? at ")
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) +[a-z_.]+: ")


class Host:
    """A node that stays, and an app; the nodes that are stopped come and go beside it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.node: Node = cluster.add_nova("stays")
        self.app: AppHandle = cluster.register_app()
        self.client = cluster.app_at(self.app, self.node)

    def add(self, name: str, env: dict[str, str] | None = None) -> Node:
        """A node that pushes at its end only; everything known so far is acknowledged."""
        node = self.cluster.add_nova(name, env={**NO_TICK, **(env or {})})
        know_each_other(self.node, node)
        eventually(lambda: acknowledged(self.node, node))
        return node


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with Cluster(tmp_path_factory.mktemp("host")) as cluster:
        yield Host(cluster)


class SlowPut:
    """A PUT whose body arrives in two halves, on a connection of its own. A context manager."""

    def __init__(self, app: AppHandle, target: Target, key: str, value: bytes) -> None:
        self._host, _, port = target.url.removeprefix("http://").partition(":")
        self._port = int(port)
        inner = {"key": key, "value": wire.encode_base64(value)}
        self._body = json.dumps(seal(app.identity, target.tee_pubkey, inner)).encode()
        headers = {
            **pop_headers(app.identity, APP, fetch_nonce(target.url), target.wallet),
            "Host": f"{self._host}:{self._port}",
            "Content-Type": "application/json",
            "Content-Length": str(len(self._body)),
        }
        self._head = "\r\n".join(
            ["PUT /kms/data HTTP/1.1", *(f"{name}: {text}" for name, text in headers.items()), "", ""]
        )
        self._socket = socket.create_connection((self._host, self._port), timeout=20.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def send_half(self) -> None:
        self._socket.sendall(self._head.encode() + self._body[: len(self._body) // 2])

    def send_rest(self) -> int:
        """The status of the answer, 0 for none."""
        self._socket.sendall(self._body[len(self._body) // 2 :])
        answer = self._socket.recv(65536)
        return int(answer.split()[1]) if answer else 0


def accepts_connections(node: Node) -> bool:
    try:
        socket.create_connection(("127.0.0.1", node.port), timeout=1.0).close()
    except OSError:
        return False
    return True


def send_signal(node: Node, number: signal.Signals) -> None:
    node._running().send_signal(number)


def await_exit(node: Node, timeout_s: float) -> int:
    eventually(lambda: node.exit_code() is not None, timeout_s)
    return node.exit_code()


def strange_lines(node: Node) -> list[str]:
    """What the node wrote that is no log line of its own."""
    lines = node.log.read_text().splitlines()[1:]
    return [line for line in lines if not LOG_LINE.match(line) and not EXCEPTION_LINE.match(line)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_last_writes_reach_the_peers_and_the_process_ends_with_0(host: Host, number: signal.Signals) -> None:
    node = host.add(f"stopped by {number.name}")
    host.cluster.app_at(host.app, node).put(f"just before {number.name}", b"x")
    send_signal(node, number)
    assert await_exit(node, MARGIN_S) == 0
    assert eventually(lambda: host.client.get(f"just before {number.name}")) == b"x"
    assert strange_lines(node) == []
    host.cluster.retire(node)


def test_a_request_that_is_running_is_finished_and_no_new_one_is_begun(host: Host) -> None:
    node = host.add("with a request running")
    with SlowPut(host.app, node.target(), "slow", b"but stored") as put:
        put.send_half()
        time.sleep(0.3)
        send_signal(node, signal.SIGTERM)
        eventually(lambda: not accepts_connections(node))
        assert node.exit_code() is None
        assert put.send_rest() == 200
    assert await_exit(node, MARGIN_S) == 0
    assert eventually(lambda: host.client.get("slow")) == b"but stored", "pushed once more after the last request"
    assert strange_lines(node) == []
    host.cluster.retire(node)


def test_a_request_that_never_ends_does_not_hold_up_the_end(host: Host) -> None:
    node = host.add("with a request stuck")
    with SlowPut(host.app, node.target(), "stuck", b"x") as put:
        put.send_half()
        time.sleep(0.3)
        send_signal(node, signal.SIGTERM)
        send_signal(node, signal.SIGTERM)
        assert await_exit(node, DEADLINES_S + MARGIN_S) == 0
    assert strange_lines(node) == []
    host.cluster.retire(node)


def test_no_secret_is_in_the_log_at_any_level(host: Host) -> None:
    node = host.add("talkative", env={"LOG_LEVEL": "DEBUG"})
    client = host.cluster.app_at(host.app, node)
    client.put("name-that-nobody-logs", b"value-that-nobody-logs")
    derived = client.derive("path-that-nobody-logs")
    _, secret = peer_of_our_own(host.cluster, node)
    send_signal(node, signal.SIGTERM)
    assert await_exit(node, DEADLINES_S + MARGIN_S) == 0
    secrets = {
        "master secret": secret,
        "sync key": wire.derive_sync_key(secret),
        "data key": wire.derive_data_key(secret, host.app.app_id),
        "derived key": derived,
    }
    log = node.log.read_text()
    for name, data in secrets.items():
        for text in (data.hex(), data.hex().upper(), base64.b64encode(data).decode(), repr(data)):
            assert text not in log, name
    assert "that-nobody-logs" not in log
    assert strange_lines(node) == []
    host.cluster.retire(node)


def test_a_peer_that_does_not_answer_holds_up_the_end_for_its_deadline_only(cluster: Cluster) -> None:
    node = cluster.add_nova("node", env=NO_TICK)
    hole = cluster.proxy(node.port)
    hole.blackhole()
    cluster.register_peer(hole.url)
    eventually(lambda: node.status()["cluster"]["total_instances"] == 2)
    cluster.app_at(cluster.register_app(), node).put("for the black hole", b"x")
    send_signal(node, signal.SIGTERM)
    assert await_exit(node, DEADLINES_S + MARGIN_S) == 0
    assert strange_lines(node) == []


class TestBeforeItServes:
    def test_a_node_that_is_not_registered_ends_at_once(self, host: Host) -> None:
        node = host.cluster.nova("stranger", env={"LOG_FORMAT": "json"})
        node.start()
        node.await_status()
        send_signal(node, signal.SIGTERM)
        assert await_exit(node, MARGIN_S) == 0
        lines = [json.loads(line) for line in node.log.read_text().splitlines()[1:]]
        assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)

    def test_a_node_that_waits_for_its_chain_ends_at_once(self, host: Host) -> None:
        hole = host.cluster.proxy(host.node.port)
        hole.blackhole()
        node = host.cluster.nova("chainless", env={"HELIOS_RPC_URL": hole.url})
        node.start()
        node.await_status()
        send_signal(node, signal.SIGTERM)
        assert await_exit(node, MARGIN_S) == 0
        assert strange_lines(node) == []

    def test_a_node_that_joins_from_a_peer_that_hangs_ends_at_once(self, cluster: Cluster) -> None:
        legacy = cluster.add_legacy("legacy", env={"LEGACY_SECRET": "hang"})
        node = started_and_admitted(cluster, cluster.nova("joiner"))
        eventually(lambda: legacy.journal("master_secret_request"))
        send_signal(node, signal.SIGTERM)
        assert await_exit(node, MARGIN_S) == 0
        assert strange_lines(node) == []

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_node_that_waits_for_its_runtime_ends_at_once(self, host: Host, number: signal.Signals) -> None:
        runtime = Runtime(host.cluster)
        runtime.line.cut()
        node = host.cluster.nova(f"keyless {number.name}", env=runtime.environment)
        node.start()
        eventually(lambda: "waiting for the TEE provider" in node.log_tail())
        send_signal(node, number)
        code = await_exit(node, MARGIN_S)
        runtime.stop()
        assert strange_lines(node) == []
        assert code == 0, "node §3: shutdown on SIGTERM exits 0"

    def test_a_node_that_lost_its_runtime_ends_with_0(self, cluster: Cluster) -> None:
        runtime = Runtime(cluster)
        node = cluster.add_nova("orphan", env=runtime.environment)
        runtime.line.cut()
        send_signal(node, signal.SIGTERM)
        code = await_exit(node, DEADLINES_S + MARGIN_S)
        runtime.stop()
        assert strange_lines(node) == []
        assert code == 0
