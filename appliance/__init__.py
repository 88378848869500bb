"""The Nova KMS node, its client SDK and its commands: decides and carries what kmscore computes."""

__version__ = "0.1.0"
