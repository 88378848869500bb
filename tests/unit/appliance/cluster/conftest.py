"""One node's cluster side on a bench."""

from collections.abc import AsyncIterator

import pytest

from tests.support.cluster_bench import Bench


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.aclose()
