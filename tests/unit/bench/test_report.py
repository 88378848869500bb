"""The report: what it says, what got slower, and that it is safe to open."""

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from click.testing import CliRunner

from bench import report as command
from bench.reporting.baseline import baseline_path, compare, save_baseline
from bench.reporting.machine import Machine, read_machine
from bench.reporting.markdown import render_markdown
from bench.reporting.page import render_page
from bench.reporting.report import Report, in_order, load_parts
from bench.reporting.tables import figure_tables
from bench.results import Check, Curves, Figure, Results, Sense

MACHINE = Machine(
    cpu="AMD EPYC(TM) 7R13 Processor @ 2.6GHz",
    cores=2,
    kernel="6.1.0",
    python="3.11.2",
    openssl="OpenSSL 3.0.19",
    libcrypto="3.0.19",
    libsecp256k1="0.2.0",
    cython="3.3.1",
    revision="0123456789ab",
    load_average=0.25,
)
RATIO = Check("beside the floor", 1.1, Sense.AT_MOST, 1.2, "×", "ours ÷ floor", same_run=True)
RATE = Check("merges", 3.0, Sense.AT_LEAST, 1.5, "million/s", "on one core", same_run=False)
TIME = Figure("merge", "kmscore", 0.3, "µs", {"batch": 500})
MICRO = Results(
    "micro",
    figures=[TIME, Figure("merge", "kmscore ÷ floor", 4.0, "×", {"batch": 500})],
    checks=[RATIO, RATE],
    curves=[Curves("merge by batch", "records", "µs", {"kmscore": [(1, 0.5), (500, 0.3)]}, log_x=True)],
    notes=["Times are medians."],
)
EVIL = "<script>alert('&')</script>"


def changed(part, **values):
    """The part with other values for checks and figures of these names."""
    by_name = {name.replace("_", " "): value for name, value in values.items()}
    return replace(
        part,
        checks=[replace(check, value=by_name.get(check.name, check.value)) for check in part.checks],
        figures=[replace(figure, value=by_name.get(figure.name, figure.value)) for figure in part.figures],
    )


def report_of(*parts, comparison=None):
    return Report(MACHINE, parts, comparison)


# --- what it says ---


def test_page_and_markdown_hold_every_check_figure_and_note():
    report = report_of(MICRO)
    page, text = render_page(report), render_markdown(report)
    for said in (RATIO.name, RATIO.meaning, RATE.name, "at least 1.5 million/s", "Times are medians.", "0.300"):
        assert said in page
        assert said in text
    for name, value in report.fingerprint():
        assert name in page
        assert value in text


def test_the_verdict_names_what_failed_and_failures_come_first():
    report = report_of(replace(MICRO, checks=[RATE, replace(RATIO, value=1.3)]))
    assert report.verdict() == "1 of 2 checks are beyond their limits: beside the floor."
    assert [row.check.name for row in report.checks] == ["beside the floor", "merges"]
    assert 'class="verdict bad"' in render_page(report)
    assert "**FAIL**" in render_markdown(report)


def test_when_nothing_failed_the_report_says_so_and_names_parts_that_did_not_run():
    report = report_of(MICRO)
    assert report.verdict() == "All 2 checks are within their limits."
    assert report.missing_parts() == "Not measured in this run: load, scale."


def test_parts_come_in_the_order_in_which_they_run():
    names = [part.part for part in in_order(Results(name) for name in ("zebra", "scale", "load", "micro"))]
    assert names == ["micro", "load", "scale", "zebra"]


def test_every_text_from_the_results_is_escaped():
    part = Results(
        EVIL,
        figures=[Figure(EVIL, EVIL, 1.0, EVIL, {EVIL: EVIL})],
        checks=[Check(EVIL, 1.0, Sense.AT_MOST, 2.0, EVIL, EVIL, same_run=True)],
        curves=[Curves(EVIL, EVIL, EVIL, {EVIL: [(1.0, 1.0), (2.0, 2.0)]})],
        notes=[EVIL],
    )
    report = Report(replace(MACHINE, cpu=EVIL, revision=EVIL), [part], None)
    page = render_page(report)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<script" not in render_markdown(report)


def test_the_page_needs_nothing_but_itself():
    page = render_page(report_of(MICRO))
    assert not re.search(r"<(script|link|img|iframe)|@import|url\(|https?://", page)


def test_markdown_tables_survive_a_bar_in_a_cell():
    text = render_markdown(report_of(Results("micro", figures=[Figure("a group", "this|that", 1.0, "µs")])))
    assert "this\\|that" in text


def test_figures_that_share_parameters_are_one_row():
    (table,) = figure_tables(
        [
            Figure("merge", "kmscore", 0.3, "µs", {"batch_size": 1}),
            Figure("merge", "twin", 13.0, "µs", {"batch_size": 1}),
            Figure("merge", "kmscore", 1234.5, "µs", {"batch_size": 500}),
        ]
    )
    assert table.headers == ("batch size", "kmscore, µs", "twin, µs")
    assert table.rows == [("1", "0.300", "13.0"), ("500", "1,234", "–")]


def test_figures_without_parameters_are_a_row_each_with_their_unit():
    (table,) = figure_tables([Figure("idle", "CPU", 0.31, "%"), Figure("idle", "resident", 96.2, "MB")])
    assert table.rows == [("CPU", "0.310 %"), ("resident", "96.2 MB")]


# --- plots ---


@pytest.mark.parametrize(
    "curves",
    [
        Curves("both logarithmic", "x", "y", {"a": [(1, 0.001), (1e6, 900.0)]}, log_x=True, log_y=True),
        Curves("one point", "x", "y", {"a": [(5, 5)]}, log_x=True, log_y=True),
        Curves("zero on a logarithmic axis", "x", "y", {"a": [(0, 0), (3, 4)]}, log_x=True, log_y=True),
        Curves("a flat line", "x", "y", {"a": [(1, 2), (2, 2)]}),
        Curves("nothing but zeros", "x", "y", {"a": [(0, 0), (1, 0)]}),
        Curves("below zero", "x", "y", {"a": [(-3, -2), (4, 7)]}),
        Curves("more lines than colours", "x", "y", {f"line {n}": [(1, n), (2, n + 1)] for n in range(11)}),
    ],
    ids=lambda curves: curves.title,
)
def test_every_point_of_a_plot_lies_inside_its_axes(curves):
    page = render_page(report_of(Results("micro", curves=[curves])))
    svg = ET.fromstring(re.search("<svg.*</svg>", page)[0])  # noqa: S314 - our own output
    points = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in svg.iter("circle")]
    ticks = [text for text in svg.iter("text") if text.get("class") == "tick"]
    assert len(points) == sum(len(line) for line in curves.lines.values())
    assert all(62 <= x <= 624 and 14 <= y <= 294 for x, y in points)
    assert 4 <= len(ticks) <= 24


@pytest.mark.parametrize(("label", "rows"), [("short", 2), ("a label that would not fit half of the width", 4)])
def test_a_legend_with_a_long_label_has_one_column_and_room_for_every_row(label, rows):
    lines = {f"{label} {number}": [(1.0, 1.0), (2.0, 2.0)] for number in range(4)}
    page = render_page(report_of(Results("micro", curves=[Curves("legend", "x", "y", lines)])))
    svg = ET.fromstring(re.search("<svg.*</svg>", page)[0])  # noqa: S314 - our own output
    heights = [float(text.get("y")) for text in svg.iter("text") if text.get("class") == "key"]
    assert len(heights) == 4
    assert len(set(heights)) == rows
    assert max(heights) < float(svg.get("viewBox").split()[3])


def test_a_plot_without_points_is_left_out():
    assert "<svg" not in render_page(report_of(Results("micro", curves=[Curves("empty", "x", "y", {})])))


# --- the baseline ---


@pytest.fixture
def baseline(tmp_path):
    """A directory that holds the baseline of MACHINE: MICRO."""
    save_baseline(MACHINE, [MICRO], tmp_path)
    return tmp_path


def test_machines_of_one_kind_share_a_baseline_whatever_their_kernel_and_load():
    other = replace(MACHINE, kernel="6.12", load_average=9.0, revision="ffff", python="3.11.9")
    assert MACHINE.kind == other.kind == "amd-epyc-7r13-2-cores-python-3.11"
    assert replace(MACHINE, cores=8).kind != MACHINE.kind
    assert replace(MACHINE, python="3.12.1").kind != MACHINE.kind


def test_without_a_baseline_of_this_kind_the_report_says_how_to_make_one(tmp_path):
    assert compare(MACHINE, [MICRO], tmp_path) is None
    trend = report_of(MICRO).trend()
    assert str(baseline_path(MACHINE)) in trend
    assert "python -m bench.report --save-baseline" in trend


def test_a_run_like_its_baseline_has_no_changes(baseline):
    found = compare(MACHINE, [MICRO], baseline)
    report = report_of(MICRO, comparison=found)
    assert report.changes() == []
    assert report.trend() == (
        "Beside the baseline of revision 0123456789ab (4 figures in common) no ratio got worse by more than 10%."
    )


def test_a_ratio_that_got_worse_is_named_with_how_much(baseline):
    now = changed(MICRO, **{"beside the floor": 1.32})
    report = report_of(now, comparison=compare(MACHINE, [now], baseline))
    assert "these ratios got worse: micro: beside the floor by 20%." in report.trend()
    for rendered in (render_page(report), render_markdown(report)):
        assert "Ratios that got worse" in rendered
        assert "1.20 ×" in rendered


def test_ratios_among_the_figures_count_as_ratios(baseline):
    now = changed(MICRO, **{"kmscore ÷ floor": 5.0})
    (change,) = compare(MACHINE, [now], baseline).slower
    assert (change.name, change.worse) == ("micro: merge: kmscore ÷ floor (batch 500)", pytest.approx(1.25))


def test_a_time_is_pointed_out_only_when_it_is_far_off_and_never_as_a_ratio(baseline):
    near = compare(MACHINE, [changed(MICRO, kmscore=0.36)], baseline)
    far = compare(MACHINE, [changed(MICRO, kmscore=0.45)], baseline)
    assert (near.slower, near.absolute_slower, far.slower) == ([], [], [])
    assert [change.name for change in far.absolute_slower] == ["micro: merge: kmscore (batch 500)"]


def test_a_lower_rate_is_worse_and_a_higher_one_better(baseline):
    lower = compare(MACHINE, [changed(MICRO, merges=1.5)], baseline)
    higher = compare(MACHINE, [changed(MICRO, merges=6.0)], baseline)
    assert [change.worse for change in lower.absolute_slower] == pytest.approx([2.0])
    assert [change.worse for change in higher.absolute_faster] == pytest.approx([0.5])


def test_a_value_that_was_zero_and_is_not_any_more_is_infinitely_worse(tmp_path):
    save_baseline(MACHINE, [changed(MICRO, **{"beside the floor": 0.0})], tmp_path)
    found = compare(MACHINE, [MICRO], tmp_path)
    assert found.slower[0].worse == float("inf")
    assert "Ratios that got worse" in render_page(report_of(MICRO, comparison=found))


def test_what_only_one_of_the_two_has_is_not_compared(baseline):
    other = Results("load", figures=[Figure("derive", "p99", 2.0, "ms")])
    assert compare(MACHINE, [other], baseline).compared == 0


# --- the command ---


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """An empty directory to run the command in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_writes_both_forms_and_sums_up(checkout):
    MICRO.save()
    done = CliRunner().invoke(command.main, [])
    assert done.exit_code == 0, done.output
    assert "All 2 checks are within their limits." in done.output
    assert (checkout / "bench/report/index.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert (checkout / "bench/report/report.md").read_text(encoding="utf-8").startswith("# Nova KMS")


@pytest.mark.parametrize(
    ("check", "options", "exit_code"),
    [
        (replace(RATIO, value=9.0), ["--fail-on-ratios"], 1),
        (replace(RATIO, value=9.0), [], 0),
        (replace(RATE, value=0.1), ["--fail-on-ratios"], 0),
        (RATIO, ["--fail-on-ratios"], 0),
    ],
    ids=["a failed ratio", "a failed ratio, not asked", "a failed absolute figure", "nothing failed"],
)
def test_only_a_failed_ratio_within_a_run_fails_the_command_and_only_when_asked(checkout, check, options, exit_code):
    replace(MICRO, checks=[check]).save()
    done = CliRunner().invoke(command.main, options)
    assert done.exit_code == exit_code, done.output
    assert (checkout / "bench/report/index.html").exists()


def test_a_saved_baseline_is_compared_with_next_time(checkout):
    MICRO.save()
    assert "There is no baseline" in CliRunner().invoke(command.main, []).output
    CliRunner().invoke(command.main, ["--save-baseline"])
    changed(MICRO, **{"beside the floor": 1.19}).save()
    assert "no ratio got worse" in CliRunner().invoke(command.main, []).output
    changed(MICRO, **{"beside the floor": 1.9}).save()
    assert "beside the floor by 73%" in CliRunner().invoke(command.main, []).output


def test_beginning_a_run_forgets_earlier_results_and_keeps_the_load_the_machine_had(checkout, monkeypatch):
    MICRO.save()
    monkeypatch.setattr(command, "read_machine", lambda: MACHINE)
    CliRunner().invoke(command.main, ["--begin"])
    monkeypatch.setattr(command, "read_machine", lambda: replace(MACHINE, load_average=2.0))
    assert load_parts() == []
    assert command.machine_of_run() == MACHINE


def test_without_results_the_command_says_what_to_run(checkout):
    done = CliRunner().invoke(command.main, [])
    assert done.exit_code == 1
    assert "run python -m bench.micro" in done.output


def test_the_fingerprint_of_this_machine_is_complete():
    machine = read_machine()
    assert machine.cores >= 1
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*-\d+-cores-python-3\.\d+", machine.kind)
    assert json.dumps(machine.cpu) != '""'
