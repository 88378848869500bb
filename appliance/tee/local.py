"""A TEE provider whose keys live in this process's memory: base of the providers that make their own keys.

It decides neither where the entropy comes from nor whether anybody should believe the identity: its subclasses do. Keys
stay with `kmscore`'s owners, which wipe them; nothing here reveals, prints or stores one.
"""

from collections.abc import Callable
from typing import TypeVar

import anyio.to_thread

from appliance.tee.port import MAX_RANDOM_BYTES, Eip1559Transaction, TeeIdentity
from appliance.tee.transaction import encode_signed_transaction, transaction_digest
from kmscore.envelope import (
    LABELS,
    NONCE_BYTES,
    AgreementKey,
    Envelope,
    SharedSecretCache,
    TeePublicKey,
    open_envelope,
    seal,
)
from kmscore.errors import InvariantBroken
from kmscore.pop import WalletKey

# AES-GCM and hex of this much took 72 µs on one core; what is larger goes to a worker thread. The first envelope of a
# peer costs one key agreement (250 µs) on top, wherever it runs: once a peer, and only after the peer is authorised.
INLINE_BYTES = 64 * 1024

_Result = TypeVar("_Result")


class LocalTee:
    """Implements `TeeProvider` with a wallet key and an agreement key that it owns from now on.

    `random` returns as many bytes as it is asked for, from a source fit for keys and nonces.
    """

    def __init__(self, wallet_key: WalletKey, agreement_key: AgreementKey, random: Callable[[int], bytes]) -> None:
        self._wallet_key = wallet_key
        self._random = random
        self._secrets = SharedSecretCache(agreement_key)
        self._identity = TeeIdentity(wallet_key.address, agreement_key.public)
        self._open = True

    @property
    def labels(self) -> tuple[str, ...]:
        return LABELS

    async def identity(self) -> TeeIdentity:
        self._require_keys()
        return self._identity

    async def refresh_identity(self) -> TeeIdentity:
        self._require_keys()
        return self._identity

    async def sign_message(self, message: bytes) -> str:
        self._require_keys()
        return self._wallet_key.sign_message(message)

    async def sign_transaction(self, tx: Eip1559Transaction) -> bytes:
        self._require_keys()
        # In a thread because the first call imports the RLP library.
        return await anyio.to_thread.run_sync(
            lambda: encode_signed_transaction(tx, self._wallet_key.sign_digest(transaction_digest(tx)))
        )

    async def seal(self, plaintext: bytes, peer: TeePublicKey, label: str | None) -> Envelope:
        self._require_keys()
        if label is not None and label not in LABELS:
            raise InvariantBroken("an envelope label is not one of the protocol's")
        nonce = await self.random_bytes(NONCE_BYTES)
        own = self._identity.tee_pubkey
        return await _compute(
            len(plaintext),
            lambda: seal(self._secrets.get(peer), own, peer, label or LABELS[0], nonce, plaintext),
        )

    async def open(self, envelope: Envelope, peer: TeePublicKey) -> tuple[bytes, str | None]:
        self._require_keys()
        own = self._identity.tee_pubkey
        return await _compute(
            len(envelope.ciphertext),
            lambda: open_envelope(self._secrets.get(peer), own, peer, LABELS, envelope),
        )

    async def random_bytes(self, size: int) -> bytes:
        self._require_keys()
        if not 0 <= size <= MAX_RANDOM_BYTES:
            raise InvariantBroken("more random bytes were asked for at once than anything needs")
        data = self._random(size)
        if len(data) != size:
            raise InvariantBroken("the random source returned another number of bytes than it was asked for")
        return data

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            self._secrets.clear()
            self._wallet_key.wipe()

    def _require_keys(self) -> None:
        if not self._open:
            raise InvariantBroken("the TEE provider is used after it was closed")


async def _compute(size_bytes: int, work: Callable[[], _Result]) -> _Result:
    """Run `work` here when it is short, else in a worker thread, so that it does not stall the event loop."""
    return work() if size_bytes <= INLINE_BYTES else await anyio.to_thread.run_sync(work)
