"""Whole clusters of real processes: a private chain, our nodes, older peers, apps, and lines that can fail.

`Cluster` is a context manager that ends everything it started. Every node writes its output to a file of its own, which
the fixtures of tests/integration print when a test fails.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import httpx

from appliance.devnet.anvil import free_port
from tests.support import wire
from tests.support.chaos import ChaosProxy
from tests.support.local_chain import CHAIN_ID, KMS_APP_ID, ROOT, STOPPED, LocalChain
from tests.support.processes import stop_process
from tests.support.raw_client import RawApp, RawIdentity, RawPeer, Target, request

__all__ = ["AppHandle", "ChaosProxy", "Cluster", "Node", "eventually"]

TICK_S = "0.5"
START_TIMEOUT_S = 40.0
AVAILABLE_TIMEOUT_S = 40.0
POLL_S = 0.1

NOVA_COMMAND = [str(Path(sys.executable).with_name("nova-kms")), "serve"]
LEGACY_COMMAND = [sys.executable, "-m", "tests.support.legacy_node"]

Value = TypeVar("Value")


def eventually(probe: Callable[[], Value], timeout_s: float = 20.0) -> Value:
    """The first true value of `probe`; a failed assertion or connection inside it means not yet.

    AssertionError with the last thing seen when `timeout_s` has passed.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            value = probe()
            seen: object = value
        except (AssertionError, httpx.HTTPError) as error:
            value, seen = None, error
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s; last seen: {seen!r}")
        time.sleep(POLL_S)


@dataclass(frozen=True)
class AppHandle:
    """A registered app instance."""

    identity: RawIdentity
    app_id: int
    version_id: int
    instance_id: int


class Node:
    """One node process, ours or an older peer. `url` leads straight to it, `public_url` is what the chain lists."""

    def __init__(self, name: str, command: list[str], env: Mapping[str, str], directory: Path) -> None:
        self.name = name
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.proxy: ChaosProxy | None = None
        self.log = directory / f"{name}.log"
        self.journal_path = directory / f"{name}.journal"
        self.instance_id = 0
        self.starts = 0
        self._command = command
        self._env = {**env, "BIND_ADDR": f"127.0.0.1:{self.port}", "LEGACY_JOURNAL": str(self.journal_path)}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def public_url(self) -> str:
        return self.url if self.proxy is None else self.proxy.url

    # --- the process ---

    def start(self, env: Mapping[str, str] | None = None) -> None:
        """Start it; `env` changes variables for this start and later ones."""
        self._env.update(env or {})
        self._env["NODE_INSTANCE_URL"] = self.public_url
        self.starts += 1
        with self.log.open("ab") as log:
            log.write(f"--- start {self.starts}\n".encode())
            log.flush()
            self._process = subprocess.Popen(self._command, env=self._env, cwd=ROOT, stdout=log, stderr=log)

    def stop(self) -> int:
        """End it with SIGTERM as an operator would; its exit code."""
        return stop_process(self._running())

    def kill(self) -> None:
        self._running().kill()
        self._running().wait()

    def freeze(self) -> None:
        """SIGSTOP: connections are accepted by the kernel and nobody answers."""
        self._running().send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._running().send_signal(signal.SIGCONT)

    def exit_code(self) -> int | None:
        return self._running().poll()

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            stop_process(self._process, grace_s=3.0)

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, f"{self.name} was never started"
        return self._process

    # --- what it says ---

    def status(self) -> dict[str, dict[str, object]]:
        return request("GET", self.url + "/status").raise_for_status().json()

    def await_status(self) -> dict[str, dict[str, object]]:
        """/status as soon as it answers; AssertionError at once when the process has ended."""

        def answered() -> dict[str, dict[str, object]]:
            if (code := self.exit_code()) is not None:
                raise RuntimeError(f"{self.name} ended with {code}:\n{self.log_tail()}")
            return self.status()

        return eventually(answered, START_TIMEOUT_S)

    def available(self) -> bool:
        return self.status()["node"]["service_available"] is True

    def unavailable_reason(self) -> object:
        return self.status()["node"]["service_unavailable_reason"]

    def target(self) -> Target:
        return Target.of(self.url)

    def journal(self, kind: str | None = None) -> list[dict[str, object]]:
        """What an older peer noted of the /sync requests that it received, in order."""
        if not self.journal_path.exists():
            return []
        entries = [json.loads(line) for line in self.journal_path.read_text().splitlines()]
        return [entry for entry in entries if kind in (None, entry["type"])]

    def log_tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""


class Cluster:
    """A chain, its nodes and its apps. Everything it starts ends with it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.nodes: list[Node] = []
        self._exits = contextlib.ExitStack()
        self.chain = LocalChain()

    def __enter__(self) -> Self:
        self._exits.enter_context(self.chain)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self.nodes:
            node.close()
        self._exits.close()

    # --- nodes ---

    def nova(self, name: str, *, env: Mapping[str, str] | None = None, proxied: bool = False) -> Node:
        """One of our nodes, configured and not yet started."""
        return self._node(name, NOVA_COMMAND, env, proxied)

    def legacy(self, name: str, *, env: Mapping[str, str] | None = None, proxied: bool = False) -> Node:
        """An older peer, configured and not yet started."""
        return self._node(name, LEGACY_COMMAND, env, proxied)

    def add_nova(self, name: str, *, env: Mapping[str, str] | None = None, proxied: bool = False) -> Node:
        """One of our nodes: started, registered, available."""
        return self._add(self.nova(name, env=env, proxied=proxied))

    def add_legacy(self, name: str, *, env: Mapping[str, str] | None = None, proxied: bool = False) -> Node:
        """An older peer: started, registered, available."""
        return self._add(self.legacy(name, env=env, proxied=proxied))

    def admit(self, node: Node) -> None:
        """Register the running `node` on chain as it describes itself, with gas money in its wallet."""
        described = node.await_status()["node"]
        self.chain.fund(described["tee_wallet"])
        node.instance_id = self.chain.register_instance(
            KMS_APP_ID,
            self.chain.kms_version,
            node.public_url,
            wire.parse_hex(described["tee_pubkey"]),
            described["tee_wallet"],
        )

    def readmit(self, node: Node) -> None:
        """Register `node`, restarted with keys of a new boot, in the place of its former instance."""
        self.chain.set_instance_status(node.instance_id, STOPPED)
        self.admit(node)

    def retire(self, node: Node) -> None:
        """End `node` for good and say so on chain."""
        node.close()
        self.chain.set_instance_status(node.instance_id, STOPPED)

    def await_available(self, *nodes: Node, timeout_s: float = AVAILABLE_TIMEOUT_S) -> None:
        for node in nodes:
            eventually(lambda node=node: self._available(node), timeout_s)

    def proxy(self, port: int) -> ChaosProxy:
        """A line to a port of this machine that can be made to fail, for as long as the cluster lives."""
        return self._exits.enter_context(ChaosProxy("127.0.0.1", port))

    def _available(self, node: Node) -> bool:
        assert node.available(), f"{node.name} says: {node.unavailable_reason()}"
        return True

    def _add(self, node: Node) -> Node:
        node.start()
        self.admit(node)
        self.await_available(node)
        return node

    def _node(self, name: str, command: list[str], env: Mapping[str, str] | None, proxied: bool) -> Node:
        node = Node(name, command, {**self.environment(), **(env or {})}, self.directory)
        if proxied:
            node.proxy = self.proxy(node.port)
        self.nodes.append(node)
        return node

    def environment(self) -> dict[str, str]:
        """The variables of node.md §4 for this chain, with short intervals and no rate limits."""
        return {
            "PATH": os.environ["PATH"],
            # The tree under test, when it is not the installed one.
            **{name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ},
            "HOME": os.environ.get("HOME", "/"),
            "IN_ENCLAVE": "false",
            "TEE_PROVIDER": "software",
            "HELIOS_RPC_URL": self.chain.url,
            "CHAIN_ID": str(CHAIN_ID),
            "CHAIN_CONFIRMATIONS": "0",
            "NOVA_APP_REGISTRY_ADDRESS": self.chain.app_registry,
            "KMS_REGISTRY_ADDRESS": self.chain.kms_registry,
            "KMS_APP_ID": str(KMS_APP_ID),
            "KMS_NODE_TICK_SECONDS": TICK_S,
            "DATA_SYNC_INTERVAL_SECONDS": TICK_S,
            "ANTI_ENTROPY_INTERVAL_SECONDS": "2",
            "RATE_LIMIT_PER_MINUTE": "0",
            "NONCE_RATE_LIMIT_PER_MINUTE": "0",
            "LOG_LEVEL": "DEBUG",
        }

    # --- apps and peers made by hand ---

    def register_app(self) -> AppHandle:
        """A new app with one active, verified instance."""
        app_id, version_id = self.chain.create_app()
        identity = RawIdentity()
        instance_id = self.chain.register_instance(
            app_id, version_id, "https://app.invalid", identity.tee.der, identity.address
        )
        return AppHandle(identity, app_id, version_id, instance_id)

    def app_at(self, app: AppHandle, node: Node, label: str = wire.CAPSULE_LABEL) -> RawApp:
        return RawApp(app.identity, node.target(), label=label)

    def register_peer(self, url: str = "http://127.0.0.1:9") -> RawIdentity:
        """A KMS instance on chain whose keys the test holds; by default nobody listens at its URL."""
        identity = RawIdentity()
        self.chain.register_instance(KMS_APP_ID, self.chain.kms_version, url, identity.tee.der, identity.address)
        return identity

    def peer_at(self, identity: RawIdentity, node: Node, label: str = wire.CAPSULE_LABEL) -> RawPeer:
        return RawPeer(identity, node.target(), label)

    # --- what a failed test prints ---

    def logs(self) -> list[tuple[str, str]]:
        return [(node.name, node.log_tail()) for node in self.nodes]
