"""The floor of one operation, and what is needed to measure it beside the node.

Floor = recover + sign + the HKDFs and AES-GCMs that the operation cannot do without (`primitives`) + what the node's
own HTTP set-up costs for two trivial routes of the same sizes (`floor_server`): the nonce's and the operation's.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from appliance.devnet.anvil import free_port
from bench.load.callers import AppUser, Call
from bench.load.http import Answer, Connection
from bench.load.identities import CallerKeys, NodeAddress
from bench.load.primitives import Primitives, Sizes
from bench.load.processes import LineProcess
from kmscore.envelope import TAG_BYTES, parse_envelope

READY_TIMEOUT_S = 20.0
# uvicorn writes this one itself, in the node as in the floor.
_OWN_HEADER = b"date"


class _Recorder(Connection):
    """A connection that keeps what was sent and what came back."""

    def __init__(self) -> None:
        super().__init__()
        self.exchanges: list[tuple[bytes, asyncio.Future[Answer]]] = []

    def request(self, data: bytes) -> asyncio.Future[Answer]:
        answer = super().request(data)
        self.exchanges.append((data, answer))
        return answer


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request as it was sent, and its answer."""

    request: bytes
    answer: Answer

    def route(self) -> dict[str, object]:
        """How the floor's server has to answer the same request."""
        method, target, _ = self.request.split(b" ", 2)
        headers = [(name.decode(), value.decode()) for name, value in self.answer.headers() if name != _OWN_HEADER]
        return {
            "method": method.decode(),
            "path": target.decode().partition("?")[0],
            "headers": headers,
            "body_bytes": len(self.answer.body),
        }


@dataclass(frozen=True, slots=True)
class Sample:
    """One operation as it went over the wire."""

    nonce: Exchange
    operation: Exchange
    sizes: Sizes

    @classmethod
    async def take(cls, keys: CallerKeys, node: NodeAddress, calls: Sequence[Call], at_rest: int | None) -> Self:
        """Carry `calls` out and keep the last one; `at_rest` bytes are what it encrypts or decrypts besides envelopes.

        Raises `LoadError`, OSError.
        """
        _, recorder = await asyncio.get_running_loop().create_connection(_Recorder, "127.0.0.1", node.port)
        user = AppUser(keys, node, recorder, next_nonce=False)
        for call in calls:
            await user.call(call)
        recorder.close()
        nonce, operation = (Exchange(request, answer.result()) for request, answer in recorder.exchanges[-2:])
        body = operation.request.partition(b"\r\n\r\n")[2]
        return cls(
            nonce, operation, Sizes(_inner_bytes(body) if body else None, _inner_bytes(operation.answer.body), at_rest)
        )


def _inner_bytes(body: bytes) -> int:
    return len(parse_envelope(body).ciphertext) - TAG_BYTES


def floor_s(
    sizes: Sizes, primitives: Primitives, nonce_route_s: float, operation_route_s: float, *, derives: bool
) -> float:
    """CPU seconds of one operation's floor; both routes' as measured. `derives` adds the app's own HKDF.

    Each envelope costs one HKDF and one AES-GCM; a request without a body has one envelope only.
    """
    envelopes = [size for size in (sizes.request, sizes.answer) if size is not None]
    ciphers = [*envelopes, *([] if sizes.at_rest is None else [sizes.at_rest])]
    return (
        primitives.recover_s
        + primitives.sign_s
        + len(envelopes) * primitives.envelope_hkdf_s
        + (primitives.app_hkdf_s if derives else 0.0)
        + sum(primitives.cipher_s[size] for size in ciphers)
        + nonce_route_s
        + operation_route_s
    )


class FloorServer(LineProcess):
    """The server of the floor for these exchanges; `port` is known once `start` has returned."""

    def __init__(self) -> None:
        super().__init__("bench.load.floor_server")
        self.port = free_port()

    async def start(self, exchanges: Sequence[Exchange], *, bare: bool) -> None:
        """`bare` as in `floor_server`. Raises `LoadError`."""
        routes = [exchange.route() for exchange in exchanges]
        await self.say(json.dumps({"port": self.port, "routes": routes, "bare": bare}))
        await self.hear(READY_TIMEOUT_S)
