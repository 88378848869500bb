"""Sizes, slowness and rates: what a stranger may cost a node, and what an authenticated caller may (protocol §7)."""

import contextlib
import http.client
import itertools
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import httpx
import pytest

from tests.support.api_bench import (
    BAD_REQUEST,
    FORBIDDEN,
    RATE_LIMITED,
    TOO_LARGE,
    ApiBench,
    Headers,
    assert_error_shape,
    assert_refused,
    bench_of,
    chunked,
    connect,
    exchange,
    exchange_bytes,
    head_bytes,
)
from tests.support.cluster import Cluster, Node, eventually
from tests.support.proofs import proof_of
from tests.support.raw_client import Caller, RawApp, Target, request

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("limits")]

MAX_BODY = 16_384
MAX_SYNC = 65_536
REQUESTS_PER_MINUTE = 6
NONCES_PER_MINUTE = 4
WALLET_PER_MINUTE = 12
JSON_TYPE = ("Content-Type", b"application/json")

BODY_ROUTES = {
    "derive": ("POST", "/kms/derive", MAX_BODY),
    "put": ("PUT", "/kms/data", MAX_BODY),
    "delete": ("DELETE", "/kms/data", MAX_BODY),
    "sync": ("POST", "/sync", MAX_SYNC),
}


@dataclass
class LimitsBench(ApiBench):
    """`node` has small bodies and no rates. `behind` has low rates and believes 127.0.0.1 about addresses; `exposed`
    has low rates and believes nobody.
    """

    behind: Node
    behind_target: Target
    exposed: Node


def via(address: str) -> dict[str, str]:
    """The header by which an ingress tells whom it speaks for."""
    return {"X-Forwarded-For": address}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LimitsBench]:
    sizes = {"MAX_REQUEST_BODY_BYTES": str(MAX_BODY), "MAX_SYNC_PAYLOAD_BYTES": str(MAX_SYNC)}
    rates = {
        "RATE_LIMIT_PER_MINUTE": str(REQUESTS_PER_MINUTE),
        "NONCE_RATE_LIMIT_PER_MINUTE": str(NONCES_PER_MINUTE),
        "IDENTITY_RATE_LIMIT_PER_MINUTE": str(WALLET_PER_MINUTE),
    }
    with Cluster(tmp_path_factory.mktemp("limits")) as cluster:
        behind = cluster.nova("behind", env={**rates, "TRUSTED_INGRESS": "127.0.0.0/8"})
        exposed = cluster.nova("exposed", env=rates)
        behind.start()
        exposed.start()
        base = bench_of(cluster, cluster.add_nova("nova", env=sizes))
        cluster.admit(behind)
        polls = itertools.count()
        # Each look comes from an address of its own, so that waiting is not limited.
        eventually(
            lambda: request("GET", behind.url + "/status", headers=via(f"192.0.2.{next(polls)}")).json()["node"][
                "service_available"
            ]
        )
        described = request("GET", behind.url + "/status", headers=via("192.0.2.255")).json()["node"]
        target = Target(behind.url, described["tee_wallet"], bytes.fromhex(described["tee_pubkey"]))
        yield LimitsBench(**vars(base), behind=behind, behind_target=target, exposed=exposed)
        base.assert_no_bug_was_logged()


def framed(caller: Caller | None, *framing: tuple[str, bytes]) -> Headers:
    """Headers of a request with a body, with an honest proof when there is a caller."""
    return [*(proof_of(caller).headers() if caller else ()), JSON_TYPE, *framing]


# How long a connection may outlive its answer.
SOON_S = 10.0
CHUNKED = ("Transfer-Encoding", b"chunked")


class TestSizes:
    @pytest.mark.parametrize(("method", "path", "limit"), BODY_ROUTES.values(), ids=BODY_ROUTES)
    @pytest.mark.parametrize("over", [1, 10**6, 10**17, 10**30])
    def test_a_body_declared_too_long_is_refused_before_it_comes(
        self, bench: ApiBench, method: str, path: str, limit: int, over: int
    ) -> None:
        headers = framed(None, ("Content-Length", b"%d" % (limit + over)))
        assert_too_long_to_declare(exchange(bench.node.url, method, path, headers), over)

    @pytest.mark.parametrize(("method", "path", "limit"), BODY_ROUTES.values(), ids=BODY_ROUTES)
    @pytest.mark.parametrize("known", [False, True], ids=["from a stranger", "from a known caller"])
    def test_a_body_is_counted_while_it_comes(
        self, bench: ApiBench, method: str, path: str, limit: int, known: bool
    ) -> None:
        caller = (bench.peer if path == "/sync" else bench.app) if known else None
        body = chunked(*[b" " * 1024] * (limit // 1024), b" ")
        assert_refused(exchange(bench.node.url, method, path, framed(caller, CHUNKED), body), TOO_LARGE)

    @pytest.mark.parametrize(("method", "path", "limit"), BODY_ROUTES.values(), ids=BODY_ROUTES)
    @pytest.mark.parametrize("known", [False, True], ids=["from a stranger", "from a known caller"])
    def test_a_body_of_the_limit_is_not_too_long(
        self, bench: ApiBench, method: str, path: str, limit: int, known: bool
    ) -> None:
        caller = (bench.peer if path == "/sync" else bench.app) if known else None
        expected = BAD_REQUEST if known else FORBIDDEN
        declared = framed(caller, ("Content-Length", b"%d" % limit))
        assert_refused(exchange(bench.node.url, method, path, declared, b" " * limit), expected)
        body = chunked(*[b" " * 1024] * (limit // 1024))
        caller_again = framed(caller, CHUNKED)
        assert_refused(exchange(bench.node.url, method, path, caller_again, body), expected)

    def test_a_body_without_end_is_cut_off(self, bench: ApiBench) -> None:
        """One chunk that claims to be huge: the answer comes long before its end."""
        head = head_bytes(bench.node.url, "POST", b"/kms/derive", framed(None, CHUNKED))
        response = exchange_bytes(bench.node.url, head, b"7fffffffffff\r\n", *[b" " * 1024] * 17)
        assert_refused(response, TOO_LARGE)

    @pytest.mark.parametrize("length", [b"abc", b"-1", b"+5", b"1e3", b"0x10", b"1,2", b"", b"5 5", b"\xd9\xa3"])
    def test_a_length_that_is_none_is_refused(self, bench: ApiBench, length: bytes) -> None:
        response = exchange(bench.node.url, "POST", "/kms/derive", framed(bench.app, ("Content-Length", length)))
        assert response.status_code in (400, 403, 415), response.text
        assert_error_shape(response)

    def test_two_ways_to_frame_one_body_are_refused(self, bench: ApiBench) -> None:
        headers = framed(bench.app, CHUNKED, ("Content-Length", b"5"))
        response = exchange(bench.node.url, "POST", "/kms/derive", headers, chunked(b"hello"))
        assert (response.status_code, response.json()["code"]) == BAD_REQUEST

    def test_two_lengths_are_refused(self, bench: ApiBench) -> None:
        headers = framed(bench.app, ("Content-Length", b"5"), ("Content-Length", b"6"))
        response = exchange(bench.node.url, "POST", "/kms/derive", headers, b"hello!")
        assert (response.status_code, response.json()["code"]) == BAD_REQUEST

    def test_a_body_declared_too_long_uses_no_nonce_up(self, bench: ApiBench) -> None:
        proof = proof_of(bench.app)
        headers = [*proof.headers(), JSON_TYPE, ("Content-Length", b"%d" % (MAX_BODY + 1))]
        assert_refused(exchange(bench.node.url, "POST", "/kms/derive", headers), TOO_LARGE)
        assert bench.app.send("GET", "/kms/data", nonce=proof.nonce).status == 200

    def test_nobody_goes_on_sending_a_body_that_was_refused(self, bench: ApiBench) -> None:
        """The answers are out: connections that may still bring their bodies would be a stranger's to keep for ever."""
        refused = {
            413: b"POST /kms/derive HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 1000000000\r\n",
            415: b"POST /kms/derive HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Length: 16000\r\n",
            404: b"POST /nothing HTTP/1.1\r\nContent-Length: 1000000000\r\n",
            405: b"POST /status HTTP/1.1\r\nTransfer-Encoding: chunked\r\n",
        }
        with contextlib.ExitStack() as stack:
            open_ones = {}
            for status, head in refused.items():
                connection = stack.enter_context(connect(bench.node.url))
                connection.sendall(head + b"Host: node\r\n\r\n")
                assert connection.recv(65_536).startswith(b"HTTP/1.1 %d " % status)
                open_ones[status] = connection
            deadline = time.monotonic() + SOON_S
            while open_ones and time.monotonic() < deadline:
                time.sleep(0.2)
                open_ones = {status: connection for status, connection in open_ones.items() if drips(connection)}
            assert open_ones == {}


def drips(connection: socket.socket) -> bool:
    """Whether one more byte can be sent, and nobody has closed the connection."""
    try:
        connection.sendall(b"1")
        return connection.recv(1, socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def assert_too_long_to_declare(response: httpx.Response, over: int) -> None:
    """413; a length that no parser holds may be malformed instead."""
    assert_error_shape(response)
    assert response.status_code == 413 or (over > 2**63 and response.status_code == 400), response.text


class TestHeads:
    @pytest.mark.parametrize(
        "head",
        [
            b"GET /health HTTP/1.1\r\nHost: a\r\nX-Long: " + b"a" * 200_000 + b"\r\n\r\n",
            b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"X-Many: aaaaaaaaaa\r\n" * 20_000 + b"\r\n",
            b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"a" * 200_000,
        ],
        ids=["one long header", "many headers", "a long target", "a long name without end"],
    )
    def test_a_huge_head_is_refused(self, bench: ApiBench, head: bytes) -> None:
        try:
            response = exchange_bytes(bench.node.url, head, method="GET")
        except (ConnectionResetError, http.client.HTTPException):
            return  # cut off before the answer could be read
        assert response.status_code in (400, 413, 414, 431)

    @pytest.mark.parametrize(
        "garbage",
        [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
            b"\r\n\r\n\r\n",
            b"hello\r\n\r\n",
            b"GET /health HTTP/9.9\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET /health HTTP/1.1\r\nno colon\r\n\r\n",
            b"GET /health HTTP/1.1\r\nHost: a\r\nA: b\x00c\r\n\r\n",
            b"GET /health HTTP/1.1\r\nHost : a\r\n\r\n",
        ],
        ids=["TLS", "empty lines", "no request", "HTTP/9.9", "HTTP/2", "no colon", "NUL", "space"],
    )
    def test_what_is_no_http_is_no_matter(self, bench: ApiBench, garbage: bytes) -> None:
        with connect(bench.node.url) as connection:
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(65_536)
        assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))
        assert b"500" not in answer[:13]
        assert request("GET", bench.node.url + "/health").status_code == 200

    def test_slow_heads_and_partial_bodies_hold_up_nobody(self, bench: ApiBench) -> None:
        proof = proof_of(bench.app).headers()
        body_to_come = [*proof, JSON_TYPE, ("Content-Length", b"1000")]
        partial = [
            b"GET /health HT",
            b"GET /health HTTP/1.1\r\nHost: a\r\nX-Slow: ",
            head_bytes(bench.node.url, "POST", b"/kms/derive", body_to_come) + b"{",
            head_bytes(bench.node.url, "POST", b"/sync", framed(None, CHUNKED)) + b"5\r\nab",
        ]
        with contextlib.ExitStack() as connections:
            for number in range(120):
                connection = connections.enter_context(connect(bench.node.url))
                connection.sendall(partial[number % len(partial)])
            began = time.monotonic()
            for _ in range(10):
                assert request("GET", bench.node.url + "/health").status_code == 200
                assert len(bench.app.derive("disk")) == 32
            assert time.monotonic() - began < 3

    def test_whoever_leaves_in_the_middle_leaves_nothing(self, bench: ApiBench) -> None:
        for _ in range(20):
            with connect(bench.node.url) as connection:
                headers = framed(bench.app, ("Content-Length", b"1000"))
                connection.sendall(head_bytes(bench.node.url, "PUT", b"/kms/data", headers) + b"{")
        assert bench.app.keys() == []
        bench.assert_no_bug_was_logged()


def statuses(url: str, path: str, times: int, *, method: str = "GET", headers: dict[str, str]) -> list[int]:
    return [request(method, url + path, headers=headers).status_code for _ in range(times)]


class TestRates:
    def test_an_address_has_its_share_and_is_then_told_to_wait(self, bench: LimitsBench) -> None:
        me, other = via("198.51.100.1"), via("198.51.100.2")
        assert statuses(bench.behind.url, "/status", REQUESTS_PER_MINUTE, headers=me) == [200] * REQUESTS_PER_MINUTE
        refused = request("GET", bench.behind.url + "/status", headers=me)
        assert_refused(refused, RATE_LIMITED, sent=["198.51.100"])
        assert int(refused.headers["retry-after"]) >= 1
        assert request("GET", bench.behind.url + "/status", headers=other).status_code == 200

    def test_every_endpoint_but_health_draws_on_the_same_share(self, bench: LimitsBench) -> None:
        me = via("198.51.100.3")
        statuses(bench.behind.url, "/", REQUESTS_PER_MINUTE, headers=me)
        for method, path in (
            ("GET", "/"),
            ("GET", "/status"),
            ("HEAD", "/status"),
            ("GET", "/nodes"),
            ("POST", "/kms/derive"),
            ("PUT", "/kms/data"),
            ("GET", "/kms/data"),
            ("GET", "/kms/data/k"),
            ("DELETE", "/kms/data"),
            ("POST", "/sync"),
        ):
            assert request(method, bench.behind.url + path, headers=me).status_code == 429, path
        assert statuses(bench.behind.url, "/health", 100, headers=me) == [200] * 100

    @pytest.mark.parametrize(
        ("method", "path"),
        [("GET", "/nothing"), ("PATCH", "/status"), ("GET", "/sync")],
        ids=["404", "405", "sync"],
    )
    def test_requests_for_nothing_count_too(self, bench: LimitsBench, method: str, path: str) -> None:
        me = via(f"198.51.100.{10 + len(path)}")
        answers = statuses(bench.behind.url, path, REQUESTS_PER_MINUTE + 1, method=method, headers=me)
        assert answers[-1] == 429

    def test_nonces_have_a_share_of_their_own(self, bench: LimitsBench) -> None:
        me = via("198.51.100.4")
        assert statuses(bench.behind.url, "/nonce", NONCES_PER_MINUTE, headers=me) == [200] * NONCES_PER_MINUTE
        refused = request("GET", bench.behind.url + "/nonce", headers=me)
        assert_refused(refused, RATE_LIMITED)
        assert int(refused.headers["retry-after"]) >= 1
        assert statuses(bench.behind.url, "/status", REQUESTS_PER_MINUTE, headers=me) == [200] * REQUESTS_PER_MINUTE
        assert request("GET", bench.behind.url + "/nonce", headers=via("198.51.100.5")).status_code == 200

    def test_wrong_proofs_count(self, bench: LimitsBench) -> None:
        me = via("198.51.100.6")
        answers = statuses(bench.behind.url, "/kms/data", REQUESTS_PER_MINUTE + 1, headers=me)
        assert answers == [403] * REQUESTS_PER_MINUTE + [429]


def known_requests(bench: LimitsBench, app: RawApp, address: str, times: int, path: str = "/kms/data") -> list[int]:
    """Authenticated requests from one address, each with the nonce that the answer before brought."""
    caller = RawApp(app.identity, bench.behind_target)
    nonce = fetch_nonce_via(bench, address)
    seen = []
    for _ in range(times):
        answer = caller.send("GET", path, nonce=nonce, headers=via(address))
        seen.append(answer.status)
        nonce = answer.response.headers.get("X-KMS-Next-Nonce", nonce)
    return seen


def fetch_nonce_via(bench: LimitsBench, address: str) -> str:
    return request("GET", bench.behind.url + "/nonce", headers=via(address)).raise_for_status().json()["nonce"]


class TestKnownCallers:
    def test_their_requests_are_given_back_to_their_address(self, bench: LimitsBench) -> None:
        times = REQUESTS_PER_MINUTE + 4
        assert known_requests(bench, bench.new_app(), "198.51.101.1", times) == [200] * times
        answers = statuses(bench.behind.url, "/status", REQUESTS_PER_MINUTE, headers=via("198.51.101.1"))
        assert answers == [200] * REQUESTS_PER_MINUTE

    def test_so_are_those_that_are_refused_after_authentication(self, bench: LimitsBench) -> None:
        times = REQUESTS_PER_MINUTE + 4
        path = "/kms/data/absent"
        assert known_requests(bench, bench.new_app(), "198.51.101.2", times, path) == [404] * times

    def test_and_the_nonces_that_they_use(self, bench: LimitsBench) -> None:
        app = RawApp(bench.new_app().identity, bench.behind_target)
        for _ in range(2 * NONCES_PER_MINUTE):
            nonce = fetch_nonce_via(bench, "198.51.101.3")
            assert app.send("GET", "/kms/data", nonce=nonce, headers=via("198.51.101.3")).status == 200

    def test_a_replayed_proof_is_not_given_back(self, bench: LimitsBench) -> None:
        app = RawApp(bench.new_app().identity, bench.behind_target)
        nonce = fetch_nonce_via(bench, "198.51.101.4")
        answers = [
            app.send("GET", "/kms/data", nonce=nonce, headers=via("198.51.101.4")).status
            for _ in range(REQUESTS_PER_MINUTE + 2)
        ]
        assert answers == [200] + [403] * REQUESTS_PER_MINUTE + [429]

    def test_a_wallet_has_a_limit_of_its_own_wherever_it_calls_from(self, bench: LimitsBench) -> None:
        app = bench.new_app()
        times = WALLET_PER_MINUTE + 1
        assert known_requests(bench, app, "198.51.101.5", times) == [200] * WALLET_PER_MINUTE + [429]
        caller = RawApp(app.identity, bench.behind_target)
        elsewhere = caller.send("GET", "/kms/data", nonce=fetch_nonce_via(bench, "198.51.101.6"))
        assert_refused(elsewhere.response, RATE_LIMITED, sent=[app.identity.address])
        assert int(elsewhere.response.headers["retry-after"]) >= 1
        assert known_requests(bench, bench.new_app(), "198.51.101.5", 2) == [200, 200]


# For each row X-Forwarded-For texts that mean one and the same client.
SAME_CLIENT: dict[str, Sequence[str]] = {
    "what a client claims before its own address": [f"192.0.2.{n}, 198.51.102.1" for n in range(20)],
    "claims that are no addresses": [f"claim {n}, 198.51.102.2" for n in range(20)],
    "behind a second trusted ingress": [f"192.0.2.{n}, 198.51.102.3, 127.0.0.{n + 2}" for n in range(20)],
    "white space": ["192.0.2.1," + " " * n + "198.51.102.4" for n in range(20)],
    "one network of IPv6": [f"2001:db8:1:2::{n:x}" for n in range(20)],
    "IPv4 in IPv6": ["198.51.102.5", "::ffff:198.51.102.5"] * 10,
    "spellings of IPv6": ["2001:db8:1:3::1", "2001:DB8:1:3:0:0:0:1"] * 10,
    "no address at all": [f"nobody {n}" for n in range(20)],
    "an empty last element": [f"192.0.2.{n}," for n in range(20)],
    "very long": [f"192.0.2.{n}, " * 1000 + "198.51.102.6" for n in range(20)],
}


class TestIngress:
    @pytest.mark.parametrize("texts", SAME_CLIENT.values(), ids=SAME_CLIENT)
    def test_the_last_untrusted_address_is_the_client(self, bench: LimitsBench, texts: Sequence[str]) -> None:
        answers = [
            request("GET", bench.behind.url + "/nodes", headers=via(text)).status_code
            for text in texts[: REQUESTS_PER_MINUTE + 1]
        ]
        assert answers[-1] == 429

    def test_a_header_that_the_client_sent_itself_is_not_the_ingress_s(self, bench: LimitsBench) -> None:
        """An ingress may add a line of its own below the client's: both are one list, and the last element counts."""
        answers = []
        for number in range(REQUESTS_PER_MINUTE + 1):
            lines = [
                ("X-Forwarded-For", b"192.0.2.%d" % (100 + number)),
                ("X-Forwarded-For", b"198.51.103.1"),
            ]
            answers.append(exchange(bench.behind.url, "GET", "/nodes", lines).status_code)
        assert answers[-1] == 429

    def test_two_networks_of_ipv6_are_two_clients(self, bench: LimitsBench) -> None:
        for network in ("2001:db8:2:1", "2001:db8:2:2"):
            headers = via(f"{network}::1")
            answers = statuses(bench.behind.url, "/nodes", REQUESTS_PER_MINUTE, headers=headers)
            assert answers == [200] * REQUESTS_PER_MINUTE

    def test_without_a_trusted_ingress_the_header_is_a_stranger_s_claim(self, bench: LimitsBench) -> None:
        answers = [
            request("GET", bench.exposed.url + "/nodes", headers=via(f"198.51.104.{number}")).status_code
            for number in range(REQUESTS_PER_MINUTE + 1)
        ]
        assert answers[-1] == 429
        assert request("GET", bench.exposed.url + "/health").status_code == 200
        for header in ("X-Real-IP", "Forwarded", "True-Client-IP", "CF-Connecting-IP", "X-Client-IP"):
            for value in ("198.51.104.200", "for=198.51.104.200"):
                response = request("GET", bench.exposed.url + "/nodes", headers={header: value})
                assert response.status_code == 429
