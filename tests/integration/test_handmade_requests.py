"""A running node against requests crafted field by field: what it must refuse and what it must not (protocol §2-§7)."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support import wire
from tests.support.cluster import AppHandle, Cluster, Node, eventually
from tests.support.raw_client import (
    PEER,
    Answer,
    Caller,
    RawIdentity,
    RawPeer,
    fetch_nonce,
    pop_headers,
    request,
    seal,
    wire_record,
)

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("handmade")]

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


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with Cluster(tmp_path_factory.mktemp("handmade")) as cluster:
        yield Scene(cluster)


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


# --- proof of possession, the same for both kinds of callers ---

Sender = Callable[..., Answer]


@pytest.fixture(params=["app", "peer"])
def send(request: pytest.FixtureRequest, scene: Scene) -> Sender:
    """A correct request of an app or of a peer, to be spoilt by one keyword."""
    return scene.derive if request.param == "app" else scene.snapshot


@pytest.fixture
def prefix(send: Sender, scene: Scene) -> str:
    return "X-App-" if send == scene.derive else "X-KMS-"


@pytest.fixture
def signer(send: Sender, scene: Scene) -> RawIdentity:
    return scene.app.identity if send == scene.derive else scene.peer.identity


class TestProofOfPossession:
    def test_the_correct_request_is_answered(self, send: Sender) -> None:
        assert send().status == 200

    @pytest.mark.parametrize("name", ["Signature", "Nonce", "Timestamp"])
    def test_a_missing_header(self, send: Sender, prefix: str, name: str) -> None:
        forbidden(send(headers={prefix + name: None}))

    @pytest.mark.parametrize(
        "nonce", ["AAAA", "", "A" * 4000, wire.encode_base64(bytes(40)), "not base64!", wire.encode_base64(bytes(16))]
    )
    def test_a_foreign_nonce(self, send: Sender, nonce: str) -> None:
        forbidden(send(nonce=nonce))

    def test_a_nonce_with_one_bit_changed(self, send: Sender, scene: Scene) -> None:
        nonce = wire.parse_base64(fetch_nonce(scene.target.url))
        for place in (0, len(nonce) // 2, len(nonce) - 1):
            changed = nonce[:place] + bytes([nonce[place] ^ 1]) + nonce[place + 1 :]
            forbidden(send(nonce=wire.encode_base64(changed)))

    def test_a_nonce_twice(self, send: Sender, scene: Scene) -> None:
        nonce = fetch_nonce(scene.target.url)
        assert send(nonce=nonce).status == 200
        forbidden(send(nonce=nonce))

    def test_another_receiver(self, send: Sender, scene: Scene) -> None:
        forbidden(send(receiver=scene.app.identity.address))
        forbidden(send(receiver=wire.checksum_wallet(scene.target.wallet)))

    @pytest.mark.parametrize("age_s", [WINDOW_S + 10, -(WINDOW_S + 10)])
    def test_a_timestamp_outside_the_window(self, send: Sender, age_s: int) -> None:
        forbidden(send(timestamp=int(time.time()) - age_s))

    @pytest.mark.parametrize("age_s", [WINDOW_S - 10, -(WINDOW_S - 10)])
    def test_a_timestamp_near_the_edge_is_accepted(self, send: Sender, age_s: int) -> None:
        assert send(timestamp=int(time.time()) - age_s).status == 200

    @pytest.mark.parametrize("form", ["+{}", "-{}", "{}.0", "{}e0", "0x{:x}", "{}000", "{:_}", "later", ""])
    def test_a_timestamp_that_is_no_decimal_integer(self, send: Sender, form: str) -> None:
        forbidden(send(timestamp=form.format(int(time.time()))))

    def test_a_hint_that_is_not_the_signer(self, send: Sender, scene: Scene, prefix: str) -> None:
        forbidden(send(headers={prefix + "Wallet": scene.target.wallet}))
        forbidden(send(headers={prefix + "Wallet": "0x1234"}))

    def test_a_true_hint_in_every_form_is_accepted(self, send: Sender, prefix: str, signer: RawIdentity) -> None:
        wallet = signer.address
        for hint in (wallet, wire.checksum_wallet(wallet), wallet[2:], wallet[2:].upper()):
            assert send(headers={prefix + "Wallet": hint}).status == 200

    def test_headers_given_twice(self, send: Sender, scene: Scene, prefix: str) -> None:
        nonce = fetch_nonce(scene.target.url)
        forbidden(send(nonce=nonce, headers={prefix + "Nonce": f"{nonce}, {nonce}"}))

    @pytest.mark.parametrize("why", ["high s", "v 29", "64 bytes", "not hex", "empty"])
    def test_a_malformed_signature(
        self, send: Sender, scene: Scene, prefix: str, signer: RawIdentity, why: str
    ) -> None:
        flow = PEER if prefix == "X-KMS-" else scene.at_node.flow
        good = pop_headers(signer, flow, fetch_nonce(scene.target.url), scene.target.wallet)
        sig65 = wire.parse_hex(good[prefix + "Signature"])
        s = int.from_bytes(sig65[32:64], "big")
        high_s = sig65[:32] + (wire.SECP256K1_ORDER - s).to_bytes(32, "big") + bytes([sig65[64] ^ 1])
        bad = {
            "high s": "0x" + high_s.hex(),
            "v 29": "0x" + (sig65[:64] + b"\x1d").hex(),
            "64 bytes": "0x" + sig65[:64].hex(),
            "not hex": "0x" + "zz" * 65,
            "empty": "",
        }[why]
        forbidden(send(headers={**good, prefix + "Signature": bad}))

    @pytest.mark.parametrize(
        "form", [wire.SignatureForm(27, "0x"), wire.SignatureForm(0, ""), wire.SignatureForm(27, "")]
    )
    def test_every_form_of_signature_is_accepted_and_answered_as_sent(
        self, send: Sender, scene: Scene, prefix: str, signer: RawIdentity, form: wire.SignatureForm
    ) -> None:
        flow = PEER if prefix == "X-KMS-" else scene.at_node.flow
        nonce = fetch_nonce(scene.target.url)
        headers = pop_headers(signer, flow, nonce, scene.target.wallet, form=form)
        answer = send(headers=headers)
        assert answer.status == 200
        emitted = answer.response.headers[flow.answer_header]
        assert emitted[:2] == "0x"
        assert emitted[-2:] in ("00", "01"), "protocol §1: we emit v 0 or 1"

    def test_a_proof_for_the_other_flow_is_worth_nothing(self, scene: Scene) -> None:
        for identity, path, header_flow in (
            (scene.app.identity, "/kms/derive", scene.at_node.flow),
            (scene.peer.identity, "/sync", PEER),
        ):
            other = PEER if header_flow is not PEER else scene.at_node.flow
            foreign = pop_headers(identity, other, fetch_nonce(scene.target.url), scene.target.wallet)
            headers = {header_flow.prefix + name.removeprefix(other.prefix): text for name, text in foreign.items()}
            envelope = seal(identity, scene.target.tee_pubkey, DERIVE)
            body = json.dumps(envelope).encode()
            headers["Content-Type"] = "application/json"
            response = request("POST", scene.target.url + path, body=body, headers=headers)
            assert response.status_code == 403

    def test_a_stranger_spends_no_nonce(self, scene: Scene) -> None:
        nonce = fetch_nonce(scene.target.url)
        stranger = Caller(RawIdentity(), scene.target)
        forbidden(stranger.send("POST", "/kms/derive", DERIVE, nonce=nonce))
        assert scene.derive(nonce=nonce).status == 200


class TestWhoMayCall:
    def test_an_app_is_no_peer_and_a_peer_is_no_app(self, scene: Scene) -> None:
        forbidden(RawPeer(scene.app.identity, scene.target).sync({"type": "snapshot_request"}, scene.sync_key))
        forbidden(Caller(scene.peer.identity, scene.target).send("POST", "/kms/derive", DERIVE))

    def test_an_app_sees_only_its_own_values_and_keys(self, scene: Scene) -> None:
        other = scene.cluster.app_at(scene.other, scene.node)
        scene.at_node.put("private", b"x")
        assert other.get("private") is None
        assert "private" not in other.contents()
        assert other.derive("disk") != scene.at_node.derive("disk")
        assert scene.at_node.delete("private")

    @pytest.mark.parametrize("why", ["instance", "zk", "version", "app"])
    def test_what_the_chain_does_not_allow(self, scene: Scene, why: str) -> None:
        chain, app = scene.cluster.chain, scene.cluster.register_app()
        {
            "instance": lambda: chain.set_instance_status(app.instance_id, 1),
            "zk": lambda: chain.set_zk_verified(app.instance_id, False),
            "version": lambda: chain.set_version_status(app.app_id, app.version_id, 2),
            "app": lambda: chain.set_app_status(app.app_id, 1),
        }[why]()
        forbidden(scene.cluster.app_at(app, scene.node).send("POST", "/kms/derive", DERIVE))

    def test_a_deprecated_version_may_run(self, scene: Scene) -> None:
        app = scene.cluster.register_app()
        scene.cluster.chain.set_version_status(app.app_id, app.version_id, 1)
        assert len(scene.cluster.app_at(app, scene.node).derive("disk")) == 32

    def test_a_peer_that_is_stopped_on_chain_is_refused_after_a_tick(self, scene: Scene) -> None:
        identity = RawIdentity()
        chain = scene.cluster.chain
        instance_id = chain.register_instance(
            49, chain.kms_version, "http://127.0.0.1:9", identity.tee.der, identity.address
        )
        peer = RawPeer(identity, scene.target)
        eventually(lambda: peer.sync({"type": "snapshot_request"}, scene.sync_key).status == 200)
        chain.set_instance_status(instance_id, 1)
        eventually(lambda: peer.sync({"type": "snapshot_request"}, scene.sync_key).status == 403)


class TestEnvelope:
    def test_a_key_that_is_not_the_registered_one(self, scene: Scene) -> None:
        stranger = RawIdentity(wallet=scene.app.identity.wallet)
        forbidden(scene.derive(envelope=seal(stranger, scene.target.tee_pubkey, DERIVE)))
        peer_stranger = RawIdentity(wallet=scene.peer.identity.wallet)
        inner = {
            "type": "master_secret_request",
            "sender_wallet": peer_stranger.address,
            "ecdh_pubkey": wire.TeeKey().der.hex(),
        }
        forbidden(scene.snapshot(envelope=seal(peer_stranger, scene.target.tee_pubkey, inner)))

    def test_ciphertext_nonce_or_label_changed(self, scene: Scene) -> None:
        envelope = seal(scene.app.identity, scene.target.tee_pubkey, DERIVE)
        for member in ("encrypted_data", "nonce"):
            text = envelope[member]
            flipped = format(int(text[0], 16) ^ 1, "x") + text[1:]
            bad_request(scene.derive(envelope={**envelope, member: flipped}))
        bad_request(scene.derive(envelope=seal(scene.app.identity, scene.target.tee_pubkey, DERIVE, "encryption data")))

    def test_an_old_envelope_under_a_fresh_proof(self, scene: Scene) -> None:
        envelope = seal(scene.app.identity, scene.target.tee_pubkey, DERIVE)
        assert scene.derive(envelope=envelope).status == 200
        forbidden(scene.derive(envelope=envelope))
        forbidden(scene.derive(envelope={name: "0x" + text.upper() for name, text in envelope.items()}))

    def test_a_nodes_own_answer_handed_back(self, scene: Scene) -> None:
        answer = scene.at_node.send("GET", "/kms/data")
        reflected = {**answer.response.json(), "sender_tee_pubkey": scene.app.identity.tee.der.hex()}
        forbidden(scene.at_node.send("DELETE", "/kms/data", envelope=reflected))

    @pytest.mark.parametrize("member", ["app_id", "answer_to"])
    def test_a_member_that_only_answers_have(self, scene: Scene, member: str) -> None:
        bad_request(scene.at_node.send("POST", "/kms/derive", {**DERIVE, member: 1}))

    def test_a_body_made_for_another_proof(self, scene: Scene) -> None:
        nonce = fetch_nonce(scene.target.url)
        forbidden(scene.at_node.send("POST", "/kms/derive", {**DERIVE, "pop_nonce": "another"}))
        assert scene.at_node.send("POST", "/kms/derive", {**DERIVE, "pop_nonce": nonce}, nonce=nonce).status == 200

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{}",
            b"[]",
            b"null",
            b'"text"',
            b"{",
            b"\xff\xfe",
            b'{"path":"disk"}',
            b'{"sender_tee_pubkey":1,"nonce":2,"encrypted_data":3}',
            b'{"a":' * 5000 + b"1" + b"}" * 5000,
        ],
        ids=lambda body: body[:20].decode("latin-1"),
    )
    def test_a_body_that_is_no_envelope(self, scene: Scene, body: bytes) -> None:
        bad_request(scene.derive(body=body))

    def test_envelopes_of_the_wrong_shape(self, scene: Scene) -> None:
        def fresh() -> dict[str, object]:
            return dict(seal(scene.app.identity, scene.target.tee_pubkey, DERIVE))

        sec1 = scene.app.identity.tee.sec1.hex()
        spoilt: list[dict[str, object]] = [
            {**fresh(), "extra": 1},
            {name: text for name, text in fresh().items() if name != "nonce"},
            {**fresh(), "sender_tee_pubkey": sec1},
            {**fresh(), "sender_tee_pubkey": scene.app.identity.tee.der.hex()[:-2]},
            {**fresh(), "nonce": "00" * 11},
            {**fresh(), "nonce": "0" * 23},
            {**fresh(), "encrypted_data": "00" * 15},
            {**fresh(), "encrypted_data": None},
            {**fresh(), "encrypted_data": "zz" * 40},
        ]
        for envelope in spoilt:
            bad_request(scene.derive(envelope=envelope))

    @pytest.mark.parametrize(
        "write",
        [
            lambda envelope: json.dumps(envelope, indent=2),
            lambda envelope: json.dumps(dict(reversed(envelope.items()))),
            lambda envelope: json.dumps({name: text.upper() for name, text in envelope.items()}),
            lambda envelope: json.dumps({name: "0x" + text for name, text in envelope.items()}),
            lambda envelope: "".join(
                f"\\u{ord(letter):04x}" if letter == "a" else letter for letter in json.dumps(envelope)
            ),
        ],
        ids=["white space", "another order", "upper case", "0x", "escapes"],
    )
    def test_other_writings_of_the_same_envelope_are_accepted_and_maced_canonically(
        self, scene: Scene, write: Callable[[dict[str, str]], str]
    ) -> None:
        assert (
            scene.derive(body=write(seal(scene.app.identity, scene.target.tee_pubkey, DERIVE)).encode()).status == 200
        )
        inner = {"type": "snapshot_request", "sender_wallet": scene.peer.identity.address}
        text = write(seal(scene.peer.identity, scene.target.tee_pubkey, inner))
        mac = wire.sync_mac(scene.sync_key, json.loads(text))
        for written in (mac, mac.upper(), "0x" + mac):
            answer = scene.peer.send("POST", "/sync", body=text.encode(), headers={"X-Sync-Signature": written})
            # The same envelope is good once: what matters here is that neither MAC nor form was the reason.
            assert answer.status == 200 or written != mac, answer.response.text


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
            {"key": "k", "value": VALUE, "ttl_ms": -1},
            {"key": "k", "value": VALUE, "ttl_ms": True},
            {"key": "k", "value": VALUE, "ttl_ms": 1.5},
            {"key": "k", "value": VALUE, "ttl_ms": "soon"},
            {"key": "k", "value": VALUE, "ttl_ms": 2**70},
        ],
        ids=lambda inner: json.dumps(inner)[:60],
    )
    def test_put_refuses_and_changes_nothing(self, scene: Scene, inner: dict[str, object]) -> None:
        bad_request(scene.at_node.send("PUT", "/kms/data", inner))
        assert scene.at_node.get("k") is None

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

    def test_the_extensions_among_the_public_endpoints(self, scene: Scene) -> None:
        assert request("GET", scene.target.url + "/openapi.json").json()["openapi"]
        assert "# TYPE" in request("GET", scene.target.url + "/metrics").text


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
