"""What this node is at the moment: who it is, whether it may serve, and since when (node §2)."""

import logging
from enum import StrEnum

from kmscore.errors import Unavailable

logger = logging.getLogger(__name__)


class UnavailableReason(StrEnum):
    """The reasons that `/status` and 503 answers show, word for word (node §2)."""

    INITIALIZING = "initializing"
    PEER_CACHE_REFRESH_FAILED = "peer cache refresh failed"
    NOT_IN_NODE_LIST = "self not in KMS node list"
    TEE_PUBKEY_MISMATCH = "local teePubkey mismatch with registry"
    CANNOT_READ_HASH = "cannot read master secret hash"
    CLAIM_FAILED = "failed to set master secret hash"
    AWAITING_HASH = "awaiting on-chain master secret hash"
    SECRET_SYNC_FAILED = "master secret sync failed"  # noqa: S105 - a reason, not a password
    SECRET_HASH_MISMATCH = "synced master secret hash mismatch"  # noqa: S105


class Availability:
    """The gate of `/kms/*`; only `node_tick` turns it."""

    def __init__(self) -> None:
        self._reason: UnavailableReason | None = UnavailableReason.INITIALIZING

    @property
    def available(self) -> bool:
        return self._reason is None

    @property
    def reason(self) -> UnavailableReason | None:
        """Why not; None while available."""
        return self._reason

    def set(self, reason: UnavailableReason | None) -> None:
        """Available when `reason` is None; a change is logged."""
        if reason != self._reason:
            if reason is None:
                logger.info("service available")
            else:
                logger.warning("service unavailable", extra={"reason": reason.value})
        self._reason = reason

    def require(self) -> None:
        """Raises `Unavailable` with the reason while the node must not serve apps."""
        if self._reason is not None:
            raise Unavailable(self._reason.value)
