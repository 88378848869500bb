"""The HTTP client's one setting for everything that leaves this process, and reading answers within a limit."""

from collections.abc import AsyncIterator
from http.cookiejar import CookieJar, DefaultCookiePolicy

import anyio.to_thread
import httpx

from appliance.egress import Tunnels, TunnelTransport
from kmscore.errors import Reason, Rejected
from kmscore.proof import MAX_NONCE_CHARS

# Whatever httpx raises for a request: its stream errors are no HTTPError.
HTTP_FAILURES = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError)
MAX_RETRY_AFTER_S = 3600.0
# What is done with a body in the event loop up to this size, half a millisecond for joining it and 1.5 for its hex and
# MAC, is done in a thread beyond it. Only what older nodes send is that long.
INLINE_BYTES = 2 << 20
PART_BYTES = 1 << 20


class AnswerTooLarge(Exception):
    """The other side sent more than the caller accepts."""


def new_http_client(tunnels: Tunnels | None = None) -> httpx.AsyncClient:
    """A client without cookies, redirects and encodings, which ignores the environment's proxies and certificates.

    With `tunnels` everything but loopback is reached through them.

    Deadlines are the callers'; the timeouts here only bound what a caller forgot.
    """
    limits = httpx.Limits(max_connections=256, max_keepalive_connections=64, keepalive_expiry=30.0)
    return httpx.AsyncClient(
        transport=TunnelTransport(tunnels, limits) if tunnels else None,
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(60.0, connect=5.0),
        limits=limits,
        cookies=no_cookies(),
        headers={"Accept": "application/json", "Accept-Encoding": "identity"},
    )


class SentOnce:
    """A request's body that is gone once it is sent, and the headers it needs.

    What httpx is given as bytes it keeps in cycles of objects until the garbage collector comes by: dozens of messages,
    and their plaintexts where they go to a TEE runtime.
    """

    def __init__(self, body: bytes) -> None:
        self.headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        self._body = [body]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._body:
            yield self._body.pop()


def no_cookies() -> CookieJar:
    """A jar that takes none: one node's cookie must not grow, or fail, the requests to another one."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=[]))


async def read_bounded(response: httpx.Response, limit_bytes: int) -> bytes:
    """The raw body of a streamed response. Raises `AnswerTooLarge` as soon as it exceeds `limit_bytes`."""
    # Few large parts, whatever the sender's pieces are; of bytes, which are joined without the GIL.
    parts: list[bytes] = []
    part = bytearray()
    size = 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if size > limit_bytes:
            raise AnswerTooLarge(f"the answer is larger than {limit_bytes} bytes")
        part += chunk
        if len(part) >= PART_BYTES:
            parts.append(bytes(part))
            part.clear()
    parts.append(bytes(part))
    return await joined(parts)


async def joined(parts: list[bytes]) -> bytes:
    """A body of these parts; a long one is put together in a thread, which does not keep the GIL for it."""
    if sum(map(len, parts)) <= INLINE_BYTES:
        return b"".join(parts)
    return await anyio.to_thread.run_sync(b"".join, parts)


def parse_retry_after_s(text: str | None) -> float | None:
    """Seconds of a Retry-After header, at most an hour; None when absent or not a whole number of seconds."""
    if text is None or not text.isascii() or not text.isdecimal() or len(text) > 9:
        return None
    return min(float(text), MAX_RETRY_AFTER_S)


def parse_nonce(value: object) -> str:
    """A nonce text fit for a header and for what is signed: 1..512 visible ASCII characters. Rejected(NONCE)."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NONCE_CHARS or not value.isascii():
        raise Rejected(Reason.NONCE, "the nonce is not a short ASCII text")
    if not value.isprintable() or " " in value:
        raise Rejected(Reason.NONCE, "the nonce holds characters that a header cannot carry unchanged")
    return value
