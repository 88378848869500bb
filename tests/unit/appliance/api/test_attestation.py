"""`GET /attestation`: which nonces are taken, who waits, and what the answer is."""

from collections.abc import Callable

import anyio
import pytest
from starlette.requests import Request

from appliance.api.app import AddressLimiter
from appliance.api.attestation import MAX_WAITING, AttestationApi, parse_query_nonce
from appliance.tee.port import TeeProvider
from kmscore.errors import Reason, Rejected, Unavailable
from kmscore.limits import RateLimiter
from tests.support.fake_node import FakeClock

pytestmark = pytest.mark.anyio


class Attester:
    """Of a provider, the one method that the endpoint uses. Documents wait for `open`."""

    def __init__(self) -> None:
        self.nonces: list[bytes | None] = []
        self.open = anyio.Event()
        self.open.set()
        self.inside = 0
        self.most_inside = 0

    async def attest(self, nonce: bytes | None) -> bytes:
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        try:
            await self.open.wait()
            await anyio.lowlevel.checkpoint()
        finally:
            self.inside -= 1
        self.nonces.append(nonce)
        return b"document %d" % len(self.nonces)


def api_of(attester: Attester, timeout_s: float = 5.0) -> AttestationApi:
    provider: TeeProvider = attester  # type: ignore[assignment] # the rest of the port is not used
    return AttestationApi(provider, timeout_s=timeout_s)


def request(query: str = "", path: str = "/attestation", host: str = "192.0.2.1") -> Request:
    return Request(
        {
            "type": "http",
            "method": "GET",
            "path": path,
            "query_string": query.encode(),
            "headers": [],
            "client": (host, 1),
        }
    )


async def test_the_answer_is_the_raw_document_and_never_cached() -> None:
    response = await api_of(Attester()).document(request("nonce=00ff"))

    assert response.status_code == 200
    assert response.body == b"document 1"
    assert response.headers["content-type"] == "application/cbor"
    assert response.headers["cache-control"] == "no-store"


TAKEN = {
    "none": ("", None),
    "hex": ("nonce=00ff", b"\0\xff"),
    "base64, escaped": ("nonce=AP8%3D", b"\0\xff"),
    "base64, as it is": ("nonce=AP8=", b"\0\xff"),
    "a plus, escaped": ("nonce=%2B%2B%2B%2B", b"\xfb\xef\xbe"),
    "a plus that became a space": ("nonce=++++", b"\xfb\xef\xbe"),
    "beside something else": ("a=b&nonce=00ff&c", b"\0\xff"),
}


@pytest.mark.parametrize(("query", "nonce"), TAKEN.values(), ids=TAKEN)
async def test_the_nonce_reaches_the_provider(query: str, nonce: bytes | None) -> None:
    attester = Attester()

    await api_of(attester).document(request(query))

    assert attester.nonces == [nonce]


@pytest.mark.parametrize("nonce", ["", "xyz", "00&nonce=00", "00" * 65, "%ff", "%00"])
async def test_another_nonce_reaches_nobody(nonce: str) -> None:
    attester = Attester()

    with pytest.raises(Rejected) as refusal:
        await api_of(attester).document(request(f"nonce={nonce}"))

    assert refusal.value.reason is Reason.BAD_FIELD
    assert attester.nonces == []


def test_two_nonces_are_refused_even_when_they_agree() -> None:
    with pytest.raises(Rejected):
        parse_query_nonce(["00", "00"])


async def test_documents_are_made_one_at_a_time() -> None:
    attester = Attester()
    api = api_of(attester)
    async with anyio.create_task_group() as group:
        for _ in range(MAX_WAITING):
            group.start_soon(api.document, request())

    assert attester.most_inside == 1
    assert len(attester.nonces) == MAX_WAITING


async def test_a_crowd_is_turned_away_and_the_queue_goes_on() -> None:
    attester = Attester()
    attester.open = anyio.Event()
    api = api_of(attester)
    async with anyio.create_task_group() as group:
        for _ in range(MAX_WAITING):
            group.start_soon(api.document, request())
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(Unavailable, match="too many"):
            await api.document(request())
        attester.open.set()

    assert (await api.document(request())).status_code == 200


async def test_who_leaves_the_queue_leaves_a_place() -> None:
    attester = Attester()
    attester.open = anyio.Event()
    api = api_of(attester)
    for _ in range(2 * MAX_WAITING):
        with anyio.move_on_after(0):
            await api.document(request())
    attester.open.set()

    assert (await api.document(request())).status_code == 200


async def test_a_provider_that_never_answers_is_given_up() -> None:
    attester = Attester()
    attester.open = anyio.Event()

    with pytest.raises(Unavailable, match="in time"):
        await api_of(attester, timeout_s=0.01).document(request())


def allowed(check: Callable[[], None], tries: int) -> int:
    through = 0
    for _ in range(tries):
        try:
            check()
        except Rejected:
            continue
        through += 1
    return through


def test_its_bucket_is_its_own_and_by_address() -> None:
    clock = FakeClock()
    limiter = AddressLimiter(RateLimiter(7, clock), RateLimiter(5, clock), RateLimiter(3, clock), ())

    assert allowed(lambda: limiter.check(request()), 20) == 3
    assert allowed(lambda: limiter.check(request(host="192.0.2.2")), 20) == 3
    assert allowed(lambda: limiter.check(request(path="/nonce")), 20) == 5
    assert allowed(lambda: limiter.check(request(path="/status")), 20) == 7
    limiter.give_back(request())
    assert allowed(lambda: limiter.check(request()), 20) == 0
