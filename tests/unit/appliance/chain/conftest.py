"""The event loop of these tests is asyncio's, which web3's provider needs."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
