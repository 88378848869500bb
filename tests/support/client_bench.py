"""One app and a few fake nodes, all in this process: what the tests of the SDK and of the commands stand on."""

import random
from dataclasses import dataclass, field
from typing import Any

import httpx

from appliance.client.client import KmsClient
from appliance.client.discovery import NodeFacts, StaticDirectory
from appliance.tee.local import LocalTee
from kmscore.envelope import AgreementKey, parse_tee_pubkey
from kmscore.pop import WalletKey
from kmscore.secret import SecretBytes
from tests.support import wire
from tests.support.fake_node import FakeClock, FakeNetwork, FakeNode, RegisteredApp, Traits

APP_ID = 7
APP_WALLET_KEY = b"\x01" * 32
APP_TEE_SCALAR = 0x11


class InOrder(random.Random):
    """Puts nodes into the order in which they are listed."""

    def __init__(self) -> None:
        super().__init__(0)
        self._count = 0

    def random(self) -> float:
        self._count += 1
        return self._count / 1000


def app_identity() -> LocalTee:
    """The app's keys, fixed; its nonces are not, so that two clients do not use the same ones."""
    wallet, agreement = WalletKey(SecretBytes(APP_WALLET_KEY)), AgreementKey.from_scalar(APP_TEE_SCALAR)
    return LocalTee(wallet, agreement, random.SystemRandom().randbytes)


def registered_app() -> RegisteredApp:
    wallet, tee = wire.Wallet(APP_WALLET_KEY), wire.TeeKey(APP_TEE_SCALAR)
    return RegisteredApp(APP_ID, wallet.address, tee.der)


def facts_of(node: FakeNode) -> NodeFacts:
    return NodeFacts(node.url, node.wallet.address, parse_tee_pubkey(node.tee.der))


@dataclass
class Bench:
    """Nodes are asked in the order in which they were added and share one store."""

    clock: FakeClock = field(default_factory=FakeClock)
    identity: LocalTee = field(default_factory=app_identity)
    store: dict[str, bytes] = field(default_factory=dict)
    nodes: list[FakeNode] = field(default_factory=list)

    def add_node(self, traits: Traits | None = None) -> FakeNode:
        url = f"https://node{len(self.nodes)}.example"
        node = FakeNode(url, registered_app(), self.clock, traits=traits, store=self.store)
        self.nodes.append(node)
        return node

    def http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=FakeNetwork(self.nodes), trust_env=False)

    def client(self, **options: Any) -> KmsClient:
        directory = options.pop("directory", None) or StaticDirectory([facts_of(node) for node in self.nodes])
        defaults = {"http": self.http(), "rng": InOrder(), "clock": self.clock, "sleep": self.clock.sleep}
        return KmsClient(options.pop("identity", self.identity), directory, **(defaults | options))
