"""The cache believes nothing: every read hashes, every download is checked against the lock."""

import hashlib

import pytest

from enclave_image.errors import LockError
from enclave_image.fetch import Cache, check_fetched

DATA = b"contents"
DIGEST = hashlib.sha256(DATA).hexdigest()


def test_what_is_put_is_found_by_its_hash(tmp_path):
    cache = Cache(tmp_path / "cache")
    assert DIGEST not in cache
    assert cache.put(DATA) == DIGEST
    assert DIGEST in cache
    assert cache.read(DIGEST, "x") == DATA
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [DIGEST]


def test_a_missing_input_is_named_with_what_to_do(tmp_path):
    with pytest.raises(LockError, match=r"libc6 2\.41 .* is not in the cache .* run `nova-kms image fetch`"):
        Cache(tmp_path).read(DIGEST, "libc6 2.41")


def test_a_cached_file_that_changed_is_refused_with_both_hashes(tmp_path):
    cache = Cache(tmp_path)
    cache.put(DATA)
    cache.path(DIGEST).write_bytes(b"other")
    with pytest.raises(LockError, match=f"libc6: expected {DIGEST}, found {hashlib.sha256(b'other').hexdigest()}"):
        cache.read(DIGEST, "libc6")


def test_a_damaged_file_counts_as_missing_and_is_replaced(tmp_path):
    cache = Cache(tmp_path)
    cache.put(DATA)
    cache.path(DIGEST).write_bytes(b"other")
    assert DIGEST not in cache
    cache.put(DATA)
    assert cache.read(DIGEST, "x") == DATA


def test_a_download_with_another_hash_or_size_is_refused():
    check_fetched("libc6", DATA, DIGEST, len(DATA))
    with pytest.raises(LockError, match="Do not build"):
        check_fetched("libc6", b"other", DIGEST, len(DATA))
    with pytest.raises(LockError):
        check_fetched("libc6", DATA, DIGEST, len(DATA) + 1)
