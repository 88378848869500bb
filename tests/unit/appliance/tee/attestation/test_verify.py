"""What the verifier accepts, at which time, and what it returns."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ObjectIdentifier

from appliance.tee.attestation.cbor import encode_cbor
from appliance.tee.attestation.errors import Step
from appliance.tee.attestation.measurements import Measurements
from appliance.tee.attestation.statement import encode_statement, extend_config
from appliance.tee.attestation.verify import attested_identity, verify_document
from kmscore.errors import InvariantBroken, Rejected
from tests.support.attestation import (
    CHAIN,
    CONFIG_DIGEST,
    IMAGE,
    MODULE_ID,
    NONCE,
    NOW,
    PCRS,
    POLICY,
    TEE_PUBKEY,
    TIMESTAMP_MS,
    WALLET,
    certificates,
    chain,
    document,
    envelope,
    indefinite_map,
    members,
    refused_at,
)

P384_PRIME = 2**384 - 2**128 - 2**96 + 2**32 - 1
UNKNOWN = x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00")
Make = Callable[[], bytes]


def indefinite(value: Any) -> bytes:
    """The value with every array and map of indefinite length."""
    if isinstance(value, dict):
        return b"\xbf" + b"".join(encode_cbor(key) + indefinite(member) for key, member in value.items()) + b"\xff"
    if isinstance(value, list):
        return b"\x9f" + b"".join(map(indefinite, value)) + b"\xff"
    return encode_cbor(value)


ACCEPTED: dict[str, Make] = {
    "a definite map": document,
    "an indefinite map": lambda: document(encode=indefinite_map),
    "everything indefinite inside": lambda: document(encode=indefinite),
    "an indefinite envelope": lambda: b"\x9f" + document()[1:] + b"\xff",
    "a tag": lambda: b"\xd2" + document(),
    "an s in the upper half": lambda: envelope(encode_cbor(members()), high_s=True),
    "an s in the lower half": lambda: envelope(encode_cbor(members()), high_s=False),
    "no user data and no key": lambda: document(user_data=None, public_key=None),
    "no member for user data and key": lambda: document(without=["user_data", "public_key"]),
    "as much as is accepted": lambda: document(user_data=bytes(1024), public_key=bytes(1024)),
    "a member order of its own": lambda: document(encode=lambda made: encode_cbor(dict(reversed(made.items())))),
    "the three registers alone": lambda: document(pcrs={index: PCRS[index] for index in (0, 1, 2)}),
    "all thirty-two registers": lambda: document(pcrs=PCRS | dict.fromkeys(range(16, 32), bytes(48))),
    "an authority less": lambda: document((*CHAIN[:2], CHAIN[4])),
    "an extension nobody needs to know": lambda: document(chain(zonal={"extensions": ((UNKNOWN, False),)})),
    "a leaf that says so as an aside": lambda: document(chain(leaf={"constraints_critical": False})),
    "a leaf that ends at this second": lambda: document(chain(leaf={"ends_min": 0})),
    "a leaf that begins at this second": lambda: document(chain(leaf={"starts_min": 0})),
    "a document as old as allowed": lambda: document(chain(leaf={"starts_min": -10}), timestamp=TIMESTAMP_MS - 300_000),
    "a clock ahead of ours": lambda: document(chain(leaf={"starts_min": 0.95}), timestamp=TIMESTAMP_MS + 60_000),
    "a clock behind ours": lambda: document(chain(leaf={"ends_min": -0.1}), timestamp=TIMESTAMP_MS - 45_000),
}  # fmt: skip


@pytest.mark.parametrize("make", ACCEPTED.values(), ids=ACCEPTED)
def test_what_the_platform_may_send_is_accepted(make: Make) -> None:
    verified = verify_document(make(), POLICY)

    assert verified.module_id == MODULE_ID
    assert verified.nonce == NONCE


def test_the_result_is_what_the_document_says() -> None:
    verified = verify_document(document(), POLICY)

    assert verified.timestamp == NOW
    assert verified.pcrs == PCRS | {16: extend_config(CONFIG_DIGEST)}
    assert (verified.public_key, verified.nonce) == (TEE_PUBKEY.der, NONCE)
    identity = attested_identity(verified)
    assert (identity.wallet, identity.tee_pubkey, identity.config_digest) == (WALLET, TEE_PUBKEY, CONFIG_DIGEST)


def test_the_verifiers_time_may_be_in_any_time_zone() -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=9)))

    assert verify_document(document(), replace(POLICY, at=elsewhere)).timestamp == NOW


def test_a_time_without_a_zone_is_a_bug() -> None:
    with pytest.raises(InvariantBroken):
        verify_document(document(), replace(POLICY, at=NOW.replace(tzinfo=None)))


def test_an_archived_document_is_verified_at_its_own_time_only_on_demand() -> None:
    years_later = replace(POLICY, at=NOW + timedelta(days=365))

    assert refused_at(document(), years_later) is Step.CHAIN
    assert verify_document(document(), replace(years_later, at=None)).timestamp == NOW


def test_an_archived_documents_own_time_must_lie_within_its_certificates() -> None:
    late = document(timestamp=TIMESTAMP_MS + 155 * 60_000)

    assert refused_at(late, replace(POLICY, at=None)) is Step.LEAF


def test_the_last_moment_of_the_calendar_is_no_error_of_ours() -> None:
    end = datetime(9999, 12, 31, 23, 59, 50, tzinfo=UTC)
    last = (end + timedelta(seconds=8) - NOW) / timedelta(minutes=1)
    plans = tuple(replace(plan, ends_min=last) for plan in CHAIN)
    made = document(plans, timestamp=int(end.timestamp() * 1000))

    assert verify_document(made, replace(POLICY, root_der=certificates(plans)[0], at=None)).timestamp == end


def test_without_a_nonce_to_check_any_is_taken() -> None:
    assert verify_document(document(nonce=None), replace(POLICY, nonce=None)).nonce is None


def test_an_empty_nonce_is_not_the_absence_of_one() -> None:
    assert refused_at(document(nonce=None), replace(POLICY, nonce=b"")) is Step.NONCE


def test_one_of_several_images_is_enough_and_none_accepts_nothing() -> None:
    other = Measurements({index: bytes([index + 1] * 48) for index in (0, 1, 2)})

    verify_document(document(), replace(POLICY, measurements=[other, IMAGE]))
    assert refused_at(document(), replace(POLICY, measurements=[other])) is Step.MEASUREMENTS
    assert refused_at(document(), replace(POLICY, measurements=[])) is Step.MEASUREMENTS


def test_without_measurements_any_image_but_one_in_debug_mode_is_taken() -> None:
    lax = replace(POLICY, measurements=None)

    verify_document(document(pcrs=PCRS | {0: bytes(47) + b"\1"}), lax)
    assert refused_at(document(pcrs=PCRS | {0: bytes(48)}), lax) is Step.DEBUG


def test_a_register_that_is_asked_for_beside_the_image_must_be_there() -> None:
    signed = Measurements({index: PCRS[index] for index in (0, 1, 2, 8)})
    unsigned = {index: PCRS[index] for index in (0, 1, 2)}

    verify_document(document(), replace(POLICY, measurements=[signed]))
    assert refused_at(document(pcrs=unsigned), replace(POLICY, measurements=[signed])) is Step.MEASUREMENTS


IDENTITIES: dict[str, dict[str, Any]] = {
    "no key": {"public_key": None},
    "no user data": {"user_data": None},
    "a point instead of a key": {"public_key": TEE_PUBKEY.sec1},
    "a key with a byte more": {"public_key": TEE_PUBKEY.der + b"\0"},
    "a key off the curve": {"public_key": TEE_PUBKEY.der[:-1] + bytes([TEE_PUBKEY.der[-1] ^ 1])},
    "a key of zeros": {"public_key": TEE_PUBKEY.der[:24] + bytes(96)},
    "a coordinate of p": {"public_key": TEE_PUBKEY.der[:24] + P384_PRIME.to_bytes(48) + bytes(48)},
    "a key on P-256": {"public_key": bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200") + bytes(65)},
    "user data that is not JSON": {"user_data": b"eth_addr"},
    "user data that is a list": {"user_data": b"[]"},
    "user data with a wallet twice": {"user_data": b"{" + b",".join([b'"eth_addr":"%b"' % WALLET.encode()] * 2) + b"}"},
    "no wallet": {"user_data": b"{}"},
    "a wallet that is a number": {"user_data": b'{"eth_addr":7}'},
    "a wallet that is none": {"user_data": b'{"eth_addr":"0x12"}'},
    "a configuration that is a number": {"user_data": b'{"eth_addr":"%b","config":7}' % WALLET.encode()},
    "a configuration of another size": {"user_data": b'{"eth_addr":"%b","config":"00"}' % WALLET.encode()},
    "a configuration that is not hex": {"user_data": encode_statement(WALLET, CONFIG_DIGEST).replace(b"00", b"zz")},
    "a configuration with spaces in its hex": {
        "user_data": encode_statement(WALLET, CONFIG_DIGEST).replace(b'"0001', b'" 00 01')
    },
    "another configuration than PCR16's": {"user_data": encode_statement(WALLET, bytes(48))},
    "a configuration without PCR16": {"pcrs": PCRS},
    "a configuration in PCR16 as it is": {"pcrs": PCRS | {16: CONFIG_DIGEST}},
}  # fmt: skip


@pytest.mark.parametrize("change", IDENTITIES.values(), ids=IDENTITIES)
def test_a_genuine_document_without_a_nodes_identity_gives_none(change: dict[str, Any]) -> None:
    verified = verify_document(document(**change), POLICY)

    with pytest.raises(Rejected) as refusal:
        attested_identity(verified)
    assert getattr(refusal.value, "step", None) is Step.IDENTITY


def test_the_runtimes_own_members_beside_the_wallet_are_no_matter() -> None:
    user_data = b'{"app_wallet":"0x00","eth_addr":"%b","more":{"a":[1]}}' % WALLET.upper().replace("X", "x").encode()
    identity = attested_identity(verify_document(document(user_data=user_data), POLICY))

    assert (identity.wallet, identity.config_digest) == (WALLET, None)
