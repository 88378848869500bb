"""Envelopes by way of parsed JSON, without looking for bodies that already are canonical."""

from kmscore.envelope import Envelope
from kmscore.errors import Reason, Rejected
from tests.reference.json import canonical_json, parse_json
from tests.reference.mac import parse_hex


def parse_envelope(body: bytes) -> Envelope:
    return parse_envelope_object(parse_json(body, max_depth=1))


def parse_envelope_object(value: object) -> Envelope:
    if not isinstance(value, dict) or set(value) != {"sender_tee_pubkey", "nonce", "encrypted_data"}:
        raise Rejected(Reason.MALFORMED, "members")
    sender = parse_hex(value["sender_tee_pubkey"])
    nonce = parse_hex(value["nonce"])
    ciphertext = parse_hex(value["encrypted_data"])
    if not 1 <= len(sender) <= 256 or len(nonce) != 12 or len(ciphertext) < 16:
        raise Rejected(Reason.MALFORMED, "length")
    return Envelope(sender, nonce, ciphertext, canonical_json(value))


def encode_envelope(sender_der: bytes, nonce: bytes, ciphertext: bytes) -> Envelope:
    members = {
        "sender_tee_pubkey": sender_der.hex(),
        "nonce": nonce.hex(),
        "encrypted_data": ciphertext.hex(),
    }
    return Envelope(sender_der, nonce, ciphertext, canonical_json(members))
