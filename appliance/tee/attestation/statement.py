"""What an enclave states about itself inside its document: public_key and user_data (enclave §3).

`public_key` is the teePubkey, DER; `user_data` a JSON object with `eth_addr`, the wallet, and `config`, the digest that
the boot extended into PCR16. Other members are ignored: the platform's runtime adds its own. A statement read here is
only what the bytes say; `attested_identity` is what makes one believable.
"""

import hashlib
import json
import re
from binascii import unhexlify
from dataclasses import dataclass
from typing import Final

from appliance.tee.attestation.document import PCR_BYTES, parse_document
from appliance.tee.attestation.errors import Refused, Step
from appliance.tee.port import TeeIdentity
from kmscore.envelope import TeePublicKey, parse_tee_pubkey_der
from kmscore.errors import InvariantBroken, Reason, Rejected
from kmscore.json import parse_json_object
from kmscore.pop import parse_wallet

# AWS states 512 in some texts and 1024 in others: what is sent fits both.
MAX_STATEMENT_BYTES: Final = 512
CONFIG_DIGEST_BYTES: Final = 48
CONFIG_PCR: Final = 16
_CONFIG_HEX: Final = re.compile(r"[0-9A-Fa-f]{96}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Statement:
    """`wallet` canonical; `config_digest` 48 bytes, None when the enclave states none."""

    wallet: str
    tee_pubkey: TeePublicKey
    config_digest: bytes | None


def encode_statement(wallet: str, config_digest: bytes | None) -> bytes:
    """The user_data of a node's document: compact JSON, at most 512 bytes. The one encoder of it."""
    members = {"eth_addr": wallet}
    if config_digest is not None:
        members["config"] = config_digest.hex()
    encoded = json.dumps(members, separators=(",", ":")).encode()
    if len(encoded) > MAX_STATEMENT_BYTES:
        raise InvariantBroken("a statement is larger than a document takes")
    return encoded


def extend_config(config_digest: bytes) -> bytes:
    """PCR16, zero until then, once the boot has extended it with the digest (nitro facts §1.4)."""
    return hashlib.sha384(bytes(PCR_BYTES) + config_digest).digest()


def parse_statement(public_key: bytes | None, user_data: bytes | None) -> Statement:
    """Raises `Refused(IDENTITY)`: a member is missing, or not what it has to be."""
    if public_key is None or user_data is None:
        raise Refused(Step.IDENTITY, "the document carries no public key or no user data")
    try:
        tee_pubkey = parse_tee_pubkey_der(public_key)
        stated = parse_json_object(user_data)
        wallet = _text(stated.get("eth_addr"))
        return Statement(parse_wallet(wallet), tee_pubkey, _parse_config(stated.get("config")))
    except Refused:
        raise
    except Rejected as error:
        raise Refused(Step.IDENTITY, "the public key or the user data cannot be read") from error


def require_own(data: bytes, identity: TeeIdentity, nonce: bytes | None) -> bytes:
    """`data`, once it is known to be the form of a document that states `identity` and carries `nonce`.

    For the providers, about documents that were made for them; it verifies no signature. Raises `Rejected`.
    """
    document = parse_document(data)
    statement = parse_statement(document.public_key, document.user_data)
    if (statement.wallet, statement.tee_pubkey) != (identity.wallet, identity.tee_pubkey):
        raise Rejected(Reason.SENDER_KEY, "the document states another identity")
    if document.nonce != nonce:
        raise Rejected(Reason.NONCE, "the document carries another nonce")
    return data


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Refused(Step.IDENTITY, "the user data does not hold what a node states")
    return value


def _parse_config(value: object) -> bytes | None:
    if value is None:
        return None
    text = _text(value)
    if not _CONFIG_HEX.fullmatch(text):
        raise Refused(Step.IDENTITY, f"config is not the hex of {CONFIG_DIGEST_BYTES} bytes")
    return unhexlify(text)
