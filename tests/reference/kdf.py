"""Key derivation straight from RFC 5869, for arguments that are acceptable."""

import hashlib
import hmac

from kmscore.secret import SecretBytes


def hkdf_sha256(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    extracted = hmac.new(salt, secret, hashlib.sha256).digest()
    block = b""
    output = b""
    counter = 0
    while len(output) < length:
        counter += 1
        block = hmac.new(extracted, block + info + bytes([counter]), hashlib.sha256).digest()
        output += block
    return output[:length]


def derive_app_key(master: SecretBytes, app_id: int, path: str, context: str = "", length: int = 32) -> bytes:
    info = path + ":" + context if context else path
    return hkdf_sha256(master.reveal(), b"nova-kms:app:%d" % app_id, info.encode(), length)
