"""A client that requires attestation asks nothing of a node that has not proved what it runs."""

from collections.abc import Callable
from datetime import timedelta

import anyio
import pytest

from appliance.client import (
    AttestationRequirement,
    FailureKind,
    KmsClient,
    Measurements,
    NodeNotAttested,
    NoNodeAvailable,
    RateLimited,
)
from kmscore.errors import ConfigError
from tests.support import fake_node, wire
from tests.support.client_bench import Bench
from tests.support.fake_node import FakeNode, Fault
from tests.support.node_attestation import Attesters, answers
from tests.support.secure_module import IMAGE

pytestmark = pytest.mark.anyio

OTHER_IMAGE = Measurements({index: bytes([9]) * 48 for index in (0, 1, 2)})


@pytest.fixture
def attesters(bench: Bench) -> Attesters:
    return Attesters(bench.clock)


def client(bench: Bench, attesters: Attesters, *images: Measurements) -> KmsClient:
    return bench.client(attestation=AttestationRequirement(images or (IMAGE,), root_der=attesters.root_der))


def add_node(bench: Bench, attestation: Fault | None) -> FakeNode:
    node = bench.add_node()
    node.attestation = attestation
    return node


async def test_a_node_that_proves_its_image_and_its_keys_is_used(bench: Bench, attesters: Attesters) -> None:
    node = add_node(bench, attesters.honest())
    async with client(bench, attesters, OTHER_IMAGE, IMAGE) as kms:
        assert len(await kms.derive("disk")) == 32

    assert node.asked[0] == "GET /attestation"


async def test_it_is_asked_once_and_with_a_nonce_of_32_bytes(bench: Bench, attesters: Attesters) -> None:
    node = add_node(bench, attesters.honest())
    async with client(bench, attesters) as kms:
        for _ in range(3):
            await kms.derive("disk")
    async with client(bench, attesters) as kms:
        await kms.derive("disk")

    assert node.asked.count("GET /attestation") == 2
    assert [len(nonce) for nonce in attesters.nonces] == [32, 32]
    assert len(set(attesters.nonces)) == 2


async def test_calls_at_a_time_share_one_document(bench: Bench, attesters: Attesters) -> None:
    node = add_node(bench, attesters.honest())
    async with client(bench, attesters) as kms, anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(kms.derive, "disk")

    assert node.asked.count("GET /attestation") == 1
    assert len(node.ran) == 5


async def test_a_client_that_requires_nothing_does_not_ask(bench: Bench, attesters: Attesters) -> None:
    node = add_node(bench, attesters.honest())
    async with bench.client() as kms:
        await kms.derive("disk")

    assert "GET /attestation" not in node.asked


DISHONEST: dict[str, Callable[[Attesters], Fault]] = {
    "another image": lambda attesters: attesters.honest(pcrs=dict(OTHER_IMAGE.pcrs)),
    "debug mode": lambda attesters: attesters.honest(pcrs={}),
    "another wallet": lambda attesters: attesters.honest(wallet=wire.Wallet().address),
    "another key": lambda attesters: attesters.honest(tee_pubkey=wire.TeeKey().der),
    "a key that is none": lambda attesters: attesters.honest(tee_pubkey=b"key"),
    "another nonce": lambda attesters: attesters.honest(nonce=bytes(32)),
    "an old document": lambda attesters: attesters.honest(late_ms=301_000),
    "a document of the future": lambda attesters: attesters.honest(late_ms=-61_000),
    "another root": lambda attesters: Attesters(attesters.clock).honest(),
    "no document": lambda _: answers(200, b"{}"),
    "nothing": lambda _: answers(200),
    "too much": lambda _: answers(200, bytes(16 * 1024 + 1)),
    "no such endpoint": lambda _: answers(404, b'{"code":"not_found"}'),
    "a refusal": lambda _: answers(403),
    "a redirect": lambda _: answers(307, b"", {"Location": "https://elsewhere.example/attestation"}),
    "a fault": lambda _: answers(500),
}


@pytest.mark.parametrize("dishonest", DISHONEST.values(), ids=DISHONEST)
async def test_a_node_without_proof_is_asked_nothing(
    bench: Bench, attesters: Attesters, dishonest: Callable[[Attesters], Fault]
) -> None:
    node = add_node(bench, dishonest(attesters))
    async with client(bench, attesters) as kms:
        for call in (lambda: kms.derive("disk"), lambda: kms.put("key", b"secret")):
            with pytest.raises(NodeNotAttested) as error:
                await call()

    assert {failure.kind for failure in error.value.failures} == {FailureKind.NOT_ATTESTED}
    assert set(node.asked) == {"GET /attestation"}
    assert node.ran == []


async def test_another_node_with_proof_is_used_instead(bench: Bench, attesters: Attesters) -> None:
    without = add_node(bench, attesters.honest(pcrs={}))
    proven = add_node(bench, attesters.honest())
    async with client(bench, attesters) as kms:
        await kms.put("key", b"value")

    assert (without.ran, proven.ran) == ([], ["put key"])


async def test_one_node_without_proof_among_silent_ones_is_what_the_error_says(
    bench: Bench, attesters: Attesters
) -> None:
    add_node(bench, fake_node.refuses_connection)
    add_node(bench, attesters.honest(pcrs={}))
    async with client(bench, attesters) as kms:
        with pytest.raises(NodeNotAttested, match="debug"):
            await kms.derive("disk")


async def test_a_node_that_cannot_attest_now_is_waited_for(bench: Bench, attesters: Attesters) -> None:
    node = add_node(bench, answers(503, b"{}", {"Retry-After": "2"}))
    async with client(bench, attesters) as kms:
        with pytest.raises(NoNodeAvailable):
            await kms.derive("disk")
        assert node.ran == []
        node.attestation = attesters.honest()
        bench.clock.elapsed_ms += 60_000
        await kms.derive("disk")


async def test_a_node_that_asks_for_patience_is_left_alone(bench: Bench, attesters: Attesters) -> None:
    add_node(bench, answers(429, b"{}", {"Retry-After": "60"}))
    async with client(bench, attesters) as kms:
        with pytest.raises(RateLimited) as error:
            await kms.derive("disk")

    assert error.value.retry_after_s == 60


async def test_a_node_that_was_refused_once_may_prove_itself_later(bench: Bench, attesters: Attesters) -> None:
    node = add_node(bench, attesters.honest(pcrs={}))
    async with client(bench, attesters) as kms:
        with pytest.raises(NodeNotAttested):
            await kms.derive("disk")
        node.attestation = attesters.honest()
        await kms.derive("disk")


async def test_the_window_is_the_requirements(bench: Bench, attesters: Attesters) -> None:
    add_node(bench, attesters.honest(late_ms=301_000))
    requirement = AttestationRequirement([IMAGE], root_der=attesters.root_der, max_age=timedelta(minutes=6))
    async with bench.client(attestation=requirement) as kms:
        await kms.derive("disk")


async def test_only_aws_is_believed_unless_told_otherwise(bench: Bench, attesters: Attesters) -> None:
    add_node(bench, attesters.honest())
    async with bench.client(attestation=AttestationRequirement([IMAGE])) as kms:
        with pytest.raises(NodeNotAttested, match="root"):
            await kms.derive("disk")


def test_a_requirement_that_every_enclave_meets_is_refused() -> None:
    with pytest.raises(ConfigError):
        AttestationRequirement([])
