"""Keys derived from the master secret, and values encrypted at rest (protocol §4-§5).

Refuses to take an app id from anything but its caller, and knows no policy: who may derive what is decided before.
"""

from typing import Final

from kmscore._aead import DataCipher, hkdf_sha256
from kmscore.blake3 import blake3_derive_key
from kmscore.errors import InvariantBroken, Reason, Rejected
from kmscore.keccak import keccak256
from kmscore.secret import SecretBytes

__all__ = [
    "DATA_KEY_BYTES",
    "MASTER_SECRET_BYTES",
    "MAX_APP_ID",
    "MAX_LENGTH_BYTES",
    "NONCE_BYTES",
    "TAG_BYTES",
    "DataCipher",
    "derive_app_key",
    "derive_data_key",
    "derive_digest_key",
    "derive_sync_key",
    "master_secret_hash",
]

MASTER_SECRET_BYTES: Final = 32
DATA_KEY_BYTES: Final = 32
MAX_LENGTH_BYTES: Final = 1024  # protocol §4
MAX_APP_ID: Final = 2**256 - 1  # a uint256 on the chain
# Of a value at rest: in front of the ciphertext and behind it.
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16

_SYNC_APP_ID: Final = 0
_SYNC_PATH: Final = "sync_hmac_key"
_DATA_PATH: Final = "data_key"
_DIGEST_CONTEXT: Final = "nova-kms 2026-11-20 anti-entropy digests"


def derive_app_key(master: SecretBytes, app_id: int, path: str, context: str = "", length: int = 32) -> bytes:
    """The app's key for `path` and `context`, `length` bytes (protocol §4).

    The colon between path and context is part of the format: path "a:b" and path "a" with context "b" are one key.

    Raises InvariantBroken for a master secret that is not 32 bytes long, then `Rejected(BAD_FIELD)` for an app id
    outside 0..2**256-1, an empty path, a length outside 1..1024, and a path or context that has no UTF-8 form. Values
    of other types than those annotated, booleans included, are refused the same way.
    """
    if len(master) != MASTER_SECRET_BYTES:
        raise InvariantBroken("the master secret is not 32 bytes long")
    if type(app_id) is not int or not 0 <= app_id <= MAX_APP_ID:
        raise Rejected(Reason.BAD_FIELD, "the app id is not a number from 0 to 2**256-1")
    if not isinstance(path, str) or not path:
        raise Rejected(Reason.BAD_FIELD, "path is not a non-empty string")
    if not isinstance(context, str):
        raise Rejected(Reason.BAD_FIELD, "context is not a string")
    if type(length) is not int or not 1 <= length <= MAX_LENGTH_BYTES:
        raise Rejected(Reason.BAD_FIELD, f"length is not a number from 1 to {MAX_LENGTH_BYTES}")
    try:
        info = (f"{path}:{context}" if context else path).encode("utf-8")
    except UnicodeEncodeError:
        info = b""
    if not info:
        # Raised out here so that our error does not carry the encoder's, which keeps the text.
        raise Rejected(Reason.BAD_FIELD, "path or context has half of a surrogate pair")
    return hkdf_sha256(master, f"nova-kms:app:{app_id}".encode("ascii"), info, length)


def derive_data_key(master: SecretBytes, app_id: int) -> SecretBytes:
    """The key of the app's values at rest, 32 bytes. Raises like `derive_app_key`."""
    return SecretBytes(derive_app_key(master, app_id, _DATA_PATH, length=DATA_KEY_BYTES))


def derive_sync_key(master: SecretBytes) -> SecretBytes:
    """The key of `X-Sync-Signature`, 32 bytes. Raises like `derive_app_key`."""
    return SecretBytes(derive_app_key(master, _SYNC_APP_ID, _SYNC_PATH))


def derive_digest_key(sync_key: SecretBytes) -> SecretBytes:
    """The key of the digests by which nodes compare their stores, 32 bytes (store §5).

    BLAKE3's own key derivation, so that digests and `X-Sync-Signature` share no key.
    """
    return SecretBytes(blake3_derive_key(_DIGEST_CONTEXT, sync_key.reveal()))


def master_secret_hash(master: SecretBytes) -> bytes:
    """What the chain shows of the master secret: its keccak256, 32 bytes (chain §2)."""
    return keccak256(master.reveal())
