"""A TEE provider whose keys live in this process's memory: base of the providers that make their own keys.

It decides neither where the entropy comes from nor whether anybody should believe the identity: its subclasses do. Keys
stay with `kmscore`'s owners, which wipe them; nothing here reveals, prints or stores one.
"""

from collections.abc import AsyncGenerator, Callable
from typing import Protocol, TypeVar

import anyio.to_thread

from appliance.tee.attestation.statement import encode_statement, require_own
from appliance.tee.port import (
    Eip1559Transaction,
    LongEnvelope,
    LongText,
    TeeIdentity,
    check_nonce_size,
    check_random_size,
)
from appliance.tee.transaction import encode_signed_transaction, transaction_digest
from kmscore.envelope import (
    LABELS,
    NONCE_BYTES,
    AgreementKey,
    Envelope,
    EnvelopeWriter,
    SharedSecretCache,
    TeePublicKey,
    open_envelope,
    seal,
)
from kmscore.errors import InvariantBroken, Reason, Rejected, Unavailable
from kmscore.pop import WalletKey
from kmscore.secret import SecretBytes

# AES-GCM and hex of this much took 72 µs on one core; what is larger goes to a worker thread, so that it does not stall
# the event loop. Envelopes are opened up to a multiple of it: that of a delta of 500 small records takes 0.2 ms, and to
# hand it to a thread and back 0.4 ms of CPU more. The first envelope of a peer costs one key agreement (250 µs) on top,
# wherever it runs: once a peer, and only after the peer is authorised.
INLINE_BYTES = 64 * 1024
OPEN_FACTOR = 8

_WALLET_KEY_BYTES = 32
_AGREEMENT_KEY_BYTES = 48
_BLINDING_BYTES = 32

# A draw of 32 or 48 random bytes is outside the group with a chance below 2**-127: more than a few in a row is a broken
# random source.
_MAX_DRAWS = 4

_Result = TypeVar("_Result")


class Attestor(Protocol):
    """What makes documents for keys that it does not hold: a secure module."""

    async def attest(self, *, public_key: bytes | None, user_data: bytes | None, nonce: bytes | None) -> bytes:
        """A document with these members. Unavailable."""
        ...


class LocalTee:
    """Implements `TeeProvider` with a wallet key and an agreement key that it owns from now on.

    `random` returns as many bytes as it is asked for, from a source fit for keys and nonces. Without an `attestor`,
    `attest` is Unavailable; documents state `config_digest` (48 bytes) when there is one.
    """

    def __init__(
        self,
        wallet_key: WalletKey,
        agreement_key: AgreementKey,
        random: Callable[[int], bytes],
        *,
        attestor: Attestor | None = None,
        config_digest: bytes | None = None,
    ) -> None:
        self._wallet_key = wallet_key
        self._random = random
        self._attestor = attestor
        self._config_digest = config_digest
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
        if not self._open:
            raise _closed()
        return self._wallet_key.sign_message(message)

    async def sign_transaction(self, tx: Eip1559Transaction) -> bytes:
        self._require_keys()
        # In a thread because the first call imports the RLP library.
        return await anyio.to_thread.run_sync(
            lambda: encode_signed_transaction(tx, self._wallet_key.sign_digest(transaction_digest(tx)))
        )

    async def seal(self, plaintext: bytes, peer: TeePublicKey, label: str | None) -> Envelope:
        own, used, nonce = self._start_sealing(label)
        if len(plaintext) <= INLINE_BYTES:
            return seal(self._secrets.get(peer), own, peer, used, nonce, plaintext)
        return await anyio.to_thread.run_sync(lambda: seal(self._secrets.get(peer), own, peer, used, nonce, plaintext))

    async def seal_long(self, text: LongText, peer: TeePublicKey, label: str | None) -> LongEnvelope:
        own, used, nonce = self._start_sealing(label)
        writer = EnvelopeWriter(self._secrets.get(peer), own, peer, used, nonce, text.size_bytes)

        async def pieces() -> AsyncGenerator[bytes, None]:
            for part in text.parts:
                if len(part) <= INLINE_BYTES:
                    yield writer.write(part)
                else:
                    yield await anyio.to_thread.run_sync(writer.write, part)
            yield writer.finish()

        return LongEnvelope(nonce, writer.body_bytes, pieces())

    async def open(self, envelope: Envelope, peer: TeePublicKey) -> tuple[bytes, str | None]:
        if not self._open:
            raise _closed()
        own = self._identity.tee_pubkey
        if len(envelope.ciphertext) <= OPEN_FACTOR * INLINE_BYTES:
            return open_envelope(self._secrets.get(peer), own, peer, LABELS, envelope)
        return await anyio.to_thread.run_sync(
            lambda: open_envelope(self._secrets.get(peer), own, peer, LABELS, envelope)
        )

    async def random_bytes(self, size: int) -> bytes:
        self._require_keys()
        check_random_size(size)
        return self._draw(size)

    async def attest(self, nonce: bytes | None) -> bytes:
        self._require_keys()
        check_nonce_size(nonce)
        if self._attestor is None:
            raise Unavailable("this node's keys are outside of a secure module: nothing can attest to them")
        document = await self._attestor.attest(
            public_key=self._identity.tee_pubkey.der,
            user_data=encode_statement(self._identity.wallet, self._config_digest),
            nonce=nonce,
        )
        try:
            return require_own(document, self._identity, nonce)
        except Rejected as error:
            raise Unavailable("the secure module made another document than was asked for") from error

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            self._secrets.clear()
            self._wallet_key.wipe()

    def _start_sealing(self, label: str | None) -> tuple[TeePublicKey, str, bytes]:
        """Our key, the label to use and a fresh nonce."""
        if not self._open:
            raise _closed()
        if label is not None and label not in LABELS:
            raise InvariantBroken("an envelope label is not one of the protocol's")
        # Of the plain source, whatever `random_bytes` does for keys: a nonce has to be distinct, not secret. Its length
        # is for what seals to check.
        return self._identity.tee_pubkey, label or LABELS[0], self._random(NONCE_BYTES)

    def _draw(self, size: int) -> bytes:
        data = self._random(size)
        if len(data) != size:
            raise InvariantBroken("the random source returned another number of bytes than it was asked for")
        return data

    def _require_keys(self) -> None:
        if not self._open:
            raise _closed()


def _closed() -> InvariantBroken:
    return InvariantBroken("the TEE provider is used after it was closed")


def make_keys(random: Callable[[int], bytes]) -> tuple[WalletKey, AgreementKey]:
    """Both identity keys from `random`, which returns n bytes. InvariantBroken when it returns no usable key.

    The bytes drawn pass through Python objects, which cannot be wiped.
    """

    def wallet_key() -> WalletKey:
        return WalletKey(SecretBytes(random(_WALLET_KEY_BYTES)), random(_BLINDING_BYTES))

    def agreement_key() -> AgreementKey:
        return AgreementKey.from_scalar(int.from_bytes(random(_AGREEMENT_KEY_BYTES)))

    return _first_usable(wallet_key), _first_usable(agreement_key)


def _first_usable(make: Callable[[], _Result]) -> _Result:
    for _ in range(_MAX_DRAWS):
        try:
            return make()
        except Rejected as refusal:
            if refusal.reason is not Reason.BAD_FIELD:
                raise
    raise InvariantBroken("the random source yields no usable key")
