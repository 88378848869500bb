"""`GET /attestation`: the node's attestation document, fresh, with the caller's nonce (protocol §6, enclave §3)."""

from base64 import b64decode
from binascii import Error as BinasciiError
from binascii import unhexlify

import anyio
from starlette.requests import Request
from starlette.responses import Response

from appliance.tee.port import TeeProvider
from kmscore.errors import Reason, Rejected, Unavailable

MAX_NONCE_BYTES = 64
# Hex of 64 bytes with 0x; base64 is shorter.
MAX_NONCE_CHARS = 2 + 2 * MAX_NONCE_BYTES
DOCUMENT_TYPE = "application/cbor"
# One device makes the documents, one after another, in some milliseconds each.
MAX_WAITING = 32
TIMEOUT_S = 15.0


class AttestationApi:
    """Lets anyone ask who this node is; one document is made at a time."""

    def __init__(self, tee: TeeProvider) -> None:
        self._tee = tee
        self._turn = anyio.Lock()
        self._waiting = 0

    async def document(self, request: Request) -> Response:
        """The raw COSE_Sign1. Raises `Rejected(BAD_FIELD)` for a nonce that cannot be read, `Unavailable`."""
        nonce = parse_query_nonce(request.query_params.getlist("nonce"))
        return Response(await self._attest(nonce), media_type=DOCUMENT_TYPE, headers={"Cache-Control": "no-store"})

    async def _attest(self, nonce: bytes | None) -> bytes:
        if self._waiting >= MAX_WAITING:
            raise Unavailable("too many ask for attestation documents", retry_after_s=1.0)
        self._waiting += 1
        try:
            with anyio.fail_after(TIMEOUT_S):
                async with self._turn:
                    return await self._tee.attest(nonce)
        except TimeoutError:
            raise Unavailable("no attestation document could be made in time") from None
        finally:
            self._waiting -= 1


def parse_query_nonce(values: list[str]) -> bytes | None:
    """A nonce of 1..64 bytes from the parameters of that name, None when there is none.

    Hex in either case with or without 0x, else strict base64; what is both is hex, which base64 of random bytes is not
    in practice. A form's decoding turns the + of base64 into a space: a space is a +. Raises `Rejected(BAD_FIELD)`.
    """
    if not values:
        return None
    text = values[0]
    nonce = b""
    if len(values) == 1 and len(text) <= MAX_NONCE_CHARS and text.isascii():
        nonce = _unhex(text.removeprefix("0x")) or _unbase64(text.replace(" ", "+"))
    if not 1 <= len(nonce) <= MAX_NONCE_BYTES:
        raise Rejected(Reason.BAD_FIELD, f"nonce must be given once, 1 to {MAX_NONCE_BYTES} bytes in hex or base64")
    return nonce


def _unhex(text: str) -> bytes:
    try:
        return unhexlify(text)
    except BinasciiError:
        return b""


def _unbase64(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except BinasciiError:
        return b""
