"""The on-chain registries: contracts, their artifacts, and the adapters that read and write them."""
