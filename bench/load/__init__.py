"""Load on a real node: `python -m bench.load --help`.

A node process (`python -m appliance serve`) on loopback, a private chain, client processes that are cheap enough not to
be the bottleneck and say when they were, and beside every figure the floor: the same HTTP server with nothing in it
plus the bare primitives, measured in the same run. No traffic leaves loopback; every load is bounded in count and time.
"""
