"""The known answers run against the second implementation too: an oracle that is wrong proves nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import wire
from tests.support.legacy_store import LegacyRecord, merge, parse_record

VECTORS = Path(__file__).parents[1] / "vectors"


def load(name: str) -> dict:
    return json.loads((VECTORS / f"{name}.json").read_text())


ENVELOPE, KDF, MERGE, POP, SEALED, SYNC_MAC = map(load, ["envelope", "kdf", "merge", "pop", "sealed", "sync_mac"])


@pytest.mark.parametrize("row", ENVELOPE["rows"], ids=lambda row: f"{row['label']}-{row['nonce']}")
class TestEnvelope:
    A, B = wire.TeeKey(int(ENVELOPE["a_scalar"], 16)), wire.TeeKey(int(ENVELOPE["b_scalar"], 16))

    def test_keys_agree(self, row: dict) -> None:
        assert self.A.agree(self.B.der).hex() == self.B.agree(self.A.sec1).hex() == row["shared_secret"]

    def test_either_side_derives_the_key(self, row: dict) -> None:
        shared, nonce = bytes.fromhex(row["shared_secret"]), bytes.fromhex(row["nonce"])
        assert wire.envelope_key(shared, self.A.sec1, self.B.sec1, nonce, row["label"]).hex() == row["aes_key"]
        assert wire.envelope_key(shared, self.B.sec1, self.A.sec1, nonce, row["label"]).hex() == row["aes_key"]

    def test_sealing_gives_the_ciphertext_and_the_other_side_opens_it(self, row: dict) -> None:
        sealed = wire.seal(self.A, self.B.der, row["label"], row["plaintext"].encode(), bytes.fromhex(row["nonce"]))
        assert sealed["encrypted_data"] == row["encrypted_data"]
        assert wire.open_envelope(self.B, sealed) == (row["plaintext"].encode(), row["label"])

    def test_another_label_does_not_open_it(self, row: dict) -> None:
        sealed = wire.seal(self.A, self.B.der, row["label"], row["plaintext"].encode())
        others = tuple(label for label in wire.LABELS if label != row["label"])
        with pytest.raises(wire.WireError):
            wire.open_envelope(self.B, sealed, others)


def test_public_keys_have_the_vector_encodings() -> None:
    for name in ("a", "b"):
        key = wire.TeeKey(int(ENVELOPE[f"{name}_scalar"], 16))
        assert (key.der.hex(), key.sec1.hex()) == (ENVELOPE[f"{name}_der"], ENVELOPE[f"{name}_sec1"])


@pytest.mark.parametrize("row", KDF["rows"], ids=lambda row: f"{row['app_id'][:8]}-{row['path']}-{row['length']}")
def test_derivation_gives_the_known_bytes(row: dict) -> None:
    master_secret = bytes.fromhex(KDF["master_secret"])
    key = wire.derive_key(master_secret, int(row["app_id"]), row["path"], row["context"], row["length"])
    assert key.hex() == row["key"]


def test_encryption_at_rest_and_the_secret_hash_are_the_known_ones() -> None:
    master_secret, row = bytes.fromhex(KDF["master_secret"]), KDF["at_rest"]
    data_key = wire.derive_data_key(master_secret, int(row["app_id"]))
    plaintext = bytes.fromhex(row["plaintext"])
    assert wire.encrypt_value(data_key, plaintext, bytes.fromhex(row["nonce"])).hex() == row["ciphertext"]
    assert wire.decrypt_value(data_key, bytes.fromhex(row["ciphertext"])) == plaintext
    assert wire.keccak256(master_secret).hex() == KDF["master_secret_hash"]


@pytest.mark.parametrize("row", POP["accept"], ids=lambda row: f"{row['kind']}-{row['timestamp']}")
class TestProofOfPossession:
    APP, NODE = wire.Wallet(bytes.fromhex(POP["keys"]["app"])), wire.Wallet(bytes.fromhex(POP["keys"]["node"]))

    def test_text_and_digest(self, row: dict) -> None:
        text = wire.pop_text(row["kind"], row["nonce"], row["receiver"], row["timestamp"])
        assert text == row["text"]
        assert wire.eip191_digest(text.encode()).hex() == row["digest"]

    def test_signing_gives_the_known_bytes_in_both_forms(self, row: dict) -> None:
        assert self.APP.sign(row["text"]) == row["signature"]
        assert self.APP.sign(row["text"], wire.SignatureForm(v_base=27)) == row["signature_v27"]
        assert self.NODE.sign(row["response_text"]) == row["response_signature"]

    @pytest.mark.parametrize("prefix", ["0x", ""])
    def test_the_signer_is_recovered_from_every_form(self, row: dict, prefix: str) -> None:
        for signature in (row["signature"], row["signature_v27"], row["signature"].upper().replace("0X", "0x")):
            assert wire.recover_signer(row["text"], prefix + signature[2:]) == row["signer"]

    def test_the_response_names_the_signature_as_it_was_sent(self, row: dict) -> None:
        assert wire.response_text(row["signature"], row["receiver"]) == row["response_text"]
        assert wire.recover_signer(row["response_text"], row["response_signature"]) == row["response_signer"]


@pytest.mark.parametrize("row", POP["refuse"], ids=lambda row: row["why"])
def test_a_malformed_signature_recovers_nobody(row: dict) -> None:
    with pytest.raises(wire.WireError):
        wire.recover_signer(POP["accept"][0]["text"], row["signature"])


@pytest.mark.parametrize("row", SYNC_MAC["rows"], ids=["envelope", "nested"])
def test_the_sync_mac_covers_the_canonical_form(row: dict) -> None:
    assert wire.canonical_json(row["envelope"]).decode() == row["canonical"]
    assert wire.sync_mac(bytes.fromhex(SYNC_MAC["sync_key"]), row["envelope"]) == row["mac"]


def test_the_sync_key_is_a_reserved_derivation() -> None:
    assert wire.derive_sync_key(bytes.fromhex(KDF["master_secret"])).hex() == SYNC_MAC["sync_key"]


def test_the_sealed_master_secret_opens_for_the_requester() -> None:
    requester = wire.TeeKey(int(SEALED["requester_scalar"], 16))
    assert requester.der.hex() == SEALED["requester_der"]
    assert wire.open_master_secret(SEALED["sealed"], requester).hex() == SEALED["master_secret"]


def test_a_freshly_sealed_master_secret_opens_for_the_requester_alone() -> None:
    requester, secret = wire.TeeKey(), bytes(range(32))
    sealed = wire.seal_master_secret(secret, requester.sec1)
    assert wire.open_master_secret(sealed, requester) == secret
    with pytest.raises(wire.WireError):
        wire.open_master_secret(sealed, wire.TeeKey())


# An older peer ignores equal versions whatever they carry: the one row where its outcome differs.
EQUAL_VERSIONS_DIFFER = "equal version, different payload: as concurrent"


@pytest.mark.parametrize("row", MERGE["rows"], ids=lambda row: row["name"])
def test_an_older_peer_merges_to_the_same_record_but_keeps_the_winners_version(row: dict) -> None:
    ours = None if row["ours"] is None else parse_record(row["ours"])
    theirs = parse_record(row["theirs"])
    survivor, outcome = merge(ours, theirs)
    if row["name"] == EQUAL_VERSIONS_DIFFER:
        assert (survivor, outcome) == (ours, "ignored_equal_version")
        return
    assert outcome == row["outcome"]
    assert payload(survivor) == payload(parse_record(row["result"]))
    assert survivor in (ours, theirs)


def payload(record: LegacyRecord) -> tuple[object, ...]:
    return record.key, record.value, record.updated_at_ms, record.tombstone, record.ttl_ms


def test_a_checksummed_wallet_is_the_standards_example() -> None:
    # The first of the examples in EIP-55.
    wallet = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
    assert wire.checksum_wallet(wallet.lower()) == wallet


def test_the_second_implementation_imports_nothing_of_the_first() -> None:
    program = (
        "import sys, tests.support.legacy_node, tests.support.raw_client;"
        "sys.exit(' '.join(name for name in sys.modules if name.split('.')[0] in ('kmscore', 'appliance')) or 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=VECTORS.parents[1])
