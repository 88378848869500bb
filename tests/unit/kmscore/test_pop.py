import copy
import json
import pickle
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import pytest
from eth_account import Account
from eth_account.messages import encode_defunct
from hypothesis import given, settings
from hypothesis import strategies as st

import kmscore.pop
import tests.reference.pop
from kmscore.errors import InvariantBroken, Reason, Rejected
from kmscore.pop import PopKind, WalletKey, answer_text, response_text, verify_signed_by
from kmscore.secret import SecretBytes

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "pop.json").read_text())
ACCEPTED = [pytest.param(row, id=f"{row['kind']}-{row['timestamp']}") for row in VECTORS["accept"]]
REFUSED = [pytest.param(row["signature"], id=row["why"]) for row in VECTORS["refuse"]]

FIRST = VECTORS["accept"][0]
SIGNATURE = FIRST["signature"]
SIGNER = FIRST["signer"]
NODE = FIRST["receiver"]
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141

keys = st.integers(1, ORDER - 1).map(lambda number: number.to_bytes(32, "big"))
any_text = st.text(st.characters(), max_size=200)


@pytest.fixture(scope="module", params=[kmscore.pop, tests.reference.pop], ids=["cython", "twin"])
def pop(request):
    return request.param


def wallet_key(name: str) -> WalletKey:
    return WalletKey(SecretBytes(bytes.fromhex(VECTORS["keys"][name])))


def fields(row) -> tuple[PopKind, str, str, int]:
    return PopKind(row["kind"]), row["nonce"], row["receiver"], row["timestamp"]


def hex_signature(r: int, s: int, v: int) -> str:
    return f"0x{r:064x}{s:064x}{v:02x}"


def outcome(call, *args) -> str | Reason:
    try:
        return call(*args)
    except Rejected as refusal:
        return refusal.reason


def run_child(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60)


# ---- vectors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ACCEPTED)
def test_the_text_and_its_digest_are_those_of_the_vector(pop, row):
    text = pop.pop_text(*fields(row))
    assert text == row["text"].encode()
    assert pop.eip191_digest(text).hex() == row["digest"]


@pytest.mark.parametrize("row", ACCEPTED)
def test_both_forms_of_v_recover_the_signer(pop, row):
    assert pop.recover_pop(*fields(row), row["signature"]) == row["signer"]
    assert pop.recover_pop(*fields(row), row["signature_v27"]) == row["signer"]


@pytest.mark.parametrize("row", ACCEPTED)
def test_both_keys_sign_exactly_as_the_vector_says(pop, row):
    app = pop.WalletKey(SecretBytes(bytes.fromhex(VECTORS["keys"]["app"])))
    node = pop.WalletKey(SecretBytes(bytes.fromhex(VECTORS["keys"]["node"])))
    assert (app.address, node.address) == (row["signer"], row["response_signer"])
    assert app.sign_message(row["text"].encode()) == row["signature"]
    assert node.sign_message(row["response_text"].encode()) == row["response_signature"]


@pytest.mark.parametrize("row", ACCEPTED)
def test_the_response_names_the_callers_signature_as_sent(row):
    text = response_text(row["signature"], row["receiver"])
    assert text == row["response_text"].encode()
    verify_signed_by(text, row["response_signature"], row["response_signer"])


@pytest.mark.parametrize("signature", REFUSED)
def test_every_refused_signature_of_the_vectors_is_refused(pop, signature):
    with pytest.raises(Rejected) as caught:
        pop.recover_pop(*fields(FIRST), signature)
    assert caught.value.reason is Reason.SIGNATURE


# ---- signatures ------------------------------------------------------------------------------------------------------

SIGNATURE_FORMS = [
    pytest.param(SIGNATURE, id="as emitted"),
    pytest.param(SIGNATURE[2:], id="without 0x"),
    pytest.param("0x" + SIGNATURE[2:].upper(), id="upper case"),
    pytest.param(SIGNATURE[2:].upper(), id="upper case without 0x"),
    pytest.param(FIRST["signature_v27"][2:], id="v 27 without 0x"),
]

BAD_SIGNATURES = [
    pytest.param("0X" + SIGNATURE[2:], id="0X"),
    pytest.param("0x0x" + SIGNATURE[2:], id="0x twice"),
    pytest.param("0x" + SIGNATURE[4:], id="0x in place of the first byte"),
    pytest.param(" " + SIGNATURE, id="space before"),
    pytest.param(SIGNATURE + "\n", id="line feed after"),
    pytest.param(SIGNATURE[:-2] + " 0", id="space inside"),
    pytest.param(SIGNATURE[:-2] + "+0", id="sign inside"),
    pytest.param(SIGNATURE[:-2] + "0_", id="underscore inside"),
    pytest.param(SIGNATURE[:-1] + "\0", id="NUL inside"),
    pytest.param(SIGNATURE[:-1] + "\uff10", id="full-width digit"),
    pytest.param(SIGNATURE[:-1] + "\ud800", id="lone surrogate"),
    pytest.param(SIGNATURE[:-1] + "`", id="character before a"),
    pytest.param(SIGNATURE[:-1] + "g", id="character after f"),
    pytest.param(SIGNATURE[:-1] + "@", id="character before A"),
    pytest.param(SIGNATURE[:-1] + ":", id="character after 9"),
    pytest.param("0x", id="0x only"),
    pytest.param(SIGNATURE * 1000, id="very long"),
    *(pytest.param(SIGNATURE[:-2] + f"{v:02x}", id=f"v {v}") for v in (2, 3, 4, 26, 29, 30, 31, 128, 255)),
    pytest.param(hex_signature(0, 0, 0), id="zero"),
    pytest.param(hex_signature(ORDER, 1, 0), id="r the order"),
    pytest.param(hex_signature(1, ORDER, 0), id="s the order"),
    pytest.param(hex_signature(1, ORDER - 1, 1), id="s the order less one"),
    pytest.param(hex_signature(1, ORDER // 2 + 1, 1), id="s just in the upper half"),
    pytest.param(hex_signature(5, 1, 0), id="r no point of the curve"),
    # 2 plus the order is the x of a point: the library itself would recover a key from these two.
    pytest.param(hex_signature(2, 1, 2), id="v 2 that names a point"),
    pytest.param(hex_signature(2, 1, 29), id="v 29 that names a point"),
    pytest.param(hex_signature(2**256 - 1, 2**256 - 1, 1), id="all ones"),
]


@pytest.mark.parametrize("signature", SIGNATURE_FORMS)
def test_every_form_of_a_signature_is_accepted(pop, signature):
    message = FIRST["text"].encode()
    assert pop.recover_pop(*fields(FIRST), signature) == SIGNER
    assert pop.recover_signer(message, signature) == SIGNER
    assert pop.recover_signer(message, signature.encode()) == SIGNER


@pytest.mark.parametrize("signature", BAD_SIGNATURES)
def test_a_bad_signature_is_refused_without_being_repeated(pop, signature):
    message = FIRST["text"].encode()
    for call in (
        lambda: pop.recover_pop(*fields(FIRST), signature),
        lambda: pop.recover_signer(message, signature),
        lambda: pop.recover_signer(message, signature.encode("utf-8", "surrogatepass")),
        lambda: verify_signed_by(message, signature, SIGNER),
    ):
        with pytest.raises(Rejected) as caught:
            call()
        assert caught.value.reason is Reason.SIGNATURE
        assert signature not in str(caught.value)


def test_s_at_the_end_of_the_lower_half_is_accepted(pop):
    assert pop.recover_signer(b"", hex_signature(1, ORDER // 2, 0)).startswith("0x")


@given(st.binary(max_size=64), st.one_of(any_text, st.binary(max_size=200)))
def test_no_text_and_no_bytes_make_recovery_raise_anything_but_a_refusal(message, signature):
    assert outcome(kmscore.pop.recover_signer, message, signature) is Reason.SIGNATURE


@given(st.binary(min_size=64, max_size=64), st.sampled_from([0, 1, 27, 28, 2, 29]), st.binary(max_size=150))
@settings(deadline=None)
def test_any_65_bytes_have_the_outcome_of_the_twin(rs, v, message):
    signature = (rs + bytes([v])).hex()
    ours = outcome(kmscore.pop.recover_signer, message, signature)
    assert ours == outcome(tests.reference.pop.recover_signer, message, signature)


@given(keys, st.binary(max_size=300))
@settings(max_examples=50, deadline=None)
def test_what_a_key_signs_recovers_its_wallet_and_agrees_with_eth_account(secret, message):
    key = WalletKey(SecretBytes(secret))
    signature = key.sign_message(message)
    theirs = Account.sign_message(encode_defunct(message), secret)
    assert key.address == Account.from_key(secret).address.lower()
    assert signature == f"0x{theirs.r:064x}{theirs.s:064x}{theirs.v - 27:02x}"
    assert kmscore.pop.recover_signer(message, signature) == key.address
    assert Account.recover_message(encode_defunct(message), signature=signature).lower() == key.address


@pytest.mark.parametrize("size", [0, 1, 9, 10, 99, 100, 135, 136, 999, 1000, 4096, 100_000])
def test_messages_of_any_length_have_the_digest_of_their_decimal_length(size):
    message = b"m" * size
    assert kmscore.pop.eip191_digest(message) == tests.reference.pop.eip191_digest(message)


def test_a_digest_is_signed_as_it_is(pop):
    digest = bytes(range(32))
    secret = bytes.fromhex(VECTORS["keys"]["node"])
    sig65 = pop.WalletKey(SecretBytes(secret)).sign_digest(digest)
    theirs = Account.unsafe_sign_hash(digest, secret)
    assert sig65 == theirs.r.to_bytes(32, "big") + theirs.s.to_bytes(32, "big") + bytes([theirs.v - 27])


@pytest.mark.parametrize("size", [0, 31, 33])
def test_only_32_bytes_are_a_digest(pop, size):
    key = pop.WalletKey(SecretBytes(bytes.fromhex(VECTORS["keys"]["node"])))
    with pytest.raises(InvariantBroken):
        key.sign_digest(bytes(size))


def test_another_wallets_signature_does_not_verify():
    message = FIRST["text"].encode()
    verify_signed_by(message, SIGNATURE, SIGNER.upper().replace("0X", "0x"))
    with pytest.raises(Rejected) as caught:
        verify_signed_by(message, SIGNATURE, NODE)
    assert caught.value.reason is Reason.SIGNATURE
    with pytest.raises(Rejected) as caught:
        verify_signed_by(message, SIGNATURE, "0x")
    assert caught.value.reason is Reason.WALLET


# ---- wallets ---------------------------------------------------------------------------------------------------------

WALLET_FORMS = [
    pytest.param(NODE, id="canonical"),
    pytest.param(NODE[2:], id="without 0x"),
    pytest.param("0x" + NODE[2:].upper(), id="upper case"),
    pytest.param("0x5050A4F4b3f9338C3472dcC01A87C76A144B3C9c", id="mixed case"),
]

BAD_WALLETS = [
    pytest.param("", id="empty"),
    pytest.param("0x", id="0x only"),
    pytest.param(NODE[:-1], id="39 digits"),
    pytest.param(NODE + "0", id="41 digits"),
    pytest.param("0x" + NODE, id="0x twice"),
    pytest.param("00" + NODE[2:], id="42 digits"),
    pytest.param("0X" + NODE[2:], id="0X"),
    pytest.param(NODE[:-1] + "g", id="not hex"),
    pytest.param(" " + NODE[2:-1], id="space in place of a digit"),
    pytest.param(NODE + "\n", id="line feed after"),
    pytest.param(NODE[:-1] + "\0", id="NUL"),
    pytest.param(NODE[:-1] + "\u0661", id="Arabic digit"),
    pytest.param(NODE[:-1] + "\ud800", id="lone surrogate"),
]


@pytest.mark.parametrize("text", WALLET_FORMS)
def test_every_form_of_a_wallet_has_one_canonical_form(pop, text):
    assert pop.parse_wallet(text) == NODE
    assert pop.recover_pop(PopKind.APP, FIRST["nonce"], text, FIRST["timestamp"], SIGNATURE) == SIGNER


@pytest.mark.parametrize("text", BAD_WALLETS)
def test_anything_else_is_no_wallet(pop, text):
    for call in (lambda: pop.parse_wallet(text), lambda: pop.pop_text(PopKind.APP, "n", text, 1)):
        with pytest.raises(Rejected) as caught:
            call()
        assert caught.value.reason is Reason.WALLET


@given(st.one_of(any_text, st.text("0123456789abcdefABCDEFxX", max_size=44)))
def test_any_text_is_a_wallet_to_both_implementations_or_to_none(text):
    assert outcome(kmscore.pop.parse_wallet, text) == outcome(tests.reference.pop.parse_wallet, text)


# ---- texts -----------------------------------------------------------------------------------------------------------

BAD_FIELDS = [
    pytest.param("", NODE, 1, Reason.NONCE, id="empty nonce"),
    pytest.param("n" * 513, NODE, 1, Reason.NONCE, id="nonce of 513 characters"),
    pytest.param("a\nb", NODE, 1, Reason.NONCE, id="line feed in the nonce"),
    pytest.param("a\0b", NODE, 1, Reason.NONCE, id="NUL in the nonce"),
    pytest.param("a\x7fb", NODE, 1, Reason.NONCE, id="DEL in the nonce"),
    pytest.param("\u00e9", NODE, 1, Reason.NONCE, id="Latin-1 nonce"),
    pytest.param("\ud800", NODE, 1, Reason.NONCE, id="lone surrogate in the nonce"),
    pytest.param("n", NODE, -1, Reason.TIMESTAMP, id="negative timestamp"),
    pytest.param("n", NODE, 2**63, Reason.TIMESTAMP, id="timestamp of 2^63"),
    pytest.param("n", NODE, 10**5000, Reason.TIMESTAMP, id="huge timestamp"),
    pytest.param("n", NODE, True, Reason.TIMESTAMP, id="bool for a timestamp"),
    pytest.param("n", NODE, 1.0, Reason.TIMESTAMP, id="float for a timestamp"),
    pytest.param("n", NODE, "1", Reason.TIMESTAMP, id="text for a timestamp"),
    pytest.param("", "", -1, Reason.TIMESTAMP, id="timestamp before nonce"),
    pytest.param("", "", 1, Reason.NONCE, id="nonce before wallet"),
]


@pytest.mark.parametrize(("nonce", "receiver", "timestamp", "reason"), BAD_FIELDS)
def test_a_bad_field_is_refused_for_what_it_is(pop, nonce, receiver, timestamp, reason):
    for call in (
        lambda: pop.pop_text(PopKind.PEER, nonce, receiver, timestamp),
        lambda: pop.recover_pop(PopKind.PEER, nonce, receiver, timestamp, "not a signature"),
    ):
        with pytest.raises(Rejected) as caught:
            call()
        assert caught.value.reason is reason


@pytest.mark.parametrize("timestamp", [0, 9, 10, 1_700_000_000, 2**63 - 1])
@pytest.mark.parametrize(
    "nonce", ["n", "with space", "with:colon", "~" * 512], ids=["short", "space", "colon", "longest"]
)
@pytest.mark.parametrize("kind", list(PopKind))
def test_the_extremes_of_every_field_sign_and_recover(kind, nonce, timestamp):
    text = kmscore.pop.pop_text(kind, nonce, NODE, timestamp)
    assert text == f"NovaKMS:{kind.value}:{nonce}:{NODE}:{timestamp}".encode()
    key = wallet_key("app")
    assert kmscore.pop.recover_pop(kind, nonce, NODE, timestamp, key.sign_message(text)) == key.address


@given(st.sampled_from(PopKind), any_text, any_text, st.integers(), any_text)
def test_no_fields_make_recovery_raise_anything_but_a_refusal(kind, nonce, receiver, timestamp, signature):
    assert isinstance(outcome(kmscore.pop.recover_pop, kind, nonce, receiver, timestamp, signature), Reason)


def test_a_signature_for_one_kind_is_worth_nothing_for_the_other(pop):
    _, nonce, receiver, timestamp = fields(FIRST)
    assert outcome(pop.recover_pop, PopKind.PEER, nonce, receiver, timestamp, SIGNATURE) != SIGNER


@pytest.mark.parametrize("kind", ["AppAuth", "", 1], ids=repr)
def test_a_kind_is_a_member_of_the_enumeration(kind):
    with pytest.raises(InvariantBroken):
        kmscore.pop.pop_text(kind, "n", NODE, 1)


def test_the_answer_text_names_status_body_and_node():
    text = answer_text(SIGNATURE[2:], 404, "ab" * 32, NODE[2:])
    assert text == f"NovaKMS:Answer:{SIGNATURE[2:]}:404:{'ab' * 32}:{NODE}".encode()


@pytest.mark.parametrize(
    "signature",
    ["", SIGNATURE + "00", SIGNATURE[:-1] + "\uff10", SIGNATURE[:-1] + "\ud800"],
    ids=["empty", "too long", "full-width digit", "lone surrogate"],
)
def test_no_answer_is_signed_for_what_cannot_be_a_signature(signature):
    for call in (lambda: response_text(signature, NODE), lambda: answer_text(signature, 200, "0" * 64, NODE)):
        with pytest.raises(Rejected) as caught:
            call()
        assert caught.value.reason is Reason.SIGNATURE


@pytest.mark.parametrize(
    ("status", "body_sha256"),
    [(99, "0" * 64), (600, "0" * 64), (200, "0" * 63), (200, "A" * 64), (200, "\uff10" * 64)],
    ids=["status 99", "status 600", "short hash", "upper-case hash", "full-width hash"],
)
def test_an_answer_that_only_a_bug_can_describe_is_refused(status, body_sha256):
    with pytest.raises(InvariantBroken):
        answer_text(SIGNATURE, status, body_sha256, NODE)


# ---- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "secret",
    [bytes(32), ORDER.to_bytes(32, "big"), b"\xff" * 32, b"", b"\1" * 31, b"\1" * 33],
    ids=["zero", "the order", "all ones", "empty", "31 bytes", "33 bytes"],
)
def test_what_is_not_a_key_is_refused(pop, secret):
    with pytest.raises(Rejected) as caught:
        pop.WalletKey(SecretBytes(secret))
    assert caught.value.reason is Reason.BAD_FIELD


@pytest.mark.parametrize("number", [1, 2, ORDER - 1])
def test_the_ends_of_the_range_are_keys(pop, number):
    secret = number.to_bytes(32, "big")
    assert pop.WalletKey(SecretBytes(secret)).address == Account.from_key(secret).address.lower()


def test_blinding_changes_no_signature():
    secret = bytes.fromhex(VECTORS["keys"]["app"])
    signatures = {
        WalletKey(SecretBytes(secret), blinding).sign_message(b"m") for blinding in (None, bytes(32), b"\xff" * 32)
    }
    assert len(signatures) == 1


@pytest.mark.parametrize("size", [0, 31, 33])
def test_blinding_has_32_bytes(size):
    with pytest.raises(InvariantBroken):
        WalletKey(SecretBytes(b"\1" * 32), bytes(size))


def test_a_key_outlives_the_secret_it_was_made_from():
    secret = SecretBytes(bytes.fromhex(VECTORS["keys"]["app"]))
    key = WalletKey(secret)
    secret.wipe()
    assert key.sign_message(FIRST["text"].encode()) == SIGNATURE
    with pytest.raises(InvariantBroken):
        WalletKey(secret)


def test_a_wiped_key_signs_nothing_and_keeps_its_address():
    key = wallet_key("app")
    key.wipe()
    key.wipe()
    with pytest.raises(InvariantBroken):
        key.sign_message(b"m")
    with pytest.raises(InvariantBroken):
        key.sign_digest(bytes(32))
    assert key.address == SIGNER
    assert repr(key) == str(key) == f"WalletKey({SIGNER})"


@pytest.mark.parametrize(
    "copier",
    [copy.copy, copy.deepcopy, pickle.dumps, lambda key: key.__reduce__()],
    ids=["copy", "deep", "pickle", "reduce"],
)
def test_a_key_cannot_be_copied(copier):
    with pytest.raises(TypeError) as caught:
        copier(wallet_key("app"))
    assert VECTORS["keys"]["app"] not in "".join(traceback.format_exception(caught.value))


def test_the_address_cannot_be_changed():
    with pytest.raises(AttributeError):
        wallet_key("app").address = NODE


def test_a_wipe_while_other_threads_sign_lets_no_wrong_signature_out():
    key = wallet_key("app")
    message = b"m" * 20_000
    expected = key.sign_message(message)
    signed: list[str] = []
    running = threading.Barrier(4)

    def sign_until_wiped() -> None:
        signed.append(key.sign_message(message))
        running.wait(timeout=30)
        while True:
            try:
                signed.append(key.sign_message(message))
            except InvariantBroken:
                return

    threads = [threading.Thread(target=sign_until_wiped) for _ in range(3)]
    for thread in threads:
        thread.start()
    running.wait(timeout=30)
    key.wipe()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)
    assert set(signed) == {expected}


def test_the_memory_of_a_key_is_zero_after_a_wipe_and_after_the_object_is_gone():
    # The key follows the object's header and method table. The first pointer of a freed object belongs to the allocator
    # and lies before the key. The read of freed memory is why this runs in a process of its own.
    child = run_child(
        """
import ctypes
from kmscore.pop import WalletKey
from kmscore.secret import SecretBytes

pattern = bytes(range(1, 33))

def key_of(key):
    return id(key) + 3 * ctypes.sizeof(ctypes.c_void_p)

wiped = WalletKey(SecretBytes(pattern))
assert ctypes.string_at(key_of(wiped), 32) == pattern
wiped.wipe()
assert ctypes.string_at(key_of(wiped), 32) == bytes(32)

gone = WalletKey(SecretBytes(pattern))
# Read as numbers: reading allocates nothing of the object's size, which would land in the memory looked at.
words = (ctypes.c_uint64 * 4).from_address(key_of(gone))
assert bytes(words) == pattern
del gone
assert (words[0], words[1], words[2], words[3]) == (0, 0, 0, 0)
print("zero")
"""
    )
    assert (child.returncode, child.stdout, child.stderr) == (0, "zero\n", "")


def test_finalisers_say_nothing_after_failures_and_at_exit():
    child = run_child(
        """
from kmscore.errors import KmsError
from kmscore.pop import WalletKey
from kmscore.secret import SecretBytes

for arguments in ((SecretBytes(b""),), (SecretBytes(bytes(32)),), (SecretBytes(b"k" * 32), b"short")):
    try:
        WalletKey(*arguments)
    except KmsError:
        pass
    else:
        raise SystemExit("accepted")
alive_at_exit = [WalletKey(SecretBytes(b"k" * 32)), WalletKey(SecretBytes(b"k" * 32))]
alive_at_exit[0].wipe()
alive_at_exit.append(alive_at_exit)
"""
    )
    assert (child.returncode, child.stdout, child.stderr) == (0, "", "")
