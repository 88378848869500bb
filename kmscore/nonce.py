"""Single use: of proof-of-possession nonces and of envelope nonces (protocol §2-§3).

Refuses to remember anything on behalf of a stranger: issuing a nonce costs no memory, and what is remembered is bounded
per authenticated caller. Clocks and randomness come from the caller; every time is in milliseconds on one monotonic
clock. The classes are for one thread.
"""

from kmscore._nonce import NonceIssuer
from kmscore._replay import ENVELOPE_NONCE_BYTES, EnvelopeNonces, UsedNonces

__all__ = ["ENVELOPE_NONCE_BYTES", "EnvelopeNonces", "NonceIssuer", "UsedNonces"]
