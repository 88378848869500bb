"""Who may do what, decided from facts (chain §3)."""

from dataclasses import replace

import pytest

from appliance.auth.eligibility import authorize_app, authorize_peer
from appliance.chain.types import App, AppStatus, Instance, InstanceStatus, Version, VersionStatus
from kmscore.errors import Reason, Rejected
from tests.support import wire

KMS_APP_ID = 49
APP_ID = 101
WALLET = "0x" + "ab" * 20
TEE = wire.TeeKey(7)

INSTANCE = Instance(
    instance_id=5,
    app_id=APP_ID,
    version_id=3,
    operator="0x" + "01" * 20,
    instance_url="https://app.example",
    tee_pubkey=TEE.der,
    wallet=WALLET,
    zk_verified=True,
    status=InstanceStatus.ACTIVE,
    registered_at=1,
)
APP = App(APP_ID, WALLET, 3, AppStatus.ACTIVE, WALLET)
VERSION = Version(3, "v3", bytes(32), VersionStatus.ENROLLED)

Facts = tuple[Instance | None, App | None, Version | None]


def facts(
    instance: dict[str, object] | None = None,
    app: dict[str, object] | None = None,
    version: dict[str, object] | None = None,
) -> Facts:
    return replace(INSTANCE, **(instance or {})), replace(APP, **(app or {})), replace(VERSION, **(version or {}))


REFUSED: dict[str, Facts] = {
    "nothing is known": (None, None, None),
    "no instance": (None, APP, VERSION),
    "instance 0": facts({"instance_id": 0}),
    "an instance of another wallet": facts({"wallet": "0x" + "cd" * 20}),
    "stopped": facts({"status": InstanceStatus.STOPPED}),
    "failed": facts({"status": InstanceStatus.FAILED}),
    "status 3, which does not exist": facts({"status": 3}),
    "status 255": facts({"status": 255}),
    "not proven": facts({"zk_verified": False}),
    "no teePubkey": facts({"tee_pubkey": b""}),
    "a teePubkey of garbage": facts({"tee_pubkey": b"garbage"}),
    "a teePubkey off the curve": facts({"tee_pubkey": TEE.der[:-1] + bytes([TEE.der[-1] ^ 1])}),
    "a teePubkey with a byte more": facts({"tee_pubkey": TEE.der + b"\x00"}),
    "a compressed teePubkey": facts({"tee_pubkey": b"\x02" + TEE.sec1[1:49]}),
    "no app": (INSTANCE, None, VERSION),
    "app 0": facts(app={"app_id": 0}),
    "another app": facts(app={"app_id": APP_ID + 1}),
    "an inactive app": facts(app={"status": AppStatus.INACTIVE}),
    "a revoked app": facts(app={"status": AppStatus.REVOKED}),
    "an app of status 7": facts(app={"status": 7}),
    "no version": (INSTANCE, APP, None),
    "version 0": facts(version={"version_id": 0}),
    "another version": facts(version={"version_id": 4}),
    "a revoked version": facts(version={"status": VersionStatus.REVOKED}),
    "a version of status 7": facts(version={"status": 7}),
}


@pytest.mark.parametrize("authorize", [authorize_app, authorize_peer])
@pytest.mark.parametrize("row", REFUSED.values(), ids=REFUSED)
def test_anything_missing_or_odd_is_a_refusal(authorize: object, row: Facts) -> None:
    kms_app_id = KMS_APP_ID if authorize is authorize_app else APP_ID
    with pytest.raises(Rejected) as refusal:
        authorize(WALLET, *row, kms_app_id=kms_app_id)
    assert refusal.value.reason is Reason.NOT_AUTHORIZED
    assert WALLET not in str(refusal.value)


@pytest.mark.parametrize("tee_pubkey", [TEE.der, TEE.sec1], ids=["DER", "point"])
@pytest.mark.parametrize("status", [VersionStatus.ENROLLED, VersionStatus.DEPRECATED])
def test_an_app_and_a_peer_are_told_apart_by_their_app_id_only(tee_pubkey: bytes, status: VersionStatus) -> None:
    row = facts({"tee_pubkey": tee_pubkey}, version={"status": status})
    app = authorize_app(WALLET, *row, kms_app_id=KMS_APP_ID)
    peer = authorize_peer(WALLET, *row, kms_app_id=APP_ID)
    assert app == peer
    assert (app.wallet, app.app_id, app.tee_pubkey.der, app.instance) == (WALLET, APP_ID, TEE.der, row[0])
    with pytest.raises(Rejected):
        authorize_app(WALLET, *row, kms_app_id=APP_ID)
    with pytest.raises(Rejected):
        authorize_peer(WALLET, *row, kms_app_id=KMS_APP_ID)
