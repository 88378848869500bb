"""The software TEE: throw-away keys for development and tests. Nothing attests to them, so nobody may trust them.

The settings refuse it with IN_ENCLAVE=true; a production verifier has no way to accept it (enclave §3).
"""

import logging
from collections.abc import Callable
from typing import Self, TypeVar

from appliance.tee.local import LocalTee
from kmscore.envelope import AgreementKey
from kmscore.errors import InvariantBroken, Reason, Rejected
from kmscore.pop import WalletKey
from kmscore.secret import SecretBytes

_WALLET_KEY_BYTES = 32
_AGREEMENT_KEY_BYTES = 48
_BLINDING_BYTES = 32

# A draw of 32 or 48 random bytes is outside the group with a chance below 2**-127: more than a few in a row is a broken
# random source.
_MAX_DRAWS = 4

_Key = TypeVar("_Key")

_logger = logging.getLogger(__name__)


class SoftwareTee(LocalTee):
    """Development only: both identity keys in ordinary memory, without a TEE, new for every process."""

    def __init__(self, wallet_key: WalletKey, agreement_key: AgreementKey, random: Callable[[int], bytes]) -> None:
        super().__init__(wallet_key, agreement_key, random)
        _logger.warning("software TEE: these keys are for development and prove nothing; never use it for real secrets")

    @classmethod
    def generate(cls, random: Callable[[int], bytes]) -> Self:
        """A provider with fresh keys; `random(n)` returns n bytes. InvariantBroken when it returns no usable key."""
        return cls(_draw(random, _wallet_key), _draw(random, _agreement_key), random)


def _wallet_key(random: Callable[[int], bytes]) -> WalletKey:
    return WalletKey(SecretBytes(random(_WALLET_KEY_BYTES)), random(_BLINDING_BYTES))


def _agreement_key(random: Callable[[int], bytes]) -> AgreementKey:
    return AgreementKey.from_scalar(int.from_bytes(random(_AGREEMENT_KEY_BYTES)))


def _draw(random: Callable[[int], bytes], make: Callable[[Callable[[int], bytes]], _Key]) -> _Key:
    for _ in range(_MAX_DRAWS):
        try:
            return make(random)
        except Rejected as refusal:
            if refusal.reason is not Reason.BAD_FIELD:
                raise
    raise InvariantBroken("the random source yields no usable key")
