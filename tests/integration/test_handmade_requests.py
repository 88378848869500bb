"""A running node against bodies, fields and records of every shape, and the form of its answers (protocol §4-§7)."""

import hashlib
import json
import time

import pytest

from tests.support import wire
from tests.support.raw_client import Answer, fetch_nonce, request, seal, wire_record
from tests.support.scene import DERIVE, Scene, bad_request, forbidden, refused

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("handmade_requests")]


class TestBodies:
    @pytest.mark.parametrize(
        "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"]
    )
    def test_another_media_type(self, scene: Scene, content_type: str | None) -> None:
        refused(scene.derive(headers={"Content-Type": content_type}), 415, "unsupported_media_type")

    def test_a_charset_is_no_other_media_type(self, scene: Scene) -> None:
        assert scene.derive(headers={"Content-Type": "application/json; charset=utf-8"}).status == 200

    def test_a_body_over_the_limit(self, scene: Scene) -> None:
        refused(scene.derive(body=b" " * ((4 << 20) + 1)), 413, "payload_too_large")

    def test_the_largest_value_is_accepted_and_one_byte_more_is_not(self, scene: Scene) -> None:
        scene.at_node.put("largest", bytes(1 << 20))
        assert scene.at_node.get("largest") == bytes(1 << 20)
        value = wire.encode_base64(bytes((1 << 20) + 1))
        bad_request(scene.at_node.send("PUT", "/kms/data", {"key": "larger", "value": value}))
        assert scene.at_node.get("larger") is None
        assert scene.at_node.delete("largest")


VALUE = wire.encode_base64(b"value")


class TestFields:
    @pytest.mark.parametrize(
        "inner",
        [
            {},
            {"path": ""},
            {"path": 5},
            {"path": None},
            {"path": "x", "context": 5},
            {"path": "x", "context": None},
            {"path": "x", "length": 0},
            {"path": "x", "length": 1025},
            {"path": "x", "length": -1},
            {"path": "x", "length": True},
            {"path": "x", "length": 32.0},
            {"path": "x", "length": "0x20"},
            {"path": "x", "length": " 32"},
            {"path": "x", "length": ""},
            {"path": "x", "length": [32]},
            [],
            "text",
            None,
        ],
        ids=json.dumps,
    )
    def test_derive_refuses(self, scene: Scene, inner: object) -> None:
        bad_request(
            scene.at_node.send("POST", "/kms/derive", envelope=seal(scene.app.identity, scene.target.tee_pubkey, inner))
        )

    def test_derive_accepts_a_decimal_string_and_defaults(self, scene: Scene) -> None:
        answer = scene.at_node.send("POST", "/kms/derive", {"path": "disk", "length": "48"})
        assert answer.inner["length"] == 48
        assert scene.at_node.send("POST", "/kms/derive", DERIVE).inner["length"] == 32
        assert scene.at_node.derive("disk", "v1") == scene.at_node.derive("disk:v1")
        assert scene.at_node.derive("disk") == wire.derive_key(scene.secret, scene.app.app_id, "disk")

    @pytest.mark.parametrize(
        "inner",
        [
            {"value": VALUE},
            {"key": "", "value": VALUE},
            {"key": 7, "value": VALUE},
            {"key": "k" * 1025, "value": VALUE},
            {"key": "é" * 513, "value": VALUE},
            {"key": "k"},
            {"key": "k", "value": 7},
            {"key": "k", "value": "dmFsdWU"},
            {"key": "k", "value": "dmFs dWU="},
            {"key": "k", "value": "dmFsdW-_"},
            {"key": "k", "value": "dmFsdWV="},
            {"key": "k", "value": "YWJj="},
            {"key": "k", "value": VALUE, "ttl_ms": -1},
            {"key": "k", "value": VALUE, "ttl_ms": True},
            {"key": "k", "value": VALUE, "ttl_ms": 1.5},
            {"key": "k", "value": VALUE, "ttl_ms": "soon"},
            {"key": "k", "value": VALUE, "ttl_ms": 2**70},
        ],
        ids=lambda inner: json.dumps(inner)[:60],
    )
    def test_put_refuses_and_changes_nothing(self, scene: Scene, inner: dict[str, object]) -> None:
        def stored() -> object:
            answer = scene.at_node.send("GET", "/kms/data/k")
            return answer.inner and answer.inner["updated_at_ms"]

        before = stored()
        bad_request(scene.at_node.send("PUT", "/kms/data", inner))
        assert stored() == before

    def test_keys_of_every_shape_are_found_again(self, scene: Scene) -> None:
        for key in (
            "a/b/c",
            "/",
            "//",
            "a b",
            "a+b",
            "100%",
            "%2F",
            "日本",
            "k" * 1024,
            "a?b=c",
            "a#b",
            "\x00",
            "key",
        ):
            scene.at_node.put(key, key.encode())
            assert scene.at_node.get(key) == key.encode()
            assert scene.at_node.delete(key)

    def test_a_path_key_is_looked_up_literally_first_and_then_with_plus_as_space(self, scene: Scene) -> None:
        scene.at_node.put("a b", b"space")
        assert scene.at_node.send("GET", "/kms/data/a+b").inner["value"] == wire.encode_base64(b"space")
        scene.at_node.put("a+b", b"plus")
        assert scene.at_node.send("GET", "/kms/data/a+b").inner["value"] == wire.encode_base64(b"plus")
        assert scene.at_node.send("GET", "/kms/data?key=a%20b").inner["value"] == wire.encode_base64(b"space")
        scene.at_node.put("..", b"dots")
        assert scene.at_node.send("GET", "/kms/data?key=..").inner["value"] == wire.encode_base64(b"dots")
        assert scene.at_node.delete("..")
        assert scene.at_node.delete("a b")
        assert scene.at_node.delete("a+b")


class TestAnswers:
    def test_an_answer_names_its_request_and_brings_the_next_nonce(self, scene: Scene) -> None:
        nonce = fetch_nonce(scene.target.url)
        answer = scene.derive(nonce=nonce)
        assert answer.inner["answer_to"] == nonce
        assert scene.derive(nonce=answer.response.headers["X-KMS-Next-Nonce"]).status == 200

    def test_a_refusal_after_authentication_is_signed_with_its_status_and_body(self, scene: Scene) -> None:
        for answer in (
            scene.at_node.send("GET", "/kms/data/absent"),
            scene.at_node.send("POST", "/kms/derive", {"path": ""}),
            scene.at_node.send("DELETE", "/kms/data", {"key": "absent"}),
        ):
            headers, body = answer.response.headers, answer.response.content
            response = wire.response_text(answer.signature, scene.target.wallet)
            assert wire.recover_signer(response, headers["X-KMS-Response-Signature"]) == scene.target.wallet
            body_sha256 = hashlib.sha256(body).hexdigest()
            text = f"NovaKMS:Answer:{answer.signature}:{answer.status}:{body_sha256}:{scene.target.wallet}"
            assert wire.recover_signer(text, headers["X-KMS-Answer-Signature"]) == scene.target.wallet

    def test_a_refusal_before_authentication_is_not_signed(self, scene: Scene) -> None:
        answer = scene.derive(nonce="AAAA")
        assert not {"x-kms-response-signature", "x-kms-answer-signature", "x-kms-next-nonce"} & set(
            answer.response.headers
        )

    def test_unknown_routes_and_methods(self, scene: Scene) -> None:
        for method, path, status, code in (
            ("GET", "/nowhere", 404, "not_found"),
            ("GET", "/sync", 405, "method_not_allowed"),
            ("POST", "/kms/data", 405, "method_not_allowed"),
            ("DELETE", "/nonce", 405, "method_not_allowed"),
        ):
            refused(Answer(request(method, scene.target.url + path), ""), status, code)

    def test_public_endpoints(self, scene: Scene) -> None:
        assert request("GET", scene.target.url + "/health").json() == {"status": "healthy"}
        status = request("GET", scene.target.url + "/status").json()
        assert status.keys() >= {"node", "cluster", "data_store"}
        assert status["node"].keys() >= {
            "tee_wallet",
            "tee_pubkey",
            "node_url",
            "is_operator",
            "service_available",
            "service_unavailable_reason",
            "master_secret",
            "master_secret_initialized",
        }
        assert status["cluster"].keys() >= {"kms_app_id", "registry_address", "total_instances"}
        assert status["data_store"].keys() >= {"namespaces", "total_keys", "total_bytes"}
        assert isinstance(request("GET", scene.target.url + "/").json(), dict)


class TestSync:
    @pytest.mark.parametrize("mac", [None, "", "00", "00" * 32, "zz" * 32])
    def test_a_wrong_mac(self, scene: Scene, mac: str | None) -> None:
        forbidden(scene.snapshot(headers={"X-Sync-Signature": mac}))
        delta = {"type": "delta", "data": {str(scene.app.app_id): [scene.record("without mac")]}}
        forbidden(scene.peer.sync(delta, scene.sync_key, headers={"X-Sync-Signature": mac}))
        assert scene.at_node.get("without mac") is None

    def test_a_master_secret_request_may_carry_a_wrong_mac_but_needs_its_key(self, scene: Scene) -> None:
        ephemeral = wire.TeeKey()
        for ecdh_pubkey in (ephemeral.der.hex(), ephemeral.sec1.hex(), "0x" + ephemeral.der.hex().upper()):
            answer = scene.peer.sync({"type": "master_secret_request", "ecdh_pubkey": ecdh_pubkey}, bytes(32))
            assert wire.open_master_secret(answer.inner["sealed"], ephemeral) == scene.secret
        for ecdh_pubkey in (None, "", "00", ephemeral.der.hex()[:-2], 7, "04" + "11" * 96):
            bad_request(scene.peer.sync({"type": "master_secret_request", "ecdh_pubkey": ecdh_pubkey}, bytes(32)))
        bad_request(scene.peer.sync({"type": "master_secret_request"}, scene.sync_key))

    def test_a_sender_wallet_that_is_not_the_signer(self, scene: Scene) -> None:
        for wallet in (scene.app.identity.address, None, "", 7):
            answer = scene.peer.sync({"type": "snapshot_request", "sender_wallet": wallet}, scene.sync_key)
            assert answer.status in (400, 403)
        wallet = wire.checksum_wallet(scene.peer.identity.address)
        assert scene.peer.sync({"type": "snapshot_request", "sender_wallet": wallet}, scene.sync_key).status == 200

    @pytest.mark.parametrize("kind", [None, "", "unknown", 7, ["delta"]])
    def test_an_unknown_type(self, scene: Scene, kind: object) -> None:
        bad_request(scene.peer.sync({"type": kind}, scene.sync_key))

    def test_good_records_are_merged_and_each_bad_one_is_counted(self, scene: Scene) -> None:
        future = time.time_ns() // 1_000_000 + 60_000
        bad = [
            scene.record("bad-future", updated_at_ms=future),
            scene.record("bad-ciphertext", value="00" * 40),
            scene.record("bad-hex", value="zz"),
            scene.record("bad-tombstone", tombstone=True),
            scene.record("bad-live", value=None),
            scene.record("bad-counter", version={"w": -1}),
            scene.record("bad-counter-type", version={"w": True}),
            scene.record("bad-counter-size", version={"w": 2**62 + 1}),
            scene.record("bad-version", version=[]),
            scene.record("bad-version-name", version={"w" * 129: 1}),
            scene.record("bad-ttl", ttl_ms=-1),
            scene.record("bad-time", updated_at_ms=1.5),
            scene.record("bad-too-large", value=bytes((1 << 20) + 29).hex()),
            {"key": "bad-members"},
            "not a record",
        ]
        good = [scene.record("good-1"), scene.record("good-2", version={"ключ": 2**62}), scene.record("k" * 2000)]
        answer = scene.peer.push(scene.sync_key, scene.app.app_id, good[0], *bad, *good[1:])
        assert (answer["status"], answer["total"], answer["merged"]) == ("ok", len(good) + len(bad), len(good))
        assert (answer["skipped"], answer["rejected"]) == (0, len(bad))
        assert sum(answer["skip_reasons"].values()) == len(bad)
        keys = scene.at_node.keys()
        assert {"good-1", "good-2", "k" * 2000} <= set(keys)
        assert not any(key.startswith("bad") for key in keys)
        again = scene.peer.push(scene.sync_key, scene.app.app_id, *good)
        assert (again["merged"], again["skipped"], again["rejected"]) == (0, len(good), 0)
        assert again["skip_reasons"] == {"ignored_equal_version": len(good)}

    def test_a_key_over_our_own_limit_that_a_peer_brought_can_be_read_and_deleted(self, scene: Scene) -> None:
        key = "long" * 500
        scene.peer.push(scene.sync_key, scene.app.app_id, scene.record(key))
        assert scene.at_node.get(key) == b"value"
        assert scene.at_node.delete(key)

    @pytest.mark.parametrize("data", [None, [], "text", {"x": []}, {"-1": []}, {"1": {}}, {"01": []}])
    def test_data_of_another_shape(self, scene: Scene, data: object) -> None:
        bad_request(scene.peer.sync({"type": "delta", "data": data}, scene.sync_key))

    def test_a_snapshot_names_every_record_as_it_was_sent(self, scene: Scene) -> None:
        live = scene.record("in snapshot", version={"0xAbC": 7, "b": 1})
        gone = wire_record("gone in snapshot", None, {"0xAbC": 9})
        scene.peer.push(scene.sync_key, scene.app.app_id, live, gone)
        records = scene.peer.snapshot(scene.sync_key)[str(scene.app.app_id)]
        assert live in records
        assert gone in records

    def test_answers_announce_the_extensions(self, scene: Scene) -> None:
        inner = scene.snapshot().inner
        assert isinstance(inner["ext"], list)
        assert isinstance(inner["boot_id"], str)
