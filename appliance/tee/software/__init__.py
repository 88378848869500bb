"""The software TEE: keys in ordinary memory, and a secure module in software under a throw-away root, for development.

The enclave image does not contain this package (`enclave_image/image.toml`): nothing in production could sign under a
root of its own making. Only `main` may import it, when the configuration asks for it, and the devnet.
"""
