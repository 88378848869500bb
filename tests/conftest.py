"""What every test gets."""

import sys
from collections.abc import Iterator

import pytest

from tests.support.strict_log import strict_logging


@pytest.fixture(autouse=True)
def _careless_log_lines_fail(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.node.get_closest_marker("own_logging"):
        yield
        return
    with strict_logging():
        yield


@pytest.fixture(autouse=True)
def _recursion_is_bounded() -> None:
    # A library that web3 imports raises the limit for the whole process, so that deep recursion ends in a crash.
    sys.setrecursionlimit(1000)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
