"""Attestation documents of the Nitro Secure Module: read strictly, believed only after every step of verification."""
