"""The computing core of Nova KMS: signatures, envelopes, key derivation, the store. No I/O, clock or environment."""
