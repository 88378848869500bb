"""Requests crafted by hand, field by field, as an app, a peer or an attacker would send them (protocol §2-§5).

Nothing here imports the packages under test. `request` sends exactly what it is given; `Caller` fills in what a correct
caller would send and lets a test replace any of it.
"""

import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

import httpx

from tests.support import wire
from tests.support.wire import SignatureForm

TIMEOUT_S = 20.0


class RawIdentity:
    """The two key pairs of an enclave: `wallet` (secp256k1) and `tee` (P-384)."""

    def __init__(self, wallet: wire.Wallet | None = None, tee: wire.TeeKey | None = None) -> None:
        self.wallet = wire.Wallet() if wallet is None else wallet
        self.tee = wire.TeeKey() if tee is None else tee

    @property
    def address(self) -> str:
        return self.wallet.address


@dataclass(frozen=True)
class Target:
    """The node a caller addresses: base URL, wallet, and teePubkey as DER."""

    url: str
    wallet: str
    tee_pubkey: bytes

    @classmethod
    def of(cls, url: str) -> "Target":
        """The node behind `url` as its own /status describes it."""
        node = request("GET", url + "/status").json()["node"]
        return cls(
            url, wire.parse_wallet(node["tee_wallet"]), wire.parse_tee_pubkey(wire.parse_hex(node["tee_pubkey"]))
        )


@dataclass(frozen=True)
class Flow:
    """What differs between app → node and node → node: text prefix, header prefix, name of the answer's signature."""

    kind: str
    prefix: str
    answer_header: str


APP = Flow("AppAuth", "X-App-", "X-KMS-Response-Signature")
PEER = Flow("Auth", "X-KMS-", "X-KMS-Peer-Signature")


def request(
    method: str, url: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> httpx.Response:
    """One HTTP exchange on a fresh connection, nothing added but what httpx must add."""
    # A context that trusts nobody: the tests speak http, and loading the CA bundle for every client would cost more
    # than the exchange.
    with httpx.Client(timeout=TIMEOUT_S, trust_env=False, verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)) as client:
        return client.request(method, url, content=body, headers=dict(headers or {}))


def fetch_nonce(url: str) -> str:
    return request("GET", url + "/nonce").raise_for_status().json()["nonce"]


def pop_headers(
    identity: RawIdentity,
    flow: Flow,
    nonce: str,
    receiver: str,
    timestamp: int | str | None = None,
    *,
    hint: str | None = None,
    form: SignatureForm | None = None,
) -> dict[str, str]:
    """The headers of protocol §2; `hint` adds the optional wallet header, true or not."""
    timestamp = int(time.time()) if timestamp is None else timestamp
    text = wire.pop_text(flow.kind, nonce, receiver, timestamp)
    headers = {
        flow.prefix + "Signature": identity.wallet.sign(text, form or SignatureForm()),
        flow.prefix + "Nonce": nonce,
        flow.prefix + "Timestamp": str(timestamp),
    }
    return headers if hint is None else {**headers, flow.prefix + "Wallet": hint}


def seal(identity: RawIdentity, peer_der: bytes, inner: object, label: str = wire.CAPSULE_LABEL) -> dict[str, str]:
    return wire.seal(identity.tee, peer_der, label, json.dumps(inner).encode())


@dataclass
class Answer:
    """A response and, when its signature and envelope were checked, the object inside."""

    response: httpx.Response
    signature: str
    inner: dict[str, object] | None = None
    label: str | None = None

    @property
    def status(self) -> int:
        return self.response.status_code

    @property
    def code(self) -> str | None:
        """The machine word of an error answer."""
        return self.response.json().get("code")


@dataclass
class Caller:
    """A correct caller by default; every keyword of `send` replaces one thing it would have done."""

    identity: RawIdentity
    target: Target
    flow: Flow = APP
    label: str = wire.CAPSULE_LABEL
    form: SignatureForm = field(default_factory=SignatureForm)

    def send(
        self,
        method: str,
        path: str,
        inner: object = None,
        *,
        nonce: str | None = None,
        receiver: str | None = None,
        timestamp: int | str | None = None,
        envelope: object = None,
        body: bytes | None = None,
        headers: Mapping[str, str | None] | None = None,
    ) -> Answer:
        """Send one authenticated request; `headers` adds, replaces or (None) removes headers.

        A 200 is checked: the answer's signature must be the target's, the envelope sealed by its key under the label
        that the request used. AssertionError when it is not.
        """
        nonce = fetch_nonce(self.target.url) if nonce is None else nonce
        sent = pop_headers(self.identity, self.flow, nonce, receiver or self.target.wallet, timestamp, form=self.form)
        if body is None and (envelope is not None or inner is not None):
            if envelope is None:
                envelope = seal(self.identity, self.target.tee_pubkey, inner, self.label)
            body = json.dumps(envelope).encode()
        if body is not None:
            sent["Content-Type"] = "application/json"
        for name, text in (headers or {}).items():
            sent.pop(name, None)
            if text is not None:
                sent[name] = text
        response = request(method, self.target.url + path, body=body, headers=sent)
        answer = Answer(response, sent.get(self.flow.prefix + "Signature", ""))
        if response.status_code == 200:
            self.verify(answer)
        return answer

    def verify(self, answer: Answer) -> None:
        """Check signature and envelope of a 200 and fill in what is inside."""
        signer = wire.recover_signer(
            wire.response_text(answer.signature, self.target.wallet),
            answer.response.headers[self.flow.answer_header],
        )
        assert signer == self.target.wallet, "the answer is signed by somebody else"
        envelope = answer.response.json()
        sender, _, _ = wire.parse_envelope(envelope)
        assert sender == self.target.tee_pubkey, "the answer is sealed by somebody else"
        plaintext, answer.label = wire.open_envelope(self.identity.tee, envelope)
        answer.inner = json.loads(plaintext)


class RawApp(Caller):
    """An app that uses every app endpoint (protocol §4); a status other than the expected one is an AssertionError."""

    def derive(self, path: str, context: str = "", length: int = 32) -> bytes:
        inner = self._ok("POST", "/kms/derive", {"path": path, "context": context, "length": length})
        key = wire.parse_base64(inner["key"])
        assert (inner["path"], inner["length"], len(key)) == (path, length, length)
        return key

    def put(self, key: str, value: bytes, ttl_ms: int = 0) -> int:
        inner = self._ok("PUT", "/kms/data", {"key": key, "value": wire.encode_base64(value), "ttl_ms": ttl_ms})
        assert inner["key"] == key
        return inner["updated_at_ms"]

    def get(self, key: str) -> bytes | None:
        """The value, or None for 404."""
        answer = self.send("GET", "/kms/data/" + quote(key, safe=""))
        if answer.status == 404:
            return None
        assert answer.status == 200, answer.response.text
        assert answer.inner["key"] == key
        return wire.parse_base64(answer.inner["value"])

    def keys(self) -> list[str]:
        inner = self._ok("GET", "/kms/data")
        assert inner["count"] == len(inner["keys"])
        return inner["keys"]

    def delete(self, key: str) -> bool:
        """Whether there was something to delete."""
        answer = self.send("DELETE", "/kms/data", {"key": key})
        assert answer.status in (200, 404), answer.response.text
        return answer.status == 200

    def contents(self) -> dict[str, bytes | None]:
        return {key: self.get(key) for key in self.keys()}

    def _ok(self, method: str, path: str, inner: object = None) -> dict[str, object]:
        answer = self.send(method, path, inner)
        assert answer.status == 200, f"{method} {path}: {answer.status} {answer.response.text}"
        return answer.inner


class RawPeer(Caller):
    """A registered peer that speaks /sync by hand (protocol §5)."""

    def __init__(self, identity: RawIdentity, target: Target, label: str = wire.CAPSULE_LABEL) -> None:
        super().__init__(identity, target, PEER, label)

    def sync(self, inner: dict[str, object], sync_key: bytes | None, **replaced: object) -> Answer:
        """Send `inner` with sender_wallet and MAC filled in; without a `sync_key` no X-Sync-Signature is sent."""
        inner = {"sender_wallet": self.identity.address, **inner}
        envelope = seal(self.identity, self.target.tee_pubkey, inner, self.label)
        headers = {} if sync_key is None else {"X-Sync-Signature": wire.sync_mac(sync_key, envelope)}
        headers.update(replaced.pop("headers", {}))
        return self.send("POST", "/sync", envelope=replaced.pop("envelope", envelope), headers=headers, **replaced)

    def fetch_master_secret(self) -> bytes:
        ephemeral = wire.TeeKey()
        answer = self.sync({"type": "master_secret_request", "ecdh_pubkey": ephemeral.der.hex()}, None)
        assert answer.status == 200, answer.response.text
        return wire.open_master_secret(answer.inner["sealed"], ephemeral)

    def push(self, sync_key: bytes, app_id: int, *records: dict[str, object]) -> dict[str, object]:
        answer = self.sync({"type": "delta", "data": {str(app_id): list(records)}}, sync_key)
        assert answer.status == 200, answer.response.text
        return answer.inner

    def snapshot(self, sync_key: bytes) -> dict[str, list[dict[str, object]]]:
        answer = self.sync({"type": "snapshot_request"}, sync_key)
        assert answer.status == 200, answer.response.text
        return answer.inner["data"]


def wire_record(
    key: str,
    ciphertext: bytes | None,
    version: Mapping[str, int],
    updated_at_ms: int | None = None,
    *,
    ttl_ms: int = 0,
) -> dict[str, object]:
    """A record on the wire; a `ciphertext` of None makes a tombstone, no time means now."""
    return {
        "key": key,
        "value": None if ciphertext is None else ciphertext.hex(),
        "version": dict(version),
        "updated_at_ms": time.time_ns() // 1_000_000 if updated_at_ms is None else updated_at_ms,
        "tombstone": ciphertext is None,
        "ttl_ms": ttl_ms,
    }
