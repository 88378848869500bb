"""Which peers `/sync` believes, in which order it refuses, and who gets the secret (protocol §2, §3, §5; node §1)."""

import json
import time
from collections.abc import Callable, Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support import wire
from tests.support.api_bench import (
    BAD_REQUEST,
    FORBIDDEN,
    TOO_LARGE,
    UNSUPPORTED,
    ApiBench,
    assert_refused,
    assert_signed_refusal,
    exchange,
    open_bench,
)
from tests.support.cluster import eventually
from tests.support.local_chain import DEPRECATED, FAILED, KMS_APP_ID, REVOKED, STOPPED, LocalChain
from tests.support.proofs import PROOF_FLAWS, SIGNATURE_FORMS, WALLET_FORMS, Proof, proof_of
from tests.support.raw_client import Answer, RawIdentity, RawPeer, fetch_nonce, seal
from tests.support.wire import SignatureForm

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("peer_admission")]

NO_SUCH_STATUS = 77
JSON_TYPE = ("Content-Type", b"application/json")
NOWHERE = "http://127.0.0.1:9"
MAX_SYNC_BYTES = 65_536
P256_DER = (
    ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiBench]:
    env = {"MAX_SYNC_PAYLOAD_BYTES": str(MAX_SYNC_BYTES)}
    with open_bench(tmp_path_factory.mktemp("peer-admission"), env) as bench:
        yield bench
        assert bench.peer.snapshot(bench.sync_key) == {}, "a refused request changed something"


def snapshot_body(bench: ApiBench, **members: object) -> tuple[bytes, str]:
    """The sealed body of an honest snapshot_request, and its MAC."""
    inner = {"type": "snapshot_request", "sender_wallet": bench.peer.identity.address, **members}
    envelope = seal(bench.peer.identity, bench.target.tee_pubkey, inner)
    return json.dumps(envelope).encode(), wire.sync_mac(bench.sync_key, envelope)


def harmful_delta(bench: ApiBench) -> dict[str, object]:
    """A delta that would show in a snapshot if it were merged."""
    ciphertext = wire.encrypt_value(wire.derive_data_key(bench.master_secret, 1), b"x")
    record = {"key": "k", "value": ciphertext.hex(), "version": {"w": 1}, "updated_at_ms": 1, "tombstone": False}
    return {"type": "delta", "data": {"1": [{**record, "ttl_ms": 0}]}}


class TestProofs:
    @pytest.mark.parametrize("flaw", PROOF_FLAWS.values(), ids=PROOF_FLAWS)
    def test_a_proof_with_a_flaw_is_refused(self, bench: ApiBench, flaw: Callable[[Proof], list]) -> None:
        body, mac = snapshot_body(bench)
        claimed = flaw(proof_of(bench.peer))
        headers = [*claimed, JSON_TYPE, ("Content-Length", b"%d" % len(body)), ("X-Sync-Signature", mac.encode())]
        response = exchange(bench.node.url, "POST", "/sync", headers, body)
        sent = [value.decode("latin-1") for _, value in claimed if len(value.strip()) >= 8]
        assert_refused(response, FORBIDDEN, sent=sent)
        assert "X-KMS-Peer-Signature" not in response.headers

    @pytest.mark.parametrize("form", SIGNATURE_FORMS.values(), ids=SIGNATURE_FORMS)
    def test_every_form_of_a_signature_is_accepted_and_answered_as_sent(
        self, bench: ApiBench, form: SignatureForm
    ) -> None:
        peer = RawPeer(bench.peer.identity, bench.target)
        peer.form = form
        assert peer.sync({"type": "snapshot_request"}, bench.sync_key).status == 200

    @pytest.mark.parametrize("form", WALLET_FORMS.values(), ids=WALLET_FORMS)
    def test_a_true_wallet_is_accepted_in_every_form(self, bench: ApiBench, form: Callable[[str], str]) -> None:
        wallet = form(bench.peer.identity.address)
        inner = {"type": "snapshot_request", "sender_wallet": wallet}
        assert bench.peer.sync(inner, bench.sync_key, headers={"X-KMS-Wallet": wallet}).status == 200

    def test_a_nonce_is_good_for_one_request(self, bench: ApiBench) -> None:
        nonce = fetch_nonce(bench.node.url)
        assert bench.peer.sync({"type": "snapshot_request"}, bench.sync_key, nonce=nonce).status == 200
        again = bench.peer.sync({"type": "snapshot_request"}, bench.sync_key, nonce=nonce)
        assert_refused(again.response, FORBIDDEN, sent=[nonce])

    def test_a_nonce_that_an_app_has_used_is_used_for_peers(self, bench: ApiBench) -> None:
        nonce = fetch_nonce(bench.node.url)
        assert bench.app.send("GET", "/kms/data", nonce=nonce).status == 200
        answer = bench.peer.sync({"type": "snapshot_request"}, bench.sync_key, nonce=nonce)
        assert_refused(answer.response, FORBIDDEN)

    def test_a_next_nonce_is_usable_exactly_once(self, bench: ApiBench) -> None:
        nonce = bench.peer.sync({"type": "snapshot_request"}, bench.sync_key).response.headers["X-KMS-Next-Nonce"]
        assert bench.peer.sync({"type": "snapshot_request"}, bench.sync_key, nonce=nonce).status == 200
        answer = bench.peer.sync({"type": "snapshot_request"}, bench.sync_key, nonce=nonce)
        assert_refused(answer.response, FORBIDDEN)


# How an instance that was a peer ceases to be one.
NOT_PEERS: dict[str, Callable[[LocalChain, int], object]] = {
    "instance stopped": lambda chain, number: chain.set_instance_status(number, STOPPED),
    "instance failed": lambda chain, number: chain.set_instance_status(number, FAILED),
    "unknown status": lambda chain, number: chain.set_instance_status(number, NO_SUCH_STATUS),
    "not proven": lambda chain, number: chain.set_zk_verified(number, False),
    "teePubkey garbage": lambda chain, number: chain.set_tee_pubkey(number, b"garbage"),
    "URL of another scheme": lambda chain, number: chain.set_instance_url(number, "ftp://peer:21"),
    "URL without a host": lambda chain, number: chain.set_instance_url(number, "http://"),
    "URL with credentials": lambda chain, number: chain.set_instance_url(number, "http://a:b@peer"),
    "URL with a fragment": lambda chain, number: chain.set_instance_url(number, "http://peer/#a"),
    "no URL": lambda chain, number: chain.set_instance_url(number, ""),
}


def ask(bench: ApiBench, identity: RawIdentity) -> Answer:
    return RawPeer(identity, bench.target).sync({"type": "snapshot_request"}, bench.sync_key)


@pytest.fixture(scope="module")
def former_peers(bench: ApiBench) -> dict[str, RawIdentity]:
    """For each row an instance that was a peer until the registry changed, and is none since the last tick."""
    chain = bench.cluster.chain
    identities = {row: RawIdentity() for row in NOT_PEERS}
    numbers = {
        row: chain.register_instance(KMS_APP_ID, chain.kms_version, NOWHERE, identity.tee.der, identity.address)
        for row, identity in identities.items()
    }
    eventually(lambda: all(ask(bench, identity).status == 200 for identity in identities.values()))
    for row, change in NOT_PEERS.items():
        change(chain, numbers[row])
    last = RawIdentity()
    chain.register_instance(KMS_APP_ID, chain.kms_version, NOWHERE, last.tee.der, last.address)
    eventually(lambda: ask(bench, last).status == 200)
    return identities


class TestPeerCache:
    def assert_stranger(self, bench: ApiBench, identity: RawIdentity) -> None:
        answer = ask(bench, identity)
        assert_refused(answer.response, FORBIDDEN, sent=[identity.address])
        assert "X-KMS-Peer-Signature" not in answer.response.headers

    def admitted(self, bench: ApiBench) -> tuple[RawIdentity, int]:
        identity = RawIdentity()
        chain = bench.cluster.chain
        number = chain.register_instance(KMS_APP_ID, chain.kms_version, NOWHERE, identity.tee.der, identity.address)
        eventually(lambda: ask(bench, identity).status == 200)
        return identity, number

    def test_an_unknown_wallet_is_refused(self, bench: ApiBench) -> None:
        self.assert_stranger(bench, RawIdentity())

    def test_an_app_is_not_a_peer(self, bench: ApiBench) -> None:
        self.assert_stranger(bench, bench.app.identity)

    @pytest.mark.parametrize("row", NOT_PEERS)
    def test_a_peer_is_refused_once_the_registry_says_so(
        self, bench: ApiBench, former_peers: dict[str, RawIdentity], row: str
    ) -> None:
        self.assert_stranger(bench, former_peers[row])

    def test_a_deprecated_version_may_run_and_a_revoked_one_may_not(self, bench: ApiBench) -> None:
        chain = bench.cluster.chain
        version = chain.enroll_version(KMS_APP_ID)
        identity = RawIdentity()
        chain.register_instance(KMS_APP_ID, version, NOWHERE, identity.tee.der, identity.address)
        chain.set_version_status(KMS_APP_ID, version, DEPRECATED)
        eventually(lambda: ask(bench, identity).status == 200)
        chain.set_version_status(KMS_APP_ID, version, REVOKED)
        eventually(lambda: ask(bench, identity).status == 403)

    def test_a_changed_key_counts_from_the_next_tick(self, bench: ApiBench) -> None:
        identity, number = self.admitted(bench)
        changed = RawIdentity(wallet=identity.wallet)
        assert_signed_refusal(ask(bench, changed), RawPeer(changed, bench.target), FORBIDDEN)
        bench.cluster.chain.set_tee_pubkey(number, changed.tee.sec1)
        eventually(lambda: ask(bench, changed).status == 200)
        assert_signed_refusal(ask(bench, identity), RawPeer(identity, bench.target), FORBIDDEN)


# X-Sync-Signature values that are not this envelope's MAC.
WRONG_MACS: dict[str, Callable[[bytes, dict[str, str]], bytes | None]] = {
    "absent": lambda _key, _envelope: None,
    "empty": lambda _key, _envelope: b"",
    "of zeros": lambda _key, _envelope: b"0" * 64,
    "not hex": lambda _key, _envelope: b"z" * 64,
    "not ASCII": lambda _key, _envelope: b"\xe9" * 64,
    "in other digits": lambda _key, _envelope: "٣".encode() * 64,
    "cut short": lambda key, envelope: wire.sync_mac(key, envelope)[:-2].encode(),
    "made longer": lambda key, envelope: wire.sync_mac(key, envelope).encode() + b"00",
    "of one bit changed": lambda key, envelope: b"%064x" % (int(wire.sync_mac(key, envelope), 16) ^ 1),
    "under another key": lambda _key, envelope: wire.sync_mac(bytes(32), envelope).encode(),
    "of another envelope": lambda key, envelope: wire.sync_mac(key, {**envelope, "nonce": "00" * 12}).encode(),
    "of the body with white space": lambda key, envelope: wire.sync_mac(key, json.dumps(envelope)).encode(),
}


class TestMac:
    def sync(self, bench: ApiBench, inner: dict[str, object], mac: object) -> Answer:
        inner = {"sender_wallet": bench.peer.identity.address, **inner}
        envelope = seal(bench.peer.identity, bench.target.tee_pubkey, inner)
        body = json.dumps(envelope).encode()
        value = mac(bench.sync_key, envelope)
        headers = [*proof_of(bench.peer).headers(), JSON_TYPE, ("Content-Length", b"%d" % len(body))]
        if value is not None:
            headers.append(("X-Sync-Signature", value))
        response = exchange(bench.node.url, "POST", "/sync", headers, body)
        answer = Answer(response, dict(headers)["X-KMS-Signature"].decode())
        if answer.status == 200:
            bench.peer.verify(answer)
        return answer

    @pytest.mark.parametrize("mac", WRONG_MACS.values(), ids=WRONG_MACS)
    def test_without_its_mac_no_message_is_believed(self, bench: ApiBench, mac: object) -> None:
        for inner in (
            harmful_delta(bench),
            {"type": "snapshot_request"},
            {"type": "snapshot_page_request", "after": 0},
            {"type": "no such type"},
            {"type": ["master_secret_request"]},
            {},
        ):
            assert_signed_refusal(self.sync(bench, inner, mac), bench.peer, FORBIDDEN)

    @pytest.mark.parametrize("mac", WRONG_MACS.values(), ids=WRONG_MACS)
    def test_a_request_for_the_secret_needs_none(self, bench: ApiBench, mac: object) -> None:
        ephemeral = wire.TeeKey()
        inner = {"type": "master_secret_request", "ecdh_pubkey": ephemeral.der.hex()}
        answer = self.sync(bench, inner, mac)
        assert answer.status == 200
        assert wire.open_master_secret(answer.inner["sealed"], ephemeral) == bench.master_secret

    @pytest.mark.parametrize(
        "spell",
        [str.upper, lambda mac: "0x" + mac, lambda mac: "0x" + mac.upper()],
        ids=["upper case", "with 0x", "both"],
    )
    def test_a_mac_is_read_in_every_form_of_hex(self, bench: ApiBench, spell: Callable[[str], str]) -> None:
        answer = self.sync(
            bench, {"type": "snapshot_request"}, lambda key, envelope: spell(wire.sync_mac(key, envelope)).encode()
        )
        assert answer.status == 200

    def test_a_mac_covers_the_canonical_form_however_the_body_is_written(self, bench: ApiBench) -> None:
        body, mac = snapshot_body(bench)
        written = json.dumps(dict(reversed(json.loads(body).items())), indent=2).replace("e", "\\u0065", 1).encode()
        assert bench.peer.send("POST", "/sync", body=written, headers={"X-Sync-Signature": mac}).status == 200


class TestOrderOfChecks:
    """One request with two flaws is refused for the one that comes first in protocol §5."""

    def test_size_comes_before_headers(self, bench: ApiBench) -> None:
        declared = [JSON_TYPE, ("Content-Length", b"%d" % (MAX_SYNC_BYTES + 1))]
        assert_refused(exchange(bench.node.url, "POST", "/sync", declared), TOO_LARGE)

    def test_media_type_is_refused(self, bench: ApiBench) -> None:
        body, mac = snapshot_body(bench)
        headers = {"Content-Type": "text/plain", "X-Sync-Signature": mac}
        assert_refused(bench.peer.send("POST", "/sync", body=body, headers=headers).response, UNSUPPORTED)

    def test_the_proof_comes_before_the_body(self, bench: ApiBench) -> None:
        stranger = RawPeer(RawIdentity(), bench.target)
        assert_refused(stranger.send("POST", "/sync", body=b"no JSON").response, FORBIDDEN)

    def test_the_nonce_comes_before_the_body_and_is_used_up(self, bench: ApiBench) -> None:
        nonce = fetch_nonce(bench.node.url)
        assert_signed_refusal(bench.peer.send("POST", "/sync", body=b"{", nonce=nonce), bench.peer, BAD_REQUEST)
        assert_refused(bench.peer.send("POST", "/sync", body=b"{", nonce=nonce).response, FORBIDDEN)

    def test_the_sender_key_comes_before_decryption(self, bench: ApiBench) -> None:
        envelope = {**json.loads(snapshot_body(bench)[0]), "sender_tee_pubkey": wire.TeeKey().der.hex()}
        envelope["encrypted_data"] = "00" * 40
        mac = {"X-Sync-Signature": wire.sync_mac(bench.sync_key, envelope)}
        answer = bench.peer.send("POST", "/sync", envelope=envelope, headers=mac)
        assert_signed_refusal(answer, bench.peer, FORBIDDEN)

    @pytest.mark.parametrize("with_mac", [True, False], ids=["with its MAC", "without a MAC"])
    def test_decryption_comes_before_a_wrong_mac(self, bench: ApiBench, with_mac: bool) -> None:
        envelope = {**json.loads(snapshot_body(bench)[0]), "encrypted_data": "00" * 40}
        mac = {"X-Sync-Signature": wire.sync_mac(bench.sync_key, envelope)} if with_mac else {}
        answer = bench.peer.send("POST", "/sync", envelope=envelope, headers=mac)
        assert_signed_refusal(answer, bench.peer, BAD_REQUEST)

    def test_a_captured_proof_gets_nothing_for_another_envelope_key(self, bench: ApiBench) -> None:
        """Whoever ends TLS has the proof, but not the key that the chain lists (protocol §5, last sentence)."""
        thief = RawIdentity(wallet=bench.peer.identity.wallet)
        ephemeral = wire.TeeKey()
        inner = {
            "type": "master_secret_request",
            "ecdh_pubkey": ephemeral.der.hex(),
            "sender_wallet": thief.address,
        }
        envelope = seal(thief, bench.target.tee_pubkey, inner)
        assert_signed_refusal(bench.peer.send("POST", "/sync", envelope=envelope), bench.peer, FORBIDDEN)

    @pytest.mark.parametrize(
        "sender_wallet",
        ["0x" + "12" * 20, "", "0x", None, 7, True, [], {}, "not a wallet", "\ud83d\ude00"],
        ids=["other", "empty", "0x", "null", "number", "boolean", "list", "object", "text", "emoji"],
    )
    def test_the_sender_wallet_must_be_the_signer(self, bench: ApiBench, sender_wallet: object) -> None:
        for inner in (
            harmful_delta(bench),
            {"type": "master_secret_request", "ecdh_pubkey": wire.TeeKey().der.hex()},
            {"type": "no such type"},
        ):
            answer = bench.peer.sync({**inner, "sender_wallet": sender_wallet}, bench.sync_key)
            assert_signed_refusal(answer, bench.peer, FORBIDDEN)

    def test_a_sender_wallet_is_required(self, bench: ApiBench) -> None:
        envelope = seal(bench.peer.identity, bench.target.tee_pubkey, {"type": "snapshot_request"})
        mac = {"X-Sync-Signature": wire.sync_mac(bench.sync_key, envelope)}
        answer = bench.peer.send("POST", "/sync", envelope=envelope, headers=mac)
        assert_signed_refusal(answer, bench.peer, FORBIDDEN)

    @pytest.mark.parametrize(
        "members",
        [{"type": kind} for kind in ("", "DELTA", "snapshot", None, 7, [], {}, True)] + [{}],
        ids=["empty", "upper case", "other", "null", "number", "list", "object", "boolean", "absent"],
    )
    def test_an_unknown_type_is_refused_last(self, bench: ApiBench, members: dict[str, object]) -> None:
        assert_signed_refusal(bench.peer.sync(members, bench.sync_key), bench.peer, BAD_REQUEST)


class TestReplayAndReflection:
    def test_an_envelope_is_accepted_once(self, bench: ApiBench) -> None:
        body, mac = snapshot_body(bench)
        headers = {"X-Sync-Signature": mac}
        assert bench.peer.send("POST", "/sync", body=body, headers=headers).status == 200
        answer = bench.peer.send("POST", "/sync", body=body, headers=headers)
        assert_signed_refusal(answer, bench.peer, FORBIDDEN)

    def test_the_node_s_own_answer_handed_back_is_refused(self, bench: ApiBench) -> None:
        answer = bench.peer.sync({"type": "snapshot_request"}, bench.sync_key)
        sender = {"sender_tee_pubkey": bench.peer.identity.tee.der.hex()}
        for reflected in (answer.response.json(), {**answer.response.json(), **sender}):
            mac = {"X-Sync-Signature": wire.sync_mac(bench.sync_key, reflected)}
            refused = bench.peer.send("POST", "/sync", envelope=reflected, headers=mac)
            assert_signed_refusal(refused, bench.peer, FORBIDDEN)

    @pytest.mark.parametrize("member", ["app_id", "answer_to"])
    def test_members_that_only_answers_have_are_refused(self, bench: ApiBench, member: str) -> None:
        answer = bench.peer.sync({"type": "snapshot_request", member: 1}, bench.sync_key)
        assert_signed_refusal(answer, bench.peer, BAD_REQUEST)

    def test_a_body_for_another_proof_is_refused_and_one_for_this_is_not(self, bench: ApiBench) -> None:
        nonce = fetch_nonce(bench.node.url)
        inner = {"type": "snapshot_request", "pop_nonce": nonce}
        answer = bench.peer.sync(inner, bench.sync_key, nonce=nonce)
        assert answer.status == 200
        assert answer.inner["answer_to"] == nonce
        assert bench.peer.sync(inner, bench.sync_key).status in (400, 403)

    @pytest.mark.parametrize("label", wire.LABELS)
    def test_a_request_is_answered_under_its_own_label(self, bench: ApiBench, label: str) -> None:
        peer = RawPeer(bench.peer.identity, bench.target, label)
        assert peer.sync({"type": "snapshot_request"}, bench.sync_key).label == label

    @pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"null", b'{"type":"snapshot_request"}'])
    def test_plaintext_is_refused(self, bench: ApiBench, body: bytes) -> None:
        answer = bench.peer.send("POST", "/sync", body=body)
        assert_signed_refusal(answer, bench.peer, BAD_REQUEST)

    def test_a_clock_an_hour_off_is_refused_whatever_else_is_right(self, bench: ApiBench) -> None:
        answer = bench.peer.sync({"type": "snapshot_request"}, bench.sync_key, timestamp=int(time.time()) - 3600)
        assert_refused(answer.response, FORBIDDEN)


def off_curve(der: bytes) -> bytes:
    return der[:-1] + bytes([der[-1] ^ 1])


BAD_PUBKEYS: dict[str, dict[str, object]] = {
    "absent": {},
    **{
        why: {"ecdh_pubkey": value}
        for why, value in (
            ("null", None),
            ("empty", ""),
            ("0x", "0x"),
            ("a number", 7),
            ("a list", [wire.TeeKey().der.hex()]),
            ("not hex", "zz" * 120),
            ("of an odd length", wire.TeeKey().der.hex()[:-1]),
            ("cut short", wire.TeeKey().der.hex()[:-2]),
            ("with a byte more", wire.TeeKey().der.hex() + "00"),
            ("with white space", wire.TeeKey().der.hex() + " "),
            ("with white space inside", wire.TeeKey().der.hex()[:20] + " " + wire.TeeKey().der.hex()[20:]),
            ("off the curve", off_curve(wire.TeeKey().der).hex()),
            ("a point off the curve", off_curve(wire.TeeKey().sec1).hex()),
            ("of another curve", P256_DER.hex()),
            ("compressed", (b"\x02" + wire.TeeKey().sec1[1:49]).hex()),
            ("the point at infinity", "00"),
            ("zeros", "04" + "00" * 96),
            ("very long", "00" * 10_000),
        )
    },
}


class TestMasterSecret:
    @pytest.mark.parametrize(
        "spell",
        [
            lambda key: key.der.hex(),
            lambda key: key.sec1.hex(),
            lambda key: "0x" + key.der.hex(),
            lambda key: key.sec1.hex().upper(),
        ],
        ids=["DER", "point", "0x", "upper case"],
    )
    def test_the_secret_is_sealed_to_the_key_of_the_request(
        self, bench: ApiBench, spell: Callable[[wire.TeeKey], str]
    ) -> None:
        ephemeral = wire.TeeKey()
        inner = {"type": "master_secret_request", "ecdh_pubkey": spell(ephemeral)}
        answer = bench.peer.sync(inner, None)
        assert answer.status == 200
        assert set(answer.inner["sealed"]) == {"ephemeral_pubkey", "nonce", "encrypted_data"}
        secret = wire.open_master_secret(answer.inner["sealed"], ephemeral)
        assert wire.keccak256(secret) == bench.cluster.chain.master_secret_hash()

    def test_every_seal_has_a_key_and_a_nonce_of_its_own(self, bench: ApiBench) -> None:
        inner = {"type": "master_secret_request", "ecdh_pubkey": wire.TeeKey().der.hex()}
        sealed = [bench.peer.sync(inner, None).inner["sealed"] for _ in range(4)]
        for member in ("ephemeral_pubkey", "nonce", "encrypted_data"):
            assert len({seal[member] for seal in sealed}) == len(sealed)

    @pytest.mark.parametrize("members", BAD_PUBKEYS.values(), ids=BAD_PUBKEYS)
    def test_without_a_usable_key_it_is_refused(self, bench: ApiBench, members: dict[str, object]) -> None:
        answer = bench.peer.sync({"type": "master_secret_request", **members}, None)
        assert_signed_refusal(answer, bench.peer, BAD_REQUEST)
        assert bench.master_secret.hex() not in answer.response.text

    def test_an_app_gets_it_by_no_means(self, bench: ApiBench) -> None:
        inner = {"type": "master_secret_request", "ecdh_pubkey": wire.TeeKey().der.hex()}
        answer = bench.app.send("POST", "/sync", {**inner, "sender_wallet": bench.app.identity.address})
        assert (answer.status, answer.code) == FORBIDDEN
