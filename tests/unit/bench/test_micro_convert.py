"""From pytest-benchmark's report to figures, curves and checks."""

from pathlib import Path

import pytest

import kmscore
from bench.micro.checks import EXTENSIONS, MERGE, POP, READ, SIGNATURE, WRITTEN, checks_of
from bench.micro.convert import Measurement, curves_of, figures_of, read_measurements
from bench.micro.racing import Role


def run(name, role, turn, median_s, operations=1, group="race", **parameters):
    """One entry of a `--benchmark-json` report, with what is read of it."""
    about = {"name": name, "role": role, "parameters": parameters, "operations": operations}
    return {"group": group, "params": {"_turn": turn, **parameters}, "extra_info": about, "stats": {"median": median_s}}


def measurement(group, name, role, *turns, **parameters):
    return Measurement(group, name, role, parameters, turns)


def test_the_turns_of_one_function_become_one_measurement_in_the_order_of_the_turns():
    report = {
        "benchmarks": [
            run("ours", "ours", 1, 3e-6, size=8),
            run("ours", "ours", 0, 1e-6, size=8),
            run("ours", "ours", 2, 2e-6, size=8),
            run("ours", "ours", 0, 9e-6, size=64),
        ]
    }
    small, large = read_measurements(report)
    assert small.turns == pytest.approx((1.0, 3.0, 2.0))
    assert small.microseconds == pytest.approx(2.0)
    assert (large.parameters, large.role) == ({"size": 64}, Role.OURS)


def test_a_time_is_divided_by_the_operations_it_covers():
    (found,) = read_measurements({"benchmarks": [run("ours", "ours", 0, 5e-4, operations=500)]})
    assert found.microseconds == pytest.approx(1.0)


def test_a_ratio_is_taken_turn_by_turn_so_that_a_slow_turn_of_the_machine_does_not_count():
    ours = measurement("race", "ours", Role.OURS, 1.2, 12.0, 1.2)
    floor = measurement("race", "floor", Role.FLOOR, 1.0, 10.0, 10.0)
    assert ours.over(floor) == pytest.approx(1.2)


def test_a_ratio_between_different_numbers_of_turns_is_refused():
    with pytest.raises(ValueError, match="zip"):
        measurement("race", "a", Role.OURS, 1.0).over(measurement("race", "b", Role.FLOOR, 1.0, 2.0))


def test_ours_is_shown_beside_the_fastest_floor_with_the_same_parameters():
    figures = figures_of(
        [
            measurement("race", "kmscore", Role.OURS, 3.0, size=8),
            measurement("race", "raw", Role.FLOOR, 2.0, size=8),
            measurement("race", "rawer", Role.FLOOR, 1.5, size=8),
            measurement("race", "raw", Role.FLOOR, 0.1, size=64),
            measurement("other race", "raw", Role.FLOOR, 0.1, size=8),
        ]
    )
    (ratio,) = [figure for figure in figures if figure.unit == "×"]
    assert (ratio.name, ratio.value, ratio.parameters) == ("kmscore ÷ floor", pytest.approx(2.0), {"size": 8})
    assert len(figures) == 6


def test_a_group_with_three_sizes_is_drawn_and_the_twin_is_not_on_the_plot():
    sizes = (64, 1, 8)
    (curves,) = curves_of(
        [measurement("race", "kmscore", Role.OURS, float(size), size=size) for size in sizes]
        + [measurement("race", "rival", Role.RIVAL, 2.0 * size, size=size) for size in sizes]
        + [measurement("race", "twin", Role.TWIN, 900.0, size=size) for size in sizes]
        + [measurement("small race", "kmscore", Role.OURS, 1.0, size=size) for size in (1, 8)]
    )
    assert curves.lines == {"kmscore": [(1, 1), (8, 8), (64, 64)], "rival": [(1, 2), (8, 16), (64, 128)]}


def test_groups_where_kmscore_is_alone_share_a_plot_that_begins_at_zero():
    (curves,) = curves_of(
        measurement(group, "kmscore", Role.OURS, 1.0, stored_records=size)
        for group in ("get", "put")
        for size in (10, 100, 1000)
    )
    assert (curves.title, list(curves.lines), curves.log_y) == ("kmscore by stored records", ["get", "put"], False)


# --- checks ---


def everything(**changed):
    """A measurement of all that the checks look at: ours takes 1 µs, floors 0.9, rivals 3, twins 30.

    `changed` replaces times by name.
    """
    times = {"ours": 1.0, "floor": 0.9, "rival": 3.0, "twin": 30.0, **changed}

    def race(group, **parameters):
        return [
            measurement(group, "kmscore", Role.OURS, times["ours"], **parameters),
            measurement(group, "raw", Role.FLOOR, times["floor"], **parameters),
            measurement(group, "some rival", Role.RIVAL, times["rival"], **parameters),
            measurement(group, "json and hmac", Role.RIVAL, times["rival"], **parameters),
            measurement(group, "eth_account with coincurve", Role.RIVAL, times["rival"], **parameters),
            measurement(group, "Python twin", Role.TWIN, times["twin"], **parameters),
        ]

    found = [*race(POP), *race(SIGNATURE)]
    for group in (READ, WRITTEN):
        found += [*race(group, ciphertext_bytes=64), *race(group, ciphertext_bytes=199_850)]
    found += [*race(MERGE, batch=1, entries=3), *race(MERGE, batch=500, entries=3)]
    found += [*race("Keccak-256", data_bytes=64)]
    covered = {POP, SIGNATURE, READ, WRITTEN, MERGE, "Keccak-256"}
    for groups, _ in EXTENSIONS.values():
        for group in groups:
            if group not in covered:
                found += race(group)
    return found


def test_every_extension_but_that_for_secrets_has_to_beat_what_needs_no_cython():
    built = {path.stem for path in Path(kmscore.__file__).parent.glob("_*.pyx")}
    assert built - set(EXTENSIONS) == {"_secret"}


def by_name(measurements):
    return {check.name: check for check in checks_of(measurements)}


def test_every_limit_of_the_hot_paths_and_every_extension_is_checked():
    checks = by_name(everything(ours=0.5, floor=0.45))
    assert all(check.passed for check in checks.values())
    assert {name for name in checks if name.endswith(" stays")} == {f"{name} stays" for name in EXTENSIONS}
    assert len(checks) == 6 + len(EXTENSIONS)
    assert [name for name, check in checks.items() if not check.same_run] == ["merge of prepared records"]


@pytest.mark.parametrize(
    ("name", "changed", "value"),
    [
        ("PoP check beside raw recover", {"floor": 0.8}, 1.25),
        ("PoP check beside eth_account", {"rival": 2.4}, 2.4),
        ("canonical form and HMAC of 400 KB beside HMAC", {"floor": 0.5}, 2.0),
        ("canonical form and HMAC beside json and hmac", {"rival": 0.8}, 1.25),
        ("merge of prepared records", {"ours": 2.0}, 0.5),
        ("merge beside the twin", {"twin": 19.0}, 19.0),
        *((f"{extension} stays", {"rival": 0.9}, 0.9) for extension in EXTENSIONS),
    ],
)
def test_a_figure_beyond_its_limit_fails_its_check(name, changed, value):
    check = by_name(everything(**changed))[name]
    assert check.value == pytest.approx(value)
    assert not check.passed


def test_the_worst_size_decides_about_an_extension():
    slow = [
        measurement("Keccak-256", "kmscore", Role.OURS, 4.0, data_bytes=1024),
        measurement("Keccak-256", "pycryptodome", Role.RIVAL, 3.0, data_bytes=1024),
    ]
    unused = [
        measurement("Keccak-256", "kmscore", Role.OURS, 9.0, data_bytes=1 << 20),
        measurement("Keccak-256", "pycryptodome", Role.RIVAL, 3.0, data_bytes=1 << 20),
    ]
    assert by_name(everything() + unused)["_keccak stays"].value == pytest.approx(3.0)
    assert by_name(everything() + slow)["_keccak stays"].value == pytest.approx(0.75)


def test_a_missing_measurement_is_an_error_and_not_a_passed_check():
    without = [m for m in everything() if m.group != POP]
    with pytest.raises(KeyError, match="nothing was measured for PoP check"):
        checks_of(without)
