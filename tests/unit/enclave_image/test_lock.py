"""The lock: one form, strict reading, changes in words, source trees by content alone."""

from pathlib import Path

import pytest

from enclave_image.agree import requirement_blocks
from enclave_image.errors import LockError, MalformedError
from enclave_image.lock import (
    Lock,
    LockedDeb,
    LockedSuite,
    LockedWheel,
    Use,
    changes,
    check_trees,
    encode_lock,
    load_lock,
    parse_lock,
    read_sources,
    tree_digest,
)

A, B = "a" * 64, "b" * 64
LOCK = Lock(
    (LockedSuite("trixie", "Sat, 12 Sep 2026 07:55:41 UTC", A),),
    (LockedDeb(Use.BUILD, "gcc", "14", "amd64", 10, A), LockedDeb(Use.RUNTIME, "libc6", "2.41", "amd64", 20, B)),
    (LockedWheel(Use.RUNTIME, "web3-8.0.0-py3-none-any.whl", 30, A),),
    {"kmscore": A, "appliance": B},
)


def test_a_lock_reads_back_and_has_one_line_per_input():
    text = encode_lock(LOCK)
    assert parse_lock(text) == LOCK
    (line,) = (line for line in text.splitlines() if "libc6" in line)
    assert line.strip() == (
        '{"use": "runtime", "name": "libc6", "version": "2.41", "architecture": "amd64", "size_bytes": 20, '
        f'"sha256": "{B}"}}'
    )


def test_the_committed_lock_is_in_its_one_form_and_names_no_host():
    path = Path(__file__).parents[3] / "enclave_image/image.lock"
    text = path.read_text(encoding="ascii")
    assert encode_lock(load_lock(path)) == text
    assert "://" not in text
    assert not any(word in text for word in (".org", ".com", ".net", ".io"))


TEXT = encode_lock(LOCK)
REFUSED = {
    "not JSON": "{",
    "another format": TEXT.replace('"format": 1', '"format": 2'),
    "unknown member": TEXT.replace('"trees"', '"mirror": "x", "trees"'),
    "unknown use": TEXT.replace('"use": "build"', '"use": "other"'),
    "short hash": TEXT.replace(A, A[1:]),
    "upper-case hash": TEXT.replace(A, A.upper()),
    "size below one": TEXT.replace('"size_bytes": 10', '"size_bytes": 0'),
    "option as a name": TEXT.replace('"name": "gcc"', '"name": "-oAPT::Get::X=1"'),
    "option as a version": TEXT.replace('"version": "14"', '"version": "-o"'),
    "version with a space": TEXT.replace('"version": "14"', '"version": "14 --allow"'),
    "path as a wheel": TEXT.replace("web3-8.0.0", "../web3-8.0.0"),
    "architecture with a slash": TEXT.replace('"architecture": "amd64"', '"architecture": "a/b"'),
    "size as text": TEXT.replace('"size_bytes": 10', '"size_bytes": "10"'),
    "package twice": TEXT.replace('"name": "gcc"', '"name": "libc6"').replace('"use": "build"', '"use": "runtime"'),
    "missing member": TEXT.replace('"version": "14", ', ""),
    "suites no list": TEXT.replace('"suites": [', '"suites": {"a": [').replace('],\n  "debs"', ']},\n  "debs"'),
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_a_lock_in_another_form_is_refused(text):
    with pytest.raises(MalformedError):
        parse_lock(text)


def test_a_lock_in_the_middle_of_a_merge_says_how_to_end_it():
    conflict = TEXT.replace('    "kmscore"', '<<<<<<< HEAD\n    "kmscore"') + ">>>>>>> other\n"
    with pytest.raises(MalformedError, match=r"git checkout --ours .* `nova-kms image lock --sources-only`"):
        parse_lock(conflict)


def test_a_missing_lock_says_how_to_make_one(tmp_path):
    with pytest.raises(LockError, match="nova-kms image lock"):
        load_lock(tmp_path / "image.lock")


def test_changes_name_what_came_went_and_moved():
    after = Lock(
        LOCK.suites,
        (LockedDeb(Use.BUILD, "gcc", "15", "amd64", 11, B), LockedDeb(Use.RUNTIME, "zlib1g", "1.3", "amd64", 5, A)),
        LOCK.wheels,
        LOCK.trees,
    )
    assert changes(LOCK, after) == [
        f"~ build package gcc 14 {A[:16]} -> 15 {B[:16]}",
        f"- runtime package libc6 2.41 {B[:16]}",
        f"+ runtime package zlib1g 1.3 {A[:16]}",
    ]
    assert changes(LOCK, LOCK) == []


def test_a_source_tree_counts_contents_and_paths_and_nothing_else(tmp_path):
    for name, text in {"a.py": "1", "b.pyx": "2", "c.so": "compiled", "notes.txt": "no"}.items():
        path = tmp_path / "kmscore" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (tmp_path / "setup.py").write_text("setup")
    (tmp_path / "kmscore/__pycache__").mkdir()
    (tmp_path / "kmscore/__pycache__/a.py").write_text("cached")
    before = read_sources(tmp_path, "kmscore")
    assert sorted(before) == ["kmscore/a.py", "kmscore/b.pyx", "setup.py"]
    (tmp_path / "kmscore/a.py").chmod(0o700)
    assert tree_digest(read_sources(tmp_path, "kmscore")) == tree_digest(before)
    (tmp_path / "kmscore/a.py").write_text("other")
    changed = read_sources(tmp_path, "kmscore")
    with pytest.raises(LockError, match=r"expected [0-9a-f]{64}, found [0-9a-f]{64}"):
        check_trees(Lock((), (), (), {"kmscore": tree_digest(before)}), {"kmscore": changed})


def test_requirements_without_hash_are_refused_and_markers_are_kept():
    text = "a==1 ; sys_platform == 'linux' \\\n    --hash=sha256:00\n    # via b\nB_c==2 \\\n    --hash=sha256:11\n"
    blocks = requirement_blocks(text)
    assert list(blocks) == ["a", "b-c"]
    assert "sys_platform" in blocks["a"]
    with pytest.raises(LockError, match="a has no hash"):
        requirement_blocks("a==1\n")
