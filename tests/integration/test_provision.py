"""`nova-kms provision` on a real chain and a node in a process of its own: from "not in the list" to available."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.devnet.profile import DevnetProfile
from tests.support.cluster import Cluster, Node, eventually
from tests.support.local_chain import CHAIN_ID, ETHER, KMS_APP_ID, ROOT
from tests.support.wire import parse_hex

pytestmark = [pytest.mark.chain, pytest.mark.cluster]

SOFTWARE = ROOT / "deploy/software-measurements.json"
INSTANCE = "(uint256,uint256,uint256,address,string,bytes,address,bool,uint8,uint256)"
VERSION = "(uint256,string,bytes32,string,string,string,string,uint8,uint256,address)"


@pytest.fixture
def directory(cluster: Cluster, tmp_path: Path) -> Path:
    """Where the operator works; it holds the profile of the cluster's chain."""
    DevnetProfile(
        rpc_url=cluster.chain.url,
        chain_id=CHAIN_ID,
        nova_app_registry=cluster.chain.app_registry.lower(),
        kms_registry=cluster.chain.kms_registry.lower(),
        kms_app_id=KMS_APP_ID,
        app_key_file=tmp_path / "unused.json",
        node_urls=("http://127.0.0.1:1",),
    ).save(tmp_path / ".devnet")
    return tmp_path


@pytest.fixture
def node(cluster: Cluster, tmp_path: Path) -> Node:
    """A node that is up and that the chain does not know; it wrote its throw-away root."""
    node = cluster.nova("node", env={"SOFTWARE_TEE_ROOT_FILE": str(tmp_path / "root.pem")})
    node.start()
    node.await_status()
    eventually(lambda: node.unavailable_reason() == "self not in KMS node list")
    return node


def provision(
    directory: Path, node: Node, *options: str, measurements: Path = SOFTWARE
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "appliance", "provision", "--url", node.url, "--root", "root.pem"]
    return subprocess.run(
        [*command, "--measurements", str(measurements), *options],
        cwd=directory,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_node_is_provisioned_registered_and_becomes_available(cluster: Cluster, directory: Path, node: Node) -> None:
    refused = provision(directory, node)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"no version of app {KMS_APP_ID} has this code measurement: enrol it first" in refused.stderr

    done = provision(directory, node, "--register", "--json")

    assert done.returncode == 0, done.stderr
    assert "Enrolling the image, of which this devnet has no version yet" in done.stderr
    shown = json.loads(done.stdout)
    described = node.status()["node"]
    assert shown["wallet"] == described["tee_wallet"].lower()
    assert shown["version"]["status"] == "ENROLLED"
    assert shown["seeding"]["sufficient"]
    assert shown["registration"]["state"] == "registered"

    cluster.await_available(node)

    bundle = json.loads((directory / f"registration-{shown['wallet'][2:10]}.json").read_text())
    chain = cluster.chain
    instance = chain.view(chain.app_registry, "getInstanceByWallet(address)", INSTANCE, bundle["wallet"])
    version = chain.view(chain.app_registry, "getVersion(uint256,uint256)", VERSION, KMS_APP_ID, bundle["version_id"])
    assert instance[0] == shown["registration"]["instance_id"]
    assert instance[1:3] == (bundle["app_id"], bundle["version_id"])
    assert instance[4] == bundle["instance_url"] == node.url
    assert instance[5] == bytes.fromhex(bundle["tee_pubkey"]) == parse_hex(described["tee_pubkey"])
    assert instance[6] == bundle["wallet"]
    assert "0x" + version[2].hex() == bundle["code_measurement"]
    assert (bundle["chain_id"], bundle["nova_app_registry"]) == (CHAIN_ID, chain.app_registry.lower())
    assert bytes.fromhex(bundle["nonce"]) in base64.b64decode(bundle["attestation_document"])
    assert any(chain.master_secret_hash()), "the wallet could pay for seeding the cluster"


def test_provisioning_again_changes_nothing_and_a_restarted_node_is_another_one(
    cluster: Cluster, directory: Path, node: Node
) -> None:
    first = json.loads(provision(directory, node, "--register", "--json").stdout)
    cluster.await_available(node)

    again = json.loads(provision(directory, node, "--register", "--force", "--json").stdout)
    assert (again["registration"], again["version"]) == (first["registration"], first["version"])
    assert not again["seeding"]["needed"]
    assert 0 < again["seeding"]["balance_wei"] < ETHER, "what the seeding cost was not given back"

    node.stop()
    node.start()
    node.await_status()
    restarted = provision(directory, node)
    assert restarted.returncode == 0, restarted.stderr
    assert "not registered" in restarted.stdout
    assert f"instance {first['registration']['instance_id']} is listed at this URL" in restarted.stderr


def test_a_node_that_runs_something_else_is_refused_and_not_registered(
    cluster: Cluster, directory: Path, node: Node
) -> None:
    other = directory / "other.json"
    measured = json.loads(SOFTWARE.read_text())
    other.write_text(json.dumps(measured | {"PCR2": "ab" * 48}))

    refused = provision(directory, node, "--register", measurements=other)

    assert (refused.returncode, refused.stdout) == (1, "")
    assert "attestation refused at measurements" in refused.stderr
    listed = cluster.chain.view(cluster.chain.app_registry, "getActiveInstances(uint256)", "address[]", KMS_APP_ID)
    assert listed == ()
    assert list(directory.glob("registration-*")) == []
