"""A node that does its envelopes elsewhere than usual: `appliance serve` with its own limit for worker threads.

BENCH_INLINE_BYTES is the size up to which envelopes are sealed and opened in the event loop. Everything else is the
node's own.
"""

import os

import anyio

from appliance.main import serve
from appliance.tee import local
from bench.load.node import prepare

INLINE_VARIABLE = "BENCH_INLINE_BYTES"


def main() -> None:
    settings = prepare()
    local.INLINE_BYTES = int(os.environ[INLINE_VARIABLE])
    anyio.run(serve, settings, backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main()
