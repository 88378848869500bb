"""What every test gets."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.strict_log import strict_logging


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--attestation-documents",
        dest="attestation_documents",
        type=Path,
        metavar="DIR",
        help="real attestation documents of AWS to verify: ev_beta.bin, ev_debug.bin, marlin.bin, base_indefinite.bin",
    )


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
