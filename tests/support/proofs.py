"""Proofs of possession with one flaw each, for apps and peers alike (protocol §1, §2).

Each row of `PROOF_FLAWS` must be answered 403 whoever the caller is; the other tables hold what must be believed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.support import wire
from tests.support.api_bench import Headers
from tests.support.raw_client import APP, PEER, Caller, Flow, RawIdentity, Target, fetch_nonce, pop_headers
from tests.support.wire import SignatureForm


@dataclass(frozen=True)
class Proof:
    """The parts of an honest proof, for a flaw to spoil."""

    identity: RawIdentity
    target: Target
    flow: Flow
    nonce: str
    timestamp: int

    def headers(self, **replaced: object) -> Headers:
        """The honest headers, with arguments of `pop_headers` replaced."""
        arguments = {
            "identity": self.identity,
            "flow": self.flow,
            "nonce": self.nonce,
            "receiver": self.target.wallet,
            "timestamp": self.timestamp,
            **replaced,
        }
        return [(name, text.encode()) for name, text in pop_headers(**arguments).items()]

    def with_header(self, name: str, change: Callable[[bytes], bytes | None]) -> Headers:
        """The honest headers with one value changed, or (None) the header gone."""
        changed = [
            (header, change(value) if header == self.flow.prefix + name else value) for header, value in self.headers()
        ]
        return [(header, value) for header, value in changed if value is not None]

    def with_signature(self, change: Callable[[bytes], bytes]) -> Headers:
        """The honest headers with the 65 bytes of the signature changed."""
        return self.with_header(
            "Signature", lambda text: b"0x" + change(bytes.fromhex(text[2:].decode())).hex().encode()
        )


def proof_of(caller: Caller) -> Proof:
    return Proof(caller.identity, caller.target, caller.flow, fetch_nonce(caller.target.url), int(time.time()))


def high_s(sig65: bytes) -> bytes:
    """The other signature of the same message: n - s, and the other v."""
    s = wire.SECP256K1_ORDER - int.from_bytes(sig65[32:64], "big")
    return sig65[:32] + s.to_bytes(32, "big") + bytes([sig65[64] ^ 1])


def flipped(text: bytes, place: int) -> bytes:
    """base64 with another character at `place`."""
    return text[:place] + (b"A" if text[place : place + 1] != b"A" else b"B") + text[place + 1 :]


def _other(flow: Flow) -> Flow:
    return PEER if flow is APP else APP


def _renamed(proof: Proof) -> Headers:
    other = _other(proof.flow)
    return [(name.replace(proof.flow.prefix, other.prefix), value) for name, value in proof.headers()]


def _repeated(name: str) -> Callable[[Proof], Headers]:
    return lambda proof: [*proof.headers(), *(h for h in proof.headers() if h[0] == proof.flow.prefix + name)]


def _header(name: str, change: Callable[[bytes], bytes | None]) -> Callable[[Proof], Headers]:
    return lambda proof: proof.with_header(name, change)


def _signature(change: Callable[[bytes], bytes]) -> Callable[[Proof], Headers]:
    return lambda proof: proof.with_signature(change)


def _signed(**replaced: Callable[[Proof], object]) -> Callable[[Proof], Headers]:
    return lambda proof: proof.headers(**{name: value(proof) for name, value in replaced.items()})


def _timestamp(text: str | int) -> Callable[[Proof], Headers]:
    """A timestamp text that was signed as it is sent."""
    return _signed(timestamp=lambda _: text)


def _wallet(*values: bytes) -> Callable[[Proof], Headers]:
    return lambda proof: [*proof.headers(), *((proof.flow.prefix + "Wallet", value) for value in values)]


def _own_wallet_twice(proof: Proof) -> Headers:
    hint = (proof.flow.prefix + "Wallet", proof.identity.address.encode())
    return [*proof.headers(), hint, hint]


def _foreign_nonce(proof: Proof) -> Headers:
    return proof.headers(nonce=wire.encode_base64(bytes(range(48))))


# Name and what makes the headers; each of them must be answered 403 whoever the caller is.
PROOF_FLAWS: dict[str, Callable[[Proof], Headers]] = {
    **{
        f"{name.lower()} {why}": _header(name, change)
        for name in ("Signature", "Nonce", "Timestamp")
        for why, change in (
            ("missing", lambda _: None),
            ("empty", lambda _: b""),
            ("of white space", lambda _: b" \t "),
            ("not ASCII", lambda value: value[:-1] + b"\xe9"),
            ("overlong", lambda value: value + b"0" * 5000),
            ("with a comma", lambda value: value + b"," + value),
        )
    },
    **{f"{name.lower()} repeated": _repeated(name) for name in ("Signature", "Nonce", "Timestamp")},
    "no header at all": lambda _: [],
    "headers of the other kind of caller": _renamed,
    "text of the other kind of caller": lambda proof: [
        (name.replace(_other(proof.flow).prefix, proof.flow.prefix), value)
        for name, value in proof.headers(flow=_other(proof.flow))
    ],
    "timestamp old": _signed(timestamp=lambda proof: proof.timestamp - 3600),
    "timestamp in the future": _signed(timestamp=lambda proof: proof.timestamp + 3600),
    "timestamp zero": _timestamp(0),
    "timestamp negative": _timestamp(-1),
    "timestamp in milliseconds": _signed(timestamp=lambda proof: proof.timestamp * 1000),
    "timestamp a fraction": _signed(timestamp=lambda proof: f"{proof.timestamp}.0"),
    "timestamp with a plus": _signed(timestamp=lambda proof: f"+{proof.timestamp}"),
    "timestamp with an underscore": _timestamp("1_700_000_000"),
    "timestamp in hex": _signed(timestamp=lambda proof: hex(proof.timestamp)),
    "timestamp of many digits": _timestamp("9" * 400),
    "timestamp not the signed one": _header("Timestamp", lambda value: b"%d" % (int(value) + 1)),
    "nonce of another node": _foreign_nonce,
    "nonce no base64": _signed(nonce=lambda _: "not a nonce"),
    "nonce with its time changed": _signed(nonce=lambda proof: flipped(proof.nonce.encode(), 9).decode()),
    "nonce with its randomness changed": _signed(nonce=lambda proof: flipped(proof.nonce.encode(), 20).decode()),
    "nonce with its MAC changed": _signed(nonce=lambda proof: flipped(proof.nonce.encode(), 60).decode()),
    "nonce cut short": _signed(nonce=lambda proof: proof.nonce[:-4]),
    "nonce made longer": _signed(nonce=lambda proof: proof.nonce + "AAAA"),
    "nonce not the signed one": _header("Nonce", lambda value: value[:40] + value[41:] + b"A"),
    "signature for another node": _signed(receiver=lambda _: wire.Wallet().address),
    "signature not hex": _header("Signature", lambda _: b"0x" + b"zz" * 65),
    "signature of 64 bytes": _signature(lambda sig65: sig65[:64]),
    "signature of 66 bytes": _signature(lambda sig65: sig65 + b"\x00"),
    "signature of zeros": _signature(lambda _: bytes(65)),
    "signature of ones": _signature(lambda sig65: b"\xff" * 64 + sig65[64:]),
    "signature with r zero": _signature(lambda sig65: bytes(32) + sig65[32:]),
    "signature with s zero": _signature(lambda sig65: sig65[:32] + bytes(32) + sig65[64:]),
    "signature with s in the upper half": _signature(high_s),
    "signature with v 2": _signature(lambda sig65: sig65[:64] + b"\x02"),
    "signature with v 26": _signature(lambda sig65: sig65[:64] + b"\x1a"),
    "signature with v 29": _signature(lambda sig65: sig65[:64] + b"\x1d"),
    "signature with the other v": _signature(lambda sig65: sig65[:64] + bytes([sig65[64] ^ 1])),
    "signature by another wallet": _signed(identity=lambda _: RawIdentity()),
    "wallet of somebody else": _wallet(b"0x" + b"12" * 20),
    "wallet too short": _wallet(b"0x1234"),
    "wallet no hex": _wallet(b"0x" + b"zz" * 20),
    "wallet not ASCII": _wallet(b"\xe9" * 40),
    "wallet overlong": _wallet(b"0x" + b"1" * 5000),
    "wallet empty": _wallet(b""),
    "wallet repeated": _own_wallet_twice,
}

# Forms of an honest proof that every node must believe.
SIGNATURE_FORMS = {
    f"v {v_base}, {'0x' if prefix else 'no 0x'}": SignatureForm(v_base, prefix)
    for v_base in (0, 27)
    for prefix in ("0x", "")
}
WALLET_FORMS: dict[str, Callable[[str], str]] = {
    "canonical": str,
    "checksummed": wire.checksum_wallet,
    "upper case": lambda wallet: "0x" + wallet[2:].upper(),
    "without 0x": lambda wallet: wallet[2:],
}
