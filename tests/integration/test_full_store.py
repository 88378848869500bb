"""A node whose whole store is full: what is refused, and what makes room again (store §1, protocol §7)."""

import pytest

from tests.support import wire
from tests.support.api_bench import QUOTA_EXCEEDED, ApiBench, assert_signed_refusal, bench_of
from tests.support.cluster import Cluster, eventually
from tests.support.raw_client import Answer, RawApp

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("full_store")]

MAX_VALUE = 4096
MAX_APP = 16_384
MAX_STORE = 65_536
RECORD_BYTES = MAX_VALUE + 28 + 128 + 1  # value, nonce and tag, what a record costs, a key of one byte
VALUES_PER_APP = 3


@pytest.fixture
def bench(cluster: Cluster) -> ApiBench:
    """A node for each test: a full store stays a full store."""
    env = {
        "MAX_KV_VALUE_SIZE_BYTES": str(MAX_VALUE),
        "MAX_APP_STORAGE_BYTES": str(MAX_APP),
        "MAX_STORE_BYTES": str(MAX_STORE),
    }
    return bench_of(cluster, cluster.add_nova("nova", env=env))


def put(app: RawApp, key: str, ttl_ms: int = 0) -> Answer:
    return app.send("PUT", "/kms/data", {"key": key, "value": wire.encode_base64(bytes(MAX_VALUE)), "ttl_ms": ttl_ms})


def fill(bench: ApiBench, ttl_ms: int = 0) -> list[RawApp]:
    """Apps whose values are all that the store takes; the next value of the last of them is refused."""
    apps = [bench.new_app()]
    for number in range(MAX_STORE // RECORD_BYTES):
        if number and number % VALUES_PER_APP == 0:
            apps.append(bench.new_app())
        assert put(apps[-1], str(number % VALUES_PER_APP), ttl_ms).status == 200
    assert_signed_refusal(put(apps[-1], "3", ttl_ms), apps[-1], QUOTA_EXCEEDED)
    return apps


def total_bytes(bench: ApiBench) -> int:
    return bench.node.status()["data_store"]["total_bytes"]


def test_a_full_store_refuses_every_app_and_keeps_what_it_has(bench: ApiBench) -> None:
    apps = fill(bench)
    assert total_bytes(bench) == MAX_STORE // RECORD_BYTES * RECORD_BYTES
    for app in (apps[0], bench.new_app()):
        assert_signed_refusal(put(app, "3"), app, QUOTA_EXCEEDED)
    assert apps[0].contents() == {str(number): bytes(MAX_VALUE) for number in range(VALUES_PER_APP)}
    assert total_bytes(bench) == MAX_STORE // RECORD_BYTES * RECORD_BYTES
    assert apps[0].put("0", bytes(MAX_VALUE))  # what replaces as much needs no room
    other = bench.new_app()
    assert_signed_refusal(put(other, "k"), other, QUOTA_EXCEEDED)
    assert apps[0].delete("0")  # in one app, and there is room for another
    assert put(other, "k").status == 200


def test_what_expired_in_one_app_makes_room_for_another(bench: ApiBench) -> None:
    fill(bench, ttl_ms=2000)
    other = bench.new_app()
    assert_signed_refusal(put(other, "k"), other, QUOTA_EXCEEDED)
    eventually(lambda: total_bytes(bench) == 0, 10.0)
    assert put(other, "k").status == 200
