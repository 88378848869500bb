"""MACs over canonical bodies with the standard library only."""

import hashlib
import hmac
import re

from kmscore.errors import Reason, Rejected
from kmscore.mac import MacVerdict
from kmscore.secret import SecretBytes
from tests.reference.json import canonical_json


def hmac_sha256(key: SecretBytes, data: bytes) -> bytes:
    return hmac.new(key.reveal(), data, hashlib.sha256).digest()


def sign_canonical(key: SecretBytes, canonical: bytes) -> str:
    return hmac_sha256(key, canonical).hex()


def sign_json(key: SecretBytes, value: dict[str, object]) -> str:
    return sign_canonical(key, canonical_json(value))


def check_mac(key: SecretBytes, canonical: bytes, mac_hex: str | None) -> MacVerdict:
    if mac_hex is None:
        return MacVerdict.ABSENT
    if not re.fullmatch("(0x)?[0-9a-fA-F]{64}", mac_hex, re.ASCII):
        return MacVerdict.WRONG
    right = hmac.compare_digest(bytes.fromhex(mac_hex.removeprefix("0x")), hmac_sha256(key, canonical))
    return MacVerdict.VALID if right else MacVerdict.WRONG


def parse_hex(text: object) -> bytes:
    if not isinstance(text, str) or not re.fullmatch("(0x)?([0-9a-fA-F]{2})*", text, re.ASCII):
        raise Rejected(Reason.MALFORMED, "not hex")
    return bytes.fromhex(text.removeprefix("0x"))
