"""The ASGI application: the endpoints, the rate limit in front of them, and what becomes of errors."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache, partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from appliance.api.attestation import AttestationApi
from appliance.api.errors import INTERNAL_ERROR, METHOD_NOT_ALLOWED, error_response, response_for
from appliance.api.kms import KmsApi
from appliance.api.limits import MAX_FORWARDED_CHARS, IngressNetworks, client_key
from appliance.api.public import PublicApi
from appliance.api.sync import SyncApi
from kmscore.errors import Rejected, Unavailable
from kmscore.limits import RateLimiter

logger = logging.getLogger(__name__)

UNKNOWN_ROUTE = (404, "not_found")
VALUE_PREFIX = b"/kms/data/"
# Clients whose key is remembered: parsing addresses costs as much as the rest of the limits together.
REMEMBERED_CLIENTS = 4096

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
        self._believes_ingress = bool(trusted_ingress)
        self._key_of = lru_cache(REMEMBERED_CLIENTS)(partial(client_key, trusted=trusted_ingress))

    def check(self, request: Request) -> None:
        """Raises `Rejected(RATE)`."""
        path = request.scope["path"]
        if path != "/health":
            self._of_their_own.get(path, self._requests).take(self._key(request))

    def give_back(self, request: Request) -> None:
        """An authenticated request counts against its wallet instead, and so does the nonce that it used."""
        key = self._key(request)
        self._requests.give_back(key)
        self._nonces.give_back(key)

    def _key(self, request: Request) -> str:
        """What the request's client is limited by."""
        client = request.scope["client"]
        text = self._forwarded_for(request) if self._believes_ingress else ""
        return self._key_of(client[0] if client else None, text)

    @staticmethod
    def _forwarded_for(request: Request) -> str:
        # Every line counts: an ingress may append one of its own to what a stranger sent.
        forwarded = b",".join(value for name, value in request.scope["headers"] if name == b"x-forwarded-for")
        # One that is too long counts for nothing: it must not fill the memory either.
        return forwarded.decode("latin-1") if len(forwarded) <= MAX_FORWARDED_CHARS else ""


class Endpoints:
    """All endpoints of protocol §4-§6 behind the rate limit.

    The paths are few and fixed; a key may follow one of them and hold anything, so the table is looked up as it is.
    """

    def __init__(
        self, public: PublicApi, attestation: AttestationApi, kms: KmsApi, sync: SyncApi, limiter: AddressLimiter
    ) -> None:
        self._limiter = limiter
        self._value_by_path: Handlers = {"GET": kms.get_by_path}
        self._exact: Mapping[bytes, Handlers] = {
            b"/": open_to_all(public.overview),
            b"/health": open_to_all(public.health),
            b"/status": open_to_all(public.status),
            b"/nodes": open_to_all(public.nodes),
            b"/nonce": {"GET": public.nonce},
            b"/attestation": {"GET": attestation.document},
            b"/kms/derive": {"POST": kms.derive},
            b"/kms/data": {"GET": kms.get_by_query, "PUT": kms.put, "DELETE": kms.delete},
            b"/sync": {"POST": sync.sync},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._respond(Request(scope, receive))
        except (Rejected, Unavailable) as error:
            response = response_for(error)
        except Exception as error:  # the top of a request: what nobody expected becomes a bare 500
            logger.error("request failed unexpectedly", exc_info=error)
            response = error_response(INTERNAL_ERROR, "internal error")
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        self._limiter.check(request)
        # By the path as it was sent: one that is spelled with %2F or the like is another one.
        raw_path = request.scope["raw_path"]
        handlers = self._exact.get(raw_path)
        if handlers is None:
            if not raw_path.startswith(VALUE_PREFIX):
                return error_response(UNKNOWN_ROUTE, "no such endpoint; GET / lists them")
            handlers = self._value_by_path
        handler = handlers.get(request.scope["method"])
        if handler is None:
            allowed = ", ".join(sorted(handlers))
            return error_response(METHOD_NOT_ALLOWED, f"use {allowed}", [(b"allow", allowed.encode())])
        return await handler(request)


def open_to_all(handler: Handler) -> Handlers:
    """A public endpoint also answers HEAD, which load balancers ask with."""
    return {"GET": handler, "HEAD": handler}
