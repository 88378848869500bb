"""Peers and replication: who they are, how they are spoken to, and what is kept in step."""
