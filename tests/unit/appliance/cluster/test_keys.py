"""`ClusterKeys`: which secret is held, since when the chain confirms it, and what it may be used for (node §2)."""

from collections.abc import Callable

import pytest

from appliance.cluster.keys import ClusterKeys, SecretState
from kmscore.errors import InvariantBroken, Unavailable
from kmscore.secret import SecretBytes
from tests.support import wire
from tests.support.fake_node import FakeClock

SECRET, OTHER = bytes(range(32)), bytes(range(32, 64))
HASH, OTHER_HASH = wire.keccak256(SECRET), wire.keccak256(OTHER)
PEER = "0x" + "ab" * 20


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def keys(clock: FakeClock) -> ClusterKeys:
    return ClusterKeys(clock)


def uses_of(keys: ClusterKeys) -> list[Callable[[], object]]:
    """Everything that needs a confirmed secret."""
    return [
        keys.require_confirmed,
        lambda: keys.derive(7, "disk", "", 32),
        lambda: keys.data_cipher(7),
    ]


def test_without_a_secret_there_is_nothing_to_use(keys: ClusterKeys) -> None:
    assert (keys.initialized, keys.confirmed, keys.sync_key) == (False, False, None)
    assert keys.state is SecretState.UNINITIALIZED
    assert keys.secret_hash == b""
    assert not keys.matches(HASH)
    assert not keys.confirmed_within(1e9)
    for use in uses_of(keys):
        with pytest.raises(Unavailable):
            use()


def test_a_secret_made_here_is_used_for_nothing_before_the_chain_shows_it(keys: ClusterKeys) -> None:
    keys.generate(SecretBytes(SECRET))
    assert (keys.initialized, keys.confirmed, keys.sync_key) == (True, False, None)
    assert keys.state is SecretState.GENERATED
    assert keys.secret_hash == HASH
    for use in uses_of(keys):
        with pytest.raises(Unavailable):
            use()


def test_a_confirmed_secret_derives_what_the_protocol_says(keys: ClusterKeys) -> None:
    keys.generate(SecretBytes(SECRET))
    keys.confirm(HASH)
    assert keys.require_confirmed().matches(SECRET)
    assert keys.derive(7, "disk", "v1", 48) == wire.derive_key(SECRET, 7, "disk", "v1", 48)
    sealed = keys.data_cipher(7).seal(b"value", bytes(12))
    assert wire.decrypt_value(wire.derive_data_key(SECRET, 7), sealed) == b"value"
    assert keys.sync_key is not None
    assert keys.sync_key.matches(wire.derive_sync_key(SECRET))


def test_another_hash_confirms_nothing(keys: ClusterKeys) -> None:
    with pytest.raises(InvariantBroken):
        keys.confirm(HASH)
    keys.generate(SecretBytes(SECRET))
    with pytest.raises(InvariantBroken):
        keys.confirm(OTHER_HASH)
    assert not keys.confirmed


def test_a_secret_is_made_once(keys: ClusterKeys) -> None:
    keys.generate(SecretBytes(SECRET))
    with pytest.raises(InvariantBroken):
        keys.generate(SecretBytes(OTHER))
    assert keys.secret_hash == HASH


def test_a_reset_keeps_the_secret_and_stops_its_use(keys: ClusterKeys) -> None:
    keys.generate(SecretBytes(SECRET))
    keys.confirm(HASH)
    keys.unconfirm()
    assert (keys.initialized, keys.confirmed, keys.sync_key) == (True, False, None)
    assert keys.matches(HASH)
    for use in uses_of(keys):
        with pytest.raises(Unavailable):
            use()
    keys.confirm(HASH)
    assert keys.derive(7, "disk", "", 32) == wire.derive_key(SECRET, 7, "disk")


def test_a_peers_secret_replaces_ours_and_all_that_came_of_it(keys: ClusterKeys) -> None:
    keys.generate(SecretBytes(SECRET))
    keys.confirm(HASH)
    keys.data_cipher(7)
    keys.adopt(SecretBytes(OTHER), OTHER_HASH, PEER)
    assert (keys.state, keys.synced_from) == (SecretState.SYNCED, PEER)
    assert keys.confirmed
    sealed = keys.data_cipher(7).seal(b"value", bytes(12))
    assert wire.decrypt_value(wire.derive_data_key(OTHER, 7), sealed) == b"value"


def test_a_secret_that_the_chain_does_not_show_is_not_adopted(keys: ClusterKeys) -> None:
    keys.generate(SecretBytes(SECRET))
    with pytest.raises(InvariantBroken):
        keys.adopt(SecretBytes(OTHER), HASH, PEER)
    assert keys.matches(HASH)
    assert keys.state is SecretState.GENERATED


def test_confirmation_ages_on_the_monotonic_clock(keys: ClusterKeys, clock: FakeClock) -> None:
    keys.generate(SecretBytes(SECRET))
    keys.confirm(HASH)
    clock.elapsed_ms += 180_000
    assert keys.confirmed_within(180)
    clock.elapsed_ms += 1
    assert not keys.confirmed_within(180)
    clock.wall_ms -= 10**9
    keys.confirm(HASH)
    assert keys.confirmed_within(180)


def test_wiping_forgets_everything(keys: ClusterKeys) -> None:
    keys.adopt(SecretBytes(SECRET), HASH, PEER)
    kept = keys.require_confirmed()
    keys.wipe()
    assert (keys.initialized, keys.confirmed, keys.sync_key, keys.synced_from) == (False, False, None, None)
    assert keys.state is SecretState.UNINITIALIZED
    with pytest.raises(InvariantBroken):
        kept.reveal()
    keys.wipe()


def test_many_apps_take_bounded_memory(keys: ClusterKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.cluster.keys.MAX_CACHED_CIPHERS", 3)
    keys.adopt(SecretBytes(SECRET), HASH, PEER)
    first = keys.data_cipher(0)
    for app_id in (1, 2, 0, 3):
        keys.data_cipher(app_id)
    assert keys.data_cipher(0) is first, "used since, so another one made room"
    for app_id in range(10):
        keys.data_cipher(app_id)
    assert keys.data_cipher(0) is not first
