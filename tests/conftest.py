"""What every test gets."""

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


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
