"""aiohttp's connections through the enclave's way out."""

from typing import TYPE_CHECKING

from aiohttp import BaseConnector, ClientRequest, ClientTimeout
from aiohttp.client_proto import ResponseHandler

from appliance.egress import Tunnels

if TYPE_CHECKING:
    import ssl

    from aiohttp.tracing import Trace


class TunnelConnector(BaseConnector):
    """A connector whose every connection is a tunnel; TLS, with `tls` as its authorities, ends here.

    What it raises for a connection that cannot be made is `OSError`.
    """

    def __init__(self, tunnels: Tunnels, tls: "ssl.SSLContext", *, limit: int) -> None:
        super().__init__(limit=limit)
        self._tunnels = tunnels
        self._tls = tls

    async def _create_connection(
        self,
        req: ClientRequest,
        traces: "list[Trace]",  # noqa: ARG002 - aiohttp's
        timeout: ClientTimeout,  # noqa: ARG002 - the session's total one covers this
    ) -> ResponseHandler:
        host = req.url.raw_host or ""
        tls = self._tls if req.is_ssl() else None
        connection = await self._tunnels.open(host, req.port or 0)
        try:
            _, protocol = await self._loop.create_connection(
                self._factory, sock=connection, ssl=tls, server_hostname=host if tls else None
            )
        except BaseException:
            connection.close()
            raise
        return protocol
