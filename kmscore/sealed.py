"""The master secret sealed to a peer's ephemeral key (protocol §5).

Refuses requests without a key. It does not know who may have the secret: that is decided before it is sealed.
"""

from typing import Final

from kmscore._aead import hkdf_sha256, open_gcm, seal_gcm
from kmscore._mac import parse_hex
from kmscore.envelope import NONCE_BYTES, AgreementKey, TeePublicKey, parse_tee_pubkey
from kmscore.errors import InvariantBroken, Reason, Rejected
from kmscore.kdf import MASTER_SECRET_BYTES
from kmscore.secret import SecretBytes

_SALT: Final = b"nova-kms:sealed-master-secret"
_INFO: Final = b"aes-gcm-key"


def seal_master_secret(
    secret: SecretBytes, requester_pubkey: bytes, ephemeral: AgreementKey, nonce: bytes
) -> dict[str, str]:
    """The member `sealed` of the answer: `secret` (32 bytes) encrypted to `requester_pubkey` (DER or SEC1).

    `ephemeral` is made for this answer and used for nothing else; `nonce` is 12 random bytes.
    Raises InvariantBroken for a secret or nonce of a wrong length, `Rejected(BAD_FIELD)` for anything but a P-384 key.
    """
    if len(secret) != MASTER_SECRET_BYTES or len(nonce) != NONCE_BYTES:
        raise InvariantBroken("a master secret or its nonce has a wrong length")
    requester = parse_tee_pubkey(requester_pubkey)
    encrypted = seal_gcm(_key(ephemeral, requester), nonce, secret.reveal())
    return {
        "ephemeral_pubkey": ephemeral.public.der.hex(),
        "nonce": nonce.hex(),
        "encrypted_data": encrypted.hex(),
    }


def open_master_secret(sealed: object, key: AgreementKey) -> SecretBytes:
    """The master secret, 32 bytes, out of the member `sealed` of a peer's answer to a request that named `key`.

    Whether it is the cluster's secret only its hash on the chain tells. Members that newer peers add are ignored.
    Raises `Rejected(MALFORMED)` for a missing member or one that is not hex, `Rejected(BAD_FIELD)` for a nonce of a
    wrong length or a key that is no P-384 key, `Rejected(UNDECRYPTABLE)` when it does not open to 32 bytes.
    """
    if not isinstance(sealed, dict):
        raise Rejected(Reason.MALFORMED, "the sealed master secret is not an object")
    ephemeral, nonce, encrypted = (
        parse_hex(sealed.get(name)) for name in ("ephemeral_pubkey", "nonce", "encrypted_data")
    )
    if len(nonce) != NONCE_BYTES:
        raise Rejected(Reason.BAD_FIELD, "the nonce of the sealed master secret is not 12 bytes long")
    opened = open_gcm(_key(key, parse_tee_pubkey(ephemeral)), nonce, encrypted)
    if opened is None:
        raise Rejected(Reason.UNDECRYPTABLE, "the sealed master secret cannot be decrypted")
    secret = SecretBytes(opened)
    if len(secret) != MASTER_SECRET_BYTES:
        raise Rejected(Reason.UNDECRYPTABLE, "the sealed master secret is not 32 bytes long")
    return secret


def _key(own: AgreementKey, peer: TeePublicKey) -> bytes:
    """The AES key both sides arrive at: from (ephemeral, requester) and from (requester, ephemeral)."""
    return hkdf_sha256(own.agree(peer), _SALT, _INFO, 32)
