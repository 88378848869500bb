"""Proof of possession of a request, from its headers to a verified wallet (protocol §2).

Refuses to know what the wallet may do: that is the registry's to say.
"""

from kmscore._proof import (
    MAX_NONCE_CHARS,
    MAX_SIGNATURE_CHARS,
    PopVerifier,
    UnverifiedPop,
    VerifiedPop,
    parse_pop_headers,
)

__all__ = [
    "MAX_NONCE_CHARS",
    "MAX_SIGNATURE_CHARS",
    "PopVerifier",
    "UnverifiedPop",
    "VerifiedPop",
    "parse_pop_headers",
]
