"""The floor of an operation: which primitives it consists of, and how its trivial routes answer."""

import pytest

from bench.load.floor import Exchange, floor_s
from bench.load.http import AnswerParser
from bench.load.identities import CallerKeys, NodeAddress
from bench.load.jobs import Job, Work
from bench.load.primitives import Primitives, Sizes, measure_primitives

PRIMITIVES = Primitives(
    recover_s=100.0, sign_s=50.0, envelope_hkdf_s=5.0, app_hkdf_s=4.0, cipher_s={10: 1.0, 20: 2.0, 1024: 3.0}
)


@pytest.mark.parametrize(
    ("sizes", "derives", "expected"),
    [
        pytest.param(Sizes(10, 20, None), True, 150 + 2 * 5 + 4 + 1 + 2, id="derive: three HKDFs, two AES-GCMs"),
        pytest.param(Sizes(10, 20, 1024), False, 150 + 2 * 5 + 1 + 2 + 3, id="put: two envelopes and a value"),
        pytest.param(Sizes(None, 20, 1024), False, 150 + 5 + 2 + 3, id="get: one envelope and a value"),
    ],
)
def test_a_floor_holds_the_primitives_that_the_operation_needs_and_both_routes(sizes, derives, expected):
    assert floor_s(sizes, PRIMITIVES, 7000.0, 8000.0, derives=derives) == expected + 15_000


def test_the_trivial_route_answers_with_the_headers_and_size_of_the_node():
    answer = AnswerParser().feed(
        b"HTTP/1.1 200 OK\r\ndate: today\r\nX-KMS-Next-Nonce: abc\r\ncontent-length: 4\r\n\r\nbody"
    )
    route = Exchange(b"GET /kms/data?key=x HTTP/1.1\r\n\r\n", answer).route()
    assert route == {
        "method": "GET",
        "path": "/kms/data",
        "headers": [("x-kms-next-nonce", "abc"), ("content-length", "4")],
        "body_bytes": 4,
    }


def test_every_primitive_costs_something_and_more_bytes_cost_more():
    measured = measure_primitives(100, 1 << 16, batch=3)
    assert min(measured.recover_s, measured.sign_s, measured.envelope_hkdf_s, measured.app_hkdf_s) > 0
    assert measured.cipher_s[1 << 16] > measured.cipher_s[100] > 0


def job(**changes):
    held = {
        "work": Work.PUT,
        "node": NodeAddress(1, "0x", "00"),
        "callers": [CallerKeys(101, "01", "02")],
        "duration_s": 1.0,
        "connections": 2,
    }
    return Job(**{**held, **changes})


def test_a_job_travels_to_a_client_as_one_line():
    line = job(rate_per_s=10.5).to_line()
    assert "\n" not in line
    assert Job.from_line(line) == job(rate_per_s=10.5, raw=[])


@pytest.mark.parametrize("changes", [{"duration_s": 0}, {"duration_s": 1e9}, {"connections": 0}])
def test_a_job_without_bounds_is_refused(changes):
    with pytest.raises(ValueError, match="acceptable"):
        Job.from_line(job(**changes).to_line())


def test_the_keys_of_a_caller_are_not_shown():
    assert "01" not in repr(CallerKeys(5, "0101", "0202")).replace("CallerKeys", "")
