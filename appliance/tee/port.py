"""The port behind which the node's two identity keys live (protocol §1, enclave §3).

Everything else in the appliance signs, seals and opens through `TeeProvider`. The port never hands out a private key, a
shared secret or an envelope key, and it decides nothing: who may be answered, and whether an envelope's sender is the
registered one, is settled before `open` and `seal` are called.
"""

from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import Protocol

from kmscore.envelope import Envelope, TeePublicKey
from kmscore.errors import InvariantBroken

# The most `random_bytes` is asked for at once: keys and nonces are far smaller, so more is a bug.
MAX_RANDOM_BYTES = 1024
# The most that every source of documents takes as a nonce; AWS states 512 in some texts and 1024 in others.
MAX_ATTESTATION_NONCE_BYTES = 512


@dataclass(frozen=True, slots=True)
class TeeIdentity:
    """The public halves of both identity keys: `wallet` canonical (0x + 40 lowercase hex), `tee_pubkey` on P-384."""

    wallet: str
    tee_pubkey: TeePublicKey


@dataclass(frozen=True, slots=True)
class Eip1559Transaction:
    """An unsigned type-2 transaction without an access list; fees and `value` in wei, `to` a canonical wallet."""

    chain_id: int
    nonce: int
    max_priority_fee_per_gas: int
    max_fee_per_gas: int
    gas_limit: int
    to: str
    value: int
    data: bytes


@dataclass(frozen=True, slots=True)
class LongText:
    """UTF-8 of `size_bytes` that is not there all at once: each of `parts` is made when it is asked for."""

    size_bytes: int
    parts: Iterator[bytes]


@dataclass(frozen=True, slots=True)
class LongEnvelope:
    """An envelope under `nonce` whose body, of `body_bytes`, is made in pieces while it is sent.

    A piece may raise what making its part of the text raises, and what the provider's methods do.
    """

    nonce: bytes
    body_bytes: int
    pieces: AsyncGenerator[bytes, None]


def check_random_size(size: int) -> None:
    """What every provider asks of `size` first. Raises InvariantBroken."""
    if not 0 <= size <= MAX_RANDOM_BYTES:
        raise InvariantBroken("more random bytes were asked for at once than anything needs")


def check_nonce_size(nonce: bytes | None) -> None:
    """What every provider asks of an attestation's nonce first. Raises InvariantBroken."""
    if nonce is not None and len(nonce) > MAX_ATTESTATION_NONCE_BYTES:
        raise InvariantBroken("a nonce is larger than a document takes")


class TeeProvider(Protocol):
    """What owns the wallet key and the agreement key of this node.

    Every method may raise Unavailable (the provider does not answer, or answers nonsense; try later) and
    InvariantBroken (the keys are not the ones this process started with, or were wiped; stop).
    """

    @property
    def labels(self) -> tuple[str, ...]:
        """HKDF labels `seal` can choose from; empty when the runtime behind the provider decides (protocol §3)."""
        ...

    async def identity(self) -> TeeIdentity:
        """The identity of this process; the same value for as long as it lives."""
        ...

    async def refresh_identity(self) -> TeeIdentity:
        """Ask the owner of the keys again. A changed identity is InvariantBroken: the process has to start anew."""
        ...

    async def sign_message(self, message: bytes) -> str:
        """EIP-191 signature of `message` (non-empty UTF-8) by the wallet: 0x + 130 lowercase hex, v 0 or 1."""
        ...

    async def sign_transaction(self, tx: Eip1559Transaction) -> bytes:
        """The raw signed transaction (0x02 ‖ RLP), ready for eth_sendRawTransaction."""
        ...

    async def seal(self, plaintext: bytes, peer: TeePublicKey, label: str | None) -> Envelope:
        """Encrypt `plaintext` (UTF-8) to `peer` under a fresh 12-byte nonce (protocol §3).

        `label` None lets the provider choose; a provider with empty `labels` ignores it.
        """
        ...

    async def seal_long(self, text: LongText, peer: TeePublicKey, label: str | None) -> LongEnvelope:
        """The same for a text too long to be there, or to be sealed, in one piece; its pieces can be asked for once."""
        ...

    async def open(self, envelope: Envelope, peer: TeePublicKey) -> tuple[bytes, str | None]:
        """Decrypt what `peer` sealed to us: the plaintext, and the label it was under (None when not known).

        The caller has already compared `envelope.sender` with `peer`. Rejected(UNDECRYPTABLE) when no label opens it.
        """
        ...

    async def random_bytes(self, size: int) -> bytes:
        """`size` bytes (0..MAX_RANDOM_BYTES) from the provider's random source, fit for keys."""
        ...

    async def attest(self, nonce: bytes | None) -> bytes:
        """A fresh attestation document (COSE_Sign1 of at most 16 KiB) that states this identity (enclave §3).

        It carries `nonce`, which has at most MAX_ATTESTATION_NONCE_BYTES. What it is worth is its reader's to find out;
        only its form is checked here. Unavailable also when this provider has nothing that could attest to its keys.
        """
        ...

    async def aclose(self) -> None:
        """Wipe the keys this process holds. Every later call raises InvariantBroken; closing twice is harmless."""
        ...
