"""The platform's local API (Odyn, now Capsule) as a TEE provider: the keys belong to the runtime beside this process.

The runtime is trusted with the keys and with every plaintext, not with staying the same: what it returns is bounded,
parsed strictly and, where that is possible, verified. A signature that does not recover to our wallet never leaves.
When the runtime restarts it has other keys, under which the chain does not know this process: as soon as an answer
shows that, or `refresh_identity` (which the node calls on every tick), everything raises InvariantBroken and the
process has to start anew. Answers that cannot be used are Unavailable with a constant message; nothing the runtime says
is repeated.
"""

import json
from base64 import b64encode
from binascii import Error as HexError
from binascii import unhexlify
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass

import anyio
import anyio.to_thread
import httpx

from appliance.http import AnswerTooLarge, SentOnce, joined, read_bounded
from appliance.tee.attestation.document import MAX_DOCUMENT_BYTES
from appliance.tee.attestation.statement import require_own
from appliance.tee.port import (
    Eip1559Transaction,
    LongEnvelope,
    LongText,
    TeeIdentity,
    check_nonce_size,
    check_random_size,
)
from appliance.tee.transaction import verify_signed_transaction
from kmscore.envelope import NONCE_BYTES, TAG_BYTES, Envelope, TeePublicKey, encode_envelope, parse_tee_pubkey_der
from kmscore.errors import InvariantBroken, Reason, Rejected, Unavailable
from kmscore.json import parse_json_object
from kmscore.pop import parse_wallet, verify_signed_by

# The runtime refuses larger bodies with 413. What encrypt and decrypt return is at most what they were sent, doubled by
# hex or JSON escapes; everything else is a handful of short members.
MAX_REQUEST_BYTES = 10 * 1024 * 1024
MAX_MESSAGE_ANSWER_BYTES = 2 * MAX_REQUEST_BYTES + 4096
MAX_ANSWER_BYTES = 64 * 1024

# The runtime is on this machine and takes milliseconds; ten seconds are for a machine that is starved.
DEFAULT_TIMEOUT_S = 10.0

# JSON and hex of this much take about 100 µs; what is larger is encoded and parsed in a worker thread.
INLINE_BYTES = 64 * 1024

_RANDOM_BLOCK_BYTES = 32
_SIGNATURE_BYTES = 65

# Signed once when the identity is read, to see that address and signing key belong together. No PoP text (protocol §2)
# begins like this.
SELF_TEST_MESSAGE = b"NovaKMS:TeeSelfTest"


@dataclass(frozen=True, slots=True)
class _Call:
    """One endpoint. `repeatable`: sending it twice is harmless, so a dropped connection is tried once more."""

    method: str
    path: str
    repeatable: bool = True
    answer_limit_bytes: int = MAX_ANSWER_BYTES


_ADDRESS = _Call("GET", "/v1/eth/address")
_PUBLIC_KEY = _Call("GET", "/v1/encryption/public_key")
_RANDOM = _Call("GET", "/v1/random")
_SIGN = _Call("POST", "/v1/eth/sign")
_SIGN_TRANSACTION = _Call("POST", "/v1/eth/sign-tx")
_ENCRYPT = _Call("POST", "/v1/encryption/encrypt", answer_limit_bytes=MAX_MESSAGE_ANSWER_BYTES)
_ATTEST = _Call("POST", "/v1/attestation", answer_limit_bytes=MAX_DOCUMENT_BYTES)
# The runtime registers a nonce before it decrypts: the second attempt would be refused as a replay.
_DECRYPT = _Call("POST", "/v1/encryption/decrypt", repeatable=False, answer_limit_bytes=MAX_MESSAGE_ANSWER_BYTES)


class OdynTee:
    """Implements `TeeProvider` over the runtime's HTTP API at `base_url`.

    `client` must ignore the proxy settings of the environment and follow no redirects; it belongs to the caller, who
    closes it after `aclose`. Each call has `timeout_s` seconds for everything, its second attempt included.
    """

    def __init__(self, client: httpx.AsyncClient, base_url: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._client = client
        self._base_url = base_url.rstrip("/")
        self._timeout_s = timeout_s
        self._identity: TeeIdentity | None = None
        self._identity_lock = anyio.Lock()
        self._stopped_because: str | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        return ()

    async def identity(self) -> TeeIdentity:
        """The identity as first read. Unavailable until one reading has succeeded."""
        self._require_usable()
        if self._identity is None:
            async with self._identity_lock:
                if self._identity is None:
                    self._identity = await self._read_identity()
        return self._identity

    async def refresh_identity(self) -> TeeIdentity:
        """Read address and public key, check both, and compare them with what they were before.

        Unavailable when they cannot be read or do not belong together; what was known before stays. InvariantBroken,
        now and from every later call, when they have changed.
        """
        async with self._identity_lock:
            self._require_usable()
            found = await self._read_identity()
            if self._identity is not None and found != self._identity:
                self._stopped_because = "the TEE runtime has other keys than when this process started: start it anew"
                self._require_usable()
            self._identity = found
            return found

    async def sign_message(self, message: bytes) -> str:
        wallet = (await self.identity()).wallet
        signature = await self._sign(message)
        try:
            verify_signed_by(message, signature, wallet)
        except Rejected:
            await self.refresh_identity()
            raise _nonsense() from None
        return signature

    async def sign_transaction(self, tx: Eip1559Transaction) -> bytes:
        wallet = (await self.identity()).wallet
        payload = {
            "kind": "structured",
            "chain_id": hex(tx.chain_id),
            "nonce": hex(tx.nonce),
            "max_priority_fee_per_gas": hex(tx.max_priority_fee_per_gas),
            "max_fee_per_gas": hex(tx.max_fee_per_gas),
            "gas_limit": hex(tx.gas_limit),
            "to": tx.to,
            "value": hex(tx.value),
            "data": "0x" + tx.data.hex(),
            "access_list": [],
        }
        answer = await self._call(_SIGN_TRANSACTION, {"include_attestation": False, "payload": payload})
        raw = _hex_field(answer, "raw_transaction")
        try:
            # In a thread because the first call imports the libraries that decode it.
            return await anyio.to_thread.run_sync(verify_signed_transaction, raw, tx, wallet)
        except Rejected:
            await self.refresh_identity()
            raise _nonsense() from None

    async def seal(self, plaintext: bytes, peer: TeePublicKey, label: str | None) -> Envelope:
        """As the port says; `label` is ignored, the runtime has its own. Rejected(TOO_LARGE) beyond its 10 MiB."""
        del label
        own = (await self.identity()).tee_pubkey
        answer = await self._call(_ENCRYPT, {"plaintext": _text(plaintext), "client_public_key": peer.der.hex()})
        nonce = _hex_field(answer, "nonce", NONCE_BYTES)
        ciphertext = _hex_field(answer, "encrypted_data", len(plaintext) + TAG_BYTES)
        if _hex_field(answer, "enclave_public_key") != own.der:
            await self.refresh_identity()
            raise _nonsense()
        return encode_envelope(own.der, nonce, ciphertext)

    async def seal_long(self, text: LongText, peer: TeePublicKey, label: str | None) -> LongEnvelope:
        """As the port says, but in one piece, and Rejected(TOO_LARGE) beyond the runtime's 10 MiB."""
        if text.size_bytes > MAX_REQUEST_BYTES:
            raise _too_large()
        parts = []
        for part in text.parts:
            parts.append(part)
            await anyio.lowlevel.checkpoint()  # it was made just now
        envelope = await self.seal(await joined(parts), peer, label)

        async def pieces() -> AsyncGenerator[bytes, None]:
            yield envelope.canonical

        return LongEnvelope(envelope.nonce, len(envelope.canonical), pieces())

    async def open(self, envelope: Envelope, peer: TeePublicKey) -> tuple[bytes, str | None]:
        """As the port says; the label is not known. Rejected(TOO_LARGE) beyond the runtime's 10 MiB.

        Unavailable may mean that the runtime has used the nonce up: the same envelope will not open again, the sender
        has to seal anew.
        """
        await self.identity()
        request: dict[str, object] = {
            "nonce": envelope.nonce.hex(),
            "client_public_key": peer.der.hex(),
            "encrypted_data": envelope.ciphertext.hex(),
        }
        answer = await self._call(_DECRYPT, request)
        plaintext = answer.get("plaintext")
        if not isinstance(plaintext, str):
            raise _nonsense()
        return plaintext.encode(), None

    async def random_bytes(self, size: int) -> bytes:
        self._require_usable()
        check_random_size(size)
        data = b""
        while len(data) < size:
            data += _hex_field(await self._call(_RANDOM), "random_bytes", _RANDOM_BLOCK_BYTES)
        return data[:size]

    async def attest(self, nonce: bytes | None) -> bytes:
        """As the port says. The runtime adds its key and the wallet by itself; PCR16 is its own, so no config."""
        self._require_usable()
        check_nonce_size(nonce)
        identity = await self.identity()
        # The key is left out: the runtime would cut one that it is given down to its bare point.
        request: dict[str, object] = {} if nonce is None else {"nonce": b64encode(nonce).decode()}
        document = await self._call_raw(_ATTEST, request)
        try:
            return require_own(document, identity, nonce)
        except Rejected:
            await self.refresh_identity()
            raise _nonsense() from None

    async def aclose(self) -> None:
        """Refuse every later call. This process holds no keys to wipe, and the HTTP client is its owner's to close."""
        self._stopped_because = self._stopped_because or "the TEE provider is used after it was closed"

    def _require_usable(self) -> None:
        if self._stopped_because is not None:
            raise InvariantBroken(self._stopped_because)

    async def _read_identity(self) -> TeeIdentity:
        address = (await self._call(_ADDRESS)).get("address")
        public_key = _hex_field(await self._call(_PUBLIC_KEY), "public_key_der")
        try:
            wallet = parse_wallet(address if isinstance(address, str) else "")
            tee_pubkey = parse_tee_pubkey_der(public_key)
            verify_signed_by(SELF_TEST_MESSAGE, await self._sign(SELF_TEST_MESSAGE), wallet)
        except Rejected:
            raise _nonsense() from None
        return TeeIdentity(wallet, tee_pubkey)

    async def _sign(self, message: bytes) -> str:
        answer = await self._call(_SIGN, {"message": _text(message), "include_attestation": False})
        sig65 = _hex_field(answer, "signature", _SIGNATURE_BYTES)
        if sig65[64] > 1:
            raise _nonsense()
        return "0x" + sig65.hex()

    async def _call(self, call: _Call, request: dict[str, object] | None = None) -> dict[str, object]:
        """The JSON object of the answer. Raises what `_call_raw` raises."""
        return await _parse(await self._call_raw(call, request))

    async def _call_raw(self, call: _Call, request: dict[str, object] | None) -> bytes:
        """The body of the answer. Rejected(TOO_LARGE), Rejected(UNDECRYPTABLE) from decrypt, Unavailable."""
        body = await _encode(request)
        try:
            with anyio.fail_after(self._timeout_s):
                status, answer = await self._exchange(call, body)
        except TimeoutError:
            raise Unavailable("the TEE runtime does not answer in time") from None
        if status == 413:
            raise _too_large()
        if status == 400 and call is _DECRYPT:
            raise Rejected(Reason.UNDECRYPTABLE, "the envelope cannot be decrypted")
        if status != 200:
            raise Unavailable("the TEE runtime refuses a call")
        return answer

    async def _exchange(self, call: _Call, body: bytes | None) -> tuple[int, bytes]:
        """Status and body. The runtime drops the connection when a handler of its fails, hence the second attempt."""
        try:
            return await self._send(call, body)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout):
            pass  # nothing was sent: trying again is always harmless
        except (httpx.HTTPError, httpx.StreamError) as error:
            if not call.repeatable:
                raise Unavailable("the TEE runtime dropped the connection") from error
        try:
            return await self._send(call, body)
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise Unavailable("the TEE runtime cannot be reached") from error

    async def _send(self, call: _Call, body: bytes | None) -> tuple[int, bytes]:
        content = None if body is None else SentOnce(body)
        headers = {"Accept-Encoding": "identity", **(content.headers if content else {})}
        async with self._client.stream(
            call.method, self._base_url + call.path, content=content, headers=headers, follow_redirects=False
        ) as response:
            try:
                return response.status_code, await read_bounded(response, call.answer_limit_bytes)
            except AnswerTooLarge:
                raise _nonsense() from None


async def _encode(request: dict[str, object] | None) -> bytes | None:
    """The request's body. Rejected(TOO_LARGE) when the runtime would refuse its size."""
    if request is None:
        return None

    def encode() -> bytes:
        return json.dumps(request, ensure_ascii=False, separators=(",", ":")).encode()

    size_bytes = sum(len(value) for value in request.values() if isinstance(value, str))
    if size_bytes > MAX_REQUEST_BYTES:
        raise _too_large()
    body = encode() if size_bytes <= INLINE_BYTES else await anyio.to_thread.run_sync(encode)
    if len(body) > MAX_REQUEST_BYTES:
        raise _too_large()
    return body


async def _parse(answer: bytes) -> dict[str, object]:
    try:
        if len(answer) <= INLINE_BYTES:
            return parse_json_object(answer)
        return await anyio.to_thread.run_sync(parse_json_object, answer)
    except Rejected:
        raise _nonsense() from None


def _hex_field(answer: dict[str, object], name: str, size_bytes: int | None = None) -> bytes:
    """The bytes of a member in hex of either case, with or without 0x. Unavailable."""
    text = answer.get(name)
    if not isinstance(text, str):
        raise _nonsense()
    try:
        data = unhexlify(text.removeprefix("0x"))
    except (HexError, ValueError):
        raise _nonsense() from None
    if size_bytes is not None and len(data) != size_bytes:
        raise _nonsense()
    return data


def _text(data: bytes) -> str:
    """What we seal and sign travels to the runtime as a JSON string; all of it is text that we made."""
    with suppress(UnicodeDecodeError):
        return data.decode()
    # Raised out here so that our error does not carry the decoder's, which keeps the plaintext.
    raise InvariantBroken("the TEE runtime takes text only")


def _nonsense() -> Unavailable:
    return Unavailable("the TEE runtime gave an answer that cannot be used")


def _too_large() -> Rejected:
    return Rejected(Reason.TOO_LARGE, "the message is too large for the TEE runtime")
