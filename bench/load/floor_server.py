"""The floor of HTTP: the node's own server set-up around routes that do nothing.

One line of JSON on standard input says which port to listen on and what to answer; `ready` says that it does. The
routes are Starlette's, which read a body to its end and answer with a `Response`. With `bare` they are not even that
but one ASGI callable: no routing, no request object, no response object.
"""

import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.main import bind, uvicorn_config
from appliance.variables import TcpAddress, TrustedIngress

Headers = dict[str, str]


@dataclass(frozen=True, slots=True)
class FixedAnswer:
    """What a route answers, whatever was sent."""

    headers: Headers
    body: bytes

    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]

    def endpoint(self) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            if request.method != "GET":
                await request.body()
            return Response(self.body, headers=self.headers)

        return answer


class BareAnswers:
    """The application without Starlette: answers by method and path."""

    def __init__(self, answers: dict[tuple[str, str], FixedAnswer]) -> None:
        self._answers = {route: (answer.raw_headers(), answer.body) for route, answer in answers.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, body = self._answers[scope["method"], scope["path"]]
        if scope["method"] != "GET":
            while (await receive())["more_body"]:
                pass
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def application(answers: dict[tuple[str, str], FixedAnswer], *, bare: bool) -> ASGIApp:
    """What the floor's server serves."""
    if bare:
        return BareAnswers(answers)
    return Starlette(
        routes=[Route(path, answer.endpoint(), methods=[method]) for (method, path), answer in answers.items()]
    )


async def serve(port: int, app: ASGIApp) -> None:
    listener = bind(TcpAddress("127.0.0.1", port))
    listener.listen()
    print("ready", flush=True)
    await uvicorn.Server(uvicorn_config(app, TrustedIngress())).serve(sockets=[listener])


def main() -> None:
    told = json.loads(sys.stdin.readline())
    answers = {
        (route["method"], route["path"]): FixedAnswer(
            dict(route["headers"]), json.dumps("x" * (route["body_bytes"] - 2)).encode()
        )
        for route in told["routes"]
    }
    app = application(answers, bare=told["bare"])
    anyio.run(serve, told["port"], app, backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main()
