"""A client process: jobs come as lines on standard input, outcomes leave as lines on standard output.

For each job: a line with the job; `ready` when connections are open and everything is warm; `go`; a line with the
outcome, or with `error` and one sentence.
"""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Sequence
from functools import partial

import uvloop

from appliance.cli.errors import first_error
from bench.load.callers import (
    GET_KEY,
    KEYS_PER_CALLER,
    AppUser,
    derive_call,
    get_call,
    put_call,
)
from bench.load.http import Connection, LoadError
from bench.load.jobs import Job, Outcome, Work
from bench.load.loops import Operation, closed_loop, once_each, open_loop
from bench.load.peers import RECORDS_PER_DELTA, PeerUser
from kmscore.errors import KmsError

WARM_UP_ROUNDS = 3
PEER_WORKS = (Work.DELTA, Work.SNAPSHOT_PAGES, Work.SNAPSHOT_WHOLE)
# Far from the numbers that a store is filled with.
DELTA_RECORDS_FROM = 50_000_000


class Prepared:
    """A job with its connections open."""

    def __init__(self, job: Job, connections: Sequence[Connection], operations: Sequence[Operation]) -> None:
        self._job = job
        self._connections = connections
        self._operations = operations

    @classmethod
    async def open(cls, job: Job) -> "Prepared":
        """Raises `LoadError`, OSError, or what a refused answer means."""
        connections = [await Connection.open("127.0.0.1", job.node.port) for _ in range(job.connections)]
        if job.once:
            # All on one connection, one after the other: what is measured is the server's first sight of each caller.
            users = [AppUser(keys, job.node, connections[0], next_nonce=False) for keys in job.callers]
            return cls(job, connections, [partial(user.call, derive_call()) for user in users])
        operations = [await _operation(job, number, connection) for number, connection in enumerate(connections)]
        for _ in range(1 if job.work in PEER_WORKS else WARM_UP_ROUNDS):
            for operation in operations:
                await operation()
        return cls(job, connections, operations)

    async def run(self) -> Outcome:
        job = self._job
        cpu_s, begun = time.process_time(), time.perf_counter()
        if job.once:
            measured = await once_each(self._operations)
        elif job.rate_per_s is None:
            measured = await closed_loop(self._operations, job.duration_s)
        else:
            measured = await open_loop(self._operations, job.rate_per_s, job.duration_s, job.seed)
        cpu_s, elapsed_s = time.process_time() - cpu_s, time.perf_counter() - begun
        for connection in self._connections:
            connection.close()
        return Outcome(elapsed_s, cpu_s, measured.due_us, measured.latencies_us, measured.overdue)


async def _operation(job: Job, number: int, connection: Connection) -> Operation:
    """What the connection of this number does over and over."""
    if job.work is Work.RAW:
        requests = [bytes.fromhex(request) for request in job.raw]
        return partial(_send_each, connection, requests)
    if job.work in PEER_WORKS:
        peer = PeerUser(job.callers[0], job.node, connection)
        await peer.join()
        return _peer_operation(job, peer, number)
    user = AppUser(job.callers[number % len(job.callers)], job.node, connection, next_nonce=job.next_nonce)
    match job.work:
        case Work.DERIVE:
            return partial(user.call, derive_call())
        case Work.GET:
            await user.call(put_call(GET_KEY))
            return partial(user.call, get_call())
        case _:
            calls = itertools.cycle([put_call(f"bench-{number}-{key}") for key in range(KEYS_PER_CALLER)])
            return lambda: user.call(next(calls))


def _peer_operation(job: Job, peer: PeerUser, number: int) -> Operation:
    if job.work is Work.DELTA:
        # Each connection has its own records: what one of them sends is newer only than what it sent before.
        first = DELTA_RECORDS_FROM + number * RECORDS_PER_DELTA
        return partial(peer.push, range(first, first + RECORDS_PER_DELTA))
    pull = peer.pull_pages if job.work is Work.SNAPSHOT_PAGES else peer.pull_whole

    async def read_snapshot() -> None:
        count = await pull()
        if count < job.records:
            raise LoadError(f"a snapshot held {count} records and not {job.records}")

    return read_snapshot


async def _send_each(connection: Connection, requests: Sequence[bytes]) -> None:
    for request in requests:
        answer = await connection.request(request)
        if answer.status != 200:
            raise LoadError(f"the server answered {answer.status}")


def main() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for line in sys.stdin:
            try:
                prepared = runner.run(Prepared.open(Job.from_line(line)))
                print("ready", flush=True)
                sys.stdin.readline()
                print(runner.run(prepared.run()).to_line(), flush=True)
            except* (LoadError, KmsError, OSError) as failures:
                print(json.dumps({"error": str(first_error(failures))}), flush=True)


if __name__ == "__main__":
    main()
