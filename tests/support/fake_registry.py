"""A NovaAppRegistry in memory: `RegistryPort` for unit tests, with the owner's powers of the development registry.

The contract suite (tests/contract/test_registry_port.py) holds it to what the adapter does on a real chain.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace

from appliance.chain.types import App, Instance, InstanceStatus, MemberFacts, Version

OWNER = "0x" + "0e" * 20
NO_WALLET = "0x" + 40 * "0"


class FakeRegistry:
    """What is registered, and two ways to disturb a read.

    `reads` lists the reads made, by name and arguments. `before_read` is awaited in each and may wait or raise.
    """

    def __init__(self) -> None:
        self.reads: list[tuple[object, ...]] = []
        self.before_read: Callable[[], Awaitable[None]] | None = None
        self._apps: dict[int, App] = {}
        self._versions: dict[tuple[int, int], Version] = {}
        self._instances: dict[int, Instance] = {}
        self._instance_of: dict[str, int] = {}

    # --- what RegistryPort asks ---

    def remembered_facts(self, _wallet: str) -> None:
        """Nothing is remembered: every read is one of the registry."""

    async def get_instance_by_wallet(self, wallet: str) -> Instance | None:
        await self._read("get_instance_by_wallet", wallet)
        return self._by_wallet(wallet)

    async def get_app(self, app_id: int) -> App | None:
        await self._read("get_app", app_id)
        return self._apps.get(app_id)

    async def get_version(self, app_id: int, version_id: int) -> Version | None:
        await self._read("get_version", app_id, version_id)
        return self._versions.get((app_id, version_id))

    async def get_app_and_version(self, app_id: int, version_id: int) -> tuple[App | None, Version | None]:
        await self._read("get_app_and_version", app_id, version_id)
        return self._apps.get(app_id), self._versions.get((app_id, version_id))

    async def active_instances(self, app_id: int) -> list[MemberFacts]:
        await self._read("active_instances", app_id)
        listed = [i for i in self._instances.values() if i.app_id == app_id and i.status == InstanceStatus.ACTIVE]
        found = [(listed.wallet, self._by_wallet(listed.wallet)) for listed in listed]
        return [
            MemberFacts(instance, self._apps.get(app_id), self._versions.get((app_id, instance.version_id)))
            for wallet, instance in found
            if instance is not None and instance.wallet == wallet and instance.app_id == app_id
        ]

    async def _read(self, *what: object) -> None:
        self.reads.append(what)
        if self.before_read is not None:
            await self.before_read()

    def _by_wallet(self, wallet: str) -> Instance | None:
        return self._instances.get(self._instance_of.get(wallet, 0))

    # --- what the owner does, as in appliance.devnet.contracts.DevRegistry ---

    async def register_app(self, app_id: int) -> None:
        self._apps[app_id] = App(app_id, OWNER, 0, 0, NO_WALLET)

    async def enroll_version(self, app_id: int, name: str, code_measurement: bytes = bytes(32)) -> int:
        app = self._apps[app_id]
        version_id = app.latest_version_id + 1
        self._apps[app_id] = replace(app, latest_version_id=version_id)
        self._versions[app_id, version_id] = Version(version_id, name, code_measurement, 0)
        return version_id

    async def register_instance(self, app_id: int, version_id: int, *, wallet: str, url: str, tee_pubkey: bytes) -> int:
        instance_id = len(self._instances) + 1
        self._instances[instance_id] = Instance(
            instance_id, app_id, version_id, OWNER, url, tee_pubkey, wallet, True, 0, 1_700_000_000
        )
        self._instance_of[wallet] = instance_id
        return instance_id

    async def set_app_status(self, app_id: int, status: int) -> None:
        self._apps[app_id] = replace(self._apps[app_id], status=status)

    async def set_version_status(self, app_id: int, version_id: int, status: int) -> None:
        self._versions[app_id, version_id] = replace(self._versions[app_id, version_id], status=status)

    async def set_instance_status(self, instance_id: int, status: int) -> None:
        self._instances[instance_id] = replace(self._instances[instance_id], status=status)

    async def set_zk_verified(self, instance_id: int, verified: bool) -> None:
        self._instances[instance_id] = replace(self._instances[instance_id], zk_verified=verified)

    async def set_tee_pubkey(self, instance_id: int, tee_pubkey: bytes) -> None:
        self._instances[instance_id] = replace(self._instances[instance_id], tee_pubkey=tee_pubkey)

    async def set_instance_url(self, instance_id: int, url: str) -> None:
        self._instances[instance_id] = replace(self._instances[instance_id], instance_url=url)

    async def set_instance_of_wallet(self, wallet: str, instance_id: int) -> None:
        self._instance_of[wallet] = instance_id
