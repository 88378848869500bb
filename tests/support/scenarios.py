"""Steps that the tests of whole clusters share, on top of `tests.support.cluster`."""

import anyio

from appliance.devnet.anvil import Anvil
from tests.support import wire
from tests.support.cluster import AppHandle, Cluster, Node, eventually
from tests.support.local_chain import KMS_APP_ID, LocalChain
from tests.support.odyn_emulator import OdynEmulator, OdynServer
from tests.support.raw_client import RawApp, RawPeer, request, wire_record

UNAVAILABLE = "service_unavailable"


def start_together(cluster: Cluster, *nodes: Node) -> None:
    """Start all of `nodes` and register them before any of them can look at the chain again."""
    for node in nodes:
        node.start()
    described = [node.await_status()["node"] for node in nodes]
    for node in nodes:
        node.freeze()
    for node, identity in zip(nodes, described, strict=True):
        register(cluster, node, identity)
    for node in nodes:
        node.thaw()


def register(cluster: Cluster, node: Node, identity: dict[str, object], *, wei: int = 10**18) -> None:
    """Register `node` as its /status described it, with so much gas money."""
    cluster.chain.fund(identity["tee_wallet"], wei)
    node.instance_id = cluster.chain.register_instance(
        KMS_APP_ID,
        cluster.chain.kms_version,
        node.public_url,
        wire.parse_hex(identity["tee_pubkey"]),
        identity["tee_wallet"],
    )


def started_and_admitted(cluster: Cluster, node: Node) -> Node:
    node.start()
    cluster.admit(node)
    return node


def await_reason(node: Node, reason: str, timeout_s: float = 20.0) -> None:
    """Wait until /status gives `reason` for not serving."""

    def says_so() -> bool:
        found = node.unavailable_reason()
        assert found == reason, f"{node.name} says {found!r}, expected {reason!r}"
        return True

    eventually(says_so, timeout_s)


def know_each_other(*nodes: Node) -> None:
    """Wait until each of `nodes` lists at least that many members."""

    def all_know() -> bool:
        return all(node.status()["cluster"]["total_instances"] >= len(nodes) for node in nodes)

    eventually(all_know)


def push_progress(node: Node, peer: Node) -> dict[str, object]:
    """What `node` shows in /nodes of its pushes to `peer`; empty while it shows nothing."""
    operators = request("GET", node.url + "/nodes").raise_for_status().json()["operators"]
    for operator in operators:
        if operator["instance"]["instance_id"] == peer.instance_id:
            return operator.get("push", {})
    return {}


def acknowledged(node: Node, peer: Node) -> bool:
    """Whether `peer` has acknowledged everything that `node` has to push."""
    progress = push_progress(node, peer)
    return bool(progress) and progress["acknowledged_seq"] == progress["last_seq"]


def agree(*clients: RawApp, timeout_s: float = 20.0) -> dict[str, bytes | None]:
    """The contents that all of `clients` see, as soon as they are the same."""

    def same() -> list[dict[str, bytes | None]]:
        contents = [client.contents() for client in clients]
        assert all(content == contents[0] for content in contents), contents
        return contents

    return eventually(same, timeout_s)[0]


def peer_of_our_own(cluster: Cluster, node: Node) -> tuple[RawPeer, bytes]:
    """A hand-made peer that `node` knows, and the master secret that it was given."""
    peer = cluster.peer_at(cluster.register_peer(), node)
    return peer, eventually(peer.fetch_master_secret)


def fill(peer: RawPeer, secret: bytes, app: AppHandle, count: int, *, batch: int = 500) -> dict[str, bytes]:
    """Push `count` records of `app` through `peer`; what an app must find afterwards."""
    data_key, sync_key = wire.derive_data_key(secret, app.app_id), wire.derive_sync_key(secret)
    values = {f"filled/{number:05}": f"value {number}".encode() for number in range(count)}
    names = list(values)
    for start in range(0, count, batch):
        records = [
            wire_record(name, wire.encrypt_value(data_key, values[name]), {"by hand": 1})
            for name in names[start : start + batch]
        ]
        answer = peer.push(sync_key, app.app_id, *records)
        assert answer["merged"] == len(records), answer
    return values


class Runtime:
    """An emulated platform runtime whose keys outlive the node, on a line that can be cut."""

    def __init__(self, cluster: Cluster) -> None:
        self.emulator = OdynEmulator()
        self._server = OdynServer(self.emulator).start()
        self.line = cluster.proxy(int(self._server.url.rsplit(":", 1)[1]))

    @property
    def environment(self) -> dict[str, str]:
        return {"TEE_PROVIDER": "odyn", "ODYN_URL": self.line.url}

    def stop(self) -> None:
        self._server.stop()


def restore_chain(chain: LocalChain, state: object) -> None:
    """Start anvil anew on its old port with what `anvil_dumpState` gave."""
    chain.anvil = Anvil(chain.anvil.port)
    anyio.run(chain.anvil.wait_ready)
    assert chain.rpc("anvil_loadState", state) is True
