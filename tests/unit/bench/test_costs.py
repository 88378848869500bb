"""How the model's costs travel in result files."""

import dataclasses
import json
from pathlib import Path

import pytest

from bench.results import Figure, Results
from bench.scale.costs import GROUP, Costs
from bench.scale.predictions import compare
from kmscore.errors import ConfigError

COSTS = Costs(**{entry.name: 0.001 * number for number, entry in enumerate(dataclasses.fields(Costs), start=1)})


def test_costs_come_back_from_a_file_among_other_figures(tmp_path: Path) -> None:
    other = Figure("nodes", "send_message_s", 5.0, "s")
    path = Results(part="scale", figures=[other, *COSTS.figures()]).save(tmp_path)
    assert Costs.from_figures(Results.load(path).figures) == COSTS


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("absent", None),
        ("zero", 0.0),
        ("negative", -1.0),
        ("infinite", float("inf")),
        ("no number", "1"),
        ("true", True),
    ],
)
def test_costs_that_cannot_be_used_are_refused_by_name(what: str, value: object) -> None:
    figures = [figure for figure in COSTS.figures() if figure.name != "ask_s"]
    if value is not None:
        figures.append(Figure(GROUP, "ask_s", value, "s"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="ask_s"):
        Costs.from_figures(figures)


def test_the_model_is_held_to_each_measured_size_and_to_nothing_that_was_not_measured() -> None:
    measured = [Figure("nodes", "convergence, mean", 0.5, "s", {"nodes": nodes}) for nodes in (2, 3)]
    figures, checks = compare(COSTS, measured, cores=2, seed=1)
    assert [figure.parameters["nodes"] for figure in figures] == [2, 3]
    assert [check.name for check in checks] == ["model against measured clusters: convergence, mean"]
    assert compare(COSTS, [], cores=2, seed=1) == ([], [])


def test_a_measurement_far_from_the_model_fails_the_check_on_either_side() -> None:
    for seconds in (0.01, 50.0):
        _, (check,) = compare(
            COSTS, [Figure("nodes", "convergence, mean", seconds, "s", {"nodes": 2})], cores=2, seed=1
        )
        assert not check.passed


def test_figures_are_plain_numbers_with_units() -> None:
    assert json.dumps([dataclasses.asdict(figure) for figure in COSTS.figures()])
    assert {figure.unit for figure in COSTS.figures()} == {"s", "B"}


def test_the_cost_of_a_write_is_compared_where_it_is_passed_on_and_predicted_everywhere() -> None:
    name = "CPU of a write, all nodes"
    measured = [Figure("nodes", name, 1e9, "ms", {"nodes": 2}), Figure("nodes", name, 50.0, "ms", {"nodes": 3})]
    figures, (check,) = compare(COSTS, measured, cores=2, seed=1)
    assert [figure.parameters["nodes"] for figure in figures] == [2, 3]
    assert "the worst of 1 sizes" in check.meaning
    assert check.value < 1e3
