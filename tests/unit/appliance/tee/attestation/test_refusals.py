"""Every way in which an attestation document must fail, by the step that refuses it, and what must not fail."""

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.x509.oid import ExtensionOID, ObjectIdentifier

from appliance.tee.attestation.cbor import encode_cbor
from appliance.tee.attestation.errors import Step
from tests.support.attestation import (
    CHAIN,
    ES384,
    MODULE_ID,
    NONCE,
    P384_ORDER,
    PCRS,
    POLICY,
    TEE_PUBKEY,
    TIMESTAMP_MS,
    WALLET,
    certificates,
    chain,
    document,
    envelope,
    indefinite_map,
    members,
    private_key,
    refused_at,
    resign,
    root_der,
    sign,
)

P384_PRIME = 2**384 - 2**128 - 2**96 + 2**32 - 1
Make = Callable[[], bytes]


def with_member(value: bytes, *, count: int = 1) -> bytes:
    """The payload of a usual document with the raw CBOR of `count` members more at its end."""
    payload = encode_cbor(members())
    assert payload[0] == 0xA9
    return envelope(bytes([0xA9 + count]) + payload[1:] + value)


def payload_with(name: str, raw: bytes) -> bytes:
    """A document whose member `name` is the raw CBOR `raw`."""
    made = members(**{name: None})
    pairs = [encode_cbor(key) + (raw if key == name else encode_cbor(value)) for key, value in made.items()]
    return envelope(bytes([0xA0 + len(pairs)]) + b"".join(pairs))


def envelope_of(*items: Any) -> bytes:
    return encode_cbor(list(items))


def parts() -> tuple[bytes, bytes, bytes]:
    """Protected header, payload and signature of a usual document."""
    payload = encode_cbor(members())
    return encode_cbor(ES384), payload, sign(payload)


def qemu_fake(protected: bytes) -> bytes:
    """What QEMU's emulation makes: the documented members, zeros in place of certificates and signature."""
    payload = indefinite_map(members(certificate=bytes(64), cabundle=[bytes(64)]))
    return envelope_of(protected, {}, payload, bytes(64))


def bundle(arrange: Callable[[list[bytes]], list[bytes]]) -> Make:
    return lambda: document(cabundle=arrange(certificates()[:-1]))


def leaf_point_beyond_p() -> bytes:
    """A leaf whose x is a coordinate of a point plus p: the same point, unless the bound is checked."""
    small = next(x for x in itertools.count(1) if _on_curve(x))
    y = _on_curve(small)
    point = b"\4" + (small + P384_PRIME).to_bytes(48) + y.to_bytes(48)
    original = private_key("leaf").public_key().public_numbers()
    old = b"\4" + original.x.to_bytes(48) + original.y.to_bytes(48)
    made = certificates()
    return document(certificate=resign(made[-1], lambda signed: signed.replace(old, point), "instance"))


def _on_curve(x: int) -> int:
    b = 0xB3312FA7E23EE7E4988E056BE3F82D19181D9C6EFE8141120314088F5013875AC656398D8A2ED19D2A85C8EDD3EC2AEF
    square = (x**3 - 3 * x + b) % P384_PRIME
    root = pow(square, (P384_PRIME + 1) // 4, P384_PRIME)
    return root if root * root % P384_PRIME == square else 0


def changed_leaf(old: bytes, new: bytes) -> Make:
    return lambda: document(
        certificate=resign(certificates()[-1], lambda signed: signed.replace(old, new, 1), "instance")
    )


def flipped(data: bytes, position: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1
    return bytes(changed)


UNKNOWN = x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00")
LEAF_PATH_LENGTH = x509.UnrecognizedExtension(ExtensionOID.BASIC_CONSTRAINTS, bytes.fromhex("3003020100"))
UNREADABLE_CONSTRAINTS = x509.UnrecognizedExtension(ExtensionOID.BASIC_CONSTRAINTS, b"\xff")

SIZE: dict[str, Make] = {
    "nothing": lambda: b"",
    "more than 16 KiB": lambda: document() + bytes(16 * 1024),
}

ENVELOPE: dict[str, Make] = {
    "a trailing byte": lambda: document() + b"\0",
    "cut short": lambda: document()[:-1],
    "not CBOR": lambda: b"\xff" * 100,
    "text": lambda: b"attestation",
    "three items": lambda: envelope_of(encode_cbor(ES384), {}, b""),
    "five items": lambda: envelope_of(*parts()[:1], {}, *parts()[1:], None),
    "a map": lambda: encode_cbor({1: b"", 2: b"", 3: b"", 4: b""}),
    "a payload that is null": lambda: envelope_of(encode_cbor(ES384), {}, None, bytes(96)),
    "a payload that is a map": lambda: envelope_of(encode_cbor(ES384), {}, members(), bytes(96)),
    "a signature that is text": lambda: envelope_of(encode_cbor(ES384), {}, b"x", "x" * 96),
    "a header that is a map": lambda: envelope_of(ES384, {}, b"x", bytes(96)),
    "another tag": lambda: b"\xd1" + document(),
    "the tag twice": lambda: b"\xd2\xd2" + document(),
    "the tag in two bytes": lambda: b"\xd8\x12" + document(),
    "the tag of CBOR itself": lambda: b"\xd9\xd9\xf7" + document(),
    "a length in more bytes than needed": lambda: b"\x98\x04" + document()[1:],
    "a payload as an indefinite string": lambda: (
        b"\x84" + encode_cbor(parts()[0]) + b"\xa0\x5f" + encode_cbor(parts()[1]) + b"\xff" + encode_cbor(parts()[2])
    ),
}  # fmt: skip

HEADER: dict[str, Make] = {
    "QEMU's fake with algorithm -1": lambda: qemu_fake(encode_cbor({1: -1})),
    "another algorithm": lambda: envelope(encode_cbor(members()), protected=encode_cbor({1: -7})),
    "no algorithm": lambda: envelope(encode_cbor(members()), protected=encode_cbor({})),
    "an empty header": lambda: envelope(encode_cbor(members()), protected=b""),
    "a header with more": lambda: envelope(encode_cbor(members()), protected=encode_cbor({1: -35, 4: b"key"})),
    "the algorithm as text": lambda: envelope(encode_cbor(members()), protected=encode_cbor({1: "ES384"})),
    "the algorithm in more bytes than needed": lambda: envelope(
        encode_cbor(members()), protected=bytes.fromhex("a101390022")
    ),
    "an indefinite header": lambda: envelope(encode_cbor(members()), protected=bytes.fromhex("bf013822ff")),
    "a byte after the header": lambda: envelope(encode_cbor(members()), protected=encode_cbor(ES384) + b"\0"),
    "an unprotected header": lambda: envelope_of(parts()[0], {1: -35}, *parts()[1:]),
    "an unprotected list": lambda: envelope_of(parts()[0], [], *parts()[1:]),
    "no unprotected header": lambda: envelope_of(parts()[0], None, *parts()[1:]),
}

PAYLOAD: dict[str, Make] = {
    "a trailing byte": lambda: envelope(encode_cbor(members()) + b"\0"),
    "a second value": lambda: envelope(encode_cbor(members()) + encode_cbor({})),
    "cut short": lambda: envelope(encode_cbor(members())[:-1]),
    "empty": lambda: envelope(b""),
    "a list": lambda: envelope(encode_cbor(list(members()))),
    "an indefinite map without its end": lambda: envelope(indefinite_map(members())[:-1]),
    "an indefinite map with two ends": lambda: envelope(indefinite_map(members()) + b"\xff"),
    "an end inside a definite map": lambda: with_member(b"\xff"),
    "a member twice": lambda: with_member(encode_cbor("nonce") + encode_cbor(NONCE)),
    "a member twice in an indefinite map": lambda: envelope(
        indefinite_map(members())[:-1] + encode_cbor("pcrs") + encode_cbor(PCRS) + b"\xff"
    ),
    "a register twice": lambda: payload_with("pcrs", b"\xa2" + 2 * (b"\0" + encode_cbor(PCRS[0]))),
    "an unknown member": lambda: with_member(encode_cbor("debug") + encode_cbor(value=True)),
    "a member named by a number": lambda: with_member(encode_cbor(7) + b"\xf6"),
    "a member named by bytes": lambda: with_member(encode_cbor(b"nonce2") + b"\xf6"),
    "a member named by null": lambda: with_member(b"\xf6\xf6"),
    "a member named by false": lambda: with_member(b"\xf4\xf6"),
    **{
        f"no {name}": lambda name=name: document(without=[name])  # type: ignore[misc]
        for name in ("module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle")
    },
    "another digest": lambda: document(digest="SHA256"),
    "the digest in lower case": lambda: document(digest="sha384"),
    "an empty module": lambda: document(module_id=""),
    "a module without end": lambda: document(module_id="i" * 257),
    "a module as bytes": lambda: document(module_id=MODULE_ID.encode()),
    "a module that is not UTF-8": lambda: payload_with("module_id", b"\x62\xc3\x28"),
    "a module as an indefinite text": lambda: payload_with("module_id", b"\x7f\x61i\x61-\xff"),
    "time zero": lambda: document(timestamp=0),
    "negative time": lambda: document(timestamp=-TIMESTAMP_MS),
    "time as text": lambda: document(timestamp=str(TIMESTAMP_MS)),
    "time as true": lambda: document(timestamp=True),
    "time as null": lambda: document(timestamp=None),
    "time as a float": lambda: payload_with("timestamp", bytes.fromhex("fb4278bd0000000000")),
    "time as a half float": lambda: payload_with("timestamp", bytes.fromhex("f97bff")),
    "time beyond every calendar": lambda: document(timestamp=2**64 - 1),
    "time in more bytes than needed": lambda: payload_with("timestamp", b"\x1b" + (12345).to_bytes(8)),
    "time as a tagged date": lambda: payload_with("timestamp", b"\xc1" + encode_cbor(TIMESTAMP_MS)),
    "time undefined": lambda: payload_with("timestamp", b"\xf7"),
    "time as a big number": lambda: payload_with("timestamp", b"\xc2" + encode_cbor(b"\1\2\3\4\5\6")),
    "time as an unassigned simple value": lambda: payload_with("timestamp", b"\xf8\xff"),
    "time in a reserved form": lambda: payload_with("timestamp", b"\x1c"),
    "no registers": lambda: document(pcrs={}),
    "registers as a list": lambda: document(pcrs=list(PCRS.values())),
    "thirty-three registers": lambda: document(pcrs={index: bytes(48) for index in range(33)}),
    "a register 32": lambda: document(pcrs=PCRS | {32: bytes(48)}),
    "a register -1": lambda: document(pcrs=PCRS | {-1: bytes(48)}),
    "a register named by text": lambda: document(pcrs=PCRS | {"0": bytes(48)}),
    "a register of 47 bytes": lambda: document(pcrs=PCRS | {0: PCRS[0][:47]}),
    "a register of 49 bytes": lambda: document(pcrs=PCRS | {0: PCRS[0] + b"\0"}),
    "a register of 32 bytes": lambda: document(pcrs=PCRS | {0: PCRS[0][:32]}),
    "a register of no bytes": lambda: document(pcrs=PCRS | {0: b""}),
    "a register in hex": lambda: document(pcrs=PCRS | {0: PCRS[0].hex()}),
    "a register that is null": lambda: document(pcrs=PCRS | {0: None}),
    "no certificate": lambda: document(certificate=b""),
    "a certificate that is null": lambda: document(certificate=None),
    "a certificate too large": lambda: document(certificate=bytes(1025)),
    "an empty bundle": lambda: document(cabundle=[]),
    "a bundle that is one certificate": lambda: document(cabundle=root_der()),
    "a bundle with an empty certificate": lambda: document(cabundle=[*certificates()[:-1], b""]),
    "a bundle with text": lambda: document(cabundle=[*certificates()[:-1], "x"]),
    "a bundle without end": lambda: document(cabundle=[root_der()[:100]] * 9),
    "a bundle in a bundle": lambda: document(cabundle=[certificates()[:-1]]),
    "a public key of no bytes": lambda: document(public_key=b""),
    "a public key too large": lambda: document(public_key=bytes(1025)),
    "a public key as text": lambda: document(public_key=TEE_PUBKEY.der.hex()),
    "user data as a map": lambda: document(user_data={"eth_addr": WALLET}),
    "user data too large": lambda: document(user_data=bytes(1025)),
    "a nonce too large": lambda: document(nonce=bytes(1025)),
    "a nonce as a number": lambda: document(nonce=7),
    "a nonce as an indefinite string": lambda: payload_with("nonce", b"\x5f\x43abc\xff"),
    "nesting without end": lambda: payload_with("nonce", b"\x81" * 5000 + b"\xf6"),
    "a list without end": lambda: payload_with("nonce", b"\x99\xff\xff" + b"\xf6" * 5000),
    "a string longer than all there is": lambda: payload_with("nonce", b"\x5b" + b"\xff" * 8),
}

ROOT: dict[str, Make] = {
    "another root": lambda: document(chain(root={"key_name": "another root"})),
    "the same root under another certificate": lambda: document(chain(root={"ends_min": 7999})),
    "another root after the trusted one's name": lambda: document(
        cabundle=[*certificates(chain(root={"key_name": "another root"}))[:-1]]
    ),
    "a reversed bundle": bundle(lambda made: made[::-1]),
    "the root last": bundle(lambda made: [*made[1:], made[0]]),
    "no root": bundle(lambda made: made[1:]),
    "the root alone": bundle(lambda made: made[:1]),
    "a leaf under the root alone": lambda: document(
        (CHAIN[0], CHAIN[-1]), certificate=certificates((CHAIN[0], CHAIN[-1]))[-1]
    ),
    "the root with a byte more": bundle(lambda made: [made[0] + b"\0", *made[1:]]),
    "QEMU's fake that claims ES384": lambda: qemu_fake(encode_cbor(ES384)),
}


def expired(name: str) -> Make:
    return lambda: document(chain(**{name: {"ends_min": -0.1}}))


def not_yet(name: str) -> Make:
    return lambda: document(chain(**{name: {"starts_min": 1.1}}))


AUTHORITIES = ("regional", "zonal", "instance")
CHAIN_ROWS: dict[str, Make] = {
    **{f"an expired {name}": expired(name) for name in AUTHORITIES},
    **{f"a {name} that is not valid yet": not_yet(name) for name in AUTHORITIES},
    "two authorities swapped": bundle(lambda made: [made[0], made[2], made[1], made[3]]),
    "an authority twice": bundle(lambda made: [*made[:2], *made[1:]]),
    "the root twice": bundle(lambda made: [made[0], *made]),
    "an authority left out": bundle(lambda made: [made[0], *made[2:]]),
    "the leaf in the bundle": lambda: document(cabundle=certificates()),
    "an authority of another's making": lambda: document(chain(zonal={"signed_by": "somebody"})),
    "an authority that names another issuer": lambda: document(chain(zonal={"issuer": "somebody"})),
    "an authority on P-256": lambda: document(
        chain(zonal={"key_name": "zonal-256", "curve": ec.SECP256R1()}, instance={"signed_by": "zonal"})
    ),
    "an authority signed over SHA-256": lambda: document(chain(zonal={"digest": SHA256()})),
    **{f"a {name} that is no authority": no_authority for name, no_authority in (
        (name, lambda name=name: document(chain(**{name: {"authority": False, "path_length": None}})))  # type: ignore[misc]
        for name in ("regional", "zonal", "instance")
    )},
    "an authority that does not say that it is one": lambda: document(chain(zonal={"authority": None})),
    "an authority that says so as an aside": lambda: document(chain(zonal={"constraints_critical": False})),
    "an authority with another in a row too many": lambda: document(chain(zonal={"path_length": 0})),
    "the first authority with a path too short": lambda: document(chain(regional={"path_length": 1})),
    "an authority whose key may not sign certificates": lambda: document(chain(zonal={"cert_sign": False})),
    "an authority that does not say what its key is for": lambda: document(chain(zonal={"key_usage": False})),
    "an authority with a critical extension nobody knows": lambda: document(
        chain(zonal={"extensions": ((UNKNOWN, True),)})
    ),
    "an authority with constraints on names": lambda: document(
        chain(zonal={"extensions": ((x509.NameConstraints([x509.DNSName("a.invalid")], None), True),)})
    ),
    "an authority that cannot be read": lambda: document(
        chain(zonal={"authority": None, "extensions": ((UNREADABLE_CONSTRAINTS, True),)})
    ),
    "an authority with a bit flipped in its signature": bundle(lambda made: [*made[:2], flipped(made[2], -1), made[3]]),
    "an authority with a bit flipped in its name": bundle(lambda made: [*made[:2], flipped(made[2], 80), made[3]]),
    "an authority with a byte more": bundle(lambda made: [*made[:2], made[2] + b"\0", made[3]]),
    "an authority that is none": bundle(lambda made: [*made[:2], bytes(64), made[3]]),
    "an authority that is a key": bundle(lambda made: [*made[:2], TEE_PUBKEY.der, made[3]]),
}  # fmt: skip

LEAF: dict[str, Make] = {
    "expired": expired("leaf"),
    "not valid yet": not_yet("leaf"),
    "expired before the document was made": lambda: document(
        chain(leaf={"ends_min": 0.5}), timestamp=TIMESTAMP_MS + 45_000
    ),
    "on P-256": lambda: document(chain(leaf={"curve": ec.SECP256R1()})),
    "on P-521": lambda: document(chain(leaf={"curve": ec.SECP521R1()})),
    "an authority's": lambda: document(chain(leaf={"authority": True})),
    "an authority's with a path of none": lambda: document(chain(leaf={"authority": True, "path_length": 0})),
    "with a path length": lambda: document(chain(leaf={"authority": None, "extensions": ((LEAF_PATH_LENGTH, True),)})),
    "without saying what it is": lambda: document(chain(leaf={"authority": None})),
    "without saying what its key is for": lambda: document(chain(leaf={"key_usage": False})),
    "whose key is not for signatures": lambda: document(
        chain(leaf={"digital_signature": False, "cert_sign": True})
    ),
    "with a critical extension nobody knows": lambda: document(chain(leaf={"extensions": ((UNKNOWN, True),)})),
    "of another's making": lambda: document(chain(leaf={"signed_by": "somebody"})),
    "by an authority above": lambda: document(chain(leaf={"signed_by": "zonal", "issuer": "zonal"})),
    "that names another issuer": lambda: document(chain(leaf={"issuer": "zonal"})),
    "signed over SHA-256": lambda: document(chain(leaf={"digest": SHA256()})),
    "signed by itself": lambda: document(chain(leaf={"signed_by": "leaf", "issuer": "leaf"})),
    "with a coordinate beyond p": leaf_point_beyond_p,
    "with a point off the curve": changed_leaf(
        private_key("leaf").public_key().public_numbers().y.to_bytes(48), bytes(47) + b"\1"
    ),
    "of a version that does not exist": changed_leaf(bytes.fromhex("a003020102"), bytes.fromhex("a003020109")),
    "with a time that is none": changed_leaf(b"260115", b"261399"),
    "with a byte more": lambda: document(certificate=certificates()[-1] + b"\0"),
    "with a byte less": lambda: document(certificate=certificates()[-1][:-1]),
    "that is none": lambda: document(certificate=b"\x30\x00"),
    "that is an authority": lambda: document(certificate=certificates()[3]),
}  # fmt: skip


def signed_by_all_but(r: int | None = None, s: int | None = None) -> Make:
    def make() -> bytes:
        header, payload, signature = parts()
        halves = [signature[:48] if r is None else r.to_bytes(48), signature[48:] if s is None else s.to_bytes(48)]
        return envelope_of(header, {}, payload, b"".join(halves))

    return make


SIGNATURE: dict[str, Make] = {
    "zeros": signed_by_all_but(0, 0),
    "r zero": signed_by_all_but(r=0),
    "s zero": signed_by_all_but(s=0),
    "r the order": signed_by_all_but(r=P384_ORDER),
    "s the order": signed_by_all_but(s=P384_ORDER),
    "both without end": signed_by_all_but(2**384 - 1, 2**384 - 1),
    "r and s swapped": lambda: envelope_of(parts()[0], {}, parts()[1], parts()[2][48:] + parts()[2][:48]),
    "a bit flipped in r": lambda: envelope_of(parts()[0], {}, parts()[1], flipped(parts()[2], 5)),
    "a bit flipped in s": lambda: envelope_of(parts()[0], {}, parts()[1], flipped(parts()[2], 90)),
    "64 zero bytes": lambda: envelope_of(parts()[0], {}, parts()[1], bytes(64)),
    "a byte more": lambda: envelope_of(parts()[0], {}, parts()[1], parts()[2] + b"\0"),
    "a zero before s": lambda: envelope_of(parts()[0], {}, parts()[1], parts()[2][:48] + b"\0" + parts()[2][48:]),
    "none": lambda: envelope_of(parts()[0], {}, parts()[1], b""),
    "in DER": lambda: envelope_of(
        parts()[0], {}, parts()[1], private_key("leaf").sign(parts()[1], ec.ECDSA(SHA384()))
    ),
    "another key's": lambda: envelope(encode_cbor(members()), signer="instance"),
    "over SHA-256": lambda: envelope(encode_cbor(members()), digest=SHA256()),
    "over another payload": lambda: envelope_of(parts()[0], {}, encode_cbor(members(nonce=b"other")), parts()[2]),
    "over the same payload in other bytes": lambda: envelope_of(
        parts()[0], {}, indefinite_map(members()), parts()[2]
    ),
    "over the payload alone": lambda: envelope_of(
        parts()[0], {}, parts()[1], sign(b"", protected=parts()[1])
    ),
}  # fmt: skip

ECDSA_SHA384, ECDSA_SHA256 = (bytes.fromhex(f"06082a8648ce3d0403{number}") for number in ("03", "02"))


def claims_sha256(position: int, signer: str) -> bytes:
    """A certificate that says inside what its issuer signed that another algorithm signs it."""
    return resign(certificates()[position], lambda signed: signed.replace(ECDSA_SHA384, ECDSA_SHA256, 1), signer)


SECOND_OPINION: dict[str, Make] = {
    "a leaf of two algorithms": lambda: document(certificate=claims_sha256(4, "instance")),
    "an authority of two algorithms": lambda: document(
        cabundle=[*certificates()[:2], claims_sha256(2, "regional"), certificates()[3]]
    ),
}

FRESHNESS: dict[str, Make] = {
    "older than allowed": lambda: document(timestamp=TIMESTAMP_MS - 300_001),
    "ahead of our clock by more than allowed": lambda: document(timestamp=TIMESTAMP_MS + 60_001),
    "before its leaf": lambda: document(chain(leaf={"starts_min": -1}), timestamp=TIMESTAMP_MS - 120_000),
    "in seconds": lambda: document(timestamp=TIMESTAMP_MS // 1000),
}

NONCES: dict[str, Make] = {
    "another": lambda: document(nonce=b"nonce of somebody else"),
    "none": lambda: document(nonce=None),
    "left out": lambda: document(without=["nonce"]),
    "empty": lambda: document(nonce=b""),
    "longer": lambda: document(nonce=NONCE + b"\0"),
    "shorter": lambda: document(nonce=NONCE[:-1]),
    "in hex": lambda: document(nonce=NONCE.hex().encode()),
}

DEBUG: dict[str, Make] = {
    "all three zero": lambda: document(pcrs=PCRS | dict.fromkeys((0, 1, 2, 8), bytes(48))),
    **{f"PCR{index} zero": lambda index=index: document(pcrs=PCRS | {index: bytes(48)}) for index in (0, 1, 2)},  # type: ignore[misc]
}


def without_pcr(index: int) -> Make:
    return lambda: document(pcrs={number: value for number, value in PCRS.items() if number != index})


MEASUREMENTS: dict[str, Make] = {
    **{f"PCR{index} missing": without_pcr(index) for index in (0, 1, 2)},
    **{
        f"another PCR{index}": lambda index=index: document(pcrs=PCRS | {index: hashlib.sha384(b"x").digest()})  # type: ignore[misc]
        for index in (0, 1, 2)
    },
    "a common prefix": lambda: document(pcrs=PCRS | {0: PCRS[0][:47] + bytes([PCRS[0][47] ^ 1])}),
    "PCR1 and PCR2 swapped": lambda: document(pcrs=PCRS | {1: PCRS[2], 2: PCRS[1]}),
    "only PCR3 and PCR4": lambda: document(pcrs={3: PCRS[3], 4: PCRS[4]}),
}

ROWS = [
    pytest.param(make, step, id=f"{step.value}: {name}")
    for step, table in (
        (Step.SIZE, SIZE),
        (Step.ENVELOPE, ENVELOPE),
        (Step.HEADER, HEADER),
        (Step.PAYLOAD, PAYLOAD),
        (Step.ROOT, ROOT),
        (Step.CHAIN, CHAIN_ROWS),
        (Step.LEAF, LEAF),
        (Step.SECOND_OPINION, SECOND_OPINION),
        (Step.SIGNATURE, SIGNATURE),
        (Step.FRESHNESS, FRESHNESS),
        (Step.NONCE, NONCES),
        (Step.DEBUG, DEBUG),
        (Step.MEASUREMENTS, MEASUREMENTS),
    )
    for name, make in table.items()
]


@pytest.mark.parametrize(("make", "step"), ROWS)
def test_a_spoiled_document_is_refused_at_its_step(make: Make, step: Step) -> None:
    assert refused_at(make(), POLICY) is step


ROOTS = {
    "expired": {"ends_min": -0.1},
    "not valid yet": {"starts_min": 1.1},
    "that is no authority": {"authority": False},
    "with a path too short": {"path_length": 2},
    "whose key may not sign certificates": {"cert_sign": False},
    "with a critical extension nobody knows": {"extensions": ((UNKNOWN, True),)},
}


@pytest.mark.parametrize("change", ROOTS.values(), ids=ROOTS)
def test_a_trusted_root_is_held_to_the_same_rules(change: dict[str, Any]) -> None:
    plans = chain(root=change)

    assert refused_at(document(plans), replace(POLICY, root_der=certificates(plans)[0])) is Step.CHAIN


def test_a_root_on_another_curve_signs_nothing() -> None:
    plans = chain(root={"curve": ec.SECP256R1()}, regional={"signed_by": "root"})

    assert refused_at(document(plans), replace(POLICY, root_der=certificates(plans)[0])) is Step.CHAIN
