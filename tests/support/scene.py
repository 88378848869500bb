"""One running node and everything a test needs to ask it questions by hand."""

from tests.support import wire
from tests.support.cluster import AppHandle, Cluster, Node, eventually
from tests.support.raw_client import Answer, RawPeer, wire_record

DERIVE = {"path": "disk"}
WINDOW_S = 120


class Scene:
    """One node of ours, an app, a peer whose keys we hold, and the secret of the cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.node: Node = cluster.add_nova("nova", env={"POP_MAX_AGE_SECONDS": str(WINDOW_S)})
        self.app: AppHandle = cluster.register_app()
        self.other: AppHandle = cluster.register_app()
        self.at_node = cluster.app_at(self.app, self.node)
        self.target = self.at_node.target
        peer_identity = cluster.register_peer()
        self.peer: RawPeer = cluster.peer_at(peer_identity, self.node)
        self.secret: bytes = eventually(self.peer.fetch_master_secret)
        self.sync_key = wire.derive_sync_key(self.secret)

    def derive(self, **replaced: object) -> Answer:
        return self.at_node.send("POST", "/kms/derive", DERIVE, **replaced)

    def snapshot(self, **replaced: object) -> Answer:
        return self.peer.sync({"type": "snapshot_request"}, self.sync_key, **replaced)

    def record(self, key: str, **changed: object) -> dict[str, object]:
        ciphertext = wire.encrypt_value(wire.derive_data_key(self.secret, self.app.app_id), b"value")
        return {**wire_record(key, ciphertext, {"hand made": 1}), **changed}


def refused(answer: Answer, status: int, code: str) -> None:
    """The answer is this error and nothing but a machine word and a sentence."""
    assert (answer.status, answer.code) == (status, code), answer.response.text
    assert answer.response.headers["Content-Type"] == "application/json"
    body = answer.response.json()
    assert body.keys() == {"code", "message"}
    assert body["message"]


def forbidden(answer: Answer) -> None:
    refused(answer, 403, "forbidden")


def bad_request(answer: Answer) -> None:
    refused(answer, 400, "bad_request")
