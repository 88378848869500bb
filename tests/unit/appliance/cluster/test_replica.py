"""`Replica`: what peers send is checked, judged and merged in slices that clocks, values and apps all count in."""

from collections.abc import Awaitable, Callable

import anyio
import pytest

from appliance.cluster.replica import ENTRIES_OF_A_RECORD, RECORDS_PER_SLICE, IncomingRecords
from kmscore.errors import Rejected
from kmscore.message import read_message, take_records
from kmscore.store import Record
from tests.support.cluster_bench import APP_ID, Bench

pytestmark = pytest.mark.anyio

WRITERS = 1000
LONG_CLOCK = {f"writer {number}": 1 for number in range(WRITERS)}
PER_SLICE = RECORDS_PER_SLICE // (1 + WRITERS // ENTRIES_OF_A_RECORD)


@pytest.fixture(autouse=True)
def secret(bench: Bench) -> None:
    bench.hold_secret()


async def turns_during(work: Callable[[], Awaitable[object]]) -> int:
    """How often others get their turn meanwhile."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with anyio.create_task_group() as group:
        group.start_soon(others)
        await anyio.lowlevel.checkpoint()
        await work()
        group.cancel_scope.cancel()
    return turns


def tombstones(count: int, version: dict[str, int]) -> list[object]:
    return [Record(f"key {number}", None, version, 1) for number in range(count)]


@pytest.mark.parametrize(
    ("data", "least"),
    [
        ({str(app): [] for app in range(20_000)}, 190),
        ({str(app): tombstones(1, {"w": 1}) for app in range(1_000)}, 11),
        ({str(APP_ID): tombstones(200, LONG_CLOCK)}, 40),
        ({str(app): tombstones(1, LONG_CLOCK) for app in range(200)}, 45),
        ({str(app): [{"value": None}] for app in range(400)}, 9),
    ],
    ids=["empty apps", "apps", "clocks", "apps with clocks", "what is no record"],
)
async def test_incoming_records_are_checked_in_slices(bench: Bench, data: dict[str, object], least: int) -> None:
    turns = await turns_during(lambda: bench.replica.check_incoming(data))
    assert least <= turns <= 1.3 * least


async def test_values_of_many_apps_count_together(bench: Bench) -> None:
    data: dict[str, object] = {
        str(app): [Record("k", bench.replica.encrypt(app, bytes(100_000)), {"w": 1}, 1)] for app in range(30)
    }
    assert await turns_during(lambda: bench.replica.check_incoming(data)) == 10


@pytest.mark.parametrize("apps", [1, 40])
async def test_a_slice_that_is_merged_counts_clocks(bench: Bench, apps: int) -> None:
    records = tombstones(40 // apps, LONG_CLOCK)

    async def incoming() -> IncomingRecords:
        return await bench.replica.check_incoming({str(app): list(records) for app in range(apps)})

    slices = [list(part.each()) for part in (await incoming()).slices()]
    assert sum(map(len, slices)) == 40
    assert max(map(len, slices)) <= PER_SLICE + 2
    arrived = await incoming()
    assert await turns_during(lambda: bench.replica.evaluate(arrived)) == len(slices) - 1
    assert await turns_during(lambda: bench.replica.take_in(arrived, "peer")) == len(slices) - 1


async def test_short_clocks_cost_nothing_beside_their_records(bench: Bench) -> None:
    incoming = await bench.replica.check_incoming(
        {str(app): tombstones(1, {"a": 1, "b": 1, "c": 1}) for app in range(RECORDS_PER_SLICE)}
    )
    assert len(list(incoming.slices())) == 1


async def test_more_apps_than_a_message_may_have_are_refused(bench: Bench) -> None:
    with pytest.raises(Rejected):
        await bench.replica.check_incoming({str(app): [] for app in range(20_001)})


async def test_records_with_the_longest_clock_pass_through_a_message(bench: Bench) -> None:
    record = Record("key", None, {str(number).rjust(128): 1 for number in range(1024)}, 1)
    *_, inner = read_message(b'{"data":{"7":[%b]}}' % take_records([record], 1 << 20))
    assert inner is not None
    incoming = await bench.replica.check_incoming(inner["data"])
    assert list(incoming.each()) == [(7, record)]
