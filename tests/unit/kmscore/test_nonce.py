"""Single use: PoP nonces that authenticate themselves, those that were used, and envelope nonces."""

import base64
import copy
import gc
import itertools
import pickle
import subprocess
import sys
import textwrap
import tracemalloc
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmscore.errors import InvariantBroken, Reason, Rejected
from kmscore.nonce import EnvelopeNonces, NonceIssuer, UsedNonces
from kmscore.secret import SecretBytes
from tests.reference import nonce as twin

MAX_AGE_MS = 120_000
ISSUED_MS = 5_000_000
ISSUER = NonceIssuer(SecretBytes(b"k" * 32), MAX_AGE_MS)
NONCE = ISSUER.issue(ISSUED_MS, bytes(range(16)))

relaxed = settings(deadline=None)


def refused(text: str, now_ms: int = ISSUED_MS) -> None:
    with pytest.raises(Rejected) as caught:
        ISSUER.check(text, now_ms)
    assert caught.value.reason is Reason.NONCE


# --- issuing and checking ---


@relaxed
@given(st.integers(0, 2**62), st.binary(min_size=16, max_size=16), st.integers(0, MAX_AGE_MS - 1))
def test_an_issued_nonce_is_good_until_it_expires(issued_ms, random16, age_ms):
    text = ISSUER.issue(issued_ms, random16)
    assert len(text) == 64
    assert len(base64.b64decode(text, validate=True)) == 48
    assert ISSUER.check(text, issued_ms + age_ms) == issued_ms + MAX_AGE_MS


@pytest.mark.parametrize("age_ms", [MAX_AGE_MS, MAX_AGE_MS + 1, 10**9, -1, -ISSUED_MS])
def test_a_nonce_is_refused_once_expired_and_before_it_was_issued(age_ms):
    assert ISSUER.check(NONCE, ISSUED_MS + MAX_AGE_MS - 1)
    refused(NONCE, ISSUED_MS + age_ms)


def test_nonces_differ_by_their_randomness_and_time():
    texts = {ISSUER.issue(now, bytes([i]) * 16) for now in range(10) for i in range(10)}
    assert len(texts) == 100


@relaxed
@given(st.integers(0, 63), st.characters())
def test_a_nonce_with_any_character_changed_is_refused(at, character):
    text = NONCE[:at] + character + NONCE[at + 1 :]
    if text != NONCE:
        refused(text)


@relaxed
@given(st.integers(0, 47), st.integers(0, 7))
def test_a_nonce_with_any_bit_flipped_is_refused(at, bit):
    token = bytearray(base64.b64decode(NONCE))
    token[at] ^= 1 << bit
    refused(base64.b64encode(token).decode())


@relaxed
@given(st.text(max_size=70) | st.text(st.characters(), min_size=64, max_size=64))
def test_any_other_text_is_refused(text):
    refused(text)


NOT_A_NONCE = {
    "empty": "",
    "one character short": NONCE[:-1],
    "one character long": NONCE + "A",
    "padding": NONCE[:-1] + "=",
    "two paddings": NONCE[:-2] + "==",
    "all padding": "=" * 64,
    "trailing line": NONCE + "\n",
    "line inside": NONCE[:-1] + "\n",
    "leading space": " " + NONCE[:-1],
    "zeros": "A" * 64,
    "URL-safe alphabet": "-_" * 32,
    "full-width characters": "Ａ" * 64,
    "a lone surrogate": NONCE[:-1] + "\ud800",
    "a colon": ":" + NONCE[1:],
    "hex": "00" * 32,
}


@pytest.mark.parametrize("text", NOT_A_NONCE.values(), ids=NOT_A_NONCE)
def test_a_text_that_is_no_nonce_is_refused(text):
    refused(text)


def test_a_nonce_of_an_earlier_boot_is_refused():
    refused(NonceIssuer(SecretBytes(b"K" * 32), MAX_AGE_MS).issue(ISSUED_MS, bytes(16)))


@relaxed
@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**62), st.binary(min_size=16, max_size=16), st.data())
def test_ours_and_the_twin_issue_the_same_and_accept_the_same(key, issued_ms, random16, data):
    issuers = [make(SecretBytes(key), MAX_AGE_MS) for make in (NonceIssuer, twin.NonceIssuer)]
    text = issuers[0].issue(issued_ms, random16)
    assert issuers[1].issue(issued_ms, random16) == text
    now_ms = issued_ms + data.draw(st.integers(-MAX_AGE_MS, 2 * MAX_AGE_MS))
    tried = data.draw(st.sampled_from([text, text[:-1], text.lower(), text[:-1] + "=", text + "A"]))
    verdicts = []
    for issuer in issuers:
        try:
            verdicts.append(issuer.check(tried, now_ms))
        except Rejected as error:
            verdicts.append(error.reason)
    assert verdicts[0] == verdicts[1]


@pytest.mark.parametrize("size", [0, 15, 17])
def test_issuing_with_randomness_of_another_length_is_a_bug(size):
    with pytest.raises(InvariantBroken):
        ISSUER.issue(0, bytes(size))


# --- nonces that were used ---


def consume(
    used: UsedNonces | twin.UsedNonces, text: str, expires_ms: int, now_ms: int, owner: str = "a"
) -> Reason | None:
    try:
        used.consume(text, expires_ms, now_ms, owner)
    except Rejected as error:
        return error.reason
    return None


def test_a_nonce_is_used_once_by_whomever():
    used = UsedNonces()
    assert consume(used, "n", 100, 0, "a") is None
    assert consume(used, "n", 100, 1, "a") is Reason.REPLAY
    assert consume(used, "n", 100, 99, "b") is Reason.REPLAY
    assert consume(used, "m", 100, 99, "b") is None


def test_a_nonce_that_expired_after_it_was_checked_cannot_be_used():
    used = UsedNonces()
    assert consume(used, "n", 100, 50) is None
    assert consume(used, "n", 100, 100) is Reason.NONCE
    assert consume(used, "never used", 100, 250) is Reason.NONCE


@relaxed
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 40), st.integers(1, 20)), max_size=60))
def test_no_nonce_is_accepted_twice_before_it_expires(uses):
    used = UsedNonces()
    expiry: dict[str, int] = {}
    now_ms = 0
    for number, pause_ms, left_ms in uses:
        now_ms += pause_ms
        # A text has one expiry, as the issuer sees to; a text that has expired is not offered again.
        text = str(number)
        if expiry.get(text, now_ms + 1) <= now_ms:
            continue
        fresh = text not in expiry
        assert consume(used, text, expiry.setdefault(text, now_ms + left_ms), now_ms) is (
            None if fresh else Reason.REPLAY
        )


def test_expired_nonces_are_forgotten():
    used = UsedNonces()
    for now_ms in range(100_000):
        used.consume(str(now_ms), now_ms + 100, now_ms, "a")
        assert len(used) <= 300


def test_an_owner_is_stopped_at_its_cap_and_no_other_owner_feels_it():
    used = UsedNonces(max_per_owner=3)
    assert [consume(used, f"a{i}", 100, i, "a") for i in range(5)] == [None, None, None, Reason.RATE, Reason.RATE]
    assert consume(used, "a0", 100, 5, "a") is Reason.REPLAY
    assert [consume(used, f"b{i}", 100, 6, "b") for i in range(3)] == [None] * 3
    assert len(used) == 6
    # What was refused is not remembered; what expired counts no longer.
    assert consume(used, "c", 1000, 400, "c") is None
    assert consume(used, "d", 1000, 500, "c") is None
    assert consume(used, "a4", 1000, 600, "a") is None


@relaxed
@given(st.integers(0, 4), st.lists(st.tuples(st.integers(0, 9), *[st.integers(0, 15)] * 2, st.integers(0, 2))))
def test_ours_and_the_twin_accept_the_same_uses(max_per_owner, uses):
    ours, theirs = UsedNonces(max_per_owner=max_per_owner), twin.UsedNonces(max_per_owner=max_per_owner)
    now_ms = 0
    for number, pause_ms, left_ms, owner in uses:
        now_ms += pause_ms
        use = (str(number), now_ms + left_ms - 1, now_ms, f"owner {owner}")
        assert consume(ours, *use) is consume(theirs, *use)
        assert len(ours) == len(theirs)
        assert repr(ours) == f"UsedNonces({len(theirs)} remembered)"


def test_a_nonce_can_be_looked_up_before_it_is_used():
    used = UsedNonces()
    used.require_unused("n")
    used.consume("n", 100, 0, "a")
    with pytest.raises(Rejected) as caught:
        used.require_unused("n")
    assert caught.value.reason is Reason.REPLAY
    assert len(used) == 1


def test_the_default_cap_holds_more_than_a_busy_window():
    used = UsedNonces()
    for i in range(65_536):
        used.consume(str(i), 120_000, i, "a")
    assert consume(used, "one more", 120_000, 65_536) is Reason.RATE


# --- envelope nonces ---


def nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


def remember(nonces: EnvelopeNonces | twin.EnvelopeNonces, sender: bytes, nonce: bytes) -> Reason | None:
    try:
        nonces.remember(sender, nonce)
    except Rejected as error:
        return error.reason
    return None


def test_a_nonce_is_accepted_once_per_sender():
    nonces = EnvelopeNonces()
    assert not nonces.seen(b"a", nonce(1))
    nonces.remember(b"a", nonce(1))
    assert nonces.seen(b"a", nonce(1))
    assert not nonces.seen(b"b", nonce(1))
    nonces.remember(b"b", nonce(1))
    for sender in (b"a", b"b"):
        with pytest.raises(Rejected) as caught:
            nonces.remember(sender, nonce(1))
        assert caught.value.reason is Reason.REPLAY


def test_the_last_65536_nonces_of_a_sender_are_remembered_and_no_more():
    nonces = EnvelopeNonces()
    total = 65_536 + 20_000
    for i in range(total):
        nonces.remember(b"a", nonce(i))
    assert all(nonces.seen(b"a", nonce(i)) for i in range(20_000, total))
    assert not any(nonces.seen(b"a", nonce(i)) for i in range(20_000))


@relaxed
@given(st.integers(1, 8), st.lists(st.integers(0, 15), max_size=80))
def test_nonces_leave_in_the_order_in_which_they_came(per_sender, numbers):
    nonces = EnvelopeNonces(per_sender=per_sender)
    expected: deque[int] = deque(maxlen=per_sender)
    for number in numbers:
        assert nonces.seen(b"a", nonce(number)) == (number in expected)
        if number in expected:
            with pytest.raises(Rejected):
                nonces.remember(b"a", nonce(number))
        else:
            nonces.remember(b"a", nonce(number))
            expected.append(number)


@relaxed
@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.booleans()), max_size=80),
)
def test_ours_and_the_twin_remember_the_same(per_sender, max_senders, steps):
    bounds = {"per_sender": per_sender, "max_senders": max_senders}
    ours, theirs = EnvelopeNonces(**bounds), twin.EnvelopeNonces(**bounds)
    for number, used, only_look in steps:
        sender = b"%d" % number
        assert ours.seen(sender, nonce(used)) == theirs.seen(sender, nonce(used))
        if not only_look:
            assert remember(ours, sender, nonce(used)) is remember(theirs, sender, nonce(used))


@pytest.mark.parametrize("per_sender", [255, 1_023, 1_024, 1_025, 5_000])
def test_none_is_lost_or_invented_while_the_memory_grows_and_goes_round(per_sender):
    nonces = EnvelopeNonces(per_sender=per_sender)
    for i in range(3 * per_sender):
        assert not nonces.seen(b"a", nonce(i))
        nonces.remember(b"a", nonce(i))
        if i % 97 == 0 or i == per_sender:
            kept = range(max(0, i + 1 - per_sender), i + 1)
            assert all(nonces.seen(b"a", nonce(number)) for number in kept)
            assert not any(nonces.seen(b"a", nonce(number)) for number in range(kept.start))


def test_the_end_of_one_nonce_and_the_start_of_the_next_are_no_nonce():
    # Of two letters there are 4,096 nonces: enough that most of those that share memory overlap somewhere.
    every = [bytes(letters) for letters in itertools.product(b"ab", repeat=12)]
    nonces = EnvelopeNonces()
    for one in every[::2]:
        assert not nonces.seen(b"a", one)
        nonces.remember(b"a", one)
    assert [nonces.seen(b"a", one) for one in every] == [True, False] * 2048


def test_the_sender_met_longest_ago_is_forgotten_first():
    nonces = EnvelopeNonces(max_senders=2)
    nonces.remember(b"a", nonce(1))
    nonces.remember(b"b", nonce(1))
    nonces.remember(b"a", nonce(2))
    nonces.remember(b"c", nonce(1))
    assert nonces.seen(b"a", nonce(1))
    assert not nonces.seen(b"b", nonce(1))


def test_a_remembered_nonce_takes_at_most_20_bytes():
    tracemalloc.start()
    try:
        nonces = EnvelopeNonces()
        for i in range(2 * 65_536):
            nonces.remember(b"a", nonce(i))
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 20 * 65_536


def test_memory_grows_with_use_and_is_given_back():
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        nonces = EnvelopeNonces(max_senders=4)
        for sender in range(40):
            for i in range(1_000):
                nonces.remember(b"%d" % sender, nonce(i))
        held, _ = tracemalloc.get_traced_memory()
        del nonces
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 4 * 1_000 * 12 < held - before < 4 * 22_000
    assert after - before < 2_000


def test_memories_are_finalised_in_silence_and_survive_running_out_of_memory():
    child = subprocess.run(
        [
            sys.executable,
            "-X",
            "dev",
            "-c",
            textwrap.dedent("""
                import resource
                from kmscore.nonce import EnvelopeNonces, UsedNonces

                nonces = EnvelopeNonces()
                numbers = [i.to_bytes(12, "big") for i in range(300_000)]
                with open("/proc/self/statm") as statm:
                    held = int(statm.read().split()[0]) * resource.getpagesize()
                limit = resource.getrlimit(resource.RLIMIT_AS)
                resource.setrlimit(resource.RLIMIT_AS, (held + (3 << 20), limit[1]))
                remembered, failures = set(), 0
                for number in numbers:
                    sender = b"%d" % (number[-1] % 20)
                    try:
                        nonces.remember(sender, number)
                    except MemoryError:
                        failures += 1
                    else:
                        remembered.add(number)
                resource.setrlimit(resource.RLIMIT_AS, limit)
                for number in numbers:
                    assert nonces.seen(b"%d" % (number[-1] % 20), number) == (number in remembered)
                left_for_the_interpreter = UsedNonces()
                left_for_the_interpreter.consume("n", 1, 0, "a")
                print(failures)
            """),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (child.stderr, child.returncode) == ("", 0)
    assert int(child.stdout) > 1_000


@pytest.mark.parametrize("bounds", [{"per_sender": 0}, {"per_sender": 65_537}, {"max_senders": 0}], ids=str)
def test_a_memory_with_bounds_that_it_cannot_keep_is_a_bug(bounds):
    with pytest.raises(InvariantBroken):
        EnvelopeNonces(**bounds)


@pytest.mark.parametrize("memory", [UsedNonces(), EnvelopeNonces()], ids=repr)
@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, pickle.dumps], ids=lambda f: f.__name__)
def test_a_memory_cannot_be_copied(copier, memory):
    with pytest.raises(TypeError):
        copier(memory)


@pytest.mark.parametrize("size", [0, 11, 13])
def test_a_nonce_of_another_length_was_never_seen(size):
    nonces = EnvelopeNonces()
    for i in range(2_000):
        nonces.remember(b"a", nonce(i))
    assert not nonces.seen(b"a", bytes(size))


@pytest.mark.parametrize("size", [0, 11, 13])
def test_remembering_a_nonce_of_another_length_is_a_bug(size):
    with pytest.raises(InvariantBroken):
        EnvelopeNonces().remember(b"a", bytes(size))
