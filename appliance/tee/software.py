"""The software TEE: throw-away keys for development and tests. Nothing that counts attests to them: never trust them.

It attests only when it is given a software module, whose documents end in a throw-away root; without one `attest` is
Unavailable. The settings refuse this provider with IN_ENCLAVE=true; a verifier accepts its documents only when it is
told to trust exactly that root (enclave §3).
"""

import logging
from collections.abc import Callable
from typing import Self

from appliance.tee.local import Attestor, LocalTee, make_keys
from kmscore.envelope import AgreementKey
from kmscore.pop import WalletKey

_logger = logging.getLogger(__name__)


class SoftwareTee(LocalTee):
    """Development only: both identity keys in ordinary memory, without a TEE, new for every process."""

    def __init__(
        self,
        wallet_key: WalletKey,
        agreement_key: AgreementKey,
        random: Callable[[int], bytes],
        *,
        attestor: Attestor | None = None,
    ) -> None:
        super().__init__(wallet_key, agreement_key, random, attestor=attestor)
        _logger.warning("software TEE: these keys are for development and prove nothing; never use it for real secrets")

    @classmethod
    def generate(cls, random: Callable[[int], bytes], *, attestor: Attestor | None = None) -> Self:
        """A provider with fresh keys; `random(n)` returns n bytes. InvariantBroken when it returns no usable key."""
        wallet_key, agreement_key = make_keys(random)
        return cls(wallet_key, agreement_key, random, attestor=attestor)
