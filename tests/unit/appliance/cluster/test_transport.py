"""`PeerTransport`: one exchange with one peer, and how far its answer is believed (protocol §2, §3, §5)."""

from collections.abc import Callable

import httpx
import pytest

from appliance.cluster.transport import PeerAnswer, PeerRefused, PeerUnreachable, PeerUntrusted
from tests.support import wire
from tests.support.cluster_bench import Bench, FakePeer, Gate, cancelled_at

pytestmark = pytest.mark.anyio

DEADLINE_S = 5.0
LIMIT_BYTES = 1 << 20
DELTA = {"type": "delta", "data": {}}


@pytest.fixture
async def peer(bench: Bench) -> FakePeer:
    """A peer that knows the extensions; our node holds the secret."""
    peer = FakePeer(1, extensions=["snapshot_pages"], boot_id="first")
    bench.reach(peer)
    bench.hold_secret()
    return peer


async def exchange(bench: Bench, peer: FakePeer, inner: dict[str, object] = DELTA) -> PeerAnswer:
    return await bench.transport.exchange(peer.peer, inner, deadline_s=DEADLINE_S, limit_bytes=LIMIT_BYTES)


class TestRequests:
    async def test_the_request_proves_seals_and_authenticates(self, bench: Bench, peer: FakePeer) -> None:
        answer = await exchange(bench, peer)
        assert answer.inner["status"] == "ok"
        assert (answer.extensions, answer.boot_id) == (frozenset({"snapshot_pages"}), "first")
        (inner,) = peer.received
        assert inner["sender_wallet"] == bench.identity.wallet
        assert peer.headers["x-kms-wallet"] == bench.identity.wallet
        assert peer.headers["content-type"] == "application/json"

    async def test_no_mac_is_made_with_a_secret_that_the_chain_does_not_confirm(
        self, bench: Bench, peer: FakePeer
    ) -> None:
        bench.keys.unconfirm()
        await exchange(bench, peer, {"type": "master_secret_request", "ecdh_pubkey": wire.TeeKey().der.hex()})
        assert "x-sync-signature" not in peer.headers

    async def test_an_older_peer_announces_nothing(self, bench: Bench) -> None:
        bench.hold_secret()
        bench.reach(old := FakePeer(2))
        answer = await exchange(bench, old)
        assert (answer.extensions, answer.boot_id) == (frozenset(), None)

    @pytest.mark.parametrize("label", wire.LABELS)
    @pytest.mark.parametrize("refusal", [400, 500])
    async def test_the_label_that_a_peer_understands_is_found_and_kept(
        self, bench: Bench, peer: FakePeer, label: str, refusal: int
    ) -> None:
        peer.labels = (label,)
        peer.refusals = [refusal] * wire.LABELS.index(label)
        await exchange(bench, peer)
        asked = len(peer.asked)
        await exchange(bench, peer)
        assert len(peer.asked) == asked + 1, "one request, with the nonce of the last answer"

    async def test_a_refusal_that_no_label_changes_is_the_peers_own(self, bench: Bench, peer: FakePeer) -> None:
        peer.refusals = [400, 500, 400]
        with pytest.raises(PeerRefused) as refusal:
            await exchange(bench, peer)
        assert refusal.value.status == 400
        assert peer.asked.count("/sync") == 3

    @pytest.mark.parametrize("status", [403, 413, 429, 503])
    async def test_other_refusals_are_not_tried_under_other_labels(
        self, bench: Bench, peer: FakePeer, status: int
    ) -> None:
        peer.refusals = [status]
        peer.refusal_headers = {"Retry-After": "7"}
        with pytest.raises(PeerRefused) as refusal:
            await exchange(bench, peer)
        assert (refusal.value.status, refusal.value.code, refusal.value.retry_after_s) == (status, "refused", 7.0)
        assert peer.asked == ["/nonce", "/sync"]


class TestNonces:
    async def test_the_next_nonce_saves_a_request(self, bench: Bench, peer: FakePeer) -> None:
        for _ in range(3):
            await exchange(bench, peer)
        assert peer.asked == ["/nonce", "/sync", "/sync", "/sync"]

    async def test_a_next_nonce_that_lay_too_long_is_not_used(self, bench: Bench, peer: FakePeer) -> None:
        await exchange(bench, peer)
        bench.clock.elapsed_ms += 20_001
        await exchange(bench, peer)
        assert peer.asked == ["/nonce", "/sync", "/nonce", "/sync"]

    async def test_a_next_nonce_that_the_peer_no_longer_knows_is_replaced(self, bench: Bench, peer: FakePeer) -> None:
        await exchange(bench, peer)
        peer.forget_nonces()
        assert (await exchange(bench, peer)).inner["status"] == "ok"
        assert peer.asked == ["/nonce", "/sync", "/sync", "/nonce", "/sync"]

    async def test_the_nonces_of_departed_peers_are_forgotten(self, bench: Bench, peer: FakePeer) -> None:
        await exchange(bench, peer)
        bench.transport.forget_departed(frozenset())
        await exchange(bench, peer)
        assert peer.asked.count("/nonce") == 2

    @pytest.mark.parametrize(
        "body", [b"", b"[]", b'{"nonce": 7}', b'{"nonce": ""}', b'{"nonce": "a\\nb"}', b"{" * 70_000]
    )
    async def test_a_nonce_that_cannot_be_sent_is_an_answer_not_to_be_trusted(
        self, bench: Bench, peer: FakePeer, body: bytes
    ) -> None:
        peer.spoil = lambda _: httpx.Response(200, content=body)
        with pytest.raises((PeerUntrusted, PeerUnreachable)):
            await exchange(bench, peer)


def without(name: str) -> Callable[[FakePeer, httpx.Response], httpx.Response]:
    def spoil(_: FakePeer, response: httpx.Response) -> httpx.Response:
        response.headers.pop(name, None)
        return response

    return spoil


def signed_by_a_stranger(_: FakePeer, response: httpx.Response) -> httpx.Response:
    response.headers["X-KMS-Peer-Signature"] = wire.Wallet().sign("something else")
    return response


def sealed_by_a_stranger(peer: FakePeer, response: httpx.Response) -> httpx.Response:
    sealed = wire.seal(wire.TeeKey(), peer.tee.der, wire.CAPSULE_LABEL, b'{"status":"ok"}')
    return httpx.Response(200, json=sealed, headers=response.headers.multi_items()[:1])


def corrupted(_: FakePeer, response: httpx.Response) -> httpx.Response:
    body = bytearray(response.content)
    body[-8] = ord("0") if body[-8] != ord("0") else ord("1")
    return httpx.Response(200, content=bytes(body), headers=_signature_of(response))


def plaintext(_: FakePeer, response: httpx.Response) -> httpx.Response:
    return httpx.Response(200, json={"status": "ok", "merged": 1}, headers=_signature_of(response))


def garbage(_: FakePeer, response: httpx.Response) -> httpx.Response:
    return httpx.Response(200, content=b"\xff{", headers=_signature_of(response))


def _signature_of(response: httpx.Response) -> dict[str, str]:
    return {"X-KMS-Peer-Signature": response.headers["X-KMS-Peer-Signature"]}


LIES = [without("X-KMS-Peer-Signature"), signed_by_a_stranger, sealed_by_a_stranger, corrupted, plaintext, garbage]


class TestAnswers:
    @pytest.mark.parametrize("lie", LIES)
    async def test_an_answer_that_proves_nothing_is_not_believed(
        self, bench: Bench, peer: FakePeer, lie: Callable[[FakePeer, httpx.Response], httpx.Response]
    ) -> None:
        peer.spoil = lambda response: lie(peer, response) if "X-KMS-Peer-Signature" in response.headers else response
        with pytest.raises(PeerUntrusted):
            await exchange(bench, peer)
        peer.spoil = None
        assert (await exchange(bench, peer)).inner["status"] == "ok"

    @pytest.mark.parametrize(
        "alter",
        [
            lambda answer: {**answer, "answer_to": "another request"},
            lambda answer: {**answer, "status": "error"},
            lambda answer: {name: value for name, value in answer.items() if name != "status"},
        ],
    )
    async def test_an_answer_that_does_not_fit_the_request_is_not_believed(
        self, bench: Bench, peer: FakePeer, alter: Callable[[dict[str, object]], dict[str, object]]
    ) -> None:
        peer.alter["delta"] = alter
        with pytest.raises(PeerUntrusted):
            await exchange(bench, peer)

    async def test_an_old_answer_sent_again_is_not_believed(self, bench: Bench) -> None:
        """An older peer binds its answers to nothing but the signature: the envelope's nonce must be new."""
        bench.hold_secret()
        bench.reach(old := FakePeer(3))
        recorded: list[bytes] = []

        def replay(response: httpx.Response) -> httpx.Response:
            if "X-KMS-Peer-Signature" not in response.headers:
                return response
            recorded.append(response.content)
            return httpx.Response(200, content=recorded[0], headers=_signature_of(response))

        old.spoil = replay
        await exchange(bench, old)
        with pytest.raises(PeerUntrusted):
            await exchange(bench, old)

    async def test_announcements_of_another_type_announce_nothing(self, bench: Bench, peer: FakePeer) -> None:
        peer.alter["delta"] = lambda answer: {**answer, "ext": [1, {}, "known"], "boot_id": 5}
        answer = await exchange(bench, peer)
        assert (answer.extensions, answer.boot_id) == (frozenset({"known"}), None)

    async def test_an_answer_beyond_the_limit_is_not_read_to_its_end(self, bench: Bench, peer: FakePeer) -> None:
        peer.alter["delta"] = lambda answer: {**answer, "padding": "x" * LIMIT_BYTES}
        with pytest.raises(PeerUnreachable):
            await exchange(bench, peer)

    async def test_a_peer_that_is_not_there(self, bench: Bench) -> None:
        with pytest.raises(PeerUnreachable):
            await exchange(bench, FakePeer(9))


class TestTime:
    @pytest.mark.parametrize("place", ["/nonce", "/sync", "delta"])
    async def test_a_peer_that_hangs_costs_the_deadline(self, bench: Bench, peer: FakePeer, place: str) -> None:
        peer.gates[place] = Gate()
        with pytest.raises(PeerUnreachable):
            await bench.transport.exchange(peer.peer, DELTA, deadline_s=0.05, limit_bytes=LIMIT_BYTES)

    @pytest.mark.parametrize("place", ["/nonce", "/sync", "delta"])
    async def test_a_cancelled_exchange_leaves_nothing_behind(self, bench: Bench, peer: FakePeer, place: str) -> None:
        peer.gates[place] = gate = Gate()
        await cancelled_at(gate, lambda: exchange(bench, peer))
        assert (await exchange(bench, peer)).inner["status"] == "ok"

    async def test_a_cancelled_exchange_uses_the_remembered_nonce_up(self, bench: Bench, peer: FakePeer) -> None:
        await exchange(bench, peer)
        peer.gates["delta"] = gate = Gate()
        await cancelled_at(gate, lambda: exchange(bench, peer))
        peer.asked.clear()
        await exchange(bench, peer)
        assert peer.asked == ["/nonce", "/sync"], "whether the peer has used it is not known"
