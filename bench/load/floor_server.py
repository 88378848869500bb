"""The floor of HTTP: the node's own server set-up around an application that does nothing.

One line of JSON on standard input says which port to listen on and what to answer; `ready` says that it does. A bare
ASGI callable: no routing, no request object, no middleware.
"""

import json
import sys
from dataclasses import dataclass

import anyio
import uvicorn
from starlette.types import Receive, Scope, Send

from appliance.main import bind, uvicorn_config
from appliance.variables import TcpAddress, TrustedIngress

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class FixedAnswer:
    """What a route answers, whatever was sent."""

    headers: Headers
    body: bytes


class FixedAnswers:
    """The application: answers by method and path; a body is read to its end like any handler must."""

    def __init__(self, answers: dict[tuple[str, str], FixedAnswer]) -> None:
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._answers[scope["method"], scope["path"]]
        if scope["method"] != "GET":
            while (await receive())["more_body"]:
                pass
        await send({"type": "http.response.start", "status": 200, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})


async def serve(port: int, app: FixedAnswers) -> None:
    listener = bind(TcpAddress("127.0.0.1", port))
    listener.listen()
    print("ready", flush=True)
    await uvicorn.Server(uvicorn_config(app, TrustedIngress())).serve(sockets=[listener])


def main() -> None:
    told = json.loads(sys.stdin.readline())
    answers = {
        (route["method"], route["path"]): FixedAnswer(
            [(name.encode("latin-1"), value.encode("latin-1")) for name, value in route["headers"]],
            json.dumps("x" * (route["body_bytes"] - 2)).encode(),
        )
        for route in told["routes"]
    }
    anyio.run(serve, told["port"], FixedAnswers(answers), backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main()
