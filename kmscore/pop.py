"""Wallets, their signatures, and the texts they sign (protocol §1, §2 and §4).

Refuses to say whether a nonce is fresh or a wallet authorised: a recovered wallet is an identity, not a permission.
"""

from kmscore._pop import (
    PopKind,
    WalletKey,
    eip191_digest,
    parse_wallet,
    pop_text,
    recover_pop,
    recover_signer,
    response_text,
)
from kmscore.errors import InvariantBroken, Reason, Rejected

__all__ = [
    "PopKind",
    "WalletKey",
    "answer_text",
    "eip191_digest",
    "parse_wallet",
    "pop_text",
    "recover_pop",
    "recover_signer",
    "response_text",
    "verify_signed_by",
]

_SIGNATURE_CHARACTERS = (130, 132)
_DIGITS = frozenset("0123456789abcdef")


def answer_text(caller_signature: str, status: int, body_sha256: str, receiver: str) -> bytes:
    """What our nodes sign besides, so that a refusal is believed only from the node itself (protocol §4, extension).

    `status` is the HTTP status, 100 to 599; `body_sha256` the SHA-256 of the body as sent, 64 lower-case digits; the
    other two are as in `response_text`.
    Raises, in this order: InvariantBroken for status and hash, Rejected(SIGNATURE), Rejected(WALLET).
    """
    if not 100 <= status <= 599:
        raise InvariantBroken("an HTTP status lies between 100 and 599")
    if len(body_sha256) != 64 or not _DIGITS.issuperset(body_sha256):
        raise InvariantBroken("a body hash is 64 lower-case hex digits")
    wallet = parse_wallet(receiver)
    return f"NovaKMS:Answer:{_as_sent(caller_signature)}:{status:d}:{body_sha256}:{wallet}".encode("ascii")


def verify_signed_by(message: bytes, signature: str, wallet: str) -> None:
    """Returns when `wallet`, in any accepted form, signed `message` as EIP-191 says (protocol §1).

    Raises, in this order: Rejected(WALLET) when that is no wallet, Rejected(SIGNATURE) when the signature is malformed
    or another wallet's. Public data: the comparison is not constant-time.
    """
    expected = parse_wallet(wallet)
    if recover_signer(message, signature) != expected:
        raise Rejected(Reason.SIGNATURE, "the signature is another wallet's")


def _as_sent(signature: str) -> str:
    if len(signature) not in _SIGNATURE_CHARACTERS or not signature.isascii():
        raise Rejected(Reason.SIGNATURE, "the signature must be 65 bytes in hex")
    return signature
