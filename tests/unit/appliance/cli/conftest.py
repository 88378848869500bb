"""The commands in this process, over fake nodes, a fake registry and a directory of the test's own."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from appliance.chain.types import App, ChainError, ClaimCost, Instance, MemberFacts, Version
from appliance.cli import cli
from appliance.cli.options import Chain, Toolbox
from appliance.devnet.profile import DevelopmentKeys, DevnetProfile
from appliance.settings import Settings
from kmscore.secret import SecretBytes
from tests.support.client_bench import APP_TEE_SCALAR, APP_WALLET_KEY, Bench
from tests.support.fake_node import FakeClock, FakeNode
from tests.support.fake_registry import FakeRegistry

KMS_APP_ID = 49
ADDRESS = "0x" + "0a" * 20


@dataclass
class Desk:
    """A terminal: `run` a command there; the chain lists the bench's nodes under plain http or not.

    A `registry` takes the place of that list.
    """

    bench: Bench
    directory: Path
    environ: dict[str, str] = field(default_factory=dict)
    secret_hash: bytes = bytes(range(32))
    left_out: list[MemberFacts] = field(default_factory=list)
    chain_fails: bool = False
    registry: FakeRegistry | None = None
    balance_wei: int = 10**18
    connected_with: list[Settings] = field(default_factory=list)

    def run(self, *arguments: str, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(cli, arguments, obj=self.toolbox(), input=stdin, prog_name="nova-kms")

    def toolbox(self) -> Toolbox:
        return Toolbox(self.environ, self.directory, self._connect, lambda _tunnels: self.bench.http())

    def write_devnet(self, directory: Path | None = None) -> DevnetProfile:
        """A profile and a key file, as the devnet writes them."""
        directory = directory or self.directory / ".devnet"
        profile = DevnetProfile(
            rpc_url="http://127.0.0.1:8545",
            chain_id=31337,
            nova_app_registry=ADDRESS,
            kms_registry="0x" + "0b" * 20,
            kms_app_id=KMS_APP_ID,
            app_key_file=directory / "app-key.json",
            node_urls=tuple(node.url for node in self.bench.nodes) or ("http://127.0.0.1:8001",),
        )
        profile.save(directory)
        secrets = SecretBytes(APP_WALLET_KEY), SecretBytes(APP_TEE_SCALAR.to_bytes(48, "big"))
        DevelopmentKeys(*secrets).save(profile.app_key_file)
        return profile

    def member(self, node: FakeNode, number: int) -> MemberFacts:
        return MemberFacts(
            Instance(
                instance_id=number,
                app_id=KMS_APP_ID,
                version_id=3,
                operator=ADDRESS,
                instance_url=node.url,
                tee_pubkey=node.tee.der,
                wallet=node.wallet.address,
                zk_verified=True,
                status=0,
                registered_at=1,
            ),
            App(KMS_APP_ID, ADDRESS, 3, 0, ADDRESS),
            Version(3, "v3", bytes(32), (number + 1) % 2),
        )

    async def active_instances(self, app_id: int) -> list[MemberFacts]:
        assert app_id == KMS_APP_ID
        if self.chain_fails:
            raise ChainError("none of the chain providers answers")
        return [self.member(node, number) for number, node in enumerate(self.bench.nodes, 1)] + self.left_out

    async def master_secret_hash(self) -> bytes:
        return self.secret_hash

    async def claim_cost(self, _wallet: str) -> ClaimCost:
        return ClaimCost(100_000, 2 * 10**9, self.balance_wei)

    @asynccontextmanager
    async def _connect(self, settings: Settings, _timeout_s: float) -> AsyncIterator[Chain]:
        self.connected_with.append(settings)
        yield Chain(self.registry or self, self.master_secret_hash, self.claim_cost)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """No devnet, no environment, no nodes yet."""
    return Desk(Bench(clock=FakeClock(wall_ms=int(time.time() * 1000))), tmp_path)


@pytest.fixture
def devnet(desk: Desk) -> Desk:
    """A devnet in ./.devnet with two nodes."""
    desk.bench.add_node()
    desk.bench.add_node()
    desk.write_devnet()
    return desk
