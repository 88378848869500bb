"""The one error of the boot: a step that failed, in words for the console; nothing secret is ever in it."""


class BootError(Exception):
    """A step of the boot failed; the enclave powers off."""
