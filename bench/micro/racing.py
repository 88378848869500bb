"""Who takes part in a comparison, and how one is timed with pytest-benchmark."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from pytest_benchmark.fixture import BenchmarkFixture

BATCH_ROUNDS: Final = 10


class Role(StrEnum):
    """What a timed function is in its comparison."""

    OURS = "ours"
    FLOOR = "floor"  # the raw primitive: what no wrapper can beat
    RIVAL = "rival"  # the best that can be done without Cython
    TWIN = "twin"  # tests/reference: written to be obvious
    OTHER = "other"  # for orientation


@dataclass(frozen=True, slots=True)
class Racer:
    """Times functions in one role; `parameters` are the test's own and end up beside the figure."""

    benchmark: BenchmarkFixture
    role: Role
    parameters: Mapping[str, str | int]

    def __call__(self, name: str, function: Callable[..., Any], *args: Any, per: int = 1) -> Any:
        """Time `function(*args)`, which does `per` operations, and return what it returned once."""
        self._describe(name, per)
        return self.benchmark(function, *args)

    def batch(
        self, name: str, prepare: Callable[[], tuple[Any, ...]], function: Callable[..., Any], per: int
    ) -> tuple[Any, ...]:
        """Time `function` of what `prepare` returns anew each time, for work that cannot be done twice.

        Returns what was prepared last, so that the test can look at what became of it.
        """
        self._describe(name, per)
        prepared: list[tuple[Any, ...]] = []

        def setup() -> tuple[tuple[Any, ...], dict[str, Any]]:
            prepared[:] = [prepare()]
            return prepared[0], {}

        self.benchmark.pedantic(function, setup=setup, rounds=BATCH_ROUNDS)
        return prepared[0]

    def _describe(self, name: str, per: int) -> None:
        self.benchmark.extra_info.update(
            name=name, role=self.role.value, parameters=dict(self.parameters), operations=per
        )
