"""`python -m enclave_image`: the same as `nova-kms image`."""

from enclave_image.cli import image

image(prog_name="python -m enclave_image")
