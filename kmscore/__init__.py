"""The computing core of Nova KMS: signatures, envelopes, key derivation, the replicated store. No I/O, no clock, no environment."""
