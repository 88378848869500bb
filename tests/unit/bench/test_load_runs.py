"""Who was the bottleneck, and what one run amounts to."""

import pytest

from bench.load.findings import Findings, describe
from bench.load.jobs import Outcome
from bench.load.processes import Bottleneck, Run, bottleneck
from bench.load.procfs import CpuTime


@pytest.mark.parametrize(
    ("server", "client", "expected"),
    [
        pytest.param(0.97, 0.40, Bottleneck.SERVER, id="server busy"),
        pytest.param(0.40, 0.97, Bottleneck.CLIENT, id="client busy"),
        pytest.param(0.93, 0.99, Bottleneck.CLIENT, id="both busy, the client more"),
        pytest.param(0.99, 0.93, Bottleneck.SERVER, id="both busy, the server more"),
        pytest.param(0.95, 0.95, Bottleneck.CLIENT, id="both busy alike"),
        pytest.param(0.89, 0.89, Bottleneck.NEITHER, id="both wait"),
        pytest.param(0.90, 0.10, Bottleneck.SERVER, id="exactly at the limit"),
    ],
)
def test_the_bottleneck_is_whoever_had_no_cpu_time_left(server, client, expected):
    assert bottleneck(server, client) is expected


def test_a_run_is_told_in_rates_and_shares_of_its_elapsed_time():
    run = Run.of(2.0, CpuTime(1.5, 0.4), 0.6, Outcome(2.0, 0.5, list(range(1000)), [1000] * 1000))
    assert run.rate_per_s == 500
    assert run.server_s_per_operation == pytest.approx(0.0019)
    assert (run.server_share, run.client_share) == (pytest.approx(0.95), pytest.approx(0.25))
    assert run.others_share == pytest.approx(0.3)
    assert run.bottleneck is Bottleneck.SERVER
    assert describe(run).startswith("500/s, p50 1.00 p99 1.00 p99.9 1.00 ms, 1900 µs CPU each, server 95 %")
    assert describe(run).endswith("bottleneck: server")


def test_latencies_of_a_part_of_a_run_are_of_what_was_due_in_it():
    outcome = Outcome(3.0, 0.5, [1_000_000, 2_000_000, 3_000_000], [10_000, 30_000, 90_000])
    run = Run.of(3.0, CpuTime(1.0, 0.0), 0.5, outcome)
    assert run.latencies_between(1.5, 2.5).max_ms == 30.0
    assert run.latencies_between(0.0, 2.0).count == 2
    with pytest.raises(ValueError, match="nothing"):
        run.latencies_between(5.0, 6.0)


@pytest.mark.parametrize(("others_cpu_s", "warned"), [(0.1, False), (2.0, True)])
def test_results_warn_when_others_were_on_the_machine(others_cpu_s, warned):
    findings = Findings()
    findings.run("group", Run.of(2.0, CpuTime(1.5, 0.4), others_cpu_s, Outcome(2.0, 0.5, [1], [1000])), {"what": "x"})
    notes = findings.results().notes
    assert bool(notes) is warned
    assert not warned or "Other processes took 100 % of a core" in notes[0]
