"""The `nsm` provider: both identity keys made inside the enclave, attested to by its secure module (enclave §3).

Keys are new on every boot and nowhere but in this process's memory. They, and all random bytes meant for keys, come
from the secure module and the kernel together: whoever knows or controls one of the two learns nothing (nitro facts
§5.2). The nonces of envelopes come from the kernel alone, which the module feeds, so that no envelope waits for the
device.
"""

import os
from collections.abc import Callable
from itertools import count
from typing import Final, Self

from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from appliance.tee.attestation.statement import CONFIG_PCR, extend_config
from appliance.tee.local import LocalTee, make_keys
from appliance.tee.nsm.module import SecureModule
from appliance.tee.port import check_random_size
from kmscore.envelope import AgreementKey
from kmscore.errors import ConfigError
from kmscore.pop import WalletKey

# Of each source: as much as SHA-512 can carry on.
ENTROPY_BYTES: Final = 64
_LABEL: Final = b"NovaKMS:Entropy:v1:"


class NsmTee(LocalTee):
    """Implements `TeeProvider`; `generate` makes the keys that one is built with."""

    def __init__(
        self,
        wallet_key: WalletKey,
        agreement_key: AgreementKey,
        module: SecureModule,
        kernel: Callable[[int], bytes],
        config_digest: bytes | None,
    ) -> None:
        super().__init__(wallet_key, agreement_key, kernel, attestor=module, config_digest=config_digest)
        self._module = module
        self._kernel = kernel

    @classmethod
    async def generate(
        cls,
        module: SecureModule,
        *,
        config_digest: bytes | None,
        kernel: Callable[[int], bytes] = os.urandom,
    ) -> Self:
        """A provider with fresh keys.

        `config_digest` (48 bytes) is what the boot says it extended into PCR16, None when there was no such boot;
        `kernel(n)` returns n bytes of getrandom. Raises `Unavailable` when the module does not answer, and
        `ConfigError` when PCR16 is open or holds something else, because then no document would prove the
        configuration.
        """
        if config_digest is not None:
            register = await module.describe_pcr(CONFIG_PCR)
            if not register.locked or register.value != extend_config(config_digest):
                raise ConfigError(f"PCR{CONFIG_PCR} is not locked at the configuration this process was started with")
        from_module = await module.random(ENTROPY_BYTES)
        numbers = count()
        keys = make_keys(lambda size: mix(from_module, kernel(ENTROPY_BYTES), b"key %d" % next(numbers), size))
        return cls(*keys, module, kernel, config_digest)

    async def random_bytes(self, size: int) -> bytes:
        self._require_keys()
        check_random_size(size)
        if size == 0:
            return b""
        return mix(await self._module.random(ENTROPY_BYTES), self._kernel(ENTROPY_BYTES), b"random bytes", size)


def mix(from_module: bytes, from_kernel: bytes, purpose: bytes, size: int) -> bytes:
    """`size` bytes (1..1024) that are as good as the better of the two sources, which give 64 bytes each."""
    return HKDF(SHA512(), size, salt=None, info=_LABEL + purpose).derive(from_module + from_kernel)
