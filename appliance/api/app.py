"""The ASGI application: routes, the rate limit in front of them, and errors to answers."""

import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.api.errors import INTERNAL_ERROR, METHOD_NOT_ALLOWED, error_response, response_for
from appliance.api.kms import KmsApi
from appliance.api.limits import IngressNetworks, RateLimiter, client_key
from appliance.api.public import PublicApi
from appliance.api.sync import SyncApi
from kmscore.errors import Rejected, Unavailable

logger = logging.getLogger(__name__)

UNKNOWN_ROUTE = (404, "not_found")

Handler = Callable[[Request], Awaitable[Response]]


class AddressLimiter:
    """The limits by client address: one for `/nonce`, one for everything else but `/health` (protocol §7)."""

    def __init__(self, requests: RateLimiter, nonces: RateLimiter, trusted_ingress: IngressNetworks) -> None:
        self._requests = requests
        self._nonces = nonces
        self._trusted_ingress = trusted_ingress

    def check(self, request: Request) -> None:
        """Raises `Rejected(RATE)`."""
        if request.scope["path"] == "/health":
            return
        limiter = self._nonces if request.scope["path"] == "/nonce" else self._requests
        limiter.take(self._key(request))

    def give_back(self, request: Request) -> None:
        """An authenticated request counts against its wallet instead, and so does the nonce that it used."""
        key = self._key(request)
        self._requests.give_back(key)
        self._nonces.give_back(key)

    def _key(self, request: Request) -> str:
        host = request.client.host if request.client else None
        return client_key(host, request.headers.get("x-forwarded-for"), self._trusted_ingress)


def build_app(public: PublicApi, kms: KmsApi, sync: SyncApi, limiter: AddressLimiter) -> ASGIApp:
    """All routes of protocol §4-§6 behind the rate limit."""

    def route(path: str, handlers: Mapping[str, Handler]) -> Route:
        async def endpoint(request: Request) -> Response:
            handler = handlers.get(request.method)
            if handler is None:
                allowed = ", ".join(sorted(handlers))
                return error_response(METHOD_NOT_ALLOWED, f"use {allowed}", {"Allow": allowed})
            try:
                limiter.check(request)
                return await handler(request)
            except (Rejected, Unavailable) as error:
                return response_for(error)

        made = Route(path, endpoint)
        # Every method comes to the endpoint, so that its refusal can name all that the path has.
        made.methods = None
        return made

    def open_to_all(handler: Handler) -> Mapping[str, Handler]:
        return {"GET": handler, "HEAD": handler}

    router = Router(
        routes=[
            route("/", open_to_all(public.overview)),
            route("/health", open_to_all(public.health)),
            route("/status", open_to_all(public.status)),
            route("/nodes", open_to_all(public.nodes)),
            route("/nonce", {"GET": public.nonce}),
            route("/kms/derive", {"POST": kms.derive}),
            route("/kms/data", {"GET": kms.get_by_query, "PUT": kms.put, "DELETE": kms.delete}),
            route("/kms/data/{key:path}", {"GET": kms.get_by_path}),
            route("/sync", {"POST": sync.sync}),
        ],
        redirect_slashes=False,
        default=error_response(UNKNOWN_ROUTE, "no such endpoint; GET / lists them"),
    )
    return ErrorBoundary(router)


class ErrorBoundary:
    """The top of every request: what nobody expected becomes a bare 500, its place in our code a log line."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def observed_send(message: MutableMapping[str, object]) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, observed_send)
        except Exception as error:  # the top of a request
            logger.error("request failed unexpectedly", exc_info=error)
            if not started:
                await error_response(INTERNAL_ERROR, "internal error")(scope, receive, send)
