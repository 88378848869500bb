"""No secret shows in a repr, a str, an exception or a log record of JSON, MACs, envelopes, derivation and nonces."""

import base64
import copy
import json
import logging
import pickle
import traceback
from collections.abc import Callable, Iterable

import pytest

from kmscore.envelope import (
    LABELS,
    AgreementKey,
    SharedSecretCache,
    encode_envelope,
    envelope_key,
    open_envelope,
    parse_envelope,
    parse_envelope_object,
    parse_tee_pubkey,
    seal,
)
from kmscore.errors import KmsError
from kmscore.json import canonical_json, parse_json, parse_json_object
from kmscore.kdf import DataCipher, derive_app_key, derive_data_key, derive_sync_key, master_secret_hash
from kmscore.mac import check_mac, hmac_sha256, sign_canonical, sign_json
from kmscore.nonce import EnvelopeNonces, NonceIssuer, UsedNonces
from kmscore.sealed import open_master_secret, seal_master_secret
from kmscore.secret import SecretBytes

SCALAR = int.from_bytes(bytes(range(1, 49)), "big")
KEY = AgreementKey.from_scalar(SCALAR)
PEER = AgreementKey.generate()
SHARED = KEY.agree(PEER.public)
MASTER = SecretBytes(bytes(range(100, 132)))
BOOT_KEY = SecretBytes(bytes(range(150, 182)))
PLAINTEXT = b'{"value":"correct horse battery staple"}'
SYNC_KEY = derive_sync_key(MASTER)
DATA_KEY = derive_data_key(MASTER, 7)
CIPHER = DataCipher(DATA_KEY)
ISSUER = NonceIssuer(BOOT_KEY, 120_000)
SEALED = seal_master_secret(MASTER, PEER.public.der, KEY, bytes(12))
ENVELOPE = seal(SHARED, KEY.public, PEER.public, LABELS[0], bytes(12), PLAINTEXT)
SHORT = SecretBytes(MASTER.reveal()[:31])

SECRETS = {
    "scalar": SCALAR.to_bytes(48, "big"),
    "shared secret": SHARED.reveal(),
    "master secret": MASTER.reveal(),
    "boot key": BOOT_KEY.reveal(),
    "sync key": SYNC_KEY.reveal(),
    "data key": DATA_KEY.reveal(),
    "app key": derive_app_key(MASTER, 7, "disk"),
    "envelope key": envelope_key(SHARED, KEY.public, PEER.public, bytes(12), LABELS[0]),
    "plaintext": PLAINTEXT,
    "value": b"correct horse battery staple",
}


def forms(secret: bytes) -> Iterable[str]:
    """How a secret could show: hex, base64, a bytes literal, text, a number; also cut to a recognisable part."""
    for part in (secret, secret[:8], secret[-8:]):
        yield part.hex()
        yield repr(part)[2:-1]
        yield part.decode("latin-1")
    yield base64.b64encode(secret).decode()[:12]
    yield base64.urlsafe_b64encode(secret).decode()[:12]
    yield str(int.from_bytes(secret, "big"))


FORMS = {form.lower() for secret in SECRETS.values() for form in forms(secret)}


def assert_clean(text: str) -> None:
    lowered = text.lower()
    assert [form for form in FORMS if form in lowered] == []


def test_the_search_would_find_a_leak():
    for secret in SECRETS.values():
        for text in (f"key={secret.hex()}", f"key={secret!r}", f"key={secret.hex().upper()}"):
            with pytest.raises(AssertionError):
                assert_clean(text)


OBJECTS = {
    "private key": KEY,
    "public key": KEY.public,
    "shared secret": SHARED,
    "cache": SharedSecretCache(KEY),
    "envelope": ENVELOPE,
    "parsed envelope": parse_envelope(ENVELOPE.canonical),
    "data cipher": CIPHER,
    "issuer": ISSUER,
    "used nonces": UsedNonces(),
    "envelope nonces": EnvelopeNonces(),
    "sync key": SYNC_KEY,
    "data key": DATA_KEY,
    "opened master secret": open_master_secret(SEALED, PEER),
    "sealed master secret": SEALED,
    "hash of the master secret": master_secret_hash(MASTER),
    "MAC": sign_canonical(SYNC_KEY, ENVELOPE.canonical),
    "MAC of a value": sign_json(SYNC_KEY, {"a": 1}),
    "raw MAC": hmac_sha256(SYNC_KEY, b""),
    "verdict": check_mac(SYNC_KEY, b"", "00" * 32),
    "nonce": ISSUER.issue(1, bytes(16)),
}


@pytest.mark.parametrize("value", OBJECTS.values(), ids=OBJECTS)
def test_no_object_shows_a_secret(value):
    for show in (repr, str, "{}".format, ascii):
        assert_clean(show(value))


@pytest.mark.parametrize("value", [KEY, CIPHER, SHARED, SYNC_KEY], ids=repr)
def test_no_owner_of_a_secret_is_pickled_or_copied(value):
    for take in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError) as caught:
            take(value)
        assert_clean("".join(traceback.format_exception(caught.value)))


WIPED = SecretBytes(MASTER.reveal())
WIPED.wipe()
FULL = EnvelopeNonces()
FULL.remember(b"a", bytes(12))
USED = UsedNonces(max_per_owner=1)
USED.consume("used", 100, 0, "a")
TAMPERED = encode_envelope(ENVELOPE.sender, ENVELOPE.nonce, ENVELOPE.ciphertext[::-1])
BROKEN_INNER = PLAINTEXT[:-1]

FAILURES: dict[str, Callable[[], object]] = {
    "inner object that is no JSON": lambda: parse_json(BROKEN_INNER),
    "inner object that is no object": lambda: parse_json_object(b"[" + PLAINTEXT + b"]"),
    "inner object with a member twice": lambda: parse_json(PLAINTEXT[:-1] + b"," + PLAINTEXT[1:]),
    "inner object that is no UTF-8": lambda: parse_json(PLAINTEXT[:-2] + b'\xff"}'),
    "inner object with a surrogate": lambda: parse_json(PLAINTEXT[:-2] + b'\\ud800"}'),
    "inner object with NaN": lambda: parse_json(PLAINTEXT[:-1] + b',"a":NaN}'),
    "inner object that is too deep": lambda: parse_json(PLAINTEXT, max_depth=0),
    "value without canonical form": lambda: canonical_json(json.loads(PLAINTEXT) | {"a": 1.5}),
    "text without canonical form": lambda: canonical_json(PLAINTEXT.decode() + "\ud800"),
    "secret without canonical form": lambda: canonical_json({"key": MASTER.reveal()}),
    "scalar without canonical form": lambda: canonical_json(SCALAR),
    "plaintext body": lambda: parse_envelope(PLAINTEXT),
    "plaintext object": lambda: parse_envelope_object(json.loads(PLAINTEXT)),
    "envelope of secrets that are no hex": lambda: parse_envelope_object(
        {"sender_tee_pubkey": PLAINTEXT.decode(), "nonce": "", "encrypted_data": MASTER.reveal().hex()}
    ),
    "public key made of a secret": lambda: parse_tee_pubkey(b"\x04" + SCALAR.to_bytes(96, "big")),
    "scalar outside the group": lambda: AgreementKey.from_scalar(SCALAR << 48),
    "envelope that was tampered with": lambda: open_envelope(SHARED, PEER.public, KEY.public, LABELS, TAMPERED),
    "shared secret of another length": lambda: envelope_key(MASTER, KEY.public, PEER.public, bytes(12), LABELS[0]),
    "envelope nonce of another length": lambda: seal(SHARED, KEY.public, PEER.public, LABELS[0], b"", PLAINTEXT),
    "ciphertext of another length": lambda: encode_envelope(KEY.public.der, bytes(12), b""),
    "master secret of another length": lambda: derive_app_key(SHORT, 7, "disk"),
    "derivation with a bad path": lambda: derive_app_key(MASTER, 7, PLAINTEXT.decode() + "\ud800"),
    "derivation with a bad length": lambda: derive_app_key(MASTER, 7, "disk", "", 0),
    "wiped master secret": lambda: master_secret_hash(WIPED),
    "data key of another length": lambda: DataCipher(SHORT),
    "value nonce of another length": lambda: CIPHER.seal(PLAINTEXT, b""),
    "value that was tampered with": lambda: CIPHER.open(CIPHER.seal(PLAINTEXT, bytes(12))[::-1]),
    "value of another app": lambda: CIPHER.check(DataCipher(SYNC_KEY).seal(PLAINTEXT, bytes(12))),
    "MAC key of another length": lambda: sign_canonical(SHORT, b""),
    "MAC check under a wiped key": lambda: check_mac(WIPED, b"", "00" * 32),
    "sealing a secret of another length": lambda: seal_master_secret(SHORT, PEER.public.der, KEY, bytes(12)),
    "sealing to no key": lambda: seal_master_secret(MASTER, b"", KEY, bytes(12)),
    "sealed secret for another": lambda: open_master_secret(SEALED, KEY),
    "sealed secret in plaintext": lambda: open_master_secret(SEALED | {"nonce": PLAINTEXT.decode()}, PEER),
    "secret as nonce text": lambda: ISSUER.check(MASTER.reveal().hex(), 0),
    "nonce of another boot": lambda: NonceIssuer(MASTER, 1).check(ISSUER.issue(0, bytes(16)), 0),
    "expired nonce": lambda: ISSUER.check(ISSUER.issue(0, bytes(16)), 10**9),
    "randomness of another length": lambda: ISSUER.issue(0, b""),
    "used nonce": lambda: USED.consume("used", 100, 0, "a"),
    "too many nonces": lambda: USED.consume("new", 100, 0, "a"),
    "used envelope nonce": lambda: FULL.remember(b"a", bytes(12)),
    "long envelope nonce": lambda: FULL.remember(b"a", MASTER.reveal()),
}


@pytest.mark.parametrize("fail", FAILURES.values(), ids=FAILURES)
def test_no_error_shows_a_secret(fail, caplog):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(KmsError) as caught:
        fail()
    error: BaseException | None = caught.value
    while error is not None:
        assert_clean(repr(error))
        assert_clean(str(error))
        assert_clean(repr(vars(error)))
        # Source lines are in a traceback and name no secret; local values are not in it, and are not ours to hide.
        assert_clean("".join(traceback.format_exception(error)))
        error = error.__cause__ or error.__context__
    for record in caplog.records:
        assert_clean(repr(vars(record)))


def test_nothing_here_writes_to_the_log(caplog):
    caplog.set_level(logging.DEBUG)
    for fail in FAILURES.values():
        with pytest.raises(KmsError):
            fail()
    assert caplog.records == []
