"""A software secure module for tests, its image in PCR0 to PCR2, and a verifier that trusts its root."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from appliance.clock import Clock, SystemClock
from appliance.tee.attestation.cbor import encode_cbor
from appliance.tee.attestation.measurements import Measurements
from appliance.tee.attestation.statement import CONFIG_PCR
from appliance.tee.attestation.verify import (
    AttestedIdentity,
    VerificationPolicy,
    VerifiedDocument,
    attested_identity,
    verify_document,
)
from appliance.tee.software.nsm import PcrBank, SoftwareNsm
from appliance.tee.software.pki import ThrowAwayRoot

MODULE_ID = "i-0123456789abcdef0-enc0123456789abcdef"
CONFIG_DIGEST = hashlib.sha384(b"{}").digest()
IMAGE = Measurements({index: hashlib.sha384(b"image %d" % index).digest() for index in (0, 1, 2)})


@dataclass
class SecureModuleBench:
    """One enclave's module. `respond` is the device; tests put another function there to make it fail."""

    clock: Clock = field(default_factory=SystemClock)
    requests: list[bytes] = field(default_factory=list)
    respond: Callable[[bytes], bytes] = field(init=False)
    root_der: bytes = field(init=False)

    def __post_init__(self) -> None:
        root = ThrowAwayRoot(datetime.fromtimestamp(self.clock.now_ms() / 1000, UTC))
        self.root_der = root.der
        self.nsm = SoftwareNsm(MODULE_ID, PcrBank(dict(IMAGE.pcrs)), root.issuer(MODULE_ID), self.clock)
        self.respond = self.nsm.handle

    def exchange(self, request: bytes) -> bytes:
        """The module as a device: an `NsmExchange`."""
        self.requests.append(request)
        return self.respond(request)

    def bind(self, config_digest: bytes = CONFIG_DIGEST) -> "SecureModuleBench":
        """What the boot does to PCR16: extend and lock."""
        self.nsm.handle(encode_cbor({"ExtendPCR": {"index": CONFIG_PCR, "data": config_digest}}))
        self.nsm.handle(encode_cbor({"LockPCR": {"index": CONFIG_PCR}}))
        return self

    def verify(self, document: bytes, nonce: bytes | None) -> VerifiedDocument:
        now = datetime.fromtimestamp(self.clock.now_ms() / 1000, UTC)
        return verify_document(document, VerificationPolicy(self.root_der, now, nonce, [IMAGE]))

    def identity_in(self, document: bytes, nonce: bytes | None) -> AttestedIdentity:
        return attested_identity(self.verify(document, nonce))
