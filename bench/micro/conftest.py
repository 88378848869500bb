"""The racers, and the order of the race: all that is compared with each other takes turns."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.micro.convert import TURN
from bench.micro.racing import Racer, Role


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--turns", type=int, default=1, metavar="N", help="measure everything so often, taking turns")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: a size that the quick form leaves out")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize(TURN, range(metafunc.config.getoption("--turns")), indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One group after the other; within one, everybody's first turn, then everybody's second.

    Those who do the same with the same parameters follow one another, so that they meet the machine in the same state.
    """
    groups: dict[str, int] = {}
    rounds: dict[str, int] = {}

    def place(item: pytest.Item) -> tuple[int, int, int]:
        group = item.get_closest_marker("benchmark").kwargs["group"]
        parameters = f"{group} {parameters_of(item)}"
        return (
            groups.setdefault(group, len(groups)),
            item.callspec.params[TURN],
            rounds.setdefault(parameters, len(rounds)),
        )

    items.sort(key=place)


def parameters_of(item: pytest.Item) -> dict[str, str | int]:
    return {name: value for name, value in sorted(item.callspec.params.items()) if name != TURN}


@pytest.fixture(autouse=True)
def _turn(request: pytest.FixtureRequest) -> int:
    return request.param


def _racer(role: Role):
    @pytest.fixture(name=role.value)
    def racer(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Racer:
        return Racer(benchmark, role, parameters_of(request.node))

    return racer


ours, floor, rival, twin, other = (_racer(role) for role in Role)
