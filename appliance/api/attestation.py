"""`GET /attestation`: the node's attestation document, fresh, with the caller's nonce (protocol §6, enclave §3)."""

import anyio
from starlette.requests import Request
from starlette.responses import Response

from appliance.tee.attestation.nonce import parse_nonce_text
from appliance.tee.port import TeeProvider
from kmscore.errors import Reason, Rejected, Unavailable

MAX_NONCE_BYTES = 64
DOCUMENT_TYPE = "application/cbor"
# One device makes the documents, one after another, in some milliseconds each.
MAX_WAITING = 32
TIMEOUT_S = 15.0


class AttestationApi:
    """Lets anyone ask who this node is; one document is made at a time, and waited for `timeout_s` seconds."""

    def __init__(self, tee: TeeProvider, *, timeout_s: float = TIMEOUT_S) -> None:
        self._tee = tee
        self._timeout_s = timeout_s
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
            with anyio.fail_after(self._timeout_s):
                async with self._turn:
                    return await self._tee.attest(nonce)
        except TimeoutError:
            raise Unavailable("no attestation document could be made in time") from None
        finally:
            self._waiting -= 1


def parse_query_nonce(values: list[str]) -> bytes | None:
    """A nonce of 1..64 bytes from the parameters of that name, None when there is none.

    A form's decoding turns the + of base64 into a space: a space is a +. Raises `Rejected(BAD_FIELD)`.
    """
    if len(values) > 1:
        raise Rejected(Reason.BAD_FIELD, "nonce must be given once")
    return parse_nonce_text(values[0].replace(" ", "+"), MAX_NONCE_BYTES) if values else None
