"""The first process of the enclave (enclave §2): standard library and system calls only, copied into the base ramdisk.

Imports inside this package are relative, because it has another name in the image than in the checkout.
"""
