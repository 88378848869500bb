"""A Nitro enclave without the hardware: QEMU boots an image against a secure module and a vsock device of our own.

For development and tests only. Documents of this module are signed, under a root that lives as long as the process:
no verifier accepts them unless it is told to trust exactly that root.
"""
