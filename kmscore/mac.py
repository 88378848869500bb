"""HMAC-SHA256 over canonical bodies: `X-Sync-Signature` (protocol §5).

Refuses to compare MACs any other way than in constant time, and to answer with a MAC to compare with.
"""

from kmscore._mac import MacVerdict, check_mac, hmac_sha256, parse_hex, sign_canonical
from kmscore.json import canonical_json
from kmscore.secret import SecretBytes

__all__ = ["MacVerdict", "check_mac", "hmac_sha256", "parse_hex", "sign_canonical", "sign_json"]


def sign_json(key: SecretBytes, value: dict[str, object]) -> str:
    """The MAC of the canonical form of `value`, 64 lowercase hex digits; `key` has 32 bytes.

    Raises `Rejected(MALFORMED)` when the value has no canonical form.
    """
    return sign_canonical(key, canonical_json(value))
