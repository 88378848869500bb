"""`PeerCache`: who is a member, for how long that is believed, and what the probes say (node §1)."""

import pytest

from appliance.chain.types import ChainError
from kmscore.errors import Reason, Rejected
from tests.support.cluster_bench import KMS_APP_ID, TTL_S, Bench, FakePeer, Gate, cancelled_at

pytestmark = pytest.mark.anyio

TTL_MS = int(TTL_S * 1000)


async def test_nothing_is_known_before_the_first_refresh(bench: Bench) -> None:
    await bench.register(FakePeer(1))
    assert not bench.peers.fresh
    assert bench.peers.peers() == ()
    with pytest.raises(Rejected) as refusal:
        bench.peers.verify_kms_peer(FakePeer(1).address)
    assert refusal.value.reason is Reason.NOT_AUTHORIZED


async def test_a_refresh_knows_every_eligible_instance_ourselves_included(bench: Bench) -> None:
    peer = FakePeer(1)
    await bench.register(peer)
    await bench.peers.refresh()
    assert [known.wallet for known in bench.peers.peers()] == [bench.identity.wallet, peer.address]
    known = bench.peers.verify_kms_peer(peer.address)
    assert (known.instance_url, known.tee_pubkey.der) == (peer.url, peer.tee.der)
    with pytest.raises(Rejected):
        bench.peers.verify_kms_peer(FakePeer(2).address)


@pytest.mark.parametrize(
    "url",
    [
        "http://peer.example",
        "https://user:word@peer.example",
        "https://peer.example/#x",
        "https://peer.example/?x=1",
        "//peer.example",
        "ftp://peer.example",
        "",
        "https://",
    ],
)
async def test_an_instance_with_an_unusable_url_is_left_out_alone(bench: Bench, url: str) -> None:
    bad, good = FakePeer(1), FakePeer(2)
    await bench.register(ourselves=False)
    instance_id = await bench.add(bad)
    await bench.add(good)
    await bench.registry.set_instance_url(instance_id, url)
    await bench.peers.refresh()
    assert [known.wallet for known in bench.peers.peers()] == [good.address]


async def test_ineligible_instances_are_left_out(bench: Bench) -> None:
    registry, peers = bench.registry, [FakePeer(number) for number in range(1, 6)]
    await bench.register(ourselves=False)
    ids = [await bench.add(peer) for peer in peers]
    await registry.set_zk_verified(ids[0], False)
    await registry.set_instance_status(ids[1], 9)
    await registry.set_tee_pubkey(ids[2], b"no key")
    await registry.set_instance_of_wallet(peers[3].address, 0)
    await bench.peers.refresh()
    assert [known.wallet for known in bench.peers.peers()] == [peers[4].address]
    await registry.set_version_status(KMS_APP_ID, 1, 9)
    await bench.peers.refresh()
    assert bench.peers.peers() == ()
    assert bench.peers.fresh, "an empty membership is an answer, not a failure"


async def test_a_failed_refresh_keeps_the_old_set_until_it_is_too_old(bench: Bench) -> None:
    peer = FakePeer(1)
    await bench.register(peer)
    await bench.peers.refresh()

    async def fail() -> None:
        raise ChainError("unreadable")

    bench.registry.before_read = fail
    bench.clock.elapsed_ms += TTL_MS
    with pytest.raises(ChainError):
        await bench.peers.refresh()
    assert bench.peers.get(peer.address) is not None
    bench.clock.elapsed_ms += 1
    assert not bench.peers.fresh
    assert bench.peers.peers() == ()
    assert bench.peers.get(peer.address) is None


async def test_age_counts_from_before_the_read(bench: Bench) -> None:
    await bench.register(FakePeer(1))

    async def take_a_minute() -> None:
        bench.clock.elapsed_ms += 60_000

    bench.registry.before_read = take_a_minute
    await bench.peers.refresh()
    bench.clock.elapsed_ms += TTL_MS - 60_000
    assert bench.peers.fresh
    bench.clock.elapsed_ms += 1
    assert not bench.peers.fresh


async def test_before_a_push_only_a_stale_set_is_read_again(bench: Bench) -> None:
    await bench.register()
    await bench.peers.refresh()
    reads = len(bench.registry.reads)
    await bench.peers.refresh_if_stale()
    assert len(bench.registry.reads) == reads
    bench.clock.elapsed_ms += TTL_MS + 1
    await bench.peers.refresh_if_stale()
    assert len(bench.registry.reads) == reads + 1
    assert bench.peers.fresh


async def test_a_cancelled_refresh_leaves_the_old_set(bench: Bench) -> None:
    peer, gate = FakePeer(1), Gate()
    await bench.register(peer)
    await bench.peers.refresh()
    await bench.add(FakePeer(2))
    bench.registry.before_read = gate.wait
    await cancelled_at(gate, bench.peers.refresh)
    assert [known.wallet for known in bench.peers.peers()] == [bench.identity.wallet, peer.address]
    await bench.peers.refresh()
    assert len(bench.peers.peers()) == 3


class TestProbes:
    async def test_every_other_peer_is_asked_and_what_it_said_is_remembered(self, bench: Bench) -> None:
        good, ill, gone = FakePeer(1), FakePeer(2), FakePeer(3)
        ill.status_code = 503
        await bench.register(good, ill, gone)
        del bench.network.peers[gone.url]
        await bench.peers.refresh()
        await bench.peers.probe(bench.identity.wallet)
        probes = [bench.peers.probe_of(peer.address) for peer in (good, ill, gone)]
        assert [(probe.status_reachable, probe.status_http_code) for probe in probes if probe] == [
            (True, 200),
            (True, 503),
            (False, None),
        ]
        assert {probe.status_checked_at_ms for probe in probes if probe} == {bench.clock.now_ms()}
        assert bench.peers.probe_of(bench.identity.wallet) is None

    async def test_a_peer_that_hangs_is_given_up_and_delays_no_other(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("appliance.cluster.peers.PROBE_TIMEOUT_S", 0.05)
        hanging, good = FakePeer(1), FakePeer(2)
        hanging.gates["/status"] = Gate()
        await bench.register(hanging, good)
        await bench.peers.refresh()
        await bench.peers.probe(bench.identity.wallet)
        probes = [bench.peers.probe_of(peer.address) for peer in (hanging, good)]
        assert [probe.status_reachable for probe in probes if probe] == [False, True]

    async def test_a_cancelled_probe_leaves_what_was_known(self, bench: Bench) -> None:
        peer, gate = FakePeer(1), Gate()
        await bench.register(peer)
        await bench.peers.refresh()
        await bench.peers.probe(bench.identity.wallet)
        before = bench.peers.probe_of(peer.address)
        peer.gates["/status"] = gate
        await cancelled_at(gate, lambda: bench.peers.probe(bench.identity.wallet))
        assert bench.peers.probe_of(peer.address) == before

    async def test_what_a_departed_peer_said_is_forgotten(self, bench: Bench) -> None:
        peer = FakePeer(1)
        await bench.register(ourselves=False)
        instance_id = await bench.add(peer)
        await bench.peers.refresh()
        await bench.peers.probe(bench.identity.wallet)
        await bench.registry.set_instance_status(instance_id, 1)
        await bench.peers.refresh()
        assert bench.peers.probe_of(peer.address) is None
