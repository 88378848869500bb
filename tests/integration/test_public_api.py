"""What anyone may ask, how routes and methods are refused, and a node that is not ready (protocol §5-§7, node §2)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from tests.support import wire
from tests.support.api_bench import (
    BAD_REQUEST,
    NOT_FOUND,
    UNAVAILABLE,
    ApiBench,
    assert_error_shape,
    assert_refused,
    bench_of,
    exchange,
)
from tests.support.cluster import Cluster, Node, eventually
from tests.support.local_chain import ACTIVE, KMS_APP_ID
from tests.support.raw_client import RawApp, RawPeer, fetch_nonce, request

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("public_api")]

WALLET = re.compile("0x[0-9a-f]{40}")
ROUTES = {
    "/": {"GET", "HEAD"},
    "/health": {"GET", "HEAD"},
    "/status": {"GET", "HEAD"},
    "/nodes": {"GET", "HEAD"},
    "/nonce": {"GET"},
    "/attestation": {"GET"},
    "/kms/derive": {"POST"},
    "/kms/data": {"GET", "PUT", "DELETE"},
    "/kms/data/some/key": {"GET"},
    "/sync": {"POST"},
}
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND")
NO_ROUTES = (
    "/nothing",
    "/health/",
    "/Health",
    "/status/x",
    "/nonce/",
    "/kms",
    "/kms/",
    "/kms/derive/",
    "/kms/derive/x",
    "/sync/",
    "/docs",
    "/redoc",
    "/.env",
    "/%",
    "/%FF",
    "/\u00e9",
    "//",
    "/../health",
    "/" + "a" * 10_000,
)


@dataclass
class PublicBench(ApiBench):
    """`stranger` runs and is not registered."""

    stranger: Node


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PublicBench]:
    with Cluster(tmp_path_factory.mktemp("public-api")) as cluster:
        stranger = cluster.nova("stranger")
        stranger.start()
        base = bench_of(cluster, cluster.add_nova("nova"))
        stranger.await_status()
        eventually(lambda: stranger.unavailable_reason() == "self not in KMS node list")
        yield PublicBench(**vars(base), stranger=stranger)
        base.assert_no_bug_was_logged()


def get(bench: ApiBench, path: str) -> dict[str, object]:
    response = request("GET", bench.node.url + path)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    return response.json()


class TestOpenEndpoints:
    def test_health(self, bench: ApiBench) -> None:
        assert get(bench, "/health") == {"status": "healthy"}

    def test_nonces_are_all_different_and_not_to_be_cached(self, bench: ApiBench) -> None:
        nonces = [get(bench, "/nonce") for _ in range(50)]
        assert all(set(answer) == {"nonce"} for answer in nonces)
        texts = {answer["nonce"] for answer in nonces}
        assert len(texts) == len(nonces)
        assert all(len(wire.parse_base64(text)) >= 32 for text in texts)

    def test_the_overview_names_every_endpoint(self, bench: ApiBench) -> None:
        text = request("GET", bench.node.url + "/").text
        get(bench, "/")
        for path in ("/health", "/status", "/nodes", "/nonce", "/kms/derive", "/kms/data", "/sync"):
            assert path in text

    def test_status_has_the_members_of_the_protocol(self, bench: ApiBench) -> None:
        status = get(bench, "/status")
        assert set(status) >= {"node", "cluster", "data_store"}
        node, cluster, store = status["node"], status["cluster"], status["data_store"]
        assert WALLET.fullmatch(node["tee_wallet"])
        assert wire.parse_tee_pubkey(bytes.fromhex(node["tee_pubkey"])).hex() == node["tee_pubkey"]
        assert node["node_url"] == bench.node.url
        assert node["is_operator"] is True
        assert node["service_available"] is True
        assert node["service_unavailable_reason"] is None
        assert node["master_secret"] == {"state": "generated", "synced_from": None}
        assert node["master_secret_initialized"] is True
        assert cluster["kms_app_id"] == KMS_APP_ID
        assert cluster["registry_address"].lower() == bench.cluster.chain.app_registry.lower()
        assert cluster["total_instances"] == 2
        assert set(store) == {"namespaces", "total_keys", "total_bytes"}

    def test_status_counts_what_is_stored(self, bench: ApiBench) -> None:
        before = get(bench, "/status")["data_store"]
        app = bench.new_app()
        app.put("key", bytes(100))
        after = get(bench, "/status")["data_store"]
        assert after["namespaces"] == before["namespaces"] + 1
        assert after["total_keys"] == before["total_keys"] + 1
        assert after["total_bytes"] == before["total_bytes"] + len("key") + 28 + 100 + 128
        app.delete("key")
        assert get(bench, "/status")["data_store"] == before

    def test_nodes_lists_the_peer_cache(self, bench: ApiBench) -> None:
        def probed() -> dict[str, object]:
            answer = get(bench, "/nodes")
            assert {entry["connection"]["status_endpoint_reachable"] for entry in answer["operators"]} == {None, False}
            return answer

        answer = eventually(probed)
        assert answer["count"] == len(answer["operators"]) == 2
        entries = {entry["instance"]["tee_wallet"]: entry for entry in answer["operators"]}
        assert set(entries) == {bench.target.wallet, bench.peer.identity.address}
        for wallet, entry in entries.items():
            instance = entry["instance"]
            assert instance["app_id"] == KMS_APP_ID
            assert instance["version_id"] == bench.cluster.chain.kms_version
            assert instance["operator"].lower() == bench.cluster.chain.owner.lower()
            assert instance["zk_verified"] is True
            assert instance["instance_status"] == {"value": ACTIVE, "name": "ACTIVE"}
            assert type(instance["instance_id"]) is int
            assert type(instance["registered_at"]) is int
            assert entry["connection"]["in_peer_cache"] is True
            assert set(entry["connection"]) == {
                "in_peer_cache",
                "cached_status",
                "status_endpoint_reachable",
                "status_endpoint_http_code",
                "status_probe_ms",
                "status_checked_at_ms",
            }
            assert instance["instance_url"] == (
                bench.node.url if wallet == bench.target.wallet else "http://127.0.0.1:9"
            )

    def test_the_operator_of_a_node_is_its_wallet(self, bench: ApiBench) -> None:
        """As in `is_operator` and in the cluster's contract: whom the chain pays is inside `instance`."""
        for entry in get(bench, "/nodes")["operators"]:
            assert entry["operator"] == entry["instance"]["tee_wallet"]

    @pytest.mark.parametrize("path", ["/", "/health", "/status", "/nodes"])
    def test_head_is_get_without_a_body(self, bench: ApiBench, path: str) -> None:
        response = request("HEAD", bench.node.url + path)
        assert response.status_code == 200
        assert response.content == b""
        assert int(response.headers["content-length"]) > 0

    @pytest.mark.parametrize("path", ["/health?x=1", "/status?x=%FF", "/nodes?&&&", "/nonce?a=b"])
    def test_a_query_changes_nothing(self, bench: ApiBench, path: str) -> None:
        get(bench, path)

    def test_nothing_says_what_software_answers(self, bench: ApiBench) -> None:
        response = request("GET", bench.node.url + "/health")
        assert "server" not in response.headers
        assert "x-powered-by" not in response.headers

    def test_no_secret_is_shown(self, bench: ApiBench) -> None:
        shown = "".join(request("GET", bench.node.url + path).text for path in ("/", "/health", "/status", "/nodes"))
        for secret in (bench.master_secret, bench.sync_key):
            assert secret.hex() not in shown.lower()
            assert wire.encode_base64(secret) not in shown


BAD_ATTESTATION_NONCES = {
    "empty": "nonce=",
    "without a value": "nonce",
    "twice": "nonce=00&nonce=00",
    "65 bytes in hex": "nonce=" + "00" * 65,
    "65 bytes in base64": "nonce=" + "A" * 87 + "%3D",
    "neither hex nor base64": "nonce=%3F%3F",
    "not ASCII": "nonce=%C3%A9",
    "invalid UTF-8": "nonce=%FF",
    "very long": "nonce=" + "0" * 20_000,
}


class TestAttestation:
    @pytest.mark.parametrize("query", BAD_ATTESTATION_NONCES.values(), ids=BAD_ATTESTATION_NONCES)
    def test_a_nonce_that_is_none_is_refused(self, bench: ApiBench, query: str) -> None:
        assert_refused(request("GET", f"{bench.node.url}/attestation?{query}"), BAD_REQUEST)

    @pytest.mark.parametrize(
        "query", ["", "?nonce=00", "?nonce=0x" + "ab" * 64, "?nonce=AA%3D%3D", "?nonce=" + "A%2B" * 20, "?other=1"]
    )
    def test_a_node_attests_or_says_that_it_cannot(self, bench: ApiBench, query: str) -> None:
        response = request("GET", f"{bench.node.url}/attestation{query}")
        if response.status_code == 200:
            assert response.headers["content-type"] == "application/cbor"
        else:
            assert_refused(response, UNAVAILABLE)
            assert int(response.headers["retry-after"]) >= 1


class TestRoutes:
    @pytest.mark.parametrize("path", NO_ROUTES, ids=[path[:16] for path in NO_ROUTES])
    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_an_unknown_route_is_not_found(self, bench: ApiBench, method: str, path: str) -> None:
        response = exchange(bench.node.url, method, path, [("Content-Length", b"0")])
        if response.status_code == 400:  # not even a request target
            assert_error_shape(response)
        else:
            assert_refused(response, NOT_FOUND, sent=[path[1:]] if len(path) > 6 else [])

    @pytest.mark.parametrize(("path", "allowed"), ROUTES.items())
    def test_every_other_method_is_refused_with_those_allowed(
        self, bench: ApiBench, path: str, allowed: set[str]
    ) -> None:
        for method in sorted(set(METHODS) - allowed):
            response = exchange(bench.node.url, method, path, [("Content-Length", b"0")])
            assert response.status_code == 405, method
            assert set(response.headers["allow"].split(", ")) == allowed
            if method != "HEAD":
                assert response.json()["code"] == "method_not_allowed"
                assert_error_shape(response)

    def test_a_path_of_redirects_is_never_taken(self, bench: ApiBench) -> None:
        for path in ("/health/", "/kms/derive/", "/sync/"):
            assert "location" not in exchange(bench.node.url, "GET", path, []).headers


class TestNotReady:
    REASON = "self not in KMS node list"

    def assert_not_ready(self, response: httpx.Response, message: str | None) -> None:
        assert_refused(response, UNAVAILABLE)
        assert int(response.headers["retry-after"]) >= 1
        if message is not None:
            assert response.json()["message"] == message

    def test_open_endpoints_answer_all_the_same(self, bench: PublicBench) -> None:
        for path in ("/", "/health", "/status", "/nodes", "/nonce"):
            assert request("GET", bench.stranger.url + path).status_code == 200

    def test_status_says_why(self, bench: PublicBench) -> None:
        node = bench.stranger.status()["node"]
        assert node["service_available"] is False
        assert node["service_unavailable_reason"] == self.REASON
        assert node["is_operator"] is False
        assert node["master_secret_initialized"] is False
        assert node["master_secret"] == {"state": "uninitialized", "synced_from": None}

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("POST", "/kms/derive"),
            ("PUT", "/kms/data"),
            ("DELETE", "/kms/data"),
            ("GET", "/kms/data"),
            ("GET", "/kms/data/key"),
        ],
    )
    def test_apps_are_told_to_come_back(self, bench: PublicBench, method: str, path: str) -> None:
        """Readiness is the first check of all: not even headers are looked at."""
        self.assert_not_ready(request(method, bench.stranger.url + path), self.REASON)
        app = RawApp(bench.app.identity, bench.stranger.target())
        inner = None if method == "GET" else {"path": "p", "key": "k", "value": ""}
        self.assert_not_ready(app.send(method, path, inner).response, self.REASON)

    def test_peers_are_told_to_come_back(self, bench: PublicBench) -> None:
        self.assert_not_ready(request("POST", bench.stranger.url + "/sync"), None)
        peer = RawPeer(bench.peer.identity, bench.stranger.target())
        for inner in (
            {"type": "snapshot_request"},
            {"type": "delta", "data": {}},
            {"type": "master_secret_request", "ecdh_pubkey": wire.TeeKey().der.hex()},
        ):
            self.assert_not_ready(peer.sync(inner, bench.sync_key).response, None)

    def test_a_nonce_of_another_node_is_worth_nothing(self, bench: PublicBench) -> None:
        foreign = fetch_nonce(bench.stranger.url)
        assert bench.app.send("GET", "/kms/data", nonce=foreign).status == 403
