"""A reactor that tests step by hand."""

from collections.abc import Iterator

import pytest

from appliance.devnet.emulator.reactor import Reactor


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    reactor = Reactor()
    yield reactor
    reactor.close()
