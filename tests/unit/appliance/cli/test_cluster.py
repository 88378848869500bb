"""`nova-kms status` and `nova-kms nodes` over fake nodes."""

import json
from dataclasses import replace

import pytest

from appliance.cli.survey import parse_claims, parse_peer_view, printable
from appliance.client.discovery import NodeFacts
from kmscore.envelope import parse_tee_pubkey
from tests.support import fake_node, wire
from tests.support.client_bench import Bench, facts_of
from tests.support.fake_node import FakeNode


def serve_status(node: FakeNode, **said: object) -> None:
    node.public["/status"] = {
        "node": {
            "tee_wallet": node.wallet.address,
            "tee_pubkey": node.tee.der.hex(),
            "service_available": True,
            "service_unavailable_reason": None,
            "master_secret": {"state": "synced"},
            **said,
        },
        "data_store": {"namespaces": 1, "total_keys": 12, "total_bytes": 5},
    }


def test_a_cluster_is_shown_with_what_the_chain_and_each_node_say(devnet) -> None:
    serving, waiting = devnet.bench.nodes
    silent = devnet.bench.add_node()
    serve_status(serving)
    serve_status(waiting, service_available=False, service_unavailable_reason="master secret sync failed")
    silent.always = fake_node.refuses_connection
    result = devnet.run("status")
    assert result.exit_code == 0
    lines = {
        node.url: next(line for line in result.output.splitlines() if node.url in line) for node in devnet.bench.nodes
    }
    assert "serves" in lines[serving.url]
    assert "12" in lines[serving.url]
    assert "matches" in lines[serving.url]
    assert "not ready: master secret sync failed" in lines[waiting.url]
    assert "v3 (deprecated)" in lines[waiting.url]
    assert "unreachable: no connection" in lines[silent.url]
    assert "1 of 3 nodes" in result.output
    assert f"0x{bytes(range(32)).hex()}" in result.output


def test_json_keeps_what_the_chain_says_apart_from_what_a_node_says(devnet) -> None:
    serve_status(devnet.bench.nodes[0])
    devnet.bench.nodes[1].always = fake_node.refuses_connection
    shown = json.loads(devnet.run("status", "--json").output)
    assert shown["serving"] == 1
    first, second = shown["nodes"]
    assert (first["wallet"], first["says"]["available"], first["says"]["keys"]) == (
        devnet.bench.nodes[0].wallet.address,
        True,
        12,
    )
    assert (second["says"], second["problem"]) == (None, "no connection")
    assert shown["kms_app_id"] == 49


def test_an_instance_that_may_not_be_asked_is_shown_with_the_reason(devnet) -> None:
    serve_status(devnet.bench.nodes[0])
    stranger = FakeNode("https://stranger.example", devnet.bench.nodes[0].app, devnet.bench.clock)
    member = devnet.member(stranger, 9)
    devnet.left_out = [replace(member, instance=replace(member.instance, zk_verified=False))]
    result = devnet.run("status")
    assert "the instance's attestation is not verified" in result.output
    assert stranger.asked == []


def test_a_cluster_in_which_nobody_serves_is_exit_code_1(devnet) -> None:
    devnet.secret_hash = bytes(32)
    for node in devnet.bench.nodes:
        serve_status(node, service_available=False, service_unavailable_reason="initializing")
    result = devnet.run("status")
    assert result.exit_code == 1
    assert "not set" in result.output


def test_a_cluster_without_nodes_is_shown_too(devnet) -> None:
    devnet.bench.nodes.clear()
    result = devnet.run("status")
    assert result.exit_code == 1
    assert "0 of 0 nodes" in result.output


def test_an_unreadable_chain_is_one_sentence(devnet) -> None:
    devnet.chain_fails = True
    result = devnet.run("status")
    assert (result.exit_code, result.stderr) == (1, "nova-kms: none of the chain providers answers\n")


def test_a_status_that_takes_too_long_ends_in_a_sentence(devnet) -> None:
    devnet.bench.nodes[0].always = fake_node.hangs
    result = devnet.run("status", "--timeout", "0.1")
    assert (result.exit_code, result.stderr) == (1, "nova-kms: there was no result within 0.1 seconds\n")


PEER = {
    "operator": "0x01",
    "instance": {
        "instance_id": 5,
        "version_id": 3,
        "instance_url": "https://peer.example",
        "tee_wallet": "0x" + "ab" * 20,
        "instance_status": {"value": 0, "name": "ACTIVE"},
    },
    "connection": {
        "status_endpoint_reachable": True,
        "status_endpoint_http_code": 200,
        "status_probe_ms": 7,
        "status_checked_at_ms": 1_800_000_000_000,
    },
}


def test_one_nodes_view_of_the_others_is_shown(devnet) -> None:
    devnet.bench.nodes[0].always = fake_node.refuses_connection
    devnet.bench.nodes[1].public["/nodes"] = {"operators": [PEER], "count": 1}
    result = devnet.run("nodes")
    assert result.output.startswith(f"{devnet.bench.nodes[1].url} knows 1 nodes")
    line = next(line for line in result.output.splitlines() if "https://peer.example" in line)
    assert all(text in line for text in ("ACTIVE", "yes", "200", "7 ms", "2027-01-15 08:00:00 UTC"))


def test_a_node_can_be_named_and_then_the_chain_is_not_read(devnet) -> None:
    devnet.bench.nodes[0].public["/nodes"] = {"operators": [PEER], "count": 1}
    shown = json.loads(devnet.run("nodes", devnet.bench.nodes[0].url, "--json").output)
    assert shown == {"asked": devnet.bench.nodes[0].url, "operators": [PEER]}
    assert devnet.connected_with == []


@pytest.mark.parametrize(
    ("arguments", "exit_code", "hint"),
    [
        (["nodes", "ftp://x"], 2, "URL is not accepted"),
        (["nodes", "https://nobody.example"], 1, "https://nobody.example: no connection"),
        (["nodes"], 1, "answered 404"),
    ],
)
def test_nodes_without_an_answer_end_in_a_sentence(devnet, arguments: list[str], exit_code: int, hint: str) -> None:
    for node in devnet.bench.nodes:
        node.always = fake_node.refuses(404)
    result = devnet.run(*arguments)
    assert result.exit_code == exit_code
    assert hint in result.stderr


NODE = NodeFacts("https://n.example", "0x" + "ab" * 20, parse_tee_pubkey(wire.TeeKey(7).der))


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"node": None, "data_store": []},
        {"node": {"service_available": "yes", "master_secret": "synced", "tee_wallet": 7}},
        {"node": {"service_unavailable_reason": ["x"]}, "data_store": {"total_keys": True}},
    ],
)
def test_a_status_of_any_shape_is_shown_as_far_as_it_can_be_understood(body: dict[str, object]) -> None:
    claims = parse_claims(body, NODE)
    assert (claims.available, claims.reason, claims.master_secret, claims.keys, claims.identity_matches) == (None,) * 5


@pytest.mark.parametrize("prefix", ["", "0x"])
def test_other_keys_than_the_registered_ones_differ(prefix: str) -> None:
    node = Bench().add_node()
    facts = facts_of(node)
    named = {"tee_wallet": facts.wallet.upper().replace("0X", "0x"), "tee_pubkey": prefix + node.tee.der.hex().upper()}
    assert parse_claims({"node": named}, facts).identity_matches is True
    assert parse_claims({"node": named}, replace(facts, wallet="0x" + "00" * 20)).identity_matches is False


@pytest.mark.parametrize("operator", [None, [], {}, {"instance": 1, "connection": {"status_probe_ms": "x"}}])
def test_a_peer_of_any_shape_is_shown_as_far_as_it_can_be_understood(operator: object) -> None:
    view = parse_peer_view(operator)
    assert (view.url, view.status, view.probe_ms, view.checked_at_ms) == ("", "", None, None)


def test_outside_text_cannot_move_the_cursor_or_be_markup(devnet) -> None:
    serve_status(devnet.bench.nodes[0], service_available=False, service_unavailable_reason="\x1b[2J[red]x[/red]")
    result = devnet.run("status")
    assert "\x1b" not in result.output
    assert "?[2J[red]x[/red]" in result.output
    assert printable(10**500) == ""
    assert len(printable("x" * 10_000)) == 200
