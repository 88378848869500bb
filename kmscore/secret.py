"""Secret bytes that wipe themselves, and constant-time comparison."""

from kmscore._secret import SecretBytes, constant_time_equal

__all__ = ["SecretBytes", "constant_time_equal"]
