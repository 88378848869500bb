"""A node whose event loop is watched: `appliance serve` with the same environment, on a loop that times every step.

What was found is written as JSON to the file that BENCH_STALLS_FILE names when the node stops. The loop is asyncio's
own (see `stalls`), everything that runs on it is the node's.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

import anyio

from appliance.hardening import LinuxCalls, harden_process, raise_descriptor_limit
from appliance.log import configure_logging, install_exception_hooks
from appliance.main import serve
from appliance.settings import Settings
from bench.load.stalls import StallWatcher

FILE_VARIABLE = "BENCH_STALLS_FILE"


def prepare() -> Settings:
    """What `appliance serve` does before its event loop starts."""
    settings = Settings.from_environ(os.environ)
    configure_logging(settings.log_level, settings.log_format)
    install_exception_hooks()
    harden_process(LinuxCalls(), lock_memory=settings.in_enclave)
    raise_descriptor_limit()
    return settings


def main() -> None:
    settings = prepare()
    watcher = StallWatcher()
    anyio.run(serve, settings, backend_options={"loop_factory": watcher.new_loop})
    found = json.dumps([asdict(stall) for stall in watcher.stop()])
    Path(os.environ[FILE_VARIABLE]).write_text(found, encoding="utf-8")


if __name__ == "__main__":
    main()
