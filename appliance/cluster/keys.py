"""The cluster's master secret in this node, and what is derived from it (node §2, protocol §4-§5).

Refuses to hand out a secret that the chain has not confirmed.
"""

from collections import OrderedDict
from enum import StrEnum

from appliance.clock import Clock
from kmscore.errors import InvariantBroken, Unavailable
from kmscore.kdf import (
    DataCipher,
    derive_app_key,
    derive_data_key,
    derive_digest_key,
    derive_sync_key,
    master_secret_hash,
)
from kmscore.secret import SecretBytes

MAX_CACHED_CIPHERS = 4096


class SecretState(StrEnum):
    """How this node came by its master secret, as `/status` shows it."""

    UNINITIALIZED = "uninitialized"
    GENERATED = "generated"
    SYNCED = "synced"


class ClusterKeys:
    """Holder of the master secret. `confirm` and `adopt` are the only ways to a usable one."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._secret: SecretBytes | None = None
        self._secret_hash = b""
        self._sync_key: SecretBytes | None = None
        self._digest_key: SecretBytes | None = None
        self._confirmed_at_ms: int | None = None
        self.was_confirmed = False
        self._ciphers: OrderedDict[int, DataCipher] = OrderedDict()
        self._generation = 0
        self.state = SecretState.UNINITIALIZED
        self.synced_from: str | None = None

    @property
    def generation(self) -> int:
        """How often the secret has changed: what was encrypted under another generation is unreadable now."""
        return self._generation

    def require_generation(self, generation: int) -> None:
        """Raises `Unavailable` when the secret has been replaced since `generation` was read."""
        if generation != self._generation:
            raise Unavailable("the master secret has been replaced meanwhile")

    @property
    def initialized(self) -> bool:
        return self._secret is not None

    @property
    def confirmed(self) -> bool:
        """Whether the chain has shown this secret's hash and has not shown another one since."""
        return self._confirmed_at_ms is not None

    @property
    def secret_hash(self) -> bytes:
        """keccak256 of the secret, 32 bytes; empty when there is none."""
        return self._secret_hash

    @property
    def sync_key(self) -> SecretBytes | None:
        """The key of `X-Sync-Signature`; None until a secret is confirmed."""
        return self._sync_key if self.confirmed else None

    @property
    def digest_key(self) -> SecretBytes | None:
        """The key of the store's digests (store §5); None until a secret is confirmed."""
        return self._digest_key if self.confirmed else None

    def confirmed_within(self, age_s: float) -> bool:
        """Whether the chain confirmed the secret at most `age_s` seconds ago."""
        if self._confirmed_at_ms is None:
            return False
        return self._clock.monotonic_ms() - self._confirmed_at_ms <= age_s * 1000

    def generate(self, secret: SecretBytes) -> None:
        """Keep a secret made here, not yet confirmed. Raises `InvariantBroken` when there is one already."""
        if self._secret is not None:
            raise InvariantBroken("a master secret is already present")
        self._install(secret)
        self.state = SecretState.GENERATED

    def matches(self, chain_hash: bytes) -> bool:
        return self._secret is not None and self._secret_hash == chain_hash

    def confirm(self, chain_hash: bytes) -> None:
        """Note that the chain shows our secret's hash. Raises `InvariantBroken` when it does not."""
        if not self.matches(chain_hash):
            raise InvariantBroken("a master secret that the chain does not show cannot be confirmed")
        self._confirmed_at_ms = self._clock.monotonic_ms()
        self.was_confirmed = True

    def unconfirm(self) -> None:
        """The chain shows another hash, or none: keep the secret, use it for nothing."""
        self._confirmed_at_ms = None

    def adopt(self, secret: SecretBytes, chain_hash: bytes, peer: str) -> None:
        """Replace whatever we have by a peer's secret whose hash the chain shows.

        Raises `InvariantBroken` when the hash differs: the caller compares before it adopts.
        """
        if master_secret_hash(secret) != chain_hash:
            raise InvariantBroken("a master secret that the chain does not show cannot be adopted")
        self.wipe()
        self._install(secret)
        self.state = SecretState.SYNCED
        self.synced_from = peer
        self.confirm(chain_hash)

    def derive(self, app_id: int, path: str, context: str, length: int) -> bytes:
        """An app's key (protocol §4). Raises `Rejected(BAD_FIELD)`, `Unavailable` without a confirmed secret."""
        return derive_app_key(self.require_confirmed(), app_id, path, context, length)

    def data_cipher(self, app_id: int) -> DataCipher:
        """The cipher of an app's values at rest; cached, bounded. Raises `Unavailable` without a confirmed secret."""
        secret = self.require_confirmed()
        cipher = self._ciphers.get(app_id)
        if cipher is None:
            cipher = DataCipher(derive_data_key(secret, app_id))
            self._ciphers[app_id] = cipher
            if len(self._ciphers) > MAX_CACHED_CIPHERS:
                self._ciphers.popitem(last=False)
        else:
            self._ciphers.move_to_end(app_id)
        return cipher

    def require_confirmed(self) -> SecretBytes:
        """The secret, for derivation and sealed hand-over. Raises `Unavailable` unless the chain has confirmed it."""
        if self._secret is None or self._confirmed_at_ms is None:
            raise Unavailable("master secret not initialized")
        return self._secret

    def wipe(self) -> None:
        """Forget everything secret."""
        for secret in (self._secret, self._sync_key, self._digest_key):
            if secret is not None:
                secret.wipe()
        self._secret = None
        self._secret_hash = b""
        self._sync_key = None
        self._digest_key = None
        self._confirmed_at_ms = None
        self.was_confirmed = False
        self._ciphers.clear()
        self._generation += 1
        self.state = SecretState.UNINITIALIZED
        self.synced_from = None

    def _install(self, secret: SecretBytes) -> None:
        self._secret = secret
        self._secret_hash = master_secret_hash(secret)
        self._sync_key = derive_sync_key(secret)
        self._digest_key = derive_digest_key(self._sync_key)
