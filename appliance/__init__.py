"""The Nova KMS node, its client SDK and its commands: decides and carries what kmscore computes."""
