"""An older Nova KMS peer, for interoperability tests: `python -m tests.support.legacy_node`.

A second implementation of the node protocol that imports nothing of kmscore or appliance. It is configured by the
variables of node.md §4 (software keys, http only) and by the LEGACY_ ones of `legacy_state`. It knows no extension,
keeps nonces in a bounded table, remembers one push time, and loses data where older nodes lose it. Never a real node.
"""

import asyncio
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.support import wire
from tests.support.legacy_chain import ChainReadError, LegacyInstance
from tests.support.legacy_peering import LegacyPeering
from tests.support.legacy_state import FAULT_STATUSES, LegacySettings, LegacyState

ERROR_CODES = {
    400: "bad_request",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "payload_too_large",
    415: "unsupported_media_type",
    429: "rate_limited",
    500: "internal_error",
    503: "service_unavailable",
}
HANG_S = 60.0


class RefusedError(Exception):
    """An error answer of protocol §7."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    def response(self) -> Response:
        headers = {"Retry-After": "1"} if self.status in (429, 503) else None
        body = {"code": ERROR_CODES[self.status], "message": str(self)}
        return JSONResponse(body, self.status, headers)


class Caller:
    """Who signed a request: the recovered wallet, the signature as sent and the instance on chain."""

    def __init__(self, signature: str, instance: LegacyInstance) -> None:
        self.signature = signature
        self.wallet = instance.wallet
        self.app_id = instance.app_id
        self.tee_pubkey = instance.tee_pubkey


class LegacyNode:
    """The endpoints of protocol §4-§6 without the extensions."""

    def __init__(self, state: LegacyState) -> None:
        self._state = state
        self._apps: dict[str, tuple[float, LegacyInstance]] = {}

    def application(self) -> Starlette:
        guarded = self._guarded
        return Starlette(
            routes=[
                Route("/", self.overview),
                Route("/health", self.health),
                Route("/status", self.status),
                Route("/nodes", self.nodes),
                Route("/nonce", self.nonce),
                Route("/sync", guarded(self.sync), methods=["POST"]),
                Route("/kms/derive", guarded(self.derive), methods=["POST"]),
                Route("/kms/data", guarded(self.read), methods=["GET"]),
                Route("/kms/data", guarded(self.put), methods=["PUT"]),
                Route("/kms/data", guarded(self.delete), methods=["DELETE"]),
                Route("/kms/data/{key:path}", guarded(self.read), methods=["GET"]),
            ],
            exception_handlers={HTTPException: _http_error},
        )

    @staticmethod
    def _guarded(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            try:
                return await handler(request)
            except RefusedError as refusal:
                return refusal.response()
            except wire.WireError as error:
                return RefusedError(400, str(error)).response()

        return guarded

    # --- public endpoints ---

    async def overview(self, _request: Request) -> Response:
        return JSONResponse(
            {"service": "legacy nova-kms", "endpoints": ["/nonce", "/sync", "/kms/derive", "/kms/data"]}
        )

    async def health(self, _request: Request) -> Response:
        return JSONResponse({"status": "healthy"})

    async def nonce(self, _request: Request) -> Response:
        return JSONResponse({"nonce": self._state.issue_nonce()})

    async def status(self, _request: Request) -> Response:
        state = self._state
        return JSONResponse(
            {
                "node": {
                    "tee_wallet": state.wallet.address,
                    "tee_pubkey": state.hex_of(state.tee.der),
                    "node_url": state.settings.node_instance_url,
                    "is_operator": state.wallet.address in state.peers,
                    "service_available": state.unavailable_reason is None,
                    "service_unavailable_reason": state.unavailable_reason,
                    "master_secret": {"state": state.master_secret_state, "synced_from": state.synced_from},
                    "master_secret_initialized": state.master_secret is not None,
                },
                "cluster": {
                    "kms_app_id": state.settings.kms_app_id,
                    "registry_address": state.settings.app_registry,
                    "total_instances": len(state.peers),
                },
                "data_store": state.store.stats(state.now_ms()),
            }
        )

    async def nodes(self, _request: Request) -> Response:
        operators = [
            {
                "operator": peer.wallet,
                "instance": {
                    "instance_id": peer.instance_id,
                    "app_id": peer.app_id,
                    "version_id": peer.version_id,
                    "operator": peer.operator,
                    "instance_url": peer.url,
                    "tee_wallet": peer.wallet,
                    "zk_verified": peer.zk_verified,
                    "instance_status": {"value": peer.status, "name": "ACTIVE"},
                    "registered_at": peer.registered_at,
                },
                "connection": {"in_peer_cache": True, "cached_status": peer.status},
            }
            for peer in self._state.peers.values()
        ]
        return JSONResponse({"operators": operators, "count": len(operators)})

    # --- app endpoints (protocol §4) ---

    async def derive(self, request: Request) -> Response:
        caller, inner = await self._app_request(request)
        path, context, length = inner.get("path"), inner.get("context", ""), inner.get("length", 32)
        if isinstance(length, str) and length.isdecimal():
            length = int(length)
        if not isinstance(path, str) or not path or not isinstance(context, str):
            raise RefusedError(400, "path and context must be text")
        if type(length) is not int or not 1 <= length <= 1024:
            raise RefusedError(400, "length must be an integer from 1 to 1024")
        key = wire.derive_key(self._state.master_secret, caller.app_id, path, context, length)
        return self._app_answer(caller, {"path": path, "key": wire.encode_base64(key), "length": length})

    async def put(self, request: Request) -> Response:
        caller, inner = await self._app_request(request)
        ttl_ms = inner.get("ttl_ms", 0)
        if type(ttl_ms) is not int or ttl_ms < 0:
            raise RefusedError(400, "ttl_ms must be an integer of 0 or more")
        key, value = _key_of(inner), wire.parse_base64(inner.get("value"))
        if len(value) > self._state.settings.max_value_bytes:
            raise RefusedError(400, "the value is too large")
        ciphertext = wire.encrypt_value(self._data_key(caller), value)
        record = self._state.store.put(caller.app_id, key, ciphertext, ttl_ms, self._state.now_ms())
        return self._app_answer(caller, {"key": key, "updated_at_ms": record.updated_at_ms})

    async def read(self, request: Request) -> Response:
        caller = await self._authenticate_app(request)
        key = request.path_params.get("key", request.query_params.get("key"))
        if key is None:
            keys = self._state.store.keys(caller.app_id, self._state.now_ms())
            return self._app_answer(caller, {"keys": keys, "count": len(keys)})
        record = self._find(caller, key) or self._find(caller, key.replace("+", " "))
        if record is None:
            raise RefusedError(404, "there is no such key")
        value = wire.decrypt_value(self._data_key(caller), record.value)
        return self._app_answer(
            caller,
            {"key": record.key, "value": wire.encode_base64(value), "updated_at_ms": record.updated_at_ms},
        )

    async def delete(self, request: Request) -> Response:
        caller, inner = await self._app_request(request)
        key = _key_of(inner)
        if self._state.store.delete(caller.app_id, key, self._state.now_ms()) is None:
            raise RefusedError(404, "there is no such key")
        return self._app_answer(caller, {"key": key, "deleted": True})

    def _find(self, caller: Caller, key: str) -> object:
        return self._state.store.get(caller.app_id, key, self._state.now_ms())

    def _data_key(self, caller: Caller) -> bytes:
        return wire.derive_data_key(self._state.master_secret, caller.app_id)

    async def _app_request(self, request: Request) -> tuple[Caller, dict[str, object]]:
        body = await self._read_body(request)
        caller = await self._authenticate_app(request)
        inner, _ = self._open_request(caller, body)
        return caller, inner

    async def _authenticate_app(self, request: Request) -> Caller:
        if self._state.unavailable_reason is not None:
            raise RefusedError(503, self._state.unavailable_reason)
        wallet, signature = self._verify_pop(request, "AppAuth", "X-App-")
        instance = await self._app_instance(wallet)
        if instance is None:
            raise RefusedError(403, "the wallet is not an authorised app instance")
        return Caller(signature, instance)

    async def _app_instance(self, wallet: str) -> LegacyInstance | None:
        expires, instance = self._apps.get(wallet, (0.0, None))
        if time.monotonic() < expires:
            return instance
        try:
            instance = await self._state.chain.admitted_instance(wallet, self._state.settings.kms_app_id, peer=False)
        except ChainReadError as failure:
            raise RefusedError(403, "the registry cannot be read") from failure
        if instance is not None:
            self._apps[wallet] = (time.monotonic() + self._state.settings.registry_cache_ttl_s, instance)
        return instance

    def _app_answer(self, caller: Caller, inner: dict[str, object]) -> Response:
        return self._answer(caller, {"app_id": caller.app_id, **inner}, "X-KMS-Response-Signature")

    # --- peer endpoint (protocol §5) ---

    async def sync(self, request: Request) -> Response:
        state = self._state
        if state.master_secret is None or not state.confirmed:
            raise RefusedError(503, state.unavailable_reason or "awaiting on-chain master secret hash")
        body = await self._read_body(request)
        wallet, signature = self._verify_pop(request, "Auth", "X-KMS-")
        peer = state.peers.get(wallet)
        if peer is None or wallet == state.wallet.address:
            raise RefusedError(403, "the wallet is not a peer")
        caller = Caller(signature, peer)
        inner, envelope = self._open_request(caller, body)
        kind = inner.get("type")
        offered = request.headers.get("X-Sync-Signature", "")
        valid = wire.parse_hex(offered).hex() == wire.sync_mac(state.sync_key, envelope)
        state.note(type=kind, sender=wallet, body_bytes=len(body), mac=valid, inner=_outline(inner))
        if not valid and kind != "master_secret_request":
            raise RefusedError(403, "X-Sync-Signature")
        if wire.parse_wallet(inner.get("sender_wallet")) != wallet:
            raise RefusedError(403, "sender_wallet is not the signer")
        fault = state.settings.faults[kind].take() if kind in state.settings.faults else ""
        if fault in FAULT_STATUSES:
            raise RefusedError(int(fault), "as the test asked")
        if fault == "hang":
            await asyncio.sleep(HANG_S)
        return self._faulty(self._answer(caller, self._dispatch(kind, inner), "X-KMS-Peer-Signature", fault), fault)

    def _dispatch(self, kind: object, inner: dict[str, object]) -> dict[str, object]:
        if kind == "delta":
            return {"status": "ok", "merged": self._state.merge_records(inner.get("data"))}
        if kind == "snapshot_request":
            return {"status": "ok", "data": self._state.encode_records()}
        if kind == "master_secret_request":
            requester = wire.parse_hex(inner.get("ecdh_pubkey"))
            secret = bytes(32) if self._state.settings.lie_secret else self._state.master_secret
            sealed = wire.seal_master_secret(secret, requester)
            dialect = {name: self._state.hex_of(bytes.fromhex(text)) for name, text in sealed.items()}
            return {"status": "ok", "sealed": dialect}
        raise RefusedError(400, "unknown type")

    def _faulty(self, response: Response, fault: str) -> Response:
        if fault == "unsigned":
            del response.headers["X-KMS-Peer-Signature"]
        if fault == "wrong_signature":
            response.headers["X-KMS-Peer-Signature"] = self._state.sign("something else")
        return response

    # --- what both kinds of request share ---

    async def _read_body(self, request: Request) -> bytes:
        if request.headers.get("Content-Type", "").split(";")[0].strip().lower() != "application/json":
            raise RefusedError(415, "bodies are application/json")
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._state.settings.max_body_bytes:
                self._state.note(type="too_large", body_bytes=int(request.headers.get("Content-Length", "0")))
                raise RefusedError(413, "the body is too large")
        return body

    def _verify_pop(self, request: Request, kind: str, prefix: str) -> tuple[str, str]:
        """The wallet that signed and its signature as sent; a nonce is spent by a valid signature only."""
        state, window_s = self._state, self._state.settings.pop_max_age_s
        signature, nonce, timestamp = (
            request.headers.get(prefix + name, "") for name in ("Signature", "Nonce", "Timestamp")
        )
        if not timestamp.isdecimal() or abs(int(timestamp) - time.time()) > window_s:
            raise RefusedError(403, "the timestamp is outside the window")
        issued = state.nonces.get(nonce)
        if issued is None or time.monotonic() - issued > window_s:
            raise RefusedError(403, "the nonce is not one of ours")
        try:
            wallet = wire.recover_signer(wire.pop_text(kind, nonce, state.wallet.address, timestamp), signature)
            hint = request.headers.get(prefix + "Wallet")
            if hint is not None and wire.parse_wallet(hint) != wallet:
                raise RefusedError(403, "the wallet hint is not the signer")
        except wire.WireError as error:
            raise RefusedError(403, "the signature recovers no wallet") from error
        del state.nonces[nonce]
        return wallet, signature

    def _open_request(self, caller: Caller, body: bytes) -> tuple[dict[str, object], object]:
        try:
            envelope = json.loads(body)
        except ValueError as error:
            raise RefusedError(400, "the body is not JSON") from error
        sender, _, _ = wire.parse_envelope(envelope)
        if sender != caller.tee_pubkey:
            raise RefusedError(403, "the sender key is not the registered one")
        try:
            inner = self._state.open(envelope)
        except wire.WireError as error:
            self._state.note(type="undecryptable", body_bytes=len(body))
            raise RefusedError(self._state.settings.bad_label_status, "cannot decrypt") from error
        if not isinstance(inner, dict):
            raise RefusedError(400, "the inner request is an object")
        return inner, envelope

    def _answer(self, caller: Caller, inner: dict[str, object], header: str, fault: str = "") -> Response:
        if fault == "wrong_type":
            inner = {**inner, "data": ["not", "an", "object"], "sealed": 7, "merged": "many"}
        envelope = self._state.seal("garbage" if fault == "garbage" else inner, caller.tee_pubkey)
        signature = self._state.sign(wire.response_text(caller.signature, self._state.wallet.address))
        return Response(json.dumps(envelope), media_type="application/json", headers={header: signature})


def _key_of(inner: dict[str, object]) -> str:
    key = inner.get("key")
    if not isinstance(key, str) or not key:
        raise RefusedError(400, "key must be text")
    return key


def _outline(inner: dict[str, object]) -> dict[str, object]:
    """What a test wants to know of a request: its member names and how many records it carries."""
    data = inner.get("data")
    records = sum(map(len, data.values())) if isinstance(data, dict) else 0
    return {"members": sorted(inner), "records": records}


async def _http_error(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return RefusedError(status, "no such route or method").response()


async def serve(settings: LegacySettings) -> None:
    """Run server and ticks until SIGTERM; everything is forgotten then."""
    state = LegacyState(settings)
    peering = LegacyPeering(state)
    server = uvicorn.Server(
        uvicorn.Config(
            LegacyNode(state).application(),
            host=settings.bind_host,
            port=settings.bind_port,
            log_level="warning",
            timeout_graceful_shutdown=1,
        )
    )
    ticks = asyncio.create_task(peering.run())
    ticks.add_done_callback(lambda _: setattr(server, "should_exit", True))
    try:
        await server.serve()
    finally:
        ticks.cancel()
        await asyncio.gather(ticks, return_exceptions=True)
        await peering.aclose()
        await state.chain.aclose()


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    asyncio.run(serve(LegacySettings.from_environ(os.environ)))


if __name__ == "__main__":
    main()
