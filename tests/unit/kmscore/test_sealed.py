"""The sealed master secret."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from kmscore.envelope import AgreementKey
from kmscore.errors import InvariantBroken, Reason, Rejected
from kmscore.sealed import open_master_secret, seal_master_secret
from kmscore.secret import SecretBytes
from tests.reference.kdf import hkdf_sha256

VECTOR = json.loads((Path(__file__).parents[2] / "vectors" / "sealed.json").read_text())
SEALED = VECTOR["sealed"]
SECRET = bytes.fromhex(VECTOR["master_secret"])
REQUESTER = AgreementKey.from_scalar(int(VECTOR["requester_scalar"], 16))
EPHEMERAL = AgreementKey.generate()


def sealed_by_hand(plaintext: bytes) -> dict[str, str]:
    shared = EPHEMERAL.agree(REQUESTER.public).reveal()
    key = hkdf_sha256(shared, b"nova-kms:sealed-master-secret", b"aes-gcm-key", 32)
    return {
        "ephemeral_pubkey": EPHEMERAL.public.der.hex(),
        "nonce": bytes(12).hex(),
        "encrypted_data": AESGCM(key).encrypt(bytes(12), plaintext, None).hex(),
    }


def test_the_vector_opens():
    assert REQUESTER.public.der.hex() == VECTOR["requester_der"]
    assert open_master_secret(SEALED, REQUESTER).matches(SECRET)


def test_the_vectors_key_and_ciphertext_follow_from_the_specification():
    ephemeral = bytes.fromhex(SEALED["ephemeral_pubkey"])
    assert len(ephemeral) == 120
    decrypted = AESGCM(bytes.fromhex(VECTOR["aes_key"])).decrypt(
        bytes.fromhex(SEALED["nonce"]), bytes.fromhex(SEALED["encrypted_data"]), None
    )
    assert decrypted == SECRET


def test_a_secret_sealed_here_is_what_the_specification_says():
    assert seal_master_secret(SecretBytes(SECRET), REQUESTER.public.der, EPHEMERAL, bytes(12)) == sealed_by_hand(SECRET)


@settings(deadline=None)
@given(st.binary(min_size=32, max_size=32), st.binary(min_size=12, max_size=12), st.booleans())
def test_what_is_sealed_to_a_key_of_either_encoding_opens(secret, nonce, as_point):
    requester = REQUESTER.public.sec1 if as_point else REQUESTER.public.der
    sealed = seal_master_secret(SecretBytes(secret), requester, EPHEMERAL, nonce)
    assert open_master_secret(sealed, REQUESTER).matches(secret)


@pytest.mark.parametrize("member", SEALED)
@pytest.mark.parametrize("form", [str.upper, "0x{}".format], ids=["upper case", "prefix"])
def test_a_peer_may_write_hex_in_any_form(member, form):
    assert open_master_secret(SEALED | {member: form(SEALED[member])}, REQUESTER).matches(SECRET)


def test_members_that_newer_peers_add_are_ignored():
    assert open_master_secret(SEALED | {"epoch": 7}, REQUESTER).matches(SECRET)


def without(member: str) -> dict[str, str]:
    return {name: value for name, value in SEALED.items() if name != member}


REFUSED = {
    "null": (None, Reason.MALFORMED),
    "list": ([SEALED], Reason.MALFORMED),
    "text": (json.dumps(SEALED), Reason.MALFORMED),
    "empty": ({}, Reason.MALFORMED),
    "without key": (without("ephemeral_pubkey"), Reason.MALFORMED),
    "without nonce": (without("nonce"), Reason.MALFORMED),
    "without data": (without("encrypted_data"), Reason.MALFORMED),
    "key that is null": (SEALED | {"ephemeral_pubkey": None}, Reason.MALFORMED),
    "key that is not hex": (SEALED | {"ephemeral_pubkey": "MHYw"}, Reason.MALFORMED),
    "empty key": (SEALED | {"ephemeral_pubkey": ""}, Reason.BAD_FIELD),
    "key off the curve": (SEALED | {"ephemeral_pubkey": SEALED["ephemeral_pubkey"][:-2] + "00"}, Reason.BAD_FIELD),
    "short nonce": (SEALED | {"nonce": "00" * 11}, Reason.BAD_FIELD),
    "other nonce": (SEALED | {"nonce": "00" * 12}, Reason.UNDECRYPTABLE),
    "no data": (SEALED | {"encrypted_data": ""}, Reason.UNDECRYPTABLE),
    "short data": (SEALED | {"encrypted_data": "00" * 15}, Reason.UNDECRYPTABLE),
    "flipped bit": (SEALED | {"encrypted_data": "1b" + SEALED["encrypted_data"][2:]}, Reason.UNDECRYPTABLE),
    "own key as ephemeral key": (SEALED | {"ephemeral_pubkey": VECTOR["requester_der"]}, Reason.UNDECRYPTABLE),
    "31 bytes": (sealed_by_hand(bytes(31)), Reason.UNDECRYPTABLE),
    "33 bytes": (sealed_by_hand(bytes(33)), Reason.UNDECRYPTABLE),
    "empty secret": (sealed_by_hand(b""), Reason.UNDECRYPTABLE),
}


@pytest.mark.parametrize(("sealed", "reason"), REFUSED.values(), ids=REFUSED)
def test_anything_else_is_refused(sealed, reason):
    with pytest.raises(Rejected) as caught:
        open_master_secret(sealed, REQUESTER)
    assert caught.value.reason is reason


def test_a_secret_sealed_to_another_key_does_not_open():
    with pytest.raises(Rejected) as caught:
        open_master_secret(SEALED, AgreementKey.generate())
    assert caught.value.reason is Reason.UNDECRYPTABLE


@pytest.mark.parametrize("requester", [b"", bytes(97), bytes(120), REQUESTER.public.der + b"\x00"])
def test_nothing_is_sealed_to_something_that_is_no_key(requester):
    with pytest.raises(Rejected) as caught:
        seal_master_secret(SecretBytes(SECRET), requester, EPHEMERAL, bytes(12))
    assert caught.value.reason is Reason.BAD_FIELD


@pytest.mark.parametrize(("secret", "nonce"), [(bytes(31), bytes(12)), (SECRET, bytes(11)), (b"", bytes(12))])
def test_sealing_a_secret_or_nonce_of_another_length_is_a_bug(secret, nonce):
    with pytest.raises(InvariantBroken):
        seal_master_secret(SecretBytes(secret), REQUESTER.public.der, EPHEMERAL, nonce)
