"""Run-time parameters for the enclave: one JSON object, told once on a port of the parent (enclave §2).

They are none that trust depends on, and the enclave extends their digest into PCR16 before it attests anything.
"""

import json
import socket
from dataclasses import dataclass
from typing import Final

import anyio
from anyio.abc import SocketStream

from appliance.host.streams import STREAM_FAILURES, accept
from appliance.settings import LogLevel

PORT: Final = 9001
SEND_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class RuntimeParameters:
    """`instance_url` as `appliance.urls.parse_node_url` returns it, `egress` as `cid:port`; None leaves one out."""

    instance_url: str | None = None
    log_level: LogLevel | None = None
    egress: str | None = None


def encode_parameters(parameters: RuntimeParameters) -> bytes:
    """The JSON object of those that are set."""
    held = {
        "instance_url": parameters.instance_url,
        "log_level": parameters.log_level.value if parameters.log_level else None,
        "egress": parameters.egress,
    }
    return json.dumps({name: value for name, value in held.items() if value is not None}).encode()


async def answer_parameters(listener: socket.socket, parameters: RuntimeParameters) -> None:
    """Returns when one connection has been given all of them; the listener is closed then, and on cancellation.

    A connection that fails counts for nothing.
    """
    data = encode_parameters(parameters)
    listener.setblocking(False)
    with listener:
        while True:
            connection = await accept(listener)
            try:
                async with await SocketStream.from_socket(connection) as stream:
                    with anyio.fail_after(SEND_TIMEOUT_S):
                        await stream.send(data)
                        await stream.send_eof()
                        # Closing before the other side has read could take the bytes back.
                        await _until_closed(stream)
                return
            except ValueError:  # reset while it waited
                connection.close()
            except (*STREAM_FAILURES, TimeoutError):
                continue


async def _until_closed(stream: SocketStream) -> None:
    try:
        while True:
            await stream.receive()
    except anyio.EndOfStream:
        return
