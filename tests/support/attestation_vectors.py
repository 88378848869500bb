"""The committed attestation documents: one of every shape that is accepted or refused on purpose, made from fixed keys.

`python -m tests.support.attestation_vectors` writes them into tests/vectors/attestation again; a test holds the files
to this module byte for byte. They are for other verifiers too, so index.json says what each one is.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from appliance.tee.attestation.cbor import encode_cbor
from appliance.tee.attestation.errors import Step
from tests.support.attestation import (
    ES384,
    IMAGE,
    NONCE,
    NOW,
    PCRS,
    TEE_PUBKEY,
    WALLET,
    certificates,
    chain,
    document,
    envelope,
    indefinite_map,
    members,
    root_der,
)

DIRECTORY = Path(__file__).resolve().parents[1] / "vectors" / "attestation"
INDEX = "index.json"
ROOT = "root.der"


@dataclass(frozen=True)
class Shape:
    """One document: how it is made, and the step that refuses it at `NOW` with everything else right; None accepts."""

    describes: str
    make: Callable[[], bytes]
    refused_at: Step | None = None


SHAPES: Mapping[str, Shape] = {
    "definite": Shape("a definite map, as before 2026", document),
    "indefinite": Shape("an indefinite map, as since 2026", lambda: document(encode=indefinite_map)),
    "tagged": Shape("the tag of COSE_Sign1 in front", lambda: b"\xd2" + document()),
    "high_s": Shape("a signature with s in the upper half", lambda: envelope(encode_cbor(members()), high_s=True)),
    "low_s": Shape("a signature with s in the lower half", lambda: envelope(encode_cbor(members()), high_s=False)),
    "absent_members": Shape(
        "no member for public_key and user_data", lambda: document(without=["public_key", "user_data"])
    ),
    "null_members": Shape("null for public_key and user_data", lambda: document(public_key=None, user_data=None)),
    "debug": Shape(
        "debug mode: PCR0 to PCR2 are zero",
        lambda: document(pcrs=PCRS | dict.fromkeys((0, 1, 2, 8), bytes(48))),
        Step.DEBUG,
    ),
    "other_image": Shape("another image", lambda: document(pcrs=PCRS | {0: PCRS[1], 1: PCRS[2]}), Step.MEASUREMENTS),
    "other_nonce": Shape("another nonce", lambda: document(nonce=b"another"), Step.NONCE),
    "unsigned_fake": Shape(
        "QEMU's unsigned fake",
        lambda: encode_cbor(
            [encode_cbor({1: -1}), {}, indefinite_map(members(certificate=bytes(64), cabundle=[bytes(64)])), bytes(64)]
        ),
        Step.HEADER,
    ),
    "duplicate_key": Shape(
        "the nonce twice",
        lambda: envelope(b"\xaa" + encode_cbor(members())[1:] + encode_cbor("nonce") + encode_cbor(NONCE)),
        Step.PAYLOAD,
    ),
    "trailing_byte": Shape("a byte after the document", lambda: document() + b"\0", Step.ENVELOPE),
    "trailing_byte_in_payload": Shape(
        "a byte after the payload", lambda: envelope(encode_cbor(members()) + b"\0"), Step.PAYLOAD
    ),
    "reversed_bundle": Shape("the bundle leaf first", lambda: document(cabundle=certificates()[3::-1]), Step.ROOT),
    "other_root": Shape("another root", lambda: document(chain(root={"key_name": "another root"})), Step.ROOT),
    "swapped_bundle": Shape(
        "two authorities swapped",
        lambda: document(cabundle=[certificates()[position] for position in (0, 2, 1, 3)]),
        Step.CHAIN,
    ),
    "expired_zonal": Shape("an expired authority", lambda: document(chain(zonal={"ends_min": -1})), Step.CHAIN),
    "p256_leaf": Shape("a leaf on P-256", lambda: document(chain(leaf={"curve": ec.SECP256R1()})), Step.LEAF),
    "authority_leaf": Shape(
        "a leaf that is an authority", lambda: document(chain(leaf={"authority": True})), Step.LEAF
    ),
    "flipped_signature": Shape(
        "a bit flipped in the signature",
        lambda: document()[:-1] + bytes([document()[-1] ^ 1]),
        Step.SIGNATURE,
    ),
    "signature_over_reencoding": Shape(
        "signed over another encoding of the same members",
        lambda: encode_cbor([encode_cbor(ES384), {}, indefinite_map(members()), document()[-96:]]),
        Step.SIGNATURE,
    ),
}


def files() -> dict[str, bytes]:
    """Name → content of every file in the directory."""
    made = {f"{name}.bin": shape.make() for name, shape in SHAPES.items()}
    described = {name: {"describes": shape.describes, "refused_at": shape.refused_at} for name, shape in SHAPES.items()}
    index = {
        "verified_at": NOW.isoformat(),
        "nonce": NONCE.hex(),
        "measurements": {f"PCR{number}": value.hex() for number, value in IMAGE.pcrs.items()},
        "wallet": WALLET,
        "tee_pubkey": TEE_PUBKEY.der.hex(),
        "root": ROOT,
        "documents": {f"{name}.bin": description for name, description in described.items()},
    }
    return {**made, ROOT: root_der(), INDEX: (json.dumps(index, indent=2) + "\n").encode()}


def main() -> None:
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for name, content in files().items():
        (DIRECTORY / name).write_bytes(content)
    sys.stdout.write(f"{len(SHAPES)} documents in {DIRECTORY}\n")


if __name__ == "__main__":
    main()
