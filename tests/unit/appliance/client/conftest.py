"""A bench without nodes for each test; the event loop is asyncio's."""

import pytest

from tests.support.client_bench import Bench


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def bench() -> Bench:
    return Bench()
