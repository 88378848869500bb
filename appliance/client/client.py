"""`KmsClient`: what an application calls.

    identity = OdynTee(http, "http://127.0.0.1:18000")
    directory = RegistryDirectory(registry, kms_app_id=49)
    async with KmsClient(identity, directory) as kms:
        disk_key = await kms.derive("disk")
        await kms.put("config", b"...")

Synchronous code drives it through a portal, which runs the event loop in a thread of its own:

    with anyio.from_thread.start_blocking_portal() as portal:
        with portal.wrap_async_context_manager(KmsClient(identity, directory)) as kms:
            disk_key = portal.call(kms.derive, "disk")

Every result is proven to come from a node that the chain lists, for this very call. TLS is verified, but trust does not
rest on it: bodies are sealed to the node's registered key, and answers are signed by its registered wallet.

What is not promised. Older nodes bind an answer to the request only by what it repeats (path, length, key): whoever
ends TLS in front of one can swap the answers of two derivations in flight that differ in nothing but `context`. Nodes
replicate within seconds: a value written through one may be missing or old at another for that long.

What is tried again. A node that fails is followed by the next one, and one that asks for patience is asked again after
it, within the deadline. `derive`, `get` and `keys` change nothing and are repeated after any failure. `put` and
`delete` are repeated only when the request was certainly not run: no connection, or a refusal a node gives before it
looks at the request (403, 413, 415, 429, 503), or a signed refusal. Otherwise `OutcomeUnknown` leaves the decision to
the application.
"""

import base64
import logging
import random
import ssl
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Self, TypeVar

import anyio
import httpx

from appliance.auth.envelopes import EnvelopeGate, LabelMemory
from appliance.client.answers import (
    PutResult,
    RefusalTrust,
    Value,
    parse_deleted,
    parse_derived,
    parse_keys,
    parse_put,
    parse_value,
)
from appliance.client.attestation import AttestationRequirement
from appliance.client.discovery import NodeDirectory, NodeFacts
from appliance.client.errors import (
    BadRequest,
    FailureKind,
    IdentityUnavailable,
    NodeFailure,
    NoNodeAvailable,
    OutcomeUnknown,
    error_for_failures,
)
from appliance.client.pool import NodePool
from appliance.client.session import Attempt, AttemptFailed, KmsRequest, NodeSession
from appliance.clock import Clock, SystemClock
from appliance.http import no_cookies
from appliance.log import short
from appliance.tee.port import TeeProvider
from kmscore.envelope import LABELS
from kmscore.errors import ConfigError, Rejected, Unavailable
from kmscore.json import MAX_ITEMS
from kmscore.nonce import EnvelopeNonces

logger = logging.getLogger(__name__)

MAX_DERIVED_BYTES = 1024
# Twice what a 1 MiB value takes as base64 in JSON in hex, which leaves room for long listings.
DEFAULT_ANSWER_LIMIT_BYTES = 6 << 20
# When every known node failed, the registry is asked again unless what it said is younger than this.
RECHECK_AFTER_S = 5.0
# Below the five seconds after which common servers close an idle connection: a change sent into a closing one has an
# unknown outcome.
KEEPALIVE_EXPIRY_S = 4.0

ResultT = TypeVar("ResultT")


class KmsClient:
    """The protocol's app side over all nodes of one cluster; safe to share between tasks of one event loop.

    `timeout_s` bounds a whole call, `attempt_timeout_s` what one node gets of it, `connect_timeout_s` a connection. A
    node gets at most half of what is left while there are others to ask.
    With `attestation`, a node is asked nothing before it has proved by a fresh document that an acceptable image holds
    the keys that the registry lists for it; otherwise the registry's own verification is relied on.
    `label` is the envelope label to open with at a node whose own is not known yet. `identity` and `directory` stay the
    caller's to close, and so does `http` when it is given. Raises `ConfigError` for a label that is none of the
    protocol's.
    """

    def __init__(
        self,
        identity: TeeProvider,
        directory: NodeDirectory,
        *,
        timeout_s: float = 30.0,
        attempt_timeout_s: float = 10.0,
        connect_timeout_s: float = 5.0,
        attestation: AttestationRequirement | None = None,
        refusal_trust: RefusalTrust = RefusalTrust.SIGNED_RESPONSE,
        label: str = LABELS[0],
        limit_bytes: int = DEFAULT_ANSWER_LIMIT_BYTES,
        tls: ssl.SSLContext | None = None,
        http: httpx.AsyncClient | None = None,
        rng: random.Random | None = None,
        clock: Clock | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        if label not in LABELS:
            raise ConfigError(f"label must be one of {', '.join(LABELS)}")
        self._directory = directory
        self._timeout_s = timeout_s
        self._attempt_timeout_s = attempt_timeout_s
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._owns_http = http is None
        self._http = http or _new_http_client(connect_timeout_s, attempt_timeout_s, tls)
        gate = EnvelopeGate(identity, EnvelopeNonces(), LabelMemory(label), max_items=MAX_ITEMS)

        def open_session(node: NodeFacts) -> NodeSession:
            return NodeSession(
                node,
                identity=identity,
                gate=gate,
                http=self._http,
                clock=self._clock,
                attestation=attestation,
                trust=refusal_trust,
                limit_bytes=limit_bytes,
            )

        self._pool = NodePool(open_session, rng=rng or random.SystemRandom(), clock=self._clock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections this client opened; closing twice is harmless."""
        if self._owns_http:
            await self._http.aclose()

    async def derive(self, path: str, context: str = "", length: int = 32) -> bytes:
        """The `length` bytes (1..1024) that every instance of this app derives for `path` and `context` (protocol §4).

        Returns a plain copy, which Python cannot wipe. Raises `BadRequest`, `NotAuthorized`, `RateLimited`,
        `NodeNotAttested`, `UntrustedAnswer`, `NoNodeAvailable`, `IdentityUnavailable`.
        """
        _check_text("path", path)
        _check_text("context", context, empty=True)
        if not isinstance(length, int) or isinstance(length, bool) or not 1 <= length <= MAX_DERIVED_BYTES:
            raise BadRequest(f"length must be a whole number from 1 to {MAX_DERIVED_BYTES}")
        request = KmsRequest("POST", "/kms/derive", {"path": path, "context": context, "length": length})
        return await self._call(request, lambda answer: parse_derived(answer, path, length))

    async def put(self, key: str, value: bytes, ttl_ms: int = 0) -> PutResult:
        """Store `value` under `key`, for `ttl_ms` milliseconds, 0 without end.

        Raises what `derive` raises, `QuotaExceeded`, and `OutcomeUnknown`.
        """
        _check_text("key", key)
        if not isinstance(value, bytes):
            raise BadRequest("value must be bytes")
        if not isinstance(ttl_ms, int) or isinstance(ttl_ms, bool) or ttl_ms < 0:
            raise BadRequest("ttl_ms must be a whole number, 0 or more")
        inner = {"key": key, "value": base64.b64encode(value).decode(), "ttl_ms": ttl_ms}
        return await self._call(
            KmsRequest("PUT", "/kms/data", inner, changes=True), lambda found: parse_put(found, key)
        )

    async def get(self, key: str) -> Value:
        """The value stored under `key`. Raises what `derive` raises, and `NotFound`.

        A request without a body binds the node's signature to the request but not to the key, so whoever ends TLS in
        front of a node can turn the question into one for another key. Such an answer is never taken for the value; it
        can only show as `NotFound`. `keys` is proof against that.
        """
        _check_text("key", key)
        request = KmsRequest("GET", "/kms/data", key=key, may_be_missing=True)
        return await self._call(request, lambda answer: parse_value(answer, key))

    async def delete(self, key: str) -> None:
        """Remove `key`. Raises what `derive` raises, `NotFound`, `QuotaExceeded` and `OutcomeUnknown`."""
        _check_text("key", key)
        request = KmsRequest("DELETE", "/kms/data", {"key": key}, changes=True, may_be_missing=True)
        await self._call(request, lambda answer: parse_deleted(answer, key))

    async def keys(self) -> list[str]:
        """All keys of this app in the order of the node. Raises what `derive` raises."""
        return await self._call(KmsRequest("GET", "/kms/data"), parse_keys)

    async def _call(self, request: KmsRequest, parse: Callable[[Mapping[str, object]], ResultT]) -> ResultT:
        give_up_at_ms = self._clock.monotonic_ms() + int(1000 * self._timeout_s)
        await self._discover(self._timeout_s)
        failures: dict[str, NodeFailure] = {}
        rechecked = False
        while (left_s := (give_up_at_ms - self._clock.monotonic_ms()) / 1000) > 0:
            asked = {wallet for wallet, failure in failures.items() if failure.retry_after_s is None}
            session = self._pool.pick(asked)
            if session is not None:
                # One that hangs must leave time for the others.
                others = self._pool.pick({*asked, session.node.wallet}) is not None
                timeout_s = min(left_s / 2 if others else left_s, self._attempt_timeout_s)
                result = await self._ask(session, request, parse, timeout_s)
                if not isinstance(result, NodeFailure):
                    return result
                failures[result.wallet] = result
            elif not rechecked:
                rechecked = True
                await self._discover_newer(left_s)
            else:
                rest_s = self._pool.rest_ends_in_s()
                if rest_s is None or rest_s >= left_s:
                    break
                await self._sleep(rest_s)
        raise error_for_failures({**self._pool.resting(), **failures}.values())

    async def _ask(
        self,
        session: NodeSession,
        request: KmsRequest,
        parse: Callable[[Mapping[str, object]], ResultT],
        timeout_s: float,
    ) -> ResultT | NodeFailure:
        """The parsed answer of one node, or why there is none; raises what ends the whole call."""
        attempt = Attempt()
        try:
            with anyio.fail_after(timeout_s):
                result = parse(await session.exchange(request, attempt))
        except AttemptFailed as error:
            failure = error.failure
        except Rejected as error:
            failure = _failure(session, FailureKind.UNTRUSTED, str(error))
        except TimeoutError:
            kind = FailureKind.NO_ANSWER if attempt.may_have_run else FailureKind.UNREACHABLE
            failure = _failure(session, kind, "no complete answer in time")
        except Unavailable as error:
            if attempt.may_have_run and request.changes:
                raise OutcomeUnknown(
                    _failure(session, FailureKind.NO_ANSWER, "its answer could not be opened")
                ) from error
            raise IdentityUnavailable(f"the app's identity provider does not answer: {error}") from error
        else:
            self._pool.succeeded(session.node.wallet)
            return result
        logger.info("node did not answer", extra={"peer": short(failure.wallet), "kind": failure.kind.value})
        self._pool.failed(failure)
        if attempt.may_have_run and request.changes:
            raise OutcomeUnknown(failure)
        return failure

    async def _discover(self, timeout_s: float, max_age_s: float | None = None) -> None:
        try:
            with anyio.fail_after(timeout_s):
                self._pool.update(await self._directory.nodes(max_age_s=max_age_s))
        except TimeoutError as error:
            raise NoNodeAvailable("the registry that lists the nodes did not answer in time") from error
        except Unavailable as error:
            raise NoNodeAvailable(f"the registry that lists the nodes cannot be read: {error}") from error

    async def _discover_newer(self, timeout_s: float) -> None:
        # Nodes get new keys when they restart: what the directory remembers may be the reason that all of them failed.
        try:
            await self._discover(timeout_s, RECHECK_AFTER_S)
        except NoNodeAvailable:
            logger.info("registry not read again")


def _new_http_client(
    connect_timeout_s: float, attempt_timeout_s: float, tls: ssl.SSLContext | None
) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        verify=True if tls is None else tls,
        trust_env=False,
        follow_redirects=False,
        cookies=no_cookies(),
        timeout=httpx.Timeout(attempt_timeout_s, connect=connect_timeout_s),
        limits=httpx.Limits(max_connections=64, max_keepalive_connections=16, keepalive_expiry=KEEPALIVE_EXPIRY_S),
        headers={"Accept": "application/json", "Accept-Encoding": "identity"},
    )


def _failure(session: NodeSession, kind: FailureKind, message: str) -> NodeFailure:
    return NodeFailure(session.node.url, session.node.wallet, kind, message)


def _check_text(name: str, value: str, *, empty: bool = False) -> None:
    if not isinstance(value, str) or not (value or empty):
        raise BadRequest(f"{name} must be {'text' if empty else 'text that is not empty'}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"{name} must be text that UTF-8 can carry") from error
