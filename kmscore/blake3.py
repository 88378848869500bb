"""BLAKE3: hash, MAC and key derivation with output of any length."""

from kmscore._blake3 import Blake3Hasher, blake3, blake3_derive_key, blake3_keyed

__all__ = ["Blake3Hasher", "blake3", "blake3_derive_key", "blake3_keyed"]
