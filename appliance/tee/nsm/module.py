"""What a node asks of the Nitro Secure Module, message by message (nitro facts §3.2).

The module is one device for the whole enclave, slow beside everything else here: calls run in a worker thread, one at a
time, and each has a deadline. A call that the device does not return from is left behind in its thread; until it comes
back, later calls fail instead of queueing up behind it. Whatever the module refuses or garbles is Unavailable.
"""

import threading
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import anyio
import anyio.to_thread

from appliance.tee.attestation.cbor import CborValue, decode_cbor, encode_cbor
from appliance.tee.attestation.document import MAX_DOCUMENT_BYTES
from appliance.tee.nsm.device import MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, NsmExchange
from kmscore.errors import InvariantBroken, Rejected, Unavailable

# The module answers in milliseconds; the driver itself gives up after two minutes.
DEFAULT_TIMEOUT_S: Final = 10.0
PCR_BYTES: Final = 48
_DESCRIBE_PCR: Final = "DescribePCR"
_GET_RANDOM: Final = "GetRandom"
_ATTESTATION: Final = "Attestation"


class NsmErrorWord(StrEnum):
    """What the module answers when it refuses."""

    SUCCESS = "Success"
    INVALID_ARGUMENT = "InvalidArgument"
    INVALID_INDEX = "InvalidIndex"
    INVALID_RESPONSE = "InvalidResponse"
    READ_ONLY_INDEX = "ReadOnlyIndex"
    INVALID_OPERATION = "InvalidOperation"
    BUFFER_TOO_SMALL = "BufferTooSmall"
    INPUT_TOO_LARGE = "InputTooLarge"
    INTERNAL_ERROR = "InternalError"


@dataclass(frozen=True, slots=True)
class Register:
    """One PCR: 48 bytes, and whether it can still change."""

    value: bytes = field(repr=False)
    locked: bool


class SecureModule:
    """The module behind `exchange`. Every method raises `Unavailable` with a constant message."""

    def __init__(self, exchange: NsmExchange, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._exchange = exchange
        self._timeout_s = timeout_s
        self._turn = anyio.Lock()
        self._device = threading.Lock()

    async def describe_pcr(self, index: int) -> Register:
        """The register `index` (0..31)."""
        match await self._ask({_DESCRIBE_PCR: {"index": index}}, _DESCRIBE_PCR):
            case {"lock": bool(locked), "data": bytes(value)} if len(value) == PCR_BYTES:
                return Register(value, locked)
        raise _nonsense()

    async def random(self, size: int) -> bytes:
        """`size` random bytes, in as many calls as the module needs: 256 a call are usual, no number is promised."""
        gathered = b""
        while len(gathered) < size:
            match await self._ask(_GET_RANDOM, _GET_RANDOM):
                case {"random": bytes(part)} if part:
                    gathered += part
                case _:
                    raise _nonsense()
        return gathered[:size]

    async def attest(self, *, public_key: bytes | None, user_data: bytes | None, nonce: bytes | None) -> bytes:
        """A document (COSE_Sign1) with these members, signed by the module. Nothing about it is checked here."""
        members: dict[int | str, CborValue] = {"user_data": user_data, "nonce": nonce, "public_key": public_key}
        match await self._ask({_ATTESTATION: members}, _ATTESTATION):
            case {"document": bytes(document)} if 0 < len(document) <= MAX_DOCUMENT_BYTES:
                return document
        raise _nonsense()

    async def _ask(self, request: CborValue, name: str) -> CborValue:
        """What the answer holds under `name`."""
        encoded = encode_cbor(request)
        if len(encoded) > MAX_REQUEST_BYTES:
            raise InvariantBroken("a request is larger than the secure module takes")
        try:
            with anyio.fail_after(self._timeout_s):
                async with self._turn:
                    response = await anyio.to_thread.run_sync(self._call, encoded, abandon_on_cancel=True)
        except TimeoutError:
            raise _silent() from None
        return _parse(response, name)

    def _call(self, request: bytes) -> bytes:
        if not self._device.acquire(timeout=self._timeout_s):
            raise _silent()
        try:
            return self._exchange(request)
        except OSError as error:
            raise Unavailable("the secure module cannot be reached") from error
        finally:
            self._device.release()


def _parse(response: bytes, name: str) -> CborValue:
    try:
        answer = decode_cbor(response) if len(response) <= MAX_RESPONSE_BYTES else None
    except Rejected as error:
        raise _nonsense() from error
    if not isinstance(answer, dict) or len(answer) != 1:
        raise _nonsense()
    word = answer.get("Error")
    if isinstance(word, str):
        known = next((known for known in NsmErrorWord if known == word), "another error")
        raise Unavailable(f"the secure module refuses {name}: {known}")
    return answer.get(name)


def _silent() -> Unavailable:
    return Unavailable("the secure module does not answer in time")


def _nonsense() -> Unavailable:
    return Unavailable("the secure module gave an answer that cannot be used")
