"""The platform's local API, emulated for tests of the `odyn` provider and for whole nodes that run on it.

Written from the description of that API and with other libraries than the provider uses, so that the two can disagree:
libsecp256k1 through coincurve, keccak through eth_hash, everything of P-384 through `cryptography`. It is faithful in
the forms of errors (plain text without a Content-Type, empty 404 and 405, a dropped connection when a handler fails,
413 over 10 MiB) and in registering a nonce before decrypting. It is a TEE in no sense.
"""

import asyncio
import base64
import hashlib
import json
import secrets
import socket
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import coincurve
import rlp
import uvicorn
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from eth_hash.auto import keccak
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from appliance.tee.attestation.cbor import decode_cbor, encode_cbor

CURRENT_LABEL = "capsule-ecdh-aes256gcm-v1"
BODY_LIMIT_BYTES = 10 * 1024 * 1024
REPLAY_MEMORY = 4096


class HandlerFailed(Exception):
    """A handler of the runtime failed: the connection is dropped without an answer."""


class BadRequest(Exception):
    """400 with this text."""


@dataclass
class Faults:
    """What goes wrong, by path; tests change it while the emulator runs."""

    drop_before: Counter[str] = field(default_factory=Counter)  # connections to drop before the handler runs
    drop_after: Counter[str] = field(default_factory=Counter)  # ... after it ran
    latency_s: dict[str, float] = field(default_factory=dict)
    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)  # status and raw body instead of the real one
    members: dict[str, dict[str, object]] = field(default_factory=dict)  # members of the JSON answer to replace
    sign_with_another_key: bool = False
    attestation: str = "ask"  # the secure module, without which the connection is dropped; or "refuse": 400


class OdynEmulator:
    """One runtime: its keys, its replay memory, its faults; `app` is the ASGI application."""

    def __init__(
        self,
        *,
        label: str = CURRENT_LABEL,
        wallet_scalar: int | None = None,
        agreement_scalar: int | None = None,
        secure_module: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self.label = label
        self._secure_module = secure_module
        self.faults = Faults()
        self.calls: Counter[str] = Counter()
        self._set_keys(wallet_scalar, agreement_scalar)
        self.app = Starlette(
            routes=[
                self._route("GET", "/v1/eth/address", self._address),
                self._route("POST", "/v1/eth/sign", self._sign),
                self._route("POST", "/v1/eth/sign-tx", self._sign_transaction),
                self._route("GET", "/v1/random", self._random),
                self._route("POST", "/v1/attestation", self._attestation),
                self._route("GET", "/v1/encryption/public_key", self._public_key),
                self._route("POST", "/v1/encryption/encrypt", self._encrypt),
                self._route("POST", "/v1/encryption/decrypt", self._decrypt),
            ],
            exception_handlers={404: _empty, 405: _empty},
        )

    def restart(self) -> None:
        """What a restart of the runtime does: new keys, nothing remembered."""
        self._set_keys(None, None)

    @property
    def address(self) -> str:
        return _address_of(self._wallet)

    @property
    def public_der(self) -> bytes:
        return self._agreement.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def _set_keys(self, wallet_scalar: int | None, agreement_scalar: int | None) -> None:
        self._wallet = coincurve.PrivateKey.from_int(wallet_scalar) if wallet_scalar else coincurve.PrivateKey()
        self._agreement = (
            ec.derive_private_key(agreement_scalar, ec.SECP384R1())
            if agreement_scalar
            else ec.generate_private_key(ec.SECP384R1())
        )
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    # --- transport ---

    def _route(self, method: str, path: str, handler: Any) -> Route:
        async def endpoint(request: Request) -> Response:
            self.calls[path] += 1
            if delay_s := self.faults.latency_s.get(path):
                await asyncio.sleep(delay_s)
            if _take(self.faults.drop_before, path):
                return _Dropped()
            body = b""
            async for chunk in request.stream():
                body += chunk
                if len(body) > BODY_LIMIT_BYTES:
                    return _plain_text(413, "Request body too large")
            try:
                answer = handler(_object(body) if method == "POST" else {})
            except BadRequest as refusal:
                return _plain_text(400, str(refusal))
            except HandlerFailed:
                return _Dropped()
            if _take(self.faults.drop_after, path):
                return _Dropped()
            if path in self.faults.answers:
                status, raw = self.faults.answers[path]
                return Response(raw, status, media_type="application/json")
            if isinstance(answer, bytes):
                return Response(answer, media_type="application/cbor")
            return JSONResponse({**answer, **self.faults.members.get(path, {})})

        return Route(path, endpoint, methods=[method])

    # --- the endpoints: JSON object in, JSON object out ---

    def _address(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"address": self.address, "public_key": "0x" + self._wallet.public_key.format(compressed=False).hex()}

    def _sign(self, request: dict[str, Any]) -> dict[str, Any]:
        message = _member(request, "message", str)
        if message == "":
            raise BadRequest("Message cannot be empty")
        if request.get("include_attestation", False):
            raise HandlerFailed
        data = message.encode()
        digest = keccak(b"\x19Ethereum Signed Message:\n" + str(len(data)).encode() + data)
        return {"signature": "0x" + self._signature(digest).hex(), "address": self.address, "attestation": None}

    def _sign_transaction(self, request: dict[str, Any]) -> dict[str, Any]:
        payload = _member(request, "payload", dict)
        if request.get("include_attestation", False):
            raise HandlerFailed
        kind = _member(payload, "kind", str)
        if kind != "structured":
            raise BadRequest(f"unknown variant `{kind}`, expected `structured`")
        names = ("chain_id", "nonce", "max_priority_fee_per_gas", "max_fee_per_gas", "gas_limit")
        numbers = [int.from_bytes(_padded_hex(_member(payload, name, str))) for name in names]
        if numbers[0] == 0:
            raise BadRequest("chain_id must not be zero")
        to = payload.get("to")
        unsigned = [
            *numbers,
            b"" if to is None else _padded_hex(to),
            int.from_bytes(_padded_hex(payload.get("value", "0x0"))),
            _padded_hex(payload.get("data", "0x")),
            [
                [_padded_hex(entry["address"]), [_padded_hex(slot) for slot in entry["storage_keys"]]]
                for entry in payload.get("access_list", [])
            ],
        ]
        signature = self._signature(keccak(b"\x02" + rlp.encode(unsigned)))
        r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:64])
        raw = b"\x02" + rlp.encode([*unsigned, signature[64], r, s])
        return {
            "raw_transaction": "0x" + raw.hex(),
            "transaction_hash": "0x" + keccak(raw).hex(),
            "signature": "0x" + signature.hex(),
            "address": self.address,
            "attestation": None,
        }

    def _random(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"random_bytes": "0x" + secrets.token_hex(32)}

    def _attestation(self, request: dict[str, Any]) -> bytes:
        if self.faults.attestation == "refuse":
            raise BadRequest("attestation is not configured")
        nonce, pem, user_data = (request.get(name) for name in ("nonce", "public_key", "user_data"))
        if not isinstance(user_data, dict | None):
            raise BadRequest("user_data must be a JSON object")
        if self._secure_module is None:
            raise HandlerFailed
        public_key = self.public_der
        if pem is not None:
            # Of a key that it is given only the point is left.
            loaded = load_pem_public_key(pem.encode())
            public_key = loaded.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        arguments = {
            "user_data": json.dumps({**(user_data or {}), "eth_addr": self.address}, separators=(",", ":")).encode(),
            "nonce": None if nonce is None else base64.b64decode(nonce, validate=True),
            "public_key": public_key,
        }
        answer = decode_cbor(self._secure_module(encode_cbor({"Attestation": arguments})))
        try:
            return answer["Attestation"]["document"]
        except KeyError as error:
            raise HandlerFailed from error

    def _public_key(self, _: dict[str, Any]) -> dict[str, Any]:
        der = self.public_der
        text = base64.b64encode(der).decode()
        lines = [text[start : start + 64] for start in range(0, len(text), 64)]
        pem = "\n".join(["-----BEGIN PUBLIC KEY-----", *lines, "-----END PUBLIC KEY-----"])
        return {"public_key_der": "0x" + der.hex(), "public_key_pem": pem}

    def _encrypt(self, request: dict[str, Any]) -> dict[str, Any]:
        plaintext = _member(request, "plaintext", str)
        peer_der = _strict_hex(_member(request, "client_public_key", str), "client_public_key")
        try:
            peer = _loose_point(peer_der)
        except ValueError as error:
            raise BadRequest(f"Encryption failed: {error}") from error
        nonce = secrets.token_bytes(12)
        sealed = AESGCM(self._key(peer, nonce)).encrypt(nonce, plaintext.encode(), None)
        return {"encrypted_data": sealed.hex(), "enclave_public_key": self.public_der.hex(), "nonce": nonce.hex()}

    def _decrypt(self, request: dict[str, Any]) -> dict[str, Any]:
        nonce_text, key_text, data_text = (
            _member(request, name, str) for name in ("nonce", "client_public_key", "encrypted_data")
        )
        nonce = _strict_hex(nonce_text, "nonce")
        if len(nonce) not in (12, 32):
            raise BadRequest(f"Invalid nonce length: expected 12 bytes (or 32-byte legacy nonce), got {len(nonce)}")
        nonce = nonce[:12]
        peer_der = _strict_hex(key_text, "client_public_key")
        sealed = _strict_hex(data_text, "encrypted_data")
        fingerprint = hashlib.sha256(peer_der + nonce).digest()
        if fingerprint in self._seen:
            raise BadRequest("Nonce reuse detected for client_public_key")
        self._seen[fingerprint] = None
        if len(self._seen) > REPLAY_MEMORY:
            self._seen.popitem(last=False)
        try:
            plaintext = AESGCM(self._key(_loose_point(peer_der), nonce)).decrypt(nonce, sealed, None)
        except (InvalidTag, ValueError) as error:
            raise BadRequest("Decryption failed: aead::Error") from error
        try:
            return {"plaintext": plaintext.decode()}
        except UnicodeDecodeError as error:
            raise BadRequest("Invalid UTF-8 in plaintext: invalid utf-8 sequence") from error

    # --- cryptography ---

    def _signature(self, digest: bytes) -> bytes:
        key = coincurve.PrivateKey() if self.faults.sign_with_another_key else self._wallet
        return key.sign_recoverable(digest, hasher=None)

    def _key(self, peer: ec.EllipticCurvePublicKey, nonce: bytes) -> bytes:
        points = [
            key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
            for key in (self._agreement.public_key(), peer)
        ]
        salt = b"".join(sorted(points)) + nonce
        return HKDF(SHA256(), 32, salt, self.label.encode()).derive(self._agreement.exchange(ec.ECDH(), peer))


def _address_of(key: coincurve.PrivateKey) -> str:
    return "0x" + keccak(key.public_key.format(compressed=False)[1:])[-20:].hex()


def _take(counter: Counter[str], path: str) -> bool:
    if counter[path] <= 0:
        return False
    counter[path] -= 1
    return True


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        raise BadRequest("expected value at line 1 column 1") from None
    if not isinstance(value, dict):
        raise BadRequest("invalid type: expected struct at line 1 column 1")
    return value


def _member(request: dict[str, Any], name: str, kind: type) -> Any:
    if name not in request:
        raise BadRequest(f"missing field `{name}` at line 1 column 2")
    if not isinstance(request[name], kind):
        raise BadRequest("invalid type at line 1 column 2")
    return request[name]


def _strict_hex(text: str, name: str) -> bytes:
    try:
        return bytes.fromhex(_no_spaces(text.removeprefix("0x")))
    except ValueError as error:
        raise BadRequest(f"Invalid {name} hex: {error}") from error


def _padded_hex(text: str) -> bytes:
    digits = text.removeprefix("0x")
    try:
        return bytes.fromhex(_no_spaces("0" * (len(digits) % 2) + digits))
    except ValueError as error:
        raise BadRequest(f"invalid hex: {error}") from error


def _no_spaces(text: str) -> str:
    if any(char.isspace() for char in text):
        raise ValueError("invalid character")
    return text


def _loose_point(der: bytes) -> ec.EllipticCurvePublicKey:
    """The point of a SubjectPublicKeyInfo, read as loosely as the runtime does: the algorithm is not looked at, a
    compressed point is taken, trailing bytes are ignored. ValueError."""
    _, start, _ = _tlv(der, 0)
    _, _, after_algorithm = _tlv(der, start)
    tag, content, end = _tlv(der, after_algorithm)
    if tag != 0x03:
        raise ValueError("no bit string")
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), der[content + 1 : end])


def _tlv(der: bytes, offset: int) -> tuple[int, int, int]:
    """Tag, start and end of the content of the DER element at `offset`, lengths below 128 only."""
    if len(der) < offset + 2 or der[offset + 1] > 127:
        raise ValueError("not the DER of a key")
    return der[offset], offset + 2, offset + 2 + der[offset + 1]


async def _empty(request: Request, error: Exception) -> Response:
    del request
    return _plain_text(error.status_code if isinstance(error, HTTPException) else 500, "")


def _plain_text(status: int, text: str) -> Response:
    """The runtime's errors have no Content-Type."""
    return Response(text.encode(), status, media_type=None)


class _Dropped(Response):
    """Closes the connection instead of answering."""

    def __init__(self) -> None:
        super().__init__(b"")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del send
        scope["extensions"]["transport"].close()
        while (await receive())["type"] != "http.disconnect":
            pass


class _ExposingProtocol(HttpToolsProtocol):
    """Lets a handler reach its connection."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope.setdefault("extensions", {})["transport"] = self.transport


class _Server(uvicorn.Server):
    """Says when it accepts connections."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


class OdynServer:
    """An emulator that listens on a loopback port, on an event loop in a thread of its own."""

    def __init__(self, emulator: OdynEmulator) -> None:
        # asyncio switches Nagle's delay off only for sockets that say they are TCP; else each answer takes 40 ms.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            emulator.app, http=_ExposingProtocol, lifespan="off", log_config=None, access_log=False, loop="asyncio"
        )
        self._server = _Server(config)
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._server.serve(sockets=[self._socket])), name="odyn-emulator", daemon=True
        )

    def start(self) -> Self:
        """Returns when it accepts connections."""
        self._thread.start()
        if not self._server.ready.wait(10):
            raise RuntimeError("the emulator did not start within 10 s")
        return self

    def stop(self) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(10)
        self._socket.close()


@contextmanager
def serve_odyn(emulator: OdynEmulator) -> Iterator[str]:
    """The base URL of `emulator`, for as long as the context lasts."""
    server = OdynServer(emulator).start()
    try:
        yield server.url
    finally:
        server.stop()
