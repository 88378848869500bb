"""Manifest lines, trees in memory, links followed inside an image."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_image.errors import MalformedError
from enclave_image.manifest import Tree, parse_manifest, resolve


def test_a_manifest_has_one_readable_line_per_path():
    tree = Tree()
    tree.add_file("etc/os release", b"x")
    tree.add_link("bin", "usr/bin")
    tree.add_device("dev/console", 5, 1, 0o600)
    assert tree.manifest().text().splitlines() == [
        "0777 0:0 link - - bin -> usr/bin",
        "0755 0:0 dir - - dev",
        "0600 0:0 char 5:1 - dev/console",
        "0755 0:0 dir - - etc",
        "0644 0:0 file 1 2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881 etc/os%20release",
    ]


PATHS = st.lists(st.text(st.characters(exclude_characters="/\0\r\n"), min_size=1, max_size=8), min_size=1, max_size=3)


@given(st.dictionaries(PATHS.map("/".join), st.binary(max_size=8), max_size=5))
def test_a_manifest_reads_back(files):
    tree = Tree()
    for path, data in files.items():
        try:
            tree.add_file(path, data)
        except MalformedError:
            continue
    manifest = tree.manifest()
    assert parse_manifest(manifest.text()) == manifest


REFUSED = {
    "absolute": "0644 0:0 file 0 " + "0" * 64 + " /x\n",
    "parent": "0644 0:0 file 0 " + "0" * 64 + " a/../x\n",
    "twice": "0755 0:0 dir - - a\n0755 0:0 dir - - a\n",
    "unsorted": "0755 0:0 dir - - b\n0755 0:0 dir - - a\n",
    "no digest": "0644 0:0 file 0 - a\n",
    "unknown type": "0644 0:0 sock - - a\n",
    "short mode": "644 0:0 dir - - a\n",
    "needless quoting": "0755 0:0 dir - - %61\n",
    "link without target": "0777 0:0 link - - a\n",
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_a_manifest_in_another_form_is_refused(text):
    with pytest.raises(MalformedError):
        parse_manifest(text)


def test_two_inputs_may_not_hold_one_path_with_different_contents():
    tree = Tree()
    tree.add_file("a", b"1")
    tree.add_file("a", b"1")
    with pytest.raises(MalformedError, match="two inputs"):
        tree.add_file("a", b"2")


def test_a_path_below_a_file_is_refused():
    tree = Tree()
    tree.add_file("a", b"1")
    with pytest.raises(MalformedError, match="lies below"):
        tree.add_file("a/b", b"2")


def test_removing_takes_what_is_below_and_empty_directories_go_but_for_those_kept():
    tree = Tree()
    tree.add_file("a/b/c", b"1")
    tree.add_file("a/bc", b"1")
    tree.add_directory("proc")
    tree.remove("a/b/c")
    tree.remove_empty_directories(keep=["proc"])
    assert tree.paths() == ["a", "a/bc", "proc"]


def test_links_are_followed_inside_the_image_only():
    tree = Tree()
    tree.add_link("lib", "usr/lib")
    tree.add_file("usr/lib/real", b"1")
    tree.add_link("usr/lib/relative", "../lib/real")
    tree.add_link("usr/lib/absolute", "/lib/real")
    tree.add_link("usr/lib/dangling", "../../nowhere")
    tree.add_link("loop", "loop")
    entries = tree.manifest().by_path()
    for path in ("lib/real", "usr/lib/relative", "usr/lib/absolute"):
        found = resolve(entries, path)
        assert found is not None
        assert found.path == "usr/lib/real"
    assert resolve(entries, "usr/lib/dangling") is None
    assert resolve(entries, "loop") is None
