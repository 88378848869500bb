"""An app's side of the protocol, as cheap as it can be made while every byte stays what a real app sends.

The key agreement is computed once. Every answer must be 200; every 64th is verified like the SDK does it: the node's
signature, the envelope, and that the answer belongs to the request.
"""

import base64
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from appliance.auth.envelopes import encode_inner
from bench.load.http import Answer, Connection, LoadError
from bench.load.identities import CallerKeys, NodeAddress
from kmscore.envelope import LABELS, Envelope, open_envelope, parse_envelope, seal
from kmscore.json import parse_json_object
from kmscore.pop import PopKind, pop_text, response_text, verify_signed_by
from kmscore.secret import SecretBytes

VALUE_BYTES: Final = 1024
KEYS_PER_CALLER: Final = 64
VERIFY_EVERY: Final = 64
GET_KEY: Final = "bench-get"
_ENVELOPE_NONCE_BYTES: Final = 12


class Channel:
    """What a caller and a node share: seals to the node and opens what comes from it."""

    def __init__(self, keys: CallerKeys, node: NodeAddress) -> None:
        agreement = keys.agreement_key()
        self.own = agreement.public
        self.node = node
        self._shared: SecretBytes = agreement.agree(node.key)

    def seal(self, inner: Mapping[str, object]) -> Envelope:
        nonce = os.urandom(_ENVELOPE_NONCE_BYTES)
        return seal(self._shared, self.own, self.node.key, LABELS[0], nonce, encode_inner(dict(inner)))

    def open(self, body: bytes) -> dict[str, object]:
        plaintext, _ = open_envelope(self._shared, self.own, self.node.key, LABELS, parse_envelope(body))
        return parse_json_object(plaintext)


@dataclass(frozen=True, slots=True)
class Call:
    """One operation of protocol §4: method, target, and the inner request where there is a body."""

    method: str
    target: str
    inner: Mapping[str, object] | None


def derive_call() -> Call:
    return Call("POST", "/kms/derive", {"path": "disk", "length": 32})


def get_call(key: str = GET_KEY) -> Call:
    return Call("GET", f"/kms/data?key={key}", None)


def put_call(key: str) -> Call:
    return Call("PUT", "/kms/data", {"key": key, "value": _VALUE})


def nonce_request(node: NodeAddress) -> bytes:
    return f"GET /nonce HTTP/1.1\r\nHost: 127.0.0.1:{node.port}\r\nAccept: */*\r\n\r\n".encode()


def nonce_of(answer: Answer) -> str:
    """The nonce in an answer to `nonce_request`. Raises `LoadError`."""
    if answer.status != 200:
        raise LoadError(f"GET /nonce was answered {answer.status}")
    nonce: str = json.loads(answer.body)["nonce"]
    return nonce


_VALUE: Final = base64.b64encode(bytes(range(256)) * (VALUE_BYTES // 256)).decode()


class AppUser:
    """One app instance on one connection. `next_nonce` uses the nonce that came with the answer before."""

    def __init__(self, keys: CallerKeys, node: NodeAddress, connection: Connection, *, next_nonce: bool) -> None:
        self._channel = Channel(keys, node)
        self._wallet_key = keys.wallet_key()
        self._node = node
        self._connection = connection
        self._next_nonce = next_nonce
        self._nonce: str | None = None
        self._calls = 0
        self._nonce_request = nonce_request(node)
        self._fixed_headers = (
            f"Host: 127.0.0.1:{node.port}\r\nAccept: */*\r\nX-App-Wallet: {self._wallet_key.address}\r\n"
        )

    async def call(self, call: Call) -> Answer:
        """One operation with its proof of possession. Raises `LoadError` for every answer but 200."""
        nonce = self._nonce or nonce_of(await self._connection.request(self._nonce_request))
        request, signature = self._request(call, nonce)
        answer = await self._connection.request(request)
        if answer.status != 200:
            raise LoadError(f"{call.method} {call.target} was answered {answer.status}: {answer.body[:200]!r}")
        if self._next_nonce:
            offered = answer.header(b"x-kms-next-nonce")
            if offered is None:
                raise LoadError("the node offers no next nonce")
            self._nonce = offered.decode()
        if self._calls % VERIFY_EVERY == 0:
            self._verify(answer, nonce, signature)
        self._calls += 1
        return answer

    def _request(self, call: Call, nonce: str) -> tuple[bytes, str]:
        timestamp_s = int(time.time())
        signature = self._wallet_key.sign_message(pop_text(PopKind.APP, nonce, self._node.wallet, timestamp_s))
        body = b""
        of_body = ""
        if call.inner is not None:
            body = self._channel.seal({**call.inner, "pop_nonce": nonce}).canonical
            of_body = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        head = (
            f"{call.method} {call.target} HTTP/1.1\r\n{self._fixed_headers}{of_body}"
            f"X-App-Signature: {signature}\r\nX-App-Nonce: {nonce}\r\nX-App-Timestamp: {timestamp_s}\r\n\r\n"
        )
        return head.encode() + body, signature

    def _verify(self, answer: Answer, nonce: str, signature: str) -> None:
        signed = answer.header(b"x-kms-response-signature") or b""
        verify_signed_by(response_text(signature, self._node.wallet), signed.decode(), self._node.wallet)
        if self._channel.open(answer.body).get("answer_to") != nonce:
            raise LoadError("an answer belongs to another request")
