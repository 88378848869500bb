"""Whatever a stranger sends as a document is refused as such: no other exception, and no acceptance, comes out."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from cryptography import x509
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from appliance.tee.attestation.cbor import encode_cbor
from appliance.tee.attestation.document import parse_document
from appliance.tee.attestation.errors import Refused
from appliance.tee.attestation.verify import VerifiedDocument, attested_identity, verify_document
from tests.support.attestation import (
    ES384,
    POLICY,
    certificates,
    document,
    envelope,
    indefinite_map,
    members,
)

# The library warns about such certificates while it reads them; they are refused a moment later.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Parsed a serial number"),
    pytest.mark.filterwarnings("ignore:Attribute's length must be"),
]

# Building and verifying takes milliseconds: fewer examples than for pure parsing, and no deadline each.
EXPENSIVE = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@cache
def usual() -> bytes:
    return document()


@cache
def usual_members() -> dict[int | str, Any]:
    return members()


def verify(data: bytes) -> VerifiedDocument | None:
    try:
        return verify_document(data, POLICY)
    except Refused:
        return None


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**64), 2**64 - 1),
    st.binary(max_size=200),
    st.text(max_size=60),
    st.lists(st.binary(max_size=100), max_size=6),
    st.dictionaries(st.integers(-3, 40), st.binary(max_size=64), max_size=6),
)
MUTATIONS = st.tuples(
    st.sampled_from(["replace", "insert", "delete", "cut", "repeat"]),
    st.floats(0, 1),
    st.binary(min_size=1, max_size=8),
)


def mutate(data: bytes, kind: str, where: float, with_bytes: bytes) -> bytes:
    at = int(where * len(data))
    match kind:
        case "replace":
            return data[:at] + with_bytes + data[at + len(with_bytes) :]
        case "insert":
            return data[:at] + with_bytes + data[at:]
        case "delete":
            return data[:at] + data[at + len(with_bytes) :]
        case "cut":
            return data[:at]
    return data[:at] + data[at : at + 64] + data[at:]


@given(st.binary(max_size=600))
def test_any_bytes_are_a_document_or_refused(data: bytes) -> None:
    try:
        parse_document(data)
    except Refused:
        return
    raise AssertionError("no short string of bytes is a document")


@given(mutation=MUTATIONS)
@EXPENSIVE
def test_a_document_changed_anywhere_is_refused(mutation: tuple[str, float, bytes]) -> None:
    changed = mutate(usual(), *mutation)

    # A mutation can change nothing, and the tag may stand in front.
    assert verify(changed) is None or changed in (usual(), b"\xd2" + usual())


@given(changes=st.dictionaries(st.sampled_from(sorted(map(str, members()))), VALUES, max_size=3))
@EXPENSIVE
def test_a_signed_payload_of_any_members_is_verified_or_refused(changes: dict[str, Any]) -> None:
    made = {**usual_members(), **changes}
    found = verify(envelope(encode_cbor(made)))

    assert found is None or found.module_id == made["module_id"]


@given(payload=MUTATIONS, indefinite=st.booleans())
@EXPENSIVE
def test_a_signed_payload_of_any_bytes_is_verified_or_refused(
    payload: tuple[str, float, bytes], indefinite: bool
) -> None:
    encoded = indefinite_map(usual_members()) if indefinite else encode_cbor(usual_members())

    verify(envelope(mutate(encoded, *payload)))


@given(position=st.integers(1, 4), mutation=MUTATIONS)
@example(position=4, mutation=("replace", 0.0, b"\x30\x80"))
@EXPENSIVE
def test_a_certificate_changed_anywhere_is_refused(position: int, mutation: tuple[str, float, bytes]) -> None:
    made = certificates()
    original = made[position]
    made[position] = mutate(original, *mutation)
    found = verify(document(certificate=made[4], cabundle=made[:4]))

    # What the issuer signed cannot be changed; the signature itself has more than one encoding, as ECDSA's have.
    assert found is None or signed_part(made[position]) == signed_part(original)


def signed_part(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).tbs_certificate_bytes


@given(header=st.binary(max_size=12), unprotected=VALUES, signature=st.binary(max_size=120))
@EXPENSIVE
def test_any_envelope_around_a_payload_is_refused(header: bytes, unprotected: Any, signature: bytes) -> None:
    payload = encode_cbor(usual_members())

    assert verify(encode_cbor([header, unprotected, payload, signature])) is None
    assert verify(encode_cbor([encode_cbor(ES384), {}, payload, signature])) is None


@given(key=st.binary(max_size=130), user_data=st.binary(max_size=300))
@EXPENSIVE
def test_any_statement_is_an_identity_or_refused(key: bytes, user_data: bytes) -> None:
    found = verify_document(usual(), POLICY)
    for stated in (replace(found, public_key=key), replace(found, user_data=user_data)):
        try:
            attested_identity(stated)
        except Refused:
            continue
        raise AssertionError("no chance bytes are an identity")
