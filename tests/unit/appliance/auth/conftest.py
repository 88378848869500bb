"""The event loop is asyncio's, as in the node."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
