"""The parent's side of an enclave (enclave §2): starts it, forwards to it and from it, stops all of it together.

None of this is trusted by the enclave: what is here can make a node unreachable, not unsafe.
"""
