"""Admission: who may do what, in the order of checks of the protocol."""
