"""Clusters for the tests of this directory; a failed test prints the logs of its nodes."""

from collections.abc import Generator, Iterator

import pytest

from tests.support.cluster import Cluster
from tests.support.scene import Scene


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A chain of its own and no nodes yet."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """One node of ours that serves, shared by the tests of a module."""
    with Cluster(tmp_path_factory.mktemp("scene")) as cluster:
        yield Scene(cluster)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for fixture in getattr(item, "funcargs", {}).values():
            cluster = fixture if isinstance(fixture, Cluster) else getattr(fixture, "cluster", None)
            if isinstance(cluster, Cluster):
                report.sections.extend((f"log of {name}", text) for name, text in cluster.logs())
    return report
