"""What the tests of the HTTP API share: a node with its chain, bytes sent by hand, what a refusal must look like."""

import contextlib
import hashlib
import http.client
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support import wire
from tests.support.cluster import AppHandle, Cluster, Node, eventually
from tests.support.raw_client import (
    APP,
    TIMEOUT_S,
    Answer,
    Caller,
    Flow,
    RawApp,
    RawPeer,
    Target,
)

FORBIDDEN = (403, "forbidden")
BAD_REQUEST = (400, "bad_request")
NOT_FOUND = (404, "not_found")
TOO_LARGE = (413, "payload_too_large")
UNSUPPORTED = (415, "unsupported_media_type")
RATE_LIMITED = (429, "rate_limited")
QUOTA_EXCEEDED = (507, "quota_exceeded")
UNAVAILABLE = (503, "service_unavailable")

Headers = list[tuple[str, bytes]]


@dataclass
class ApiBench:
    """One available node of ours, and an app and a peer whose keys the test holds."""

    cluster: Cluster
    node: Node
    target: Target
    app: RawApp
    app_handle: AppHandle
    peer: RawPeer
    master_secret: bytes

    @property
    def sync_key(self) -> bytes:
        return wire.derive_sync_key(self.master_secret)

    def new_app(self) -> RawApp:
        """An instance of an app of its own."""
        return RawApp(self.cluster.register_app().identity, self.target)

    def caller(self, flow: Flow) -> Caller:
        return self.app if flow is APP else self.peer

    def assert_no_bug_was_logged(self) -> None:
        assert "request failed unexpectedly" not in self.node.log.read_text(errors="replace")


@contextlib.contextmanager
def open_bench(directory: Path, env: Mapping[str, str] | None = None) -> Iterator[ApiBench]:
    """A chain, one node with `env`, an app and a peer; at the end the node must not have met a bug of ours."""
    with Cluster(directory) as cluster:
        node = cluster.add_nova("nova", env=env)
        bench = bench_of(cluster, node)
        yield bench
        bench.assert_no_bug_was_logged()


def bench_of(cluster: Cluster, node: Node) -> ApiBench:
    """Register an app and a peer beside the available `node`."""
    target = node.target()
    handle = cluster.register_app()
    peer = RawPeer(cluster.register_peer(), target)
    secret = eventually(peer.fetch_master_secret)
    return ApiBench(cluster, node, target, RawApp(handle.identity, target), handle, peer, secret)


# --- requests by hand ---


def exchange(url: str, method: str, path: str, headers: Headers, body: bytes = b"") -> httpx.Response:
    """One request with these headers, repeated or not ASCII as they may be, on a connection of its own."""
    return exchange_bytes(url, head_bytes(url, method, path.encode("latin-1"), headers), body, method=method)


def head_bytes(url: str, method: str, path: bytes, headers: Headers) -> bytes:
    lines = [method.encode() + b" " + path + b" HTTP/1.1", b"Host: " + httpx.URL(url).netloc, b"Connection: close"]
    lines += [name.encode() + b": " + value for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def exchange_bytes(url: str, *pieces: bytes, method: str = "POST") -> httpx.Response:
    """Send `pieces`, whatever they are, and read one answer, which may come before all of them are sent."""
    with connect(url) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                connection.sendall(piece)
        return read_answer(connection, method)


def connect(url: str) -> socket.socket:
    where = httpx.URL(url)
    return socket.create_connection((where.host, where.port), timeout=TIMEOUT_S)


def read_answer(connection: socket.socket, method: str = "POST") -> httpx.Response:
    answer = http.client.HTTPResponse(connection, method=method)
    answer.begin()
    return httpx.Response(answer.status, headers=answer.getheaders(), content=answer.read())


def chunked(*chunks: bytes) -> bytes:
    """The chunked transfer coding of `chunks`."""
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


# --- what a refusal must look like (protocol §7) ---


def assert_refused(response: httpx.Response, expected: tuple[int, str], *, sent: Iterable[object] = ()) -> None:
    """`response` is the error `expected`, in the protocol's shape, and repeats nothing of `sent`."""
    assert (response.status_code, response.json().get("code")) == expected, response.text
    assert_error_shape(response)
    for text in sent:
        assert str(text) not in response.text


def assert_error_shape(response: httpx.Response) -> None:
    assert response.headers["content-type"] == "application/json", response.text
    body = response.json()
    assert set(body) == {"code", "message"}
    assert isinstance(body["message"], str)
    assert 0 < len(body["message"]) < 200
    assert "\n" not in body["message"]


def assert_signed_refusal(answer: Answer, caller: Caller, expected: tuple[int, str]) -> None:
    """`answer` is the refusal `expected`, and it is this node's refusal of this request (protocol §4)."""
    assert_refused(answer.response, expected)
    headers, wallet = answer.response.headers, caller.target.wallet
    assert wire.recover_signer(wire.response_text(answer.signature, wallet), headers[caller.flow.answer_header]) == (
        wallet
    )
    digest = hashlib.sha256(answer.response.content).hexdigest()
    text = f"NovaKMS:Answer:{answer.signature}:{answer.status}:{digest}:{wallet}"
    assert wire.recover_signer(text, headers["X-KMS-Answer-Signature"]) == wallet
    assert headers["X-KMS-Next-Nonce"]


def assert_never_a_bug(response: httpx.Response, allowed: Iterable[int]) -> None:
    """The status is one of `allowed`, and an error has the protocol's shape."""
    assert response.status_code in set(allowed), response.text
    if response.status_code != 200:
        assert_error_shape(response)
