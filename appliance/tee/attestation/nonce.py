"""Nonces as people and programs write them into URLs and options."""

from base64 import b64decode
from binascii import Error as BinasciiError
from binascii import unhexlify

from kmscore.errors import Reason, Rejected


def parse_nonce_text(text: str, limit_bytes: int) -> bytes:
    """A nonce of 1 to `limit_bytes` bytes: hex in either case with or without 0x, else base64 with padding.

    What is both is hex, which base64 of random bytes is not in practice. Raises `Rejected(BAD_FIELD)`.
    """
    nonce = b""
    if len(text) <= 2 + 2 * limit_bytes and text.isascii():
        nonce = _unhex(text.removeprefix("0x")) or _unbase64(text)
    if not 1 <= len(nonce) <= limit_bytes:
        raise Rejected(Reason.BAD_FIELD, f"a nonce has 1 to {limit_bytes} bytes, in hex or base64")
    return nonce


def _unhex(text: str) -> bytes:
    try:
        return unhexlify(text)
    except BinasciiError:
        return b""


def _unbase64(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except BinasciiError:
        return b""
