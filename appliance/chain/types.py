"""What the registries say, as frozen records, and the ports through which the rest of the appliance reads them.

Nothing here is checked beyond its shape: an `Instance` may carry a status number that does not exist, a teePubkey that
is not a key and a URL that leads anywhere. Who may do what with these facts is decided in `appliance.auth` (chain §3).
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from kmscore.errors import Unavailable


class ChainError(Unavailable):
    """The chain cannot be read or written now: transport, quorum, deadline, a missing block, a senseless answer."""


class AppStatus(IntEnum):
    """The numbers of an app's status that mean something (chain §1)."""

    ACTIVE = 0
    INACTIVE = 1
    REVOKED = 2


class VersionStatus(IntEnum):
    """The numbers of a version's status that mean something (chain §1)."""

    ENROLLED = 0
    DEPRECATED = 1
    REVOKED = 2


class InstanceStatus(IntEnum):
    """The numbers of an instance's status that mean something (chain §1)."""

    ACTIVE = 0
    STOPPED = 1
    FAILED = 2


@dataclass(frozen=True, slots=True)
class Instance:
    """One running instance as registered.

    Wallets are canonical (0x and 40 lower-case hex digits). `status` stays the number the chain holds, known or not.
    `tee_pubkey` is whatever was registered; one too long to be a key is kept as b"". So is `instance_url`: bytes that
    are not UTF-8 are replaced, and one over 2,048 bytes is kept as "". `registered_at` is in seconds since the epoch.
    """

    instance_id: int
    app_id: int
    version_id: int
    operator: str
    instance_url: str
    tee_pubkey: bytes
    wallet: str
    zk_verified: bool
    status: int
    registered_at: int


@dataclass(frozen=True, slots=True)
class App:
    """One application as registered; `status` is the number the chain holds, known or not."""

    app_id: int
    owner: str
    latest_version_id: int
    status: int
    app_wallet: str


@dataclass(frozen=True, slots=True)
class Version:
    """One version of an app; `code_measurement` is 32 bytes, `status` the number the chain holds, known or not."""

    version_id: int
    name: str
    code_measurement: bytes
    status: int


@dataclass(frozen=True, slots=True)
class MemberFacts:
    """One active instance of an app with the app and the version it belongs to; None where the registry knows none."""

    instance: Instance
    app: App | None
    version: Version | None


@dataclass(frozen=True, slots=True)
class ClaimCost:
    """What setting the master secret hash takes now, at most: gas, and wei a gas; and what the wallet has, in wei."""

    gas: int
    max_fee_per_gas_wei: int
    balance_wei: int

    @property
    def wei(self) -> int:
        """The most that the claim may cost."""
        return self.gas * self.max_fee_per_gas_wei


@dataclass(frozen=True, slots=True)
class PinnedBlock:
    """The block at which one refresh reads: its number, and the 32-byte hash that must still be its own at the end."""

    number: int
    hash: bytes


class RegistryReads(Protocol):
    """What admitting a caller needs to know; `CachedNovaRegistry` and `NovaRegistry` both answer it.

    Every read raises `ChainError` if the chain cannot be read, and answers None for what the registry does not know.
    """

    async def get_instance_by_wallet(self, wallet: str) -> Instance | None:
        """The instance registered for a canonical wallet."""

    async def get_app(self, app_id: int) -> App | None:
        """The app with this id."""

    async def get_version(self, app_id: int, version_id: int) -> Version | None:
        """The version with this id of this app."""

    async def get_app_and_version(self, app_id: int, version_id: int) -> tuple[App | None, Version | None]:
        """Both in one round trip."""


AppFacts = tuple[Instance, App, Version]


class RememberingReads(RegistryReads, Protocol):
    """Reads that may be answered from memory at once."""

    def remembered_facts(self, wallet: str) -> AppFacts | None:
        """What is known of a wallet's instance without asking anybody; None when something has to be read."""


class MembershipReads(Protocol):
    """What a refresh of the peer cache needs to know."""

    async def active_instances(self, app_id: int) -> list[MemberFacts]:
        """All active instances of an app as of one block; raises `ChainError` rather than answer in part."""


class RegistryPort(RegistryReads, MembershipReads, Protocol):
    """All reads of the NovaAppRegistry: the port that the adapter and the tests' double both implement."""
