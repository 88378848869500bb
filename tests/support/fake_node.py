"""A KMS node of one process for tests of the SDK: honest by default, and every way in which a node or a line can lie.

It speaks the protocol from the other reading of it in `tests.support.wire`, so that the SDK is never tested against
itself. What goes wrong is a `Fault`: a function in the place of the honest answer, which it may call and then spoil.
"""

import base64
import hashlib
import itertools
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote

import anyio
import httpx

from tests.support import wire
from tests.support.wire import SignatureForm

POP_MAX_AGE_S = 120
VALUE_TIME_MS = 1_700_000_000_000
MASTER_SECRET = bytes(range(32))


@dataclass
class FakeClock:
    """Both clocks of `appliance.clock.Clock`, moved by hand."""

    wall_ms: int = 1_800_000_000_000
    elapsed_ms: int = 0

    def now_ms(self) -> int:
        return self.wall_ms + self.elapsed_ms

    def monotonic_ms(self) -> int:
        return self.elapsed_ms

    async def sleep(self, seconds: float) -> None:
        self.elapsed_ms += round(seconds * 1000)


@dataclass(frozen=True)
class RegisteredApp:
    """What the chain would tell the node about a caller."""

    app_id: int
    wallet: str
    tee_pubkey: bytes


@dataclass(frozen=True)
class Traits:
    """What kind of node it is. `signs` is the whole extension of next nonces, `answer_to` and signed refusals."""

    signs: bool = True
    signs_responses_only: bool = False
    labels: tuple[str, ...] = wire.LABELS
    knows_key_query: bool = True
    upper_case_hex: bool = False
    form: SignatureForm = field(default_factory=SignatureForm)


OLD_NODE = Traits(signs=False)

Fault = Callable[["FakeNode", httpx.Request], Awaitable[httpx.Response]]


class Refused(Exception):
    """An error answer; `authenticated` when the node knew who called."""

    def __init__(self, status: int, code: str, *, authenticated: bool = True) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.authenticated = authenticated


class FakeNode:
    """One node; `store` may be shared by several, as if replication took no time.

    `public` holds what open endpoints answer, `attestation` answers that one if it is offered. `faults` are used up one
    per other request; `always` stays. `ran` lists what was executed, `asked` every request.
    """

    def __init__(
        self,
        url: str,
        app: RegisteredApp,
        clock: FakeClock,
        *,
        traits: Traits | None = None,
        store: dict[str, bytes] | None = None,
    ) -> None:
        self.url = url
        self.app = app
        self.clock = clock
        self.traits = traits or Traits()
        self.store = {} if store is None else store
        self.wallet = wire.Wallet()
        self.tee = wire.TeeKey()
        self.faults: list[Fault] = []
        self.always: Fault | None = None
        self.always_at_nonce: Fault | None = None
        self.attestation: Fault | None = None
        self.public: dict[str, object] = {}
        self.asked: list[str] = []
        self.ran: list[str] = []
        self.last_inner: dict[str, object] = {}
        self._nonces: set[str] = set()
        self._numbers = itertools.count()
        self._label = self.traits.labels[0]

    async def handle(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(f"{request.method} {request.url.path}")
        if request.url.path == "/nonce":
            if self.always_at_nonce is not None:
                return await self.always_at_nonce(self, request)
            return httpx.Response(200, json={"nonce": self.issue_nonce()})
        if request.url.path == "/attestation" and self.attestation is not None:
            return await self.attestation(self, request)
        if request.url.path in self.public:
            return httpx.Response(200, json=self.public[request.url.path])
        fault = self.faults.pop(0) if self.faults else self.always
        if fault is not None:
            return await fault(self, request)
        return self.answer(request) if request.url.path.startswith("/kms/") else httpx.Response(404)

    def issue_nonce(self) -> str:
        nonce = base64.b64encode(next(self._numbers).to_bytes(16, "big")).decode()
        self._nonces.add(nonce)
        return nonce

    def forget_nonces(self) -> None:
        """What a restart of the node does to the nonces it handed out."""
        self._nonces.clear()

    def answer(self, request: httpx.Request) -> httpx.Response:
        """The honest answer."""
        signature = request.headers.get("x-app-signature", "")
        try:
            nonce = self._authenticate(request)
            inner = self._open(request, nonce)
            return self._success(self._run(request, inner), signature, nonce)
        except Refused as refusal:
            return self._refusal(refusal, signature)

    def _authenticate(self, request: httpx.Request) -> str:
        signature, nonce, timestamp = (request.headers[f"x-app-{name}"] for name in ("signature", "nonce", "timestamp"))
        if abs(self.clock.now_ms() / 1000 - int(timestamp)) > POP_MAX_AGE_S or nonce not in self._nonces:
            raise Refused(403, "forbidden", authenticated=False)
        signer = wire.recover_signer(wire.pop_text("AppAuth", nonce, self.wallet.address, timestamp), signature)
        if signer != self.app.wallet:
            raise Refused(403, "forbidden", authenticated=False)
        self._nonces.remove(nonce)
        return nonce

    def _open(self, request: httpx.Request, nonce: str) -> dict[str, object]:
        if not request.content:
            return {}
        envelope = json.loads(request.content)
        if wire.parse_hex(envelope["sender_tee_pubkey"]) != self.app.tee_pubkey:
            raise Refused(403, "forbidden")
        try:
            plaintext, self._label = wire.open_envelope(self.tee, envelope, self.traits.labels)
        except wire.WireError as error:
            raise Refused(400, "bad_request") from error
        inner = self.last_inner = json.loads(plaintext)
        if self.traits.signs and inner.get("pop_nonce", nonce) != nonce:
            raise Refused(403, "forbidden")
        return dict(inner)

    def _run(self, request: httpx.Request, inner: dict[str, object]) -> dict[str, object]:
        path = request.url.raw_path.decode()
        route, _, query = path.partition("?")
        if (request.method, route) == ("POST", "/kms/derive"):
            key = wire.derive_key(
                MASTER_SECRET, self.app.app_id, str(inner["path"]), str(inner["context"]), int(str(inner["length"]))
            )
            self.ran.append("derive")
            return {"path": inner["path"], "key": wire.encode_base64(key), "length": inner["length"]}
        if request.method == "PUT":
            self.store[str(inner["key"])] = wire.parse_base64(inner["value"])
            self.ran.append(f"put {inner['key']}")
            return {"key": inner["key"], "updated_at_ms": VALUE_TIME_MS}
        if request.method == "DELETE":
            if self.store.pop(str(inner["key"]), None) is None:
                raise Refused(404, "not_found")
            self.ran.append(f"delete {inner['key']}")
            return {"key": inner["key"], "deleted": True}
        wanted = self._key_asked_for(route, query)
        if wanted is None:
            self.ran.append("list")
            return {"keys": sorted(self.store), "count": len(self.store)}
        if wanted not in self.store:
            raise Refused(404, "not_found")
        self.ran.append(f"get {wanted}")
        return {"key": wanted, "value": wire.encode_base64(self.store[wanted]), "updated_at_ms": VALUE_TIME_MS}

    def _key_asked_for(self, route: str, query: str) -> str | None:
        if route.startswith("/kms/data/"):
            return unquote(route.removeprefix("/kms/data/"))
        found = parse_qs(query).get("key", [None])[0]
        return found if self.traits.knows_key_query else None

    def _success(self, result: dict[str, object], signature: str, nonce: str) -> httpx.Response:
        inner = {"app_id": self.app.app_id, **result}
        if self.traits.signs:
            inner["answer_to"] = nonce
        return self.sealed_answer(inner, signature)

    def sealed_answer(self, inner: dict[str, object], signature: str) -> httpx.Response:
        """A 200 whose envelope holds `inner`, signed as the answer to the request signed `signature`."""
        envelope = wire.seal(self.tee, self.app.tee_pubkey, self._label, json.dumps(inner).encode())
        if self.traits.upper_case_hex:
            envelope = {name: "0x" + text.upper() for name, text in envelope.items()}
        return httpx.Response(200, json=envelope, headers=self._headers(signature))

    def _refusal(self, refusal: Refused, signature: str) -> httpx.Response:
        body = json.dumps({"code": refusal.code, "message": f"it says {refusal.code}"}).encode()
        headers: dict[str, str] = {}
        if refusal.authenticated and (self.traits.signs or self.traits.signs_responses_only):
            headers = self._headers(signature)
        if refusal.authenticated and self.traits.signs:
            headers["X-KMS-Answer-Signature"] = self.sign_answer(signature, refusal.status, body)
        return httpx.Response(refusal.status, content=body, headers=headers)

    def sign_answer(self, signature: str, status: int, body: bytes) -> str:
        text = f"NovaKMS:Answer:{signature}:{status}:{hashlib.sha256(body).hexdigest()}:{self.wallet.address}"
        return self.wallet.sign(text, self.traits.form)

    def _headers(self, signature: str) -> dict[str, str]:
        signed = wire.response_text(signature, self.wallet.address)
        headers = {"X-KMS-Response-Signature": self.wallet.sign(signed, self.traits.form)}
        if self.traits.signs:
            headers["X-KMS-Next-Nonce"] = self.issue_nonce()
        return headers


class FakeNetwork(httpx.AsyncBaseTransport):
    """Brings each request to the node of its URL; a URL without a node refuses the connection."""

    def __init__(self, nodes: list[FakeNode]) -> None:
        self.nodes = nodes

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        origin = f"{request.url.scheme}://{request.url.netloc.decode()}"
        for node in self.nodes:
            if node.url == origin:
                return _as_received(await node.handle(request))
        raise httpx.ConnectError("connection refused")


def _as_received(response: httpx.Response) -> httpx.Response:
    """A response made from bytes counts as read already; from the network it comes as a stream."""
    if not response.is_closed:
        return response
    stream = httpx.ByteStream(response.content)
    return httpx.Response(response.status_code, headers=response.headers, stream=stream)


# --- faults ---


async def refuses_connection(node: FakeNode, request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("connection refused")


async def is_cut_after_running(node: FakeNode, request: httpx.Request) -> httpx.Response:
    node.answer(request)
    raise httpx.ReadError("connection reset")


async def times_out_after_running(node: FakeNode, request: httpx.Request) -> httpx.Response:
    node.answer(request)
    raise httpx.ReadTimeout("no answer")


async def hangs(node: FakeNode, request: httpx.Request) -> httpx.Response:
    await anyio.sleep_forever()
    raise AssertionError("unreachable")


async def answers_without_end(node: FakeNode, request: httpx.Request) -> httpx.Response:
    async def endless():  # type: ignore[no-untyped-def]
        while True:
            yield b"0" * 65_536

    return httpx.Response(200, content=endless(), headers=node.answer(request).headers)


async def answers_plaintext(node: FakeNode, request: httpx.Request) -> httpx.Response:
    spoiled = node.answer(request)
    return httpx.Response(200, json={"app_id": 7, "keys": [], "count": 0}, headers=_signatures(spoiled))


async def answers_unsigned(node: FakeNode, request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, content=node.answer(request).content)


async def is_signed_by_a_stranger(node: FakeNode, request: httpx.Request) -> httpx.Response:
    honest_answer = node.answer(request)
    text = wire.response_text(request.headers["x-app-signature"], node.wallet.address)
    forged = wire.Wallet().sign(text)
    return httpx.Response(200, content=honest_answer.content, headers={"X-KMS-Response-Signature": forged})


async def signs_another_request(node: FakeNode, request: httpx.Request) -> httpx.Response:
    honest_answer = node.answer(request)
    signed = node.wallet.sign(wire.response_text("0x" + "00" * 65, node.wallet.address))
    return httpx.Response(200, content=honest_answer.content, headers={"X-KMS-Response-Signature": signed})


async def adds_a_wrong_answer_signature(node: FakeNode, request: httpx.Request) -> httpx.Response:
    honest_answer = node.answer(request)
    forged = node.sign_answer(request.headers["x-app-signature"], 200, b"another body")
    return _with_headers(honest_answer, {"X-KMS-Answer-Signature": forged})


async def flips_a_bit(node: FakeNode, request: httpx.Request) -> httpx.Response:
    honest_answer = node.answer(request)
    envelope = honest_answer.json()
    last = int(envelope["encrypted_data"][-1], 16) ^ 1
    envelope["encrypted_data"] = envelope["encrypted_data"][:-1] + f"{last:x}"
    return httpx.Response(200, json=envelope, headers=_signatures(honest_answer))


async def reflects_the_request(node: FakeNode, request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, content=request.content or b"{}", headers=_signatures(node.answer(request)))


async def reflects_under_its_own_key(node: FakeNode, request: httpx.Request) -> httpx.Response:
    """The envelope's key has no direction: the request opens as an answer once the sender's name is replaced."""
    envelope = {**json.loads(request.content), "sender_tee_pubkey": node.tee.der.hex()}
    return httpx.Response(200, json=envelope, headers=_signatures(node.answer(request)))


async def seals_with_an_unregistered_key(node: FakeNode, request: httpx.Request) -> httpx.Response:
    headers = _signatures(node.answer(request))
    inner = json.dumps({"app_id": node.app.app_id, "keys": [], "count": 0}).encode()
    envelope = wire.seal(wire.TeeKey(), node.app.tee_pubkey, wire.CAPSULE_LABEL, inner)
    return httpx.Response(200, json=envelope, headers=headers)


def answers_inner(inner: dict[str, object]) -> Fault:
    """A sealed and signed answer whose inner object is `inner`."""

    async def fault(node: FakeNode, request: httpx.Request) -> httpx.Response:
        return node.sealed_answer(inner, request.headers["x-app-signature"])

    return fault


def repeats_an_old_envelope() -> Fault:
    """The envelope of the first answer under the signature of each later one."""
    first: list[bytes] = []

    async def fault(node: FakeNode, request: httpx.Request) -> httpx.Response:
        honest_answer = node.answer(request)
        first.append(honest_answer.content)
        return httpx.Response(200, content=first[0], headers=_signatures(honest_answer))

    return fault


def refuses(status: int, *, headers: dict[str, str] | None = None, body: bytes | None = None) -> Fault:
    """An error answer that nobody signed, given before the request was looked at."""

    async def fault(node: FakeNode, request: httpx.Request) -> httpx.Response:
        content = body if body is not None else b'{"code":"a_code","message":"a message"}'
        return httpx.Response(status, content=content, headers=headers)

    return fault


def refuses_signed(status: int, *, headers: dict[str, str] | None = None) -> Fault:
    """An error answer under the node's answer signature; nothing was run."""

    async def fault(node: FakeNode, request: httpx.Request) -> httpx.Response:
        body = b'{"code":"a_code","message":"a message"}'
        signed = node.sign_answer(request.headers["x-app-signature"], status, body)
        return httpx.Response(status, content=body, headers={"X-KMS-Answer-Signature": signed, **(headers or {})})

    return fault


async def turns_its_success_into_a_404(node: FakeNode, request: httpx.Request) -> httpx.Response:
    """What whoever ends TLS can do to an answer whose signature does not cover the status."""
    headers = _signatures(node.answer(request))
    return httpx.Response(404, content=b'{"code":"not_found","message":"gone"}', headers=headers)


async def gives_a_404_signed_for_another_body(node: FakeNode, request: httpx.Request) -> httpx.Response:
    signed = node.sign_answer(request.headers["x-app-signature"], 404, b"another body")
    return httpx.Response(404, content=b"{}", headers={"X-KMS-Answer-Signature": signed})


def _signatures(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name == "x-kms-response-signature"}


def _with_headers(response: httpx.Response, headers: dict[str, str]) -> httpx.Response:
    return httpx.Response(response.status_code, content=response.content, headers={**_signatures(response), **headers})
