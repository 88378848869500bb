"""Who may do what, decided from facts that were read from the chain (chain §3).

Pure functions. Each refusal names the check that failed; anything missing is a refusal.
"""

from dataclasses import dataclass

from appliance.chain.types import App, AppStatus, Instance, InstanceStatus, Version, VersionStatus
from kmscore.envelope import TeePublicKey, parse_tee_pubkey
from kmscore.errors import Reason, Rejected


@dataclass(frozen=True, slots=True)
class AuthorizedInstance:
    """A running instance that the chain vouches for; made by the functions of this module only."""

    wallet: str
    app_id: int
    tee_pubkey: TeePublicKey
    instance: Instance


def authorize_app(
    wallet: str, instance: Instance | None, app: App | None, version: Version | None, *, kms_app_id: int
) -> AuthorizedInstance:
    """Decide whether `wallet` speaks for an application. Raises `Rejected(NOT_AUTHORIZED)`."""
    authorized = _authorize(wallet, instance, app, version)
    if authorized.app_id == kms_app_id:
        raise _refused("a KMS node is not an application")
    return authorized


def authorize_peer(
    wallet: str, instance: Instance | None, app: App | None, version: Version | None, *, kms_app_id: int
) -> AuthorizedInstance:
    """Decide whether `wallet` is a node of this cluster. Raises `Rejected(NOT_AUTHORIZED)`."""
    authorized = _authorize(wallet, instance, app, version)
    if authorized.app_id != kms_app_id:
        raise _refused("the instance does not belong to the KMS app")
    return authorized


def _authorize(wallet: str, instance: Instance | None, app: App | None, version: Version | None) -> AuthorizedInstance:
    if instance is None or instance.instance_id == 0:
        raise _refused("the wallet is not a registered instance")
    if instance.wallet != wallet:
        raise _refused("the registry answered for another wallet")
    if instance.status != InstanceStatus.ACTIVE:
        raise _refused("the instance is not active")
    if not instance.zk_verified:
        raise _refused("the instance's attestation is not verified")
    try:
        tee_pubkey = parse_tee_pubkey(instance.tee_pubkey)
    except Rejected as error:
        raise _refused("the registered teePubkey is not a P-384 key") from error
    if app is None or app.app_id == 0 or app.app_id != instance.app_id:
        raise _refused("the app does not exist")
    if app.status != AppStatus.ACTIVE:
        raise _refused("the app is not active")
    if version is None or version.version_id == 0 or version.version_id != instance.version_id:
        raise _refused("the version does not exist")
    if version.status not in (VersionStatus.ENROLLED, VersionStatus.DEPRECATED):
        raise _refused("the version may not run")
    return AuthorizedInstance(wallet, app.app_id, tee_pubkey, instance)


def _refused(message: str) -> Rejected:
    return Rejected(Reason.NOT_AUTHORIZED, message)
