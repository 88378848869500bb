"""From headers to a verified wallet: what is refused, in which order, and what is remembered (protocol §2)."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmscore.errors import InvariantBroken, Reason, Rejected
from kmscore.nonce import NonceIssuer, UsedNonces
from kmscore.pop import PopKind
from kmscore.proof import (
    MAX_NONCE_CHARS,
    MAX_SIGNATURE_CHARS,
    PopVerifier,
    UnverifiedPop,
    parse_pop_headers,
)
from kmscore.secret import SecretBytes
from tests.support import wire
from tests.support.fake_node import FakeClock

MAX_AGE_S = 120
RECEIVER = "0x" + "ab" * 20
HONEST = {"signature": b"0x" + b"12" * 65, "nonce": b"nonce", "timestamp": b"1700000000"}

Headers = list[tuple[bytes, bytes]]


def headers(prefix: str = "x-app-", **members: bytes | None) -> Headers:
    """Honest headers, some of them changed, added or (None) left out."""
    return [(f"{prefix}{name}".encode(), value) for name, value in {**HONEST, **members}.items() if value is not None]


def only(name: str) -> Headers:
    return headers(**{other: None for other in HONEST if other != name})


REFUSED_HEADERS: dict[str, tuple[Headers, Reason]] = {
    "none at all": ([], Reason.POP),
    "those of a peer": (headers("x-kms-"), Reason.POP),
    **{f"{name} missing": (headers(**{name: None}), Reason.POP) for name in HONEST},
    **{f"{name} empty": (headers(**{name: b" "}), Reason.POP) for name in HONEST},
    **{f"{name} not ASCII": (headers(**{name: b"\xe9"}), Reason.POP) for name in HONEST},
    **{f"{name} twice": ([*headers(), *only(name)], Reason.POP) for name in HONEST},
    "wallet twice": ([*headers(wallet=RECEIVER.encode()), (b"x-app-wallet", RECEIVER.encode())], Reason.POP),
    "wallet not ASCII": (headers(wallet=b"\xe9"), Reason.POP),
    "wallet empty": (headers(wallet=b""), Reason.WALLET),
    "wallet too short": (headers(wallet=b"0x12"), Reason.WALLET),
    "wallet no hex": (headers(wallet=b"0x" + b"zz" * 20), Reason.WALLET),
    "nonce too long": (headers(nonce=b"a" * (MAX_NONCE_CHARS + 1)), Reason.POP),
    "signature too long": (headers(signature=b"a" * (MAX_SIGNATURE_CHARS + 1)), Reason.POP),
    **{
        f"timestamp {text!r}": (headers(timestamp=text), Reason.TIMESTAMP)
        for text in (b"-1", b"+1", b"1.0", b"1e9", b"0x1", b"1_0", b"now", b"1" * 13, b"1 1")
    },
}


class TestHeaders:
    def test_they_are_read_as_they_were_sent(self) -> None:
        pop = parse_pop_headers(PopKind.APP, headers())
        claimed = (pop.signature, pop.nonce, pop.timestamp_s, pop.wallet_hint)
        assert claimed == ("0x" + "12" * 65, "nonce", 1_700_000_000, None)

    def test_names_are_read_in_any_case(self) -> None:
        shouted = [(name.upper(), value) for name, value in headers("x-kms-")]
        assert parse_pop_headers(PopKind.PEER, shouted).nonce == "nonce"

    def test_the_other_kind_s_headers_are_nothing(self) -> None:
        both = [*headers(), *headers("x-kms-", nonce=b"other")]
        assert parse_pop_headers(PopKind.APP, both).nonce == "nonce"
        assert parse_pop_headers(PopKind.PEER, both).nonce == "other"

    def test_a_wallet_is_made_canonical(self) -> None:
        hint = wire.checksum_wallet(RECEIVER)[2:].encode()
        assert parse_pop_headers(PopKind.APP, headers(wallet=hint)).wallet_hint == RECEIVER

    def test_the_longest_texts_are_taken(self) -> None:
        longest = headers(nonce=b"a" * MAX_NONCE_CHARS, signature=b"a" * MAX_SIGNATURE_CHARS, timestamp=b"9" * 12)
        assert parse_pop_headers(PopKind.APP, longest).timestamp_s == 10**12 - 1

    @pytest.mark.parametrize(("sent", "reason"), REFUSED_HEADERS.values(), ids=REFUSED_HEADERS)
    def test_what_is_refused(self, sent: Headers, reason: Reason) -> None:
        with pytest.raises(Rejected) as refusal:
            parse_pop_headers(PopKind.APP, sent)
        assert refusal.value.reason is reason
        for _, value in sent:
            assert len(value) < 8 or value.decode("latin-1") not in str(refusal.value)

    @given(
        st.lists(
            st.tuples(
                st.sampled_from([b"x-app-signature", b"x-app-nonce", b"x-app-timestamp", b"x-app-wallet", b"host"]),
                st.binary(max_size=40),
            ),
            max_size=6,
        )
    )
    def test_no_header_is_a_bug(self, sent: Headers) -> None:
        try:
            pop = parse_pop_headers(PopKind.APP, sent)
        except Rejected:
            return
        assert pop.nonce.isascii()

    def test_names_that_only_begin_alike_are_nothing(self) -> None:
        near = ("signatures", "nonces", "timestamp-", "walle", "wallet2", "noncf", "", "x")
        others = [(f"x-app-{name}".encode(), b"other") for name in near] + [(b"x-app", b""), (b"", b"")]
        assert parse_pop_headers(PopKind.APP, [*others, *headers()]).nonce == "nonce"

    def test_only_white_space_around_a_value_is_no_part_of_it(self) -> None:
        assert parse_pop_headers(PopKind.APP, headers(nonce=b" \t a b\t ")).nonce == "a b"
        assert parse_pop_headers(PopKind.APP, headers(nonce=b"\x0bnonce")).nonce == "\x0bnonce"

    def test_a_kind_is_a_kind(self) -> None:
        with pytest.raises(InvariantBroken):
            parse_pop_headers("AppAuth", headers())  # type: ignore[arg-type]


class Bench:
    """A verifier and a caller; the clock is the test's."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.wallet = wire.Wallet(b"\x01" * 32)
        numbers = iter(range(10**6))
        self.verifier = PopVerifier(
            wallet=RECEIVER,
            issuer=NonceIssuer(SecretBytes(bytes(32)), MAX_AGE_S * 1000),
            used=UsedNonces(max_per_owner=3),
            clock=self.clock,
            random_bytes=lambda size: next(numbers).to_bytes(size, "big"),
            max_age_s=MAX_AGE_S,
        )

    def now_s(self) -> int:
        return self.clock.now_ms() // 1000

    def claim(
        self,
        *,
        kind: str = "AppAuth",
        nonce: str | None = None,
        receiver: str = RECEIVER,
        timestamp_s: int | None = None,
        hint: str | None = None,
        change: Callable[[str], str] = str,
    ) -> UnverifiedPop:
        nonce = self.verifier.issue_nonce() if nonce is None else nonce
        timestamp_s = self.now_s() if timestamp_s is None else timestamp_s
        signature = self.wallet.sign(wire.pop_text(kind, nonce, receiver, timestamp_s))
        return UnverifiedPop(change(signature), nonce, timestamp_s, hint)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def refusal(bench: Bench, claimed: UnverifiedPop) -> Reason:
    with pytest.raises(Rejected) as error:
        bench.verifier.verify(PopKind.APP, claimed)
    return error.value.reason


class TestVerify:
    def test_an_honest_proof_names_its_wallet(self, bench: Bench) -> None:
        claimed = bench.claim(hint=bench.wallet.address)
        pop = bench.verifier.verify(PopKind.APP, claimed)
        assert (pop.wallet, pop.signature, pop.nonce) == (bench.wallet.address, claimed.signature, claimed.nonce)

    @pytest.mark.parametrize("kind", PopKind)
    def test_each_kind_is_believed_for_itself_only(self, bench: Bench, kind: PopKind) -> None:
        claimed = bench.claim(kind=kind.value)
        assert bench.verifier.verify(kind, claimed).wallet == bench.wallet.address
        (other,) = set(PopKind) - {kind}
        assert bench.verifier.verify(other, claimed).wallet != bench.wallet.address

    @pytest.mark.parametrize("off_s", [-MAX_AGE_S, 0, MAX_AGE_S])
    def test_the_window_of_timestamps_includes_its_edges(self, bench: Bench, off_s: int) -> None:
        bench.verifier.verify(PopKind.APP, bench.claim(timestamp_s=bench.now_s() + off_s))

    @pytest.mark.parametrize("off_s", [-MAX_AGE_S - 1, MAX_AGE_S + 1, -(10**9), 10**11])
    def test_outside_of_it_is_refused(self, bench: Bench, off_s: int) -> None:
        assert refusal(bench, bench.claim(timestamp_s=bench.now_s() + off_s)) is Reason.TIMESTAMP

    def test_a_nonce_expires_on_the_monotonic_clock(self, bench: Bench) -> None:
        nonce = bench.verifier.issue_nonce()
        bench.clock.wall_ms -= 3_600_000  # somebody set the wall clock back
        bench.clock.elapsed_ms += MAX_AGE_S * 1000 - 1
        bench.verifier.verify(PopKind.APP, bench.claim(nonce=nonce))
        bench.clock.elapsed_ms += 1
        assert refusal(bench, bench.claim(nonce=nonce)) is Reason.NONCE

    def test_a_wallet_header_must_be_the_signer(self, bench: Bench) -> None:
        assert refusal(bench, bench.claim(hint=RECEIVER)) is Reason.WALLET

    def test_the_order_is_timestamp_nonce_signature_wallet(self, bench: Bench) -> None:
        old = bench.now_s() - MAX_AGE_S - 1
        spoilt = {"change": lambda _: "0xzz", "hint": RECEIVER}
        assert refusal(bench, bench.claim(timestamp_s=old, nonce="AAAA", **spoilt)) is Reason.TIMESTAMP
        assert refusal(bench, bench.claim(nonce="AAAA", **spoilt)) is Reason.NONCE
        assert refusal(bench, bench.claim(**spoilt)) is Reason.SIGNATURE
        assert refusal(bench, bench.claim(hint=RECEIVER)) is Reason.WALLET

    def test_verifying_remembers_nothing(self, bench: Bench) -> None:
        claimed = bench.claim()
        for _ in range(5):
            bench.verifier.verify(PopKind.APP, claimed)
        bench.verifier.consume(bench.verifier.verify(PopKind.APP, claimed))


class TestConsume:
    def test_a_nonce_is_used_once(self, bench: Bench) -> None:
        pop = bench.verifier.verify(PopKind.APP, bench.claim())
        bench.verifier.consume(pop)
        with pytest.raises(Rejected) as error:
            bench.verifier.consume(pop)
        assert error.value.reason is Reason.REPLAY

    def test_a_nonce_used_under_one_timestamp_is_used_under_all(self, bench: Bench) -> None:
        nonce = bench.verifier.issue_nonce()
        bench.verifier.consume(bench.verifier.verify(PopKind.APP, bench.claim(nonce=nonce)))
        again = bench.verifier.verify(PopKind.APP, bench.claim(nonce=nonce, timestamp_s=bench.now_s() - 1))
        with pytest.raises(Rejected) as error:
            bench.verifier.consume(again)
        assert error.value.reason is Reason.REPLAY

    def test_a_wallet_s_share_of_the_memory_is_bounded(self, bench: Bench) -> None:
        for _ in range(3):
            bench.verifier.consume(bench.verifier.verify(PopKind.APP, bench.claim()))
        with pytest.raises(Rejected) as error:
            bench.verifier.consume(bench.verifier.verify(PopKind.APP, bench.claim()))
        assert error.value.reason is Reason.RATE
