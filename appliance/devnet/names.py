"""Names for what runs on this machine, for an enclave that has no network: reached through a proxy that knows them.

An enclave's loopback is its own, so a devnet with an image's node registers its nodes under names, and every node
reaches them by HTTP CONNECT as it would on a parent instance. The names mean something to this devnet alone.
"""

import socket
from typing import Final

import anyio
from anyio.abc import SocketStream

from appliance.devnet.anvil import HOST
from appliance.host.egress import Allowed, Egress, Refused

CHAIN_NAME: Final = "chain.devnet.test"
CHAIN_PORT: Final = 8545
NODE_PORT: Final = 8000


def node_name(name: str) -> str:
    """The host name of a node that the devnet calls `name`."""
    return f"{name}.devnet.test"


class Names:
    """Hosts and ports by name, each a port of the loopback address."""

    def __init__(self) -> None:
        self._ports: dict[tuple[str, int], int] = {}

    def add(self, host: str, port: int, loopback_port: int) -> None:
        """From now on `host:port` leads to this port."""
        self._ports[host, port] = loopback_port

    @property
    def allowed(self) -> list[Allowed]:
        """The names so far, as an allow-list."""
        return [Allowed(host, port) for host, port in self._ports]

    async def dial(self, host: str, port: int) -> SocketStream:
        """A connection to what a name leads to. Raises `Refused(403)` for one that leads nowhere."""
        loopback_port = self._ports.get((host, port))
        if loopback_port is None:
            raise Refused(403)
        return await anyio.connect_tcp(HOST, loopback_port)

    async def serve(self, listener: socket.socket) -> None:
        """Be the proxy to the names so far, until cancelled."""
        await Egress(self.allowed, dial=self.dial).serve(listener)
