"""The floor of cryptography: what the primitives of one operation cost, bare, in CPU time of this process.

libsecp256k1 through coincurve, HKDF-SHA256 and AES-256-GCM through `cryptography`, with the sizes of the operation.
"""

import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Final

from coincurve import PrivateKey, PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kmscore.envelope import LABELS, SEC1_BYTES, SHARED_SECRET_BYTES

BATCH: Final = 500
BATCHES: Final = 7
_NONCE_BYTES: Final = 12


@dataclass(frozen=True, slots=True)
class Sizes:
    """Plaintext bytes of an operation: in the request's envelope (None without one), in the answer's, at rest."""

    request: int | None
    answer: int
    at_rest: int | None


@dataclass(frozen=True, slots=True)
class Primitives:
    """CPU seconds of one call each; `cipher` by the number of plaintext bytes."""

    recover_s: float
    sign_s: float
    envelope_hkdf_s: float
    app_hkdf_s: float
    cipher_s: dict[int, float]


def measure_primitives(*plaintext_bytes: int, batch: int = BATCH) -> Primitives:
    """Measure each: the median of several batches, as what is divided by them is no minimum either."""
    key, digest = PrivateKey(b"\x01" * 32), os.urandom(32)
    signature = key.sign_recoverable(digest, hasher=None)
    shared, salt = os.urandom(SHARED_SECRET_BYTES), os.urandom(2 * SEC1_BYTES + _NONCE_BYTES)
    label, master = LABELS[0].encode(), os.urandom(32)
    return Primitives(
        recover_s=_typical(lambda: PublicKey.from_signature_and_message(signature, digest, hasher=None), batch),
        sign_s=_typical(lambda: key.sign_recoverable(digest, hasher=None), batch),
        envelope_hkdf_s=_typical(lambda: HKDF(SHA256(), 32, salt, label).derive(shared), batch),
        app_hkdf_s=_typical(lambda: HKDF(SHA256(), 32, b"nova-kms:app:101", b"disk").derive(master), batch),
        cipher_s={size: _typical(_encryption(size), batch) for size in plaintext_bytes},
    )


def _encryption(size: int) -> Callable[[], object]:
    """A fresh key schedule each time, as every envelope has a key of its own; opening costs the same."""
    key, nonce, plaintext = os.urandom(32), os.urandom(_NONCE_BYTES), bytes(size)
    return lambda: AESGCM(key).encrypt(nonce, plaintext, None)


def _typical(call: Callable[[], object], batch: int) -> float:
    times = []
    gc.disable()
    try:
        for _ in range(BATCHES):
            begun = time.process_time()
            for _ in range(batch):
                call()
            times.append((time.process_time() - begun) / batch)
    finally:
        gc.enable()
    return median(times)
