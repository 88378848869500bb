"""What provisioning decides about one enclave, from its verified document and what the chain says (enclave §4).

Pure: facts come in, a verdict or a refusal goes out, and the registration bundle is encoded. Nothing here registers.
"""

import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum

from appliance.auth.eligibility import authorize_peer
from appliance.chain.types import App, AppStatus, ClaimCost, Instance, Version, VersionStatus
from appliance.cli.survey import HASH_UNSET, printable
from appliance.settings import Settings
from appliance.tee.attestation.measurements import IMAGE_PCRS, Measurements
from appliance.tee.attestation.verify import AttestedIdentity, VerifiedDocument
from appliance.urls import parse_node_url
from kmscore.envelope import parse_tee_pubkey
from kmscore.errors import KmsError, Rejected

BUNDLE_FORMAT = "nova-kms-registration-1"


class CannotProvision(KmsError):
    """This enclave must not be registered as it is; `str(error)` says why and what would help."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the enclave at `url` has proved: `document` is what it gave, `verified` and `identity` what that states."""

    url: str
    document: bytes = field(repr=False)
    verified: VerifiedDocument
    identity: AttestedIdentity

    @property
    def code_measurement(self) -> bytes:
        """32 bytes, of the registers that were verified."""
        return Measurements({index: self.verified.pcrs[index] for index in IMAGE_PCRS}).code_measurement


@dataclass(frozen=True, slots=True)
class ChainFacts:
    """What the chain says about this enclave.

    `version` is the one to register with, None when the app has none. `registered` is the instance of the enclave's
    wallet; `at_url` are the app's active instances that are listed at its URL. `secret_hash` is zero while unset.
    """

    app: App | None
    version: Version | None
    registered: Instance | None
    at_url: Sequence[Instance]
    secret_hash: bytes
    cost: ClaimCost


class Registration(StrEnum):
    """Whether the chain lists the enclave's wallet."""

    NONE = "not registered"
    OURS = "registered"
    OTHER_KEY = "registered with another teePubkey"
    OTHER_APP = "registered for another app"


@dataclass(frozen=True, slots=True)
class Verdict:
    """An enclave that may be registered: with which version, what was found, and what to look after."""

    version: Version
    registration: Registration
    instance_id: int | None
    needs_seeding: bool
    can_seed: bool
    warnings: tuple[str, ...]


def require_app(app: App | None, app_id: int) -> App:
    """The app, once it is one whose nodes are admitted. Raises `CannotProvision`."""
    if app is None:
        raise CannotProvision(f"the registry knows no app {app_id}: see --kms-app-id and --registry")
    if app.status != AppStatus.ACTIVE:
        raise CannotProvision(f"app {app_id} is {status_name(AppStatus, app.status)}: its nodes are admitted nowhere")
    return app


def require_version(version: Version | None, code_measurement: bytes, *, app_id: int, asked: int | None) -> Version:
    """The version, once it is of this image and its nodes are admitted; `asked` is the id that was named, if any.

    Raises `CannotProvision`.
    """
    shown = f"0x{code_measurement.hex()}"
    if version is None and asked is not None:
        raise CannotProvision(f"app {app_id} has no version {asked}")
    if version is None:
        raise CannotProvision(f"no version of app {app_id} has this code measurement: enrol it first ({shown})")
    if version.code_measurement != code_measurement:
        raise CannotProvision(
            f"{describe_version(version, app_id)} is another image: its code measurement is "
            f"0x{version.code_measurement.hex()}, this enclave's is {shown}"
        )
    if version.status not in (VersionStatus.ENROLLED, VersionStatus.DEPRECATED):
        raise CannotProvision(f"{describe_version(version, app_id)}: its nodes are admitted nowhere")
    return version


def judge(evidence: Evidence, facts: ChainFacts, *, app_id: int, asked: int | None) -> Verdict:
    """Whether and how the enclave may be registered as a node of the KMS app. Raises `CannotProvision`."""
    app = require_app(facts.app, app_id)
    version = require_version(facts.version, evidence.code_measurement, app_id=app_id, asked=asked)
    registration = _registration(evidence.identity, facts.registered, app_id)
    needs_seeding = facts.secret_hash == HASH_UNSET
    can_seed = facts.cost.balance_wei >= facts.cost.wei
    warnings = []
    if version.status == VersionStatus.DEPRECATED:
        warnings.append(f"{describe_version(version, app_id)}: its nodes may run, but not seed a cluster")
    if facts.registered is not None:
        warnings += _about_registered(evidence, facts.registered, registration, app, version)
    warnings += [
        f"instance {other.instance_id} is listed at this URL with wallet {other.wallet}: if that is what this enclave "
        "was before a restart, have it marked as stopped"
        for other in facts.at_url
        if other.wallet != evidence.identity.wallet
    ]
    if needs_seeding and not can_seed:
        missing = ether(facts.cost.wei - facts.cost.balance_wei)
        warnings.append(f"the first node of a cluster pays for seeding it: send at least {missing} to the wallet")
    instance_id = None if facts.registered is None else facts.registered.instance_id
    return Verdict(version, registration, instance_id, needs_seeding, can_seed, tuple(warnings))


def encode_bundle(evidence: Evidence, version: Version, settings: Settings) -> str:
    """The registration bundle: one JSON object with everything a registration states, and nothing secret.

    The format is described in docs/operations.md.
    """
    identity, verified = evidence.identity, evidence.verified
    return json.dumps(
        {
            "format": BUNDLE_FORMAT,
            "instance_url": evidence.url,
            "wallet": identity.wallet,
            "tee_pubkey": identity.tee_pubkey.der.hex(),
            "code_measurement": f"0x{evidence.code_measurement.hex()}",
            "app_id": settings.kms_app_id,
            "version_id": version.version_id,
            "chain_id": settings.chain_id,
            "nova_app_registry": settings.nova_app_registry_address,
            "pcrs": {f"PCR{index}": value.hex() for index, value in sorted(verified.pcrs.items())},
            "config": None if identity.config_digest is None else identity.config_digest.hex(),
            "nonce": None if verified.nonce is None else verified.nonce.hex(),
            "time": verified.timestamp.isoformat(timespec="milliseconds"),
            "attestation_document": b64encode(evidence.document).decode(),
        },
        indent=2,
    )


def is_listed_at(instance: Instance, url: str) -> bool:
    """Whether an instance is registered at this parsed URL, however its registration writes it."""
    try:
        return parse_node_url(instance.instance_url, https_only=False) == url
    except Rejected:
        return False


def describe_version(version: Version, app_id: int) -> str:
    """A version for people: its number, its name and its status."""
    name = printable(version.name)
    named = f' ("{name}")' if name else ""
    return f"version {version.version_id}{named} of app {app_id} is {status_name(VersionStatus, version.status)}"


def status_name(kind: type[AppStatus] | type[VersionStatus], status: int) -> str:
    """The word for a status number, or the number where there is none."""
    return next((known.name for known in kind if known == status), f"in the unknown status {status}")


def ether(wei: int) -> str:
    """An amount for people."""
    return f"{Decimal(wei).scaleb(-18).normalize():f} ETH"


def gwei(wei: int) -> str:
    """A price of gas for people."""
    return f"{Decimal(wei).scaleb(-9).normalize():f} gwei"


def _registration(identity: AttestedIdentity, registered: Instance | None, app_id: int) -> Registration:
    if registered is None:
        return Registration.NONE
    if registered.app_id != app_id:
        return Registration.OTHER_APP
    try:
        same = parse_tee_pubkey(registered.tee_pubkey) == identity.tee_pubkey
    except Rejected:
        same = False
    return Registration.OURS if same else Registration.OTHER_KEY


def _about_registered(
    evidence: Evidence, registered: Instance, registration: Registration, app: App, version: Version
) -> list[str]:
    listed = f"the wallet is registered as instance {registered.instance_id}"
    match registration:
        case Registration.OTHER_APP:
            return [f"{listed} of app {registered.app_id}"]
        case Registration.OTHER_KEY:
            reason = "a restarted enclave has new keys; until the registration states this one the node is unavailable"
            return [f"{listed} with another teePubkey: {reason}"]
    found = []
    if not is_listed_at(registered, evidence.url):
        found.append(f"{listed} at another URL: {printable(registered.instance_url)}")
    if registered.version_id != version.version_id:
        found.append(f"{listed} with version {registered.version_id}, and its image is version {version.version_id}")
        return found
    try:
        authorize_peer(evidence.identity.wallet, registered, app, version, kms_app_id=app.app_id)
    except Rejected as error:
        found.append(f"{listed} and admitted nowhere: {error}")
    return found
