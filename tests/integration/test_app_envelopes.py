"""Bodies of app requests: sealed, fresh, from the registered key, and answered in kind (protocol §3, §4)."""

import json
from collections.abc import Callable, Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support import wire
from tests.support.api_bench import (
    BAD_REQUEST,
    FORBIDDEN,
    NOT_FOUND,
    UNSUPPORTED,
    ApiBench,
    assert_error_shape,
    assert_refused,
    assert_signed_refusal,
    open_bench,
)
from tests.support.raw_client import RawApp, RawIdentity, fetch_nonce, seal

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("app_envelopes")]

Envelope = dict[str, str]

DERIVE = {"path": "disk"}
REQUESTS = {
    "derive": ("POST", "/kms/derive", {"path": "disk"}),
    "put": ("PUT", "/kms/data", {"key": "never written", "value": "QQ=="}),
    "delete": ("DELETE", "/kms/data", {"key": "never deleted"}),
}
P256_DER = (
    ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiBench]:
    with open_bench(tmp_path_factory.mktemp("app-envelopes")) as bench:
        bench.app.put("never deleted", b"x")
        yield bench
        assert bench.app.contents() == {"never deleted": b"x"}


def sealed(bench: ApiBench, inner: object = DERIVE) -> Envelope:
    return seal(bench.app.identity, bench.target.tee_pubkey, inner)


def changed(name: str, change: Callable[[str], object]) -> Callable[[Envelope], object]:
    return lambda envelope: {**envelope, name: change(envelope[name])}


def without(name: str) -> Callable[[Envelope], object]:
    return lambda envelope: {member: text for member, text in envelope.items() if member != name}


def flipped(place: int) -> Callable[[str], str]:
    """hex with one bit of byte `place` changed."""

    def change(text: str) -> str:
        data = bytearray.fromhex(text)
        data[place] ^= 1
        return data.hex()

    return change


def compressed(der_hex: str) -> str:
    sec1 = bytes.fromhex(der_hex)[-97:]
    return (bytes([2 + (sec1[-1] & 1)]) + sec1[1:49]).hex()


# What may come in place of a sealed envelope, and must be answered 400.
NO_ENVELOPES: dict[str, Callable[[Envelope], object]] = {
    "the plaintext": lambda _: DERIVE,
    "the plaintext beside the envelope": lambda envelope: {**envelope, **DERIVE},
    "an empty object": lambda _: {},
    "a list": lambda envelope: [envelope],
    "a string": json.dumps,
    "null": lambda _: None,
    "a number": lambda _: 7,
    "an envelope in an envelope": lambda envelope: {"envelope": envelope},
    **{f"no {name}": without(name) for name in ("sender_tee_pubkey", "nonce", "encrypted_data")},
    **{
        f"{name} {why}": changed(name, change)
        for name in ("sender_tee_pubkey", "nonce", "encrypted_data")
        for why, change in (
            ("null", lambda _: None),
            ("a number", lambda _: 12),
            ("a list", lambda text: [text]),
            ("empty", lambda _: ""),
            ("not hex", lambda text: "zz" + text[2:]),
            ("of an odd length", lambda text: text[:-1]),
            ("with white space", lambda text: " " + text),
            ("with 0x twice", lambda text: "0x0x" + text),
            ("not ASCII", lambda text: "\u0660" + text[1:]),
        )
    },
    "one member more": lambda envelope: {**envelope, "version": 1},
    "the nonce of 11 bytes": changed("nonce", lambda text: text[2:]),
    "the nonce of 13 bytes": changed("nonce", lambda text: text + "00"),
    "a ciphertext of 15 bytes": changed("encrypted_data", lambda text: text[:30]),
    "a ciphertext of a tag only": changed("encrypted_data", lambda text: text[-32:]),
    "a ciphertext cut short": changed("encrypted_data", lambda text: text[:-2]),
    "a ciphertext made longer": changed("encrypted_data", lambda text: text + "00"),
    "the ciphertext tampered with": changed("encrypted_data", flipped(0)),
    "the tag tampered with": changed("encrypted_data", flipped(-1)),
    "the nonce tampered with": changed("nonce", flipped(0)),
    "the sender as a point": changed("sender_tee_pubkey", lambda text: text[-194:]),
    "the sender as a compressed point": changed("sender_tee_pubkey", compressed),
    "a sender off the curve": changed("sender_tee_pubkey", flipped(-1)),
    "a sender with other DER": changed("sender_tee_pubkey", flipped(5)),
    "a sender with a byte more": changed("sender_tee_pubkey", lambda text: text + "00"),
    "a sender of another curve": changed("sender_tee_pubkey", lambda _: P256_DER.hex()),
    "a sender of 100 KB": changed("sender_tee_pubkey", lambda text: text * 420),
}

# Inner texts that are sealed well and must be answered 400 all the same.
NO_INNER_OBJECTS: dict[str, bytes] = {
    "nothing": b"",
    "white space": b"  ",
    "no JSON": b"path=disk",
    "half an object": b'{"path":"disk"',
    "two objects": b'{"path":"disk"}{"path":"disk"}',
    "a list": b'[{"path":"disk"}]',
    "a string": b'"disk"',
    "null": b"null",
    "invalid UTF-8": b'{"path":"\xff"}',
    "UTF-16": '{"path":"disk"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"path":"disk"}',
    "a name twice": b'{"path":"disk","path":"net"}',
    "a member only answers have: app_id": b'{"path":"disk","app_id":101}',
    "a member only answers have: app_id null": b'{"path":"disk","app_id":null}',
    "a member only answers have: answer_to": b'{"path":"disk","answer_to":"x"}',
    "an escaped member only answers have": b'{"path":"disk","app\\u005fid":101}',
}


class TestBodiesThatAreNoEnvelope:
    @pytest.mark.parametrize("spoil", NO_ENVELOPES.values(), ids=NO_ENVELOPES)
    def test_it_is_refused_with_a_signature(self, bench: ApiBench, spoil: Callable[[Envelope], object]) -> None:
        body = json.dumps(spoil(sealed(bench))).encode()
        assert_signed_refusal(bench.app.send("POST", "/kms/derive", body=body), bench.app, BAD_REQUEST)

    @pytest.mark.parametrize(("method", "path", "inner"), REQUESTS.values(), ids=REQUESTS)
    def test_no_endpoint_takes_plaintext(self, bench: ApiBench, method: str, path: str, inner: object) -> None:
        answer = bench.app.send(method, path, body=json.dumps(inner).encode())
        assert_signed_refusal(answer, bench.app, BAD_REQUEST)

    def test_a_member_given_twice_is_refused(self, bench: ApiBench) -> None:
        text = json.dumps(sealed(bench))
        for name in ("sender_tee_pubkey", "nonce", "encrypted_data"):
            value = json.loads(text)[name]
            body = text[:-1] + f', "{name}": "{value}"}}'
            answer = bench.app.send("POST", "/kms/derive", body=body.encode())
            assert_signed_refusal(answer, bench.app, BAD_REQUEST)

    @pytest.mark.parametrize("plaintext", NO_INNER_OBJECTS.values(), ids=NO_INNER_OBJECTS)
    def test_what_is_inside_must_be_an_object_of_a_request(self, bench: ApiBench, plaintext: bytes) -> None:
        envelope = wire.seal(bench.app.identity.tee, bench.target.tee_pubkey, wire.CAPSULE_LABEL, plaintext)
        assert_signed_refusal(bench.app.send("POST", "/kms/derive", envelope=envelope), bench.app, BAD_REQUEST)

    @pytest.mark.parametrize(
        "spell",
        [str.upper, lambda text: "0x" + text, lambda text: "0x" + text.upper()],
        ids=["upper case", "with 0x", "with 0x in upper case"],
    )
    @pytest.mark.parametrize("name", ["sender_tee_pubkey", "nonce", "encrypted_data"])
    def test_hex_is_read_in_every_accepted_form(self, bench: ApiBench, name: str, spell: Callable[[str], str]) -> None:
        envelope = changed(name, spell)(sealed(bench))
        assert bench.app.send("POST", "/kms/derive", envelope=envelope).status == 200

    def test_the_order_of_members_and_white_space_do_not_matter(self, bench: ApiBench) -> None:
        body = json.dumps(dict(reversed(sealed(bench).items())), indent=3).encode() + b"\r\n"
        assert bench.app.send("POST", "/kms/derive", body=body).status == 200


class TestSenderKeys:
    def test_another_key_than_the_registered_one_is_refused(self, bench: ApiBench) -> None:
        stranger = RawIdentity(wallet=bench.app.identity.wallet)
        answer = bench.app.send("POST", "/kms/derive", envelope=seal(stranger, bench.target.tee_pubkey, DERIVE))
        assert_signed_refusal(answer, bench.app, FORBIDDEN)

    def test_the_key_of_another_app_is_refused(self, bench: ApiBench) -> None:
        other = bench.new_app()
        envelope = seal(other.identity, bench.target.tee_pubkey, DERIVE)
        assert_signed_refusal(bench.app.send("POST", "/kms/derive", envelope=envelope), bench.app, FORBIDDEN)

    def test_the_key_of_the_node_is_refused(self, bench: ApiBench) -> None:
        envelope = {**sealed(bench), "sender_tee_pubkey": bench.target.tee_pubkey.hex()}
        assert_signed_refusal(bench.app.send("POST", "/kms/derive", envelope=envelope), bench.app, FORBIDDEN)

    def test_a_wrong_key_is_refused_before_anything_is_decrypted(self, bench: ApiBench) -> None:
        garbage = {**sealed(bench), "sender_tee_pubkey": wire.TeeKey().der.hex(), "encrypted_data": "00" * 16}
        assert_signed_refusal(bench.app.send("POST", "/kms/derive", envelope=garbage), bench.app, FORBIDDEN)

    def test_a_key_registered_as_a_point_sends_der(self, bench: ApiBench) -> None:
        app = bench.cluster.register_app()
        bench.cluster.chain.set_tee_pubkey(app.instance_id, app.identity.tee.sec1)
        caller = RawApp(app.identity, bench.target)
        assert len(caller.derive("disk")) == 32
        point = {
            **seal(app.identity, bench.target.tee_pubkey, DERIVE),
            "sender_tee_pubkey": app.identity.tee.sec1.hex(),
        }
        assert_signed_refusal(caller.send("POST", "/kms/derive", envelope=point), caller, BAD_REQUEST)


class TestLabels:
    @pytest.mark.parametrize("label", wire.LABELS)
    def test_a_request_is_answered_under_its_own_label(self, bench: ApiBench, label: str) -> None:
        caller = RawApp(bench.app.identity, bench.target, label=label)
        assert caller.send("POST", "/kms/derive", DERIVE).label == label

    @pytest.mark.parametrize("label", wire.LABELS[::-1])
    def test_a_request_without_a_body_is_answered_under_the_last_label(self, bench: ApiBench, label: str) -> None:
        app = bench.new_app()
        assert app.send("GET", "/kms/data").label == wire.CAPSULE_LABEL
        app.label = label
        app.put("key", b"value")
        assert app.send("GET", "/kms/data").label == label
        assert app.send("GET", "/kms/data/key").label == label

    def test_an_unknown_label_is_refused(self, bench: ApiBench) -> None:
        caller = RawApp(bench.app.identity, bench.target, label="capsule-ecdh-aes256gcm-v2")
        assert_signed_refusal(caller.send("POST", "/kms/derive", DERIVE), bench.app, BAD_REQUEST)


class TestReplayAndReflection:
    def test_an_envelope_is_accepted_once(self, bench: ApiBench) -> None:
        envelope = sealed(bench)
        assert bench.app.send("POST", "/kms/derive", envelope=envelope).status == 200
        assert_signed_refusal(bench.app.send("POST", "/kms/derive", envelope=envelope), bench.app, FORBIDDEN)

    def test_an_old_write_under_a_fresh_proof_is_refused(self, bench: ApiBench) -> None:
        app = bench.new_app()
        old = seal(app.identity, bench.target.tee_pubkey, {"key": "k", "value": wire.encode_base64(b"old")})
        assert app.send("PUT", "/kms/data", envelope=old).status == 200
        app.put("k", b"new")
        assert_signed_refusal(app.send("PUT", "/kms/data", envelope=old), app, FORBIDDEN)
        assert app.get("k") == b"new"

    def test_an_old_envelope_is_refused_at_another_endpoint(self, bench: ApiBench) -> None:
        app = bench.new_app()
        app.put("k", b"v")
        envelope = seal(app.identity, bench.target.tee_pubkey, {"path": "disk", "key": "k"})
        assert app.send("POST", "/kms/derive", envelope=envelope).status == 200
        assert_signed_refusal(app.send("DELETE", "/kms/data", envelope=envelope), app, FORBIDDEN)
        assert app.get("k") == b"v"

    def test_an_old_nonce_in_another_spelling_is_refused(self, bench: ApiBench) -> None:
        envelope = sealed(bench)
        assert bench.app.send("POST", "/kms/derive", envelope=envelope).status == 200
        spelled = {**envelope, "nonce": "0x" + envelope["nonce"].upper()}
        assert_signed_refusal(bench.app.send("POST", "/kms/derive", envelope=spelled), bench.app, FORBIDDEN)

    def test_what_did_not_open_uses_no_nonce_up(self, bench: ApiBench) -> None:
        envelope = sealed(bench)
        for spoil in ("the ciphertext tampered with", "the tag tampered with", "a ciphertext cut short"):
            answer = bench.app.send("POST", "/kms/derive", envelope=NO_ENVELOPES[spoil](envelope))
            assert_signed_refusal(answer, bench.app, BAD_REQUEST)
        assert bench.app.send("POST", "/kms/derive", envelope=envelope).status == 200

    @pytest.mark.parametrize("with_body", [True, False], ids=["to a request with a body", "to one without"])
    def test_an_answer_handed_back_as_a_request_is_refused(self, bench: ApiBench, with_body: bool) -> None:
        app = bench.new_app()
        app.put("k", b"v")
        answer = app.send("POST", "/kms/derive", DERIVE) if with_body else app.send("GET", "/kms/data/k")
        reflected = {**answer.response.json(), "sender_tee_pubkey": app.identity.tee.der.hex()}
        for method, path in (("POST", "/kms/derive"), ("PUT", "/kms/data"), ("DELETE", "/kms/data")):
            assert_signed_refusal(app.send(method, path, envelope=reflected), app, FORBIDDEN)
            assert_signed_refusal(app.send(method, path, envelope=answer.response.json()), app, FORBIDDEN)
        assert app.contents() == {"k": b"v"}

    def test_a_body_made_for_this_proof_is_accepted(self, bench: ApiBench) -> None:
        nonce = fetch_nonce(bench.node.url)
        answer = bench.app.send("POST", "/kms/derive", {**DERIVE, "pop_nonce": nonce}, nonce=nonce)
        assert answer.status == 200

    @pytest.mark.parametrize(
        "pop_nonce", ["", None, 7, [], "QUFB", True], ids=["empty", "null", "number", "list", "other", "boolean"]
    )
    def test_a_body_made_for_another_proof_is_refused(self, bench: ApiBench, pop_nonce: object) -> None:
        answer = bench.app.send("POST", "/kms/derive", {**DERIVE, "pop_nonce": pop_nonce})
        assert answer.status in (400, 403), answer.response.text
        assert_error_shape(answer.response)

    def test_a_body_made_for_an_earlier_proof_is_refused(self, bench: ApiBench) -> None:
        earlier = fetch_nonce(bench.node.url)
        answer = bench.app.send("PUT", "/kms/data", {"key": "never written", "value": "QQ==", "pop_nonce": earlier})
        assert answer.status in (400, 403), answer.response.text


class TestAnswers:
    @pytest.mark.parametrize(
        ("method", "path", "inner"),
        [
            ("POST", "/kms/derive", DERIVE),
            ("GET", "/kms/data", None),
            ("GET", "/kms/data/never%20deleted", None),
            ("GET", "/kms/data?key=never%20deleted", None),
            ("PUT", "/kms/data", {"key": "never deleted", "value": "eA=="}),
        ],
    )
    def test_an_answer_names_the_request_it_belongs_to(
        self, bench: ApiBench, method: str, path: str, inner: object
    ) -> None:
        nonce = fetch_nonce(bench.node.url)
        answer = bench.app.send(method, path, inner, nonce=nonce)
        assert answer.status == 200
        assert answer.inner["answer_to"] == nonce
        assert answer.inner["app_id"] == bench.app_handle.app_id
        assert answer.response.headers["content-type"] == "application/json"
        assert set(answer.response.json()) == {"sender_tee_pubkey", "nonce", "encrypted_data"}

    def test_a_next_nonce_is_usable_exactly_once(self, bench: ApiBench) -> None:
        nonce = bench.app.send("GET", "/kms/data").response.headers["X-KMS-Next-Nonce"]
        answer = bench.app.send("GET", "/kms/data", nonce=nonce)
        assert answer.status == 200
        assert answer.response.headers["X-KMS-Next-Nonce"] != nonce
        assert_refused(bench.app.send("GET", "/kms/data", nonce=nonce).response, FORBIDDEN)

    def test_a_next_nonce_of_a_refusal_is_usable_too(self, bench: ApiBench) -> None:
        refusal = bench.app.send("GET", "/kms/data/absent")
        assert_signed_refusal(refusal, bench.app, NOT_FOUND)
        nonce = refusal.response.headers["X-KMS-Next-Nonce"]
        assert bench.app.send("GET", "/kms/data", nonce=nonce).status == 200

    def test_no_envelope_nonce_is_used_twice(self, bench: ApiBench) -> None:
        nonces = [bench.app.send("GET", "/kms/data").response.json()["nonce"] for _ in range(20)]
        assert len(set(nonces)) == len(nonces)

    def test_a_body_of_another_media_type_is_refused(self, bench: ApiBench) -> None:
        headers = {"Content-Type": "text/plain"}
        answer = bench.app.send("POST", "/kms/derive", DERIVE, headers=headers)
        assert_refused(answer.response, UNSUPPORTED)

    def test_an_unknown_wallet_is_refused(self, bench: ApiBench) -> None:
        answer = RawApp(RawIdentity(), bench.target).send("POST", "/kms/derive", DERIVE)
        assert_refused(answer.response, FORBIDDEN)
        assert "X-KMS-Answer-Signature" not in answer.response.headers
