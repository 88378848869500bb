"""Envelopes, their keys and their parsing, on ours and (for the parsing) on the twin."""

import json
import pickle
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from kmscore import envelope as ours
from kmscore.envelope import (
    LABELS,
    P384_ORDER,
    SPKI_PREFIX,
    AgreementKey,
    Envelope,
    EnvelopeWriter,
    SharedSecretCache,
    TeePublicKey,
    encode_envelope,
    envelope_key,
    open_envelope,
    parse_envelope,
    parse_tee_pubkey,
    parse_tee_pubkey_der,
    seal,
)
from kmscore.errors import InvariantBroken, Reason, Rejected
from kmscore.secret import SecretBytes
from tests.reference import envelope as twin

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "envelope.json").read_text())
A_DER, A_SEC1, B_DER, B_SEC1 = (bytes.fromhex(VECTORS[name]) for name in ("a_der", "a_sec1", "b_der", "b_sec1"))
A = AgreementKey.from_scalar(int(VECTORS["a_scalar"], 16))
B = AgreementKey.from_scalar(int(VECTORS["b_scalar"], 16))
SHARED = A.agree(B.public)
NONCE = bytes(range(12))

both = pytest.mark.parametrize("impl", [ours, twin], ids=["ours", "twin"])
relaxed = settings(deadline=None)


# --- the vectors ---


def test_both_sides_of_the_vectors_agree_on_keys_and_secret():
    assert (A.public.der, A.public.sec1, B.public.der, B.public.sec1) == (A_DER, A_SEC1, B_DER, B_SEC1)
    for shared in (A.agree(B.public), B.agree(A.public)):
        assert shared.matches(bytes.fromhex(VECTORS["rows"][0]["shared_secret"]))


@pytest.mark.parametrize("row", VECTORS["rows"], ids=lambda row: f"{row['label']}-{row['nonce'][:4]}")
def test_a_vector_is_sealed_and_opened_byte_for_byte_from_either_side(row):
    nonce = bytes.fromhex(row["nonce"])
    plaintext = row["plaintext"].encode()
    for own, peer in ((A, B), (B, A)):
        shared = own.agree(peer.public)
        assert envelope_key(shared, own.public, peer.public, nonce, row["label"]).hex() == row["aes_key"]
        sealed = seal(shared, own.public, peer.public, row["label"], nonce, plaintext)
        assert (sealed.sender, sealed.nonce) == (own.public.der, nonce)
        assert sealed.ciphertext.hex() == row["encrypted_data"]
        for labels in (LABELS, LABELS[::-1], (row["label"],)):
            assert open_envelope(shared, own.public, peer.public, labels, sealed) == (plaintext, row["label"])


# --- sealing and opening ---


@relaxed
@given(st.binary(max_size=200), st.binary(min_size=12, max_size=12), st.sampled_from(LABELS))
def test_what_is_sealed_is_opened_from_the_body_that_was_sent(plaintext, nonce, label):
    sent = seal(SHARED, A.public, B.public, label, nonce, plaintext)
    received = parse_envelope(sent.canonical)
    assert received == sent
    assert open_envelope(SHARED, B.public, A.public, LABELS, received) == (plaintext, label)


@relaxed
@given(st.binary(max_size=40), st.data())
def test_an_envelope_with_any_bit_flipped_does_not_open(plaintext, data):
    sealed = seal(SHARED, A.public, B.public, LABELS[0], bytes(12), plaintext)
    member = data.draw(st.sampled_from(["nonce", "ciphertext"]))
    members = {name: getattr(sealed, name) for name in ("sender", "nonce", "ciphertext", "canonical")}
    damaged = bytearray(members[member])
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(Rejected) as caught:
        open_envelope(SHARED, B.public, A.public, LABELS, Envelope(**{**members, member: bytes(damaged)}))
    assert caught.value.reason is Reason.UNDECRYPTABLE


@pytest.mark.parametrize("labels", [(), LABELS[1:], ("another-label",)], ids=["none", "the others", "an unknown one"])
def test_an_envelope_opens_under_its_own_label_only(labels):
    sealed = seal(SHARED, A.public, B.public, LABELS[0], bytes(12), b"{}")
    with pytest.raises(Rejected) as caught:
        open_envelope(SHARED, B.public, A.public, labels, sealed)
    assert caught.value.reason is Reason.UNDECRYPTABLE


@settings(deadline=None)
@given(st.lists(st.binary(max_size=20) | st.integers(0, 10_000).map(bytes), max_size=4), st.sampled_from(LABELS))
def test_a_long_envelope_is_written_piece_by_piece_as_in_one(parts, label):
    whole = seal(SHARED, A.public, B.public, label, NONCE, b"".join(parts))
    writer = EnvelopeWriter(SHARED, A.public, B.public, label, NONCE, sum(map(len, parts)))
    pieces = [*map(writer.write, parts), writer.finish()]
    assert b"".join(pieces) == whole.canonical
    assert writer.body_bytes == len(whole.canonical)
    for late in (writer.finish, lambda: writer.write(b"")):
        with pytest.raises(InvariantBroken):
            late()


def test_a_long_envelope_of_another_length_than_was_said_is_a_bug():
    writer = EnvelopeWriter(SHARED, A.public, B.public, LABELS[0], NONCE, 5)
    writer.write(b"1234")
    with pytest.raises(InvariantBroken):
        writer.finish()
    with pytest.raises(InvariantBroken):
        writer.write(b"56")
    writer.write(b"5")
    assert writer.finish().endswith(b'"}')
    for size in (-1, 1 << 31):
        with pytest.raises(InvariantBroken):
            EnvelopeWriter(SHARED, A.public, B.public, LABELS[0], NONCE, size)


def test_an_envelope_writer_is_not_pickled_and_shows_no_key():
    writer = EnvelopeWriter(SHARED, A.public, B.public, LABELS[0], NONCE, 0)
    assert repr(writer) == f"EnvelopeWriter({writer.body_bytes} bytes)"
    with pytest.raises(TypeError):
        pickle.dumps(writer)


def test_an_envelope_to_someone_else_does_not_open():
    stranger = AgreementKey.generate()
    sealed = seal(SHARED, A.public, B.public, LABELS[0], bytes(12), b"{}")
    with pytest.raises(Rejected) as caught:
        open_envelope(stranger.agree(A.public), stranger.public, A.public, LABELS, sealed)
    assert caught.value.reason is Reason.UNDECRYPTABLE


@pytest.mark.parametrize("nonce", [b"", bytes(11), bytes(13)])
def test_sealing_under_a_nonce_of_another_length_is_a_bug(nonce):
    with pytest.raises(InvariantBroken):
        seal(SHARED, A.public, B.public, LABELS[0], nonce, b"{}")


def test_deriving_from_a_shared_secret_of_another_length_is_a_bug():
    with pytest.raises(InvariantBroken):
        envelope_key(SecretBytes(bytes(32)), A.public, B.public, bytes(12), LABELS[0])


# --- the wire form ---

BYTES = st.binary(max_size=60)
MEMBERS = st.tuples(
    st.binary(min_size=1, max_size=256), st.binary(min_size=12, max_size=12), st.binary(min_size=16, max_size=60)
)
HEX_FORMS = [bytes.hex, lambda data: data.hex().upper(), lambda data: "0x" + data.hex()]


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


@both
@relaxed
@given(members=MEMBERS)
def test_an_encoded_envelope_is_its_own_canonical_form(impl, members):
    encoded = impl.encode_envelope(*members)
    assert (encoded.sender, encoded.nonce, encoded.ciphertext) == members
    assert encoded.canonical == canonical(json.loads(encoded.canonical))
    assert impl.parse_envelope(encoded.canonical) == encoded == encode_envelope(*members)


@both
@relaxed
@given(members=MEMBERS, forms=st.tuples(*[st.sampled_from(HEX_FORMS)] * 3), order=st.permutations(range(3)))
def test_every_way_to_write_an_envelope_means_the_same_and_keeps_its_text_for_the_mac(impl, members, forms, order):
    names = ("sender_tee_pubkey", "nonce", "encrypted_data")
    texts = [form(member) for form, member in zip(forms, members, strict=True)]
    value = {names[i]: texts[i] for i in order}
    escaped = json.dumps(value).replace("a", "\\u0061").encode()
    for body in (canonical(value), json.dumps(value).encode(), json.dumps(value, indent=2).encode(), escaped):
        parsed = impl.parse_envelope(body)
        assert (parsed.sender, parsed.nonce, parsed.ciphertext) == members
        assert parsed.canonical == canonical(value)
    assert impl.parse_envelope_object(value) == parsed


def test_a_canonical_body_is_kept_and_not_copied():
    body = encode_envelope(A_DER, bytes(12), bytes(16)).canonical
    assert parse_envelope(body).canonical is body


@pytest.mark.parametrize("size", [16_383, 16_384, 300_001])
def test_a_large_envelope_is_encoded_and_parsed_without_loss(size):
    ciphertext = bytes(i * 7 % 256 for i in range(size))
    encoded = encode_envelope(A_DER, bytes(range(12)), ciphertext)
    assert encoded == twin.encode_envelope(A_DER, bytes(range(12)), ciphertext)
    assert parse_envelope(encoded.canonical).ciphertext == ciphertext
    broken = encoded.canonical.replace(ciphertext[-1:].hex().encode() + b'"', b'0g"', 1)
    with pytest.raises(Rejected):
        parse_envelope(broken)


GOOD = {"sender_tee_pubkey": A_DER.hex(), "nonce": "00" * 12, "encrypted_data": "00" * 16}


def but(**changes: object) -> bytes:
    """The good envelope with these members changed, or left out when None, in canonical form."""
    return canonical({name: value for name, value in (GOOD | changes).items() if value is not None})


REFUSED = {
    "empty": b"",
    "plaintext body": b'{"path":"disk"}',
    "array": b"[]",
    "string": b'"envelope"',
    "null": b"null",
    "empty object": b"{}",
    "without sender": but(sender_tee_pubkey=None),
    "without nonce": but(nonce=None),
    "without data": but(encrypted_data=None),
    "fourth member": but(extra=""),
    "empty sender": but(sender_tee_pubkey=""),
    "empty sender with prefix": but(sender_tee_pubkey="0x"),
    "sender of 257 bytes": but(sender_tee_pubkey="00" * 257),
    "odd sender": but(sender_tee_pubkey="000"),
    "sender that is not hex": but(sender_tee_pubkey="zz" * 120),
    "sender that is a number": but(sender_tee_pubkey=5),
    "nonce of 11 bytes": but(nonce="00" * 11),
    "nonce of 13 bytes": but(nonce="00" * 13),
    "odd nonce": but(nonce="0" * 23),
    "nonce that is not hex": but(nonce="0x" + "0x" * 12),
    "nonce with white space": but(nonce="00" * 12 + " "),
    "ciphertext shorter than a tag": but(encrypted_data="00" * 15),
    "odd ciphertext": but(encrypted_data="0" * 33),
    "ciphertext that is not hex": but(encrypted_data="0g" * 16),
    "ciphertext in base64": but(encrypted_data="AAAAAAAAAAAAAAAAAAAAAA=="),
    "ciphertext that is null": canonical(GOOD | {"encrypted_data": None}),
    "upper-case prefix": but(encrypted_data="0X" + "00" * 16),
    "data twice": but()[:-1] + b',"encrypted_data":"' + b"00" * 16 + b'"}',
    "member names in other case": but().replace(b"nonce", b"Nonce"),
    "trailing data": but() + b"{}",
    "trailing zero byte": but() + b"\x00",
    "byte order mark": b"\xef\xbb\xbf" + but(),
    "cut off": but()[:-1],
    "opening only": b'{"encrypted_data":"',
    "opening and closing share bytes": b'{"encrypted_data":"}',
    "labels in each other's place": (
        b'{"encrypted_data":"' + b"00" * 16 + b'","sender_tee_pubkey":"00","nonce":"' + b"00" * 11 + b'"}'
    ),
    "a quote in the ciphertext": but(encrypted_data="00" * 8 + '"' + "00" * 8),
    "a nested object": but(encrypted_data={"a": "00"}),
    "a surrogate": but(nonce="\ud800"),
}


@both
@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED)
def test_a_body_that_is_no_envelope_is_malformed(impl, body):
    impl.parse_envelope(canonical(GOOD))
    with pytest.raises(Rejected) as caught:
        impl.parse_envelope(body)
    assert caught.value.reason is Reason.MALFORMED


@both
@pytest.mark.parametrize("value", [None, [], "{}", 1, {}, GOOD | {"nonce": b"0" * 24}, GOOD | {1: 2}])
def test_a_value_that_is_no_envelope_is_malformed(impl, value):
    with pytest.raises(Rejected) as caught:
        impl.parse_envelope_object(value)
    assert caught.value.reason is Reason.MALFORMED


@relaxed
@given(st.one_of(st.binary(max_size=80), st.just(canonical(GOOD))), st.data())
def test_a_damaged_body_is_read_alike_by_ours_and_the_twin_or_refused_by_both(body, data):
    damaged = bytearray(body)
    at = data.draw(st.integers(0, len(damaged)))
    damaged[at : at + data.draw(st.integers(0, 3))] = data.draw(
        st.sampled_from([b"", b'"', b"0", b"x", b"g", b"\\", b",", b"}", b" ", b"\xff", b"\\u0030", b"0x", b"A"])
    )
    results = []
    for impl in (ours, twin):
        try:
            results.append(impl.parse_envelope(bytes(damaged)))
        except Rejected as error:
            results.append(error.reason)
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "members",
    [
        (b"", bytes(12), bytes(16)),
        (bytes(257), bytes(12), bytes(16)),
        (b"k", bytes(11), bytes(16)),
        (b"k", bytes(12), b""),
    ],
    ids=["no key", "long key", "short nonce", "no tag"],
)
def test_encoding_members_of_other_lengths_is_a_bug(members):
    with pytest.raises(InvariantBroken):
        encode_envelope(*members)


# --- keys ---


def test_a_key_is_read_from_der_and_where_allowed_from_sec1():
    for data in (A_DER, A_SEC1):
        key = parse_tee_pubkey(data)
        assert (key.der, key.sec1) == (A_DER, A_SEC1)
    assert parse_tee_pubkey_der(A_DER) == A.public
    with pytest.raises(Rejected):
        parse_tee_pubkey_der(A_SEC1)


COMPRESSED = bytes([2 + A_SEC1[-1] % 2]) + A_SEC1[1:49]
BAD_KEYS = {
    "empty": b"",
    "infinity": b"\x00",
    "compressed": COMPRESSED,
    "compressed in DER": bytes.fromhex("3046301006072a8648ce3d020106052b81040022033200") + COMPRESSED,
    "hybrid": bytes([6 + A_SEC1[-1] % 2]) + A_SEC1[1:],
    "hybrid in DER": SPKI_PREFIX + bytes([6 + A_SEC1[-1] % 2]) + A_SEC1[1:],
    "the point without its first byte": A_SEC1[1:],
    "off the curve": A_SEC1[:-1] + bytes([A_SEC1[-1] ^ 1]),
    "off the curve in DER": A_DER[:-1] + bytes([A_DER[-1] ^ 1]),
    "zero point": b"\x04" + bytes(96),
    "coordinates above the field": b"\x04" + b"\xff" * 96,
    "trailing byte": A_DER + b"\x00",
    "one byte short": A_DER[:-1],
    "another curve's identifier": A_DER.replace(bytes.fromhex("06052b81040022"), bytes.fromhex("06052b81040023")),
    "another algorithm's identifier": A_DER.replace(bytes.fromhex("0201"), bytes.fromhex("0202"), 1),
    "BER length": bytes.fromhex("308176") + A_DER[2:],
    "hex": A_DER.hex().encode(),
}


@pytest.mark.parametrize("parse", [parse_tee_pubkey, parse_tee_pubkey_der, TeePublicKey])
@pytest.mark.parametrize("data", BAD_KEYS.values(), ids=BAD_KEYS)
def test_a_key_in_any_other_form_is_refused(parse, data):
    with pytest.raises(Rejected) as caught:
        parse(data)
    assert caught.value.reason is Reason.BAD_FIELD


@relaxed
@given(st.binary(max_size=130))
def test_random_bytes_are_no_key(data):
    for candidate in (data, data.ljust(97, b"\x04")[:97], (SPKI_PREFIX + data).ljust(120, b"\x04")[:120]):
        with pytest.raises(Rejected):
            parse_tee_pubkey(candidate)


def test_keys_are_equal_by_their_der():
    assert parse_tee_pubkey(A_SEC1) == A.public != B.public
    assert len({parse_tee_pubkey(A_SEC1), parse_tee_pubkey_der(A_DER), B.public}) == 2
    assert A.public != A_DER


@pytest.mark.parametrize("scalar", [0, -1, P384_ORDER, P384_ORDER + 1, 2**400])
def test_a_scalar_outside_the_group_is_no_key(scalar):
    with pytest.raises(Rejected) as caught:
        AgreementKey.from_scalar(scalar)
    assert caught.value.reason is Reason.BAD_FIELD


def test_the_first_and_the_last_scalar_are_keys_of_one_x_coordinate():
    first, last = AgreementKey.from_scalar(1).public, AgreementKey.from_scalar(P384_ORDER - 1).public
    assert first.sec1[:49] == last.sec1[:49]
    assert first != last


def test_a_key_on_another_curve_is_a_bug():
    with pytest.raises(InvariantBroken):
        AgreementKey(ec.generate_private_key(ec.SECP256R1()))


def test_a_private_key_is_neither_pickled_nor_generated_twice():
    assert AgreementKey.generate().public != AgreementKey.generate().public
    with pytest.raises(TypeError):
        pickle.dumps(A)


def test_a_shared_x_coordinate_keeps_its_leading_zeros():
    # The scalar was searched for: it is the first one whose agreement with A starts with a zero byte.
    scalar = next(n for n in range(1, 2000) if AgreementKey.from_scalar(n).agree(A.public).reveal()[0] == 0)
    assert len(AgreementKey.from_scalar(scalar).agree(A.public)) == 48


# --- the cache ---


def test_a_shared_secret_is_computed_once_while_it_is_cached():
    cache = SharedSecretCache(A, max_peers=2)
    secret = cache.get(B.public)
    assert secret.matches(SHARED)
    assert cache.get(parse_tee_pubkey(B_SEC1)) is secret


def test_the_cache_forgets_the_least_recently_used_peer_and_its_secret():
    cache = SharedSecretCache(A, max_peers=2)
    used, unused, new = (AgreementKey.generate().public for _ in range(3))
    kept = cache.get(used)
    forgotten = cache.get(unused)
    cache.get(used)
    cache.get(new)
    assert len(cache) == 2
    assert cache.get(used) is kept
    # Ours is the last reference, so the secret is wiped as soon as we let go of it; until then it can be used.
    assert sys.getrefcount(forgotten) == 2
    assert len(forgotten.reveal()) == 48
    assert cache.get(unused) is not forgotten
    assert cache.get(unused).matches(forgotten)


def test_a_cleared_cache_holds_no_secret():
    cache = SharedSecretCache(A)
    secret = cache.get(B.public)
    cache.clear()
    assert len(cache) == 0
    assert sys.getrefcount(secret) == 2
    assert cache.get(B.public).matches(SHARED)


@pytest.mark.parametrize("more", [1, 200_000])
def test_an_object_of_more_members_is_not_read_on(more):
    members = {"encrypted_data": "00" * 16, "nonce": "00" * 12, "sender_tee_pubkey": "00"}
    body = json.dumps({**members, **{str(number): "" for number in range(more)}}).encode()
    with pytest.raises(Rejected) as caught:
        parse_envelope(body)
    assert caught.value.reason is Reason.MALFORMED
