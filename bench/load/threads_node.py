"""A node that does its envelopes elsewhere than usual: `appliance serve` with its own limit for worker threads.

BENCH_INLINE_BYTES is the size up to which envelopes are sealed and opened in the event loop. Everything else is the
node's own.
"""

import os

import anyio

from appliance.hardening import LinuxCalls, harden_process, raise_descriptor_limit
from appliance.log import configure_logging, install_exception_hooks
from appliance.main import serve
from appliance.settings import Settings
from appliance.tee import local

INLINE_VARIABLE = "BENCH_INLINE_BYTES"


def main() -> None:
    settings = Settings.from_environ(os.environ)
    configure_logging(settings.log_level, settings.log_format)
    install_exception_hooks()
    harden_process(LinuxCalls(), lock_memory=settings.in_enclave)
    raise_descriptor_limit()
    local.INLINE_BYTES = int(os.environ[INLINE_VARIABLE])
    anyio.run(serve, settings, backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main()
