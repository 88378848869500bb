"""The `software` provider: throw-away keys for development and tests, attested to by nothing that counts (enclave §3).

Its documents have the real form and real signatures, under a root that lives as long as the process, and their PCR0 to
PCR2 say in plain ASCII what they are. A verifier accepts them only when it is told to trust exactly that root. The
settings refuse this provider with IN_ENCLAVE=true.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Self

from appliance.clock import Clock, SystemClock
from appliance.tee.attestation.document import PCR_BYTES
from appliance.tee.attestation.measurements import IMAGE_PCRS, Measurements
from appliance.tee.attestation.statement import CONFIG_PCR
from appliance.tee.local import LocalTee, make_keys
from appliance.tee.nsm.module import SecureModule
from appliance.tee.software.nsm import PcrBank, SoftwareNsm
from appliance.tee.software.pki import ThrowAwayRoot
from kmscore.envelope import AgreementKey
from kmscore.pop import WalletKey

_logger = logging.getLogger(__name__)

MODULE_ID: Final = "software-tee-not-an-enclave"
# What stands where an image's measurements would: 48 bytes of text each, which no SHA-384 yields.
SOFTWARE_MEASUREMENTS: Final = Measurements(
    {i: f"Nova KMS software TEE, no enclave: PCR{i}".ljust(PCR_BYTES, ".").encode() for i in IMAGE_PCRS}
)


class SoftwareTee(LocalTee):
    """Development only: both identity keys in ordinary memory, without a TEE, new for every process.

    `config_digest` (48 bytes) goes into PCR16 as the boot of an image would put it there. `clock` dates the documents.
    """

    def __init__(
        self,
        wallet_key: WalletKey,
        agreement_key: AgreementKey,
        random: Callable[[int], bytes],
        *,
        config_digest: bytes | None,
        clock: Clock,
    ) -> None:
        root = ThrowAwayRoot(datetime.fromtimestamp(clock.now_ms() / 1000, UTC))
        registers = PcrBank(SOFTWARE_MEASUREMENTS.pcrs)
        if config_digest is not None:
            registers.extend(CONFIG_PCR, config_digest)
        registers.lock(CONFIG_PCR)
        nsm = SoftwareNsm(MODULE_ID, registers, root.issuer(MODULE_ID), clock)
        super().__init__(
            wallet_key, agreement_key, random, attestor=SecureModule(nsm.handle), config_digest=config_digest
        )
        self.root_pem = root.pem
        self.root_der = root.der
        _logger.warning("software TEE: these keys are for development and prove nothing; never use it for real secrets")

    @classmethod
    def generate(
        cls, random: Callable[[int], bytes], *, config_digest: bytes | None = None, clock: Clock | None = None
    ) -> Self:
        """A provider with fresh keys; `random(n)` returns n bytes. InvariantBroken when it returns no usable key."""
        return cls(*make_keys(random), random, config_digest=config_digest, clock=clock or SystemClock())
