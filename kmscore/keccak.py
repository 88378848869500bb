"""Keccak-256, the hash of Ethereum's digests and addresses (protocol §1)."""

from kmscore._keccak import keccak256

__all__ = ["keccak256"]
