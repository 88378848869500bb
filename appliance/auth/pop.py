"""Proof of possession of a request, from its headers to a verified wallet (protocol §2).

Refuses to know what the wallet may do: that is `apps` and `peers`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

from appliance.clock import Clock
from appliance.http import MAX_NONCE_CHARS
from kmscore.errors import Reason, Rejected
from kmscore.nonce import NonceIssuer, UsedNonces
from kmscore.pop import PopKind, parse_wallet, recover_pop

MAX_SIGNATURE_CHARS = 132  # 0x and 65 bytes in hex
_TIMESTAMP = re.compile(r"[0-9]{1,12}", re.ASCII)


@dataclass(frozen=True, slots=True)
class PopHeaderNames:
    """The names of one caller kind's headers, in lower case; `wanted` has them as they come off the wire."""

    signature: str
    nonce: str
    timestamp: str
    wallet: str
    wanted: Mapping[bytes, str]

    @classmethod
    def beginning_with(cls, prefix: str) -> Self:
        names = (f"{prefix}-signature", f"{prefix}-nonce", f"{prefix}-timestamp", f"{prefix}-wallet")
        return cls(*names, {name.encode(): name for name in names})


APP_HEADERS = PopHeaderNames.beginning_with("x-app")
PEER_HEADERS = PopHeaderNames.beginning_with("x-kms")
HEADERS_OF_KIND = {PopKind.APP: APP_HEADERS, PopKind.PEER: PEER_HEADERS}


# Tuples: made for every request, and a frozen dataclass takes four times as long to make.
class UnverifiedPop(NamedTuple):
    """What the headers claim; nothing in it may be believed."""

    signature: str
    nonce: str
    timestamp_s: int
    wallet_hint: str | None


class VerifiedPop(NamedTuple):
    """A caller that holds the key of `wallet`; made by `PopVerifier.verify` only.

    `signature` and `nonce` are the caller's texts exactly as sent; `nonce_expires_ms` is on the monotonic clock.
    """

    wallet: str
    signature: str
    nonce: str
    nonce_expires_ms: int


def parse_pop_headers(headers: Iterable[tuple[bytes, bytes]], names: PopHeaderNames) -> UnverifiedPop:
    """Read the PoP headers out of raw ASGI headers.

    Raises `Rejected(POP)` when one is missing, repeated, too long or not ASCII, `Rejected(TIMESTAMP)` for a timestamp
    that is not a decimal integer, `Rejected(WALLET)` for a hint that is no wallet.
    """
    found: dict[str, str] = {}
    wanted = names.wanted
    for raw_name, raw_value in headers:
        name = wanted.get(raw_name) or wanted.get(raw_name.lower())
        if name is None:
            continue
        if name in found:
            raise Rejected(Reason.POP, f"header {name} is given more than once")
        try:
            found[name] = raw_value.decode("ascii").strip()
        except UnicodeDecodeError as error:
            raise Rejected(Reason.POP, f"header {name} is not ASCII") from error
    for name in (names.signature, names.nonce, names.timestamp):
        if not found.get(name):
            raise Rejected(Reason.POP, f"header {name} is missing")
    if len(found[names.nonce]) > MAX_NONCE_CHARS:
        raise Rejected(Reason.POP, f"header {names.nonce} is longer than {MAX_NONCE_CHARS} characters")
    if len(found[names.signature]) > MAX_SIGNATURE_CHARS:
        raise Rejected(Reason.POP, f"header {names.signature} is longer than {MAX_SIGNATURE_CHARS} characters")
    if not _TIMESTAMP.fullmatch(found[names.timestamp]):
        raise Rejected(Reason.TIMESTAMP, f"header {names.timestamp} is not unix seconds in decimal")
    hint = found.get(names.wallet)
    return UnverifiedPop(
        signature=found[names.signature],
        nonce=found[names.nonce],
        timestamp_s=int(found[names.timestamp]),
        wallet_hint=None if hint is None else parse_wallet(hint),
    )


class PopVerifier:
    """Issues nonces and verifies proofs made with them.

    Stateless but for the nonces that authorised callers have used: a stranger can make it remember nothing.
    """

    def __init__(
        self,
        *,
        wallet: str,
        issuer: NonceIssuer,
        used: UsedNonces,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
        max_age_s: float,
    ) -> None:
        self._wallet = wallet
        self._issuer = issuer
        self._used = used
        self._clock = clock
        self._random_bytes = random_bytes
        self._max_age_ms = int(max_age_s * 1000)

    def issue_nonce(self) -> str:
        """A fresh nonce text for `GET /nonce` or `X-KMS-Next-Nonce`."""
        return self._issuer.issue(self._clock.monotonic_ms(), self._random_bytes(16))

    def verify(self, kind: PopKind, claimed: UnverifiedPop) -> VerifiedPop:
        """Check timestamp, nonce MAC and age, signature, wallet hint, in this order; changes nothing.

        Raises `Rejected` with TIMESTAMP, NONCE, SIGNATURE or WALLET.
        """
        if abs(self._clock.now_ms() - claimed.timestamp_s * 1000) > self._max_age_ms:
            raise Rejected(Reason.TIMESTAMP, "the timestamp is too far from this node's clock")
        expires_ms = self._issuer.check(claimed.nonce, self._clock.monotonic_ms())
        wallet = recover_pop(kind, claimed.nonce, self._wallet, claimed.timestamp_s, claimed.signature)
        if claimed.wallet_hint is not None and claimed.wallet_hint != wallet:
            raise Rejected(Reason.WALLET, "the wallet header differs from the wallet that signed")
        return VerifiedPop(wallet, claimed.signature, claimed.nonce, expires_ms)

    def require_unused(self, pop: VerifiedPop) -> None:
        """A look before a body is read, so that a used proof opens none. Raises `Rejected(REPLAY)`; changes nothing."""
        self._used.require_unused(pop.nonce)

    def consume(self, pop: VerifiedPop) -> None:
        """Use the nonce up. Only for callers found authorised: what is remembered must not grow with strangers.

        Raises `Rejected(REPLAY)` when it was used before, `Rejected(RATE)` when this wallet uses too many.
        """
        self._used.consume(pop.nonce, pop.nonce_expires_ms, self._clock.monotonic_ms(), pop.wallet)
