"""The ASGI application: the endpoints, the rate limit in front of them, and what becomes of errors."""

import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.api.attestation import AttestationApi
from appliance.api.errors import INTERNAL_ERROR, METHOD_NOT_ALLOWED, error_response, response_for
from appliance.api.kms import KmsApi
from appliance.api.limits import IngressNetworks, RateLimiter, client_key
from appliance.api.public import PublicApi
from appliance.api.sync import SyncApi
from kmscore.errors import Rejected, Unavailable

logger = logging.getLogger(__name__)

UNKNOWN_ROUTE = (404, "not_found")
VALUE_PREFIX = b"/kms/data/"

Handler = Callable[[Request], Awaitable[Response]]
Handlers = Mapping[str, Handler]


class AddressLimiter:
    """The limits by client address: one for `/nonce`, one for `/attestation`, one for everything else but `/health`
    (protocol §7).
    """

    def __init__(
        self,
        requests: RateLimiter,
        nonces: RateLimiter,
        attestations: RateLimiter,
        trusted_ingress: IngressNetworks,
    ) -> None:
        self._requests = requests
        self._nonces = nonces
        self._of_their_own = {"/nonce": nonces, "/attestation": attestations}
        self._trusted_ingress = trusted_ingress

    def check(self, request: Request) -> None:
        """Raises `Rejected(RATE)`."""
        if request.scope["path"] == "/health":
            return
        limiter = self._of_their_own.get(request.scope["path"], self._requests)
        limiter.take(self._key(request))

    def give_back(self, request: Request) -> None:
        """An authenticated request counts against its wallet instead, and so does the nonce that it used."""
        key = self._key(request)
        self._requests.give_back(key)
        self._nonces.give_back(key)

    def _key(self, request: Request) -> str:
        host = request.client.host if request.client else None
        # Every line counts: an ingress may append one of its own to what a stranger sent.
        return client_key(host, ",".join(request.headers.getlist("x-forwarded-for")), self._trusted_ingress)


class Endpoints:
    """All endpoints of protocol §4-§6 behind the rate limit.

    The paths are few and fixed; a key may follow one of them and hold anything, so the table is looked up as it is.
    """

    def __init__(
        self, public: PublicApi, attestation: AttestationApi, kms: KmsApi, sync: SyncApi, limiter: AddressLimiter
    ) -> None:
        self._limiter = limiter
        self._value_by_path: Handlers = {"GET": kms.get_by_path}
        self._exact: Mapping[str, Handlers] = {
            "/": open_to_all(public.overview),
            "/health": open_to_all(public.health),
            "/status": open_to_all(public.status),
            "/nodes": open_to_all(public.nodes),
            "/nonce": {"GET": public.nonce},
            "/attestation": {"GET": attestation.document},
            "/kms/derive": {"POST": kms.derive},
            "/kms/data": {"GET": kms.get_by_query, "PUT": kms.put, "DELETE": kms.delete},
            "/sync": {"POST": sync.sync},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        response = await self._respond(request)
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        try:
            self._limiter.check(request)
            handlers = self._handlers(request.scope["raw_path"])
            if handlers is None:
                return error_response(UNKNOWN_ROUTE, "no such endpoint; GET / lists them")
            handler = handlers.get(request.method)
            if handler is None:
                allowed = ", ".join(sorted(handlers))
                return error_response(METHOD_NOT_ALLOWED, f"use {allowed}", {"Allow": allowed})
            return await handler(request)
        except (Rejected, Unavailable) as error:
            return response_for(error)

    def _handlers(self, raw_path: bytes) -> Handlers | None:
        """By the path as it was sent: one that is spelled with %2F or the like is another one."""
        if raw_path.startswith(VALUE_PREFIX):
            return self._value_by_path
        return self._exact.get(raw_path.decode("latin-1"))


def open_to_all(handler: Handler) -> Handlers:
    """A public endpoint also answers HEAD, which load balancers ask with."""
    return {"GET": handler, "HEAD": handler}


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
