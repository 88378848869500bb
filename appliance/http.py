"""The HTTP client's one setting for everything that leaves this process, and reading answers within a limit."""

import httpx


class AnswerTooLarge(Exception):  # noqa: N818 - reads as what happened; translated by every caller
    """The other side sent more than the caller accepts."""


def new_http_client() -> httpx.AsyncClient:
    """A client that ignores the environment's proxies and certificates, follows no redirect and accepts no encoding.

    Deadlines are the callers'; the timeouts here only bound what a caller forgot.
    """
    return httpx.AsyncClient(
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(60.0, connect=5.0),
        limits=httpx.Limits(max_connections=256, max_keepalive_connections=64, keepalive_expiry=30.0),
        headers={"Accept": "application/json", "Accept-Encoding": "identity"},
    )


async def read_bounded(response: httpx.Response, limit_bytes: int) -> bytes:
    """The raw body of a streamed response. Raises `AnswerTooLarge` as soon as it exceeds `limit_bytes`."""
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > limit_bytes:
            raise AnswerTooLarge(f"the answer is larger than {limit_bytes} bytes")
    return bytes(body)
