"""Builds, measures and explains the enclave image (enclave §1); imports no other package of this project."""
