"""Unix sockets in the place of vsock."""

from pathlib import Path

import pytest

from tests.support.unix_wires import UnixWires


@pytest.fixture
def wires(tmp_path: Path) -> UnixWires:
    return UnixWires(tmp_path)
