"""Who was the bottleneck, and what one run amounts to."""

import pytest

from bench.load.findings import describe
from bench.load.latency import summarize
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
    run = Run(1000, 2.0, CpuTime(1.5, 0.4), 0.5, summarize([1000, 2000]), overdue=0)
    assert run.rate_per_s == 500
    assert run.server_s_per_operation == pytest.approx(0.0019)
    assert (run.server_share, run.client_share) == (pytest.approx(0.95), pytest.approx(0.25))
    assert run.bottleneck is Bottleneck.SERVER
    assert "500/s, 1900 µs CPU each" in describe(run)
    assert describe(run).endswith("bottleneck: server")
