"""What provisioning decides from facts: which enclaves may be registered, and what their operator is told."""

import base64
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.chain.types import App, ClaimCost, Instance, Version
from appliance.cli.registration import (
    CannotProvision,
    ChainFacts,
    Evidence,
    Registration,
    encode_bundle,
    ether,
    gwei,
    is_listed_at,
    judge,
)
from appliance.settings import Settings
from appliance.tee.attestation.verify import VerificationPolicy, attested_identity, verify_document
from kmscore.envelope import AgreementKey
from kmscore.keccak import keccak256
from tests.support.attestation import CONFIG_DIGEST, NONCE, NOW, PCRS, TEE_PUBKEY, WALLET, document, root_der

ROOT = Path(__file__).resolve().parents[4]
APP_ID = 49
URL = "https://kms1.example"
OWNER = "0x" + "0e" * 20
OTHER_WALLET = "0x" + "0c" * 20
MEASUREMENT = keccak256(PCRS[0] + PCRS[1] + PCRS[2])
DOCUMENT = document()


def evidence() -> Evidence:
    verified = verify_document(DOCUMENT, VerificationPolicy(root_der(), NOW, NONCE, None))
    return Evidence(URL, DOCUMENT, verified, attested_identity(verified))


APP = App(APP_ID, OWNER, 3, 0, OWNER)
VERSION = Version(3, "1.2.0", MEASUREMENT, 0)
INSTANCE = Instance(5, APP_ID, 3, OWNER, URL, TEE_PUBKEY.der, WALLET, True, 0, 1)
FACTS = ChainFacts(APP, VERSION, None, (), bytes(32), ClaimCost(100_000, 2 * 10**9, 10**18))

# what the chain says, and what of the sentence must be there
REFUSED = {
    "no such app": ({"app": None}, "no app 49"),
    "an app that is off": ({"app": replace(APP, status=1)}, "app 49 is INACTIVE"),
    "an app in a status of later": ({"app": replace(APP, status=9)}, "in the unknown status 9"),
    "no version of this image": ({"version": None}, f"enrol it first (0x{MEASUREMENT.hex()})"),
    "a revoked version": ({"version": replace(VERSION, status=2)}, 'version 3 ("1.2.0") of app 49 is REVOKED'),
    "a version in a status of later": ({"version": replace(VERSION, status=3)}, "in the unknown status 3"),
    "a version of another image": (
        {"version": replace(VERSION, code_measurement=bytes(32))}, "its code measurement is 0x" + "00" * 32
    ),
}  # fmt: skip

# what the chain says, and the words of the only warning
WARNED = {
    "a deprecated version": ({"version": replace(VERSION, status=1)}, "is DEPRECATED: its nodes may run, but not seed"),
    "another teePubkey of the wallet": (
        {"registered": replace(INSTANCE, tee_pubkey=AgreementKey.from_scalar(9).public.der)},
        "instance 5 with another teePubkey: a restarted enclave has new keys",
    ),
    "something that is no key": ({"registered": replace(INSTANCE, tee_pubkey=b"key")}, "another teePubkey"),
    "a registration for another app": ({"registered": replace(INSTANCE, app_id=7)}, "instance 5 of app 7"),
    "a registration elsewhere": (
        {"registered": replace(INSTANCE, instance_url="https://old.example")}, "at another URL: https://old.example"
    ),
    "a registration under another version": (
        {"registered": replace(INSTANCE, version_id=2)}, "with version 2, and its image is version 3"
    ),
    "a stopped registration": ({"registered": replace(INSTANCE, status=1)}, "admitted nowhere: the instance is not"),
    "an unproven registration": ({"registered": replace(INSTANCE, zk_verified=False)}, "attestation is not verified"),
    "another instance at the URL": (
        {"at_url": [replace(INSTANCE, instance_id=4, wallet=OTHER_WALLET)]},
        f"instance 4 is listed at this URL with wallet {OTHER_WALLET}",
    ),
    "a wallet that cannot seed": (
        {"cost": ClaimCost(100_000, 2 * 10**9, 10**14 - 1)}, "send at least 0.000100000000000001 ETH"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("said", "words"), REFUSED.values(), ids=REFUSED)
def test_what_must_not_be_registered_is_refused_in_one_sentence(said: dict[str, object], words: str) -> None:
    with pytest.raises(CannotProvision) as refusal:
        judge(evidence(), replace(FACTS, **said), app_id=APP_ID, asked=None)

    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_version_that_was_named_and_is_not_there_is_refused_by_its_number() -> None:
    with pytest.raises(CannotProvision, match="app 49 has no version 8"):
        judge(evidence(), replace(FACTS, version=None), app_id=APP_ID, asked=8)


@pytest.mark.parametrize(("said", "words"), WARNED.values(), ids=WARNED)
def test_what_the_operator_should_look_after_is_one_warning(said: dict[str, object], words: str) -> None:
    verdict = judge(evidence(), replace(FACTS, **said), app_id=APP_ID, asked=None)

    (warning,) = verdict.warnings
    assert words in warning


def test_a_new_enclave_of_an_enrolled_version_may_be_registered_without_a_warning() -> None:
    verdict = judge(evidence(), FACTS, app_id=APP_ID, asked=3)

    assert (verdict.registration, verdict.instance_id, verdict.warnings) == (Registration.NONE, None, ())
    assert (verdict.needs_seeding, verdict.can_seed) == (True, True)


@pytest.mark.parametrize("tee_pubkey", [TEE_PUBKEY.der, TEE_PUBKEY.der[-97:]])
def test_its_own_registration_is_recognised_in_both_encodings_of_the_key(tee_pubkey: bytes) -> None:
    registered = replace(INSTANCE, tee_pubkey=tee_pubkey)

    verdict = judge(evidence(), replace(FACTS, registered=registered, at_url=[registered]), app_id=APP_ID, asked=None)

    assert (verdict.registration, verdict.instance_id, verdict.warnings) == (Registration.OURS, 5, ())


def test_an_empty_wallet_does_not_matter_once_the_cluster_has_its_secret() -> None:
    facts = replace(FACTS, secret_hash=b"\1" * 32, cost=ClaimCost(100_000, 2 * 10**9, 0))

    verdict = judge(evidence(), facts, app_id=APP_ID, asked=None)

    assert (verdict.needs_seeding, verdict.can_seed, verdict.warnings) == (False, False, ())


def test_what_is_just_enough_is_enough() -> None:
    assert judge(
        evidence(), replace(FACTS, cost=ClaimCost(100_000, 2 * 10**9, 2 * 10**14)), app_id=APP_ID, asked=None
    ).can_seed


@pytest.mark.parametrize(
    ("listed", "same"),
    [(URL, True), (URL + "/", True), ("HTTPS://KMS1.example:443", True), (URL + ":8443", False), ("no URL", False)],
)
def test_a_registration_is_at_a_url_however_it_writes_it(listed: str, same: bool) -> None:
    assert is_listed_at(replace(INSTANCE, instance_url=listed), URL) is same


def test_the_bundle_states_what_was_proved_and_where_it_is_to_be_registered() -> None:
    settings = Settings.from_environ({"CHAIN_ID": "31337", "KMS_APP_ID": "49"})

    bundle = json.loads(encode_bundle(evidence(), VERSION, settings))

    assert base64.b64decode(bundle.pop("attestation_document"), validate=True) == DOCUMENT
    pcrs = bundle.pop("pcrs")
    assert {name: pcrs[name] for name in ("PCR0", "PCR1", "PCR2")} == {f"PCR{i}": PCRS[i].hex() for i in (0, 1, 2)}
    assert "PCR16" in pcrs
    assert bundle == {
        "format": "nova-kms-registration-1",
        "instance_url": URL,
        "wallet": WALLET,
        "tee_pubkey": TEE_PUBKEY.der.hex(),
        "code_measurement": "0x" + MEASUREMENT.hex(),
        "app_id": 49,
        "version_id": 3,
        "chain_id": 31337,
        "nova_app_registry": settings.nova_app_registry_address,
        "config": CONFIG_DIGEST.hex(),
        "nonce": NONCE.hex(),
        "time": "2026-01-15T12:00:00.000+00:00",
    }


def test_the_bundle_is_documented_member_by_member() -> None:
    _, _, described = (ROOT / "docs/operations.md").read_text().partition("### The registration bundle")
    rows = [line.split("|")[1] for line in described.partition("### ")[0].splitlines() if line.startswith("| `")]

    documented = [name for row in rows for name in re.findall("`([a-z_]+)`", row)]

    assert sorted(documented) == sorted(json.loads(encode_bundle(evidence(), VERSION, Settings.from_environ({}))))


@pytest.mark.parametrize(
    ("wei", "shown"), [(0, "0 ETH"), (1, "0.000000000000000001 ETH"), (10**18, "1 ETH"), (25 * 10**19, "250 ETH")]
)
def test_an_amount_is_shown_without_rounding(wei: int, shown: str) -> None:
    assert ether(wei) == shown


def test_a_price_is_shown_in_gwei() -> None:
    assert gwei(2 * 10**9 + 1) == "2.000000001 gwei"
