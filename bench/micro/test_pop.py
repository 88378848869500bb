"""Proof of possession against what it wraps and what one would otherwise use: `make bench`."""

import pytest
from coincurve import PrivateKey, PublicKey
from eth_account import Account
from eth_account.messages import encode_defunct

from kmscore.pop import PopKind, WalletKey, pop_text, recover_pop
from kmscore.secret import SecretBytes

KEY = b"\x01" * 32
NONCE = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4v"
RECEIVER = "0x5050a4f4b3f9338c3472dcc01a87c76a144b3c9c"
TIMESTAMP = 1_700_000_000
WALLET = WalletKey(SecretBytes(KEY))
TEXT = pop_text(PopKind.APP, NONCE, RECEIVER, TIMESTAMP)
SIGNATURE = WALLET.sign_message(TEXT)

pytestmark = pytest.mark.benchmark(group="proof of possession")


def test_recover_pop(benchmark):
    wallet = benchmark(recover_pop, PopKind.APP, NONCE, RECEIVER, TIMESTAMP, SIGNATURE)
    assert wallet == WALLET.address


def test_raw_recover(benchmark):
    digest = b"\x07" * 32
    raw = PrivateKey(KEY).sign_recoverable(digest, hasher=None)
    benchmark(PublicKey.from_signature_and_message, raw, digest, hasher=None)


def test_recover_with_eth_account(benchmark):
    def recover():
        text = f"NovaKMS:AppAuth:{NONCE}:{RECEIVER}:{TIMESTAMP}"
        return Account.recover_message(encode_defunct(text=text), signature=SIGNATURE).lower()

    assert benchmark(recover) == WALLET.address


def test_sign_message(benchmark):
    benchmark(WALLET.sign_message, TEXT)
