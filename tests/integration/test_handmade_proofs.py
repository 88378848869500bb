"""A running node against proofs and envelopes spoilt in one place each (protocol §2, §3; chain §3)."""

import json
import time
from collections.abc import Callable

import pytest

from tests.support import wire
from tests.support.cluster import eventually
from tests.support.raw_client import PEER, Answer, Caller, RawIdentity, RawPeer, fetch_nonce, pop_headers, request, seal
from tests.support.scene import DERIVE, WINDOW_S, Scene, bad_request, forbidden

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("handmade_proofs")]

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
