"""The app endpoints, `/kms/*` (protocol §4). The order of checks of protocol §5 reads top to bottom in `_serve_body`:
after the admission rate → body → nonce → sender key → decrypt → operation → sealed answer.
"""

import base64
import re
from binascii import b2a_base64
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import parse_qsl, unquote_to_bytes

from starlette.requests import Request
from starlette.responses import Response

from appliance.api.bodies import check_body_headers, discard_body, read_body
from appliance.api.exchange import APP_SIGNATURE_HEADER, Answerer, Change, Reading
from appliance.auth.apps import AppAuthorizer
from appliance.auth.eligibility import AuthorizedInstance
from appliance.auth.envelopes import EnvelopeGate
from appliance.clock import Clock
from appliance.cluster.keys import ClusterKeys
from appliance.cluster.replica import Replica
from appliance.cluster.state import Availability
from kmscore.envelope import parse_envelope
from kmscore.errors import Reason, Rejected, Unavailable
from kmscore.limits import BodyBudget, RateLimiter
from kmscore.pop import PopKind
from kmscore.proof import PopVerifier, VerifiedPop, parse_pop_headers

# One key in ASCII, and nothing in it that is encoded.
PLAIN_KEY_QUERY = re.compile(rb"key=([^&%+\x80-\xff]+)")

MIN_DERIVED_BYTES, MAX_DERIVED_BYTES, DEFAULT_DERIVED_BYTES = 1, 1024, 32

Inner = dict[str, object]
Operation = Callable[[AuthorizedInstance, Inner], Reading | Change]


class KmsApi:
    """Handlers of the app endpoints."""

    def __init__(
        self,
        *,
        availability: Availability,
        pop: PopVerifier,
        authorizer: AppAuthorizer,
        gate: EnvelopeGate,
        answerer: Answerer,
        keys: ClusterKeys,
        replica: Replica,
        clock: Clock,
        wallet_limiter: RateLimiter,
        budget: BodyBudget,
        give_back: Callable[[Request], None],
        max_body_bytes: int,
    ) -> None:
        self._availability = availability
        self._pop = pop
        self._authorizer = authorizer
        self._gate = gate
        self._answer, self._refuse = answerer.answer, answerer.refuse
        self._keys = keys
        self._replica = replica
        self._clock = clock
        self._wallet_limiter = wallet_limiter
        self._budget = budget
        self._give_back = give_back
        self._max_body_bytes = max_body_bytes

    # --- endpoints ---

    def derive(self, request: Request) -> Awaitable[Response]:
        return self._serve_body(request, self._derive)

    def put(self, request: Request) -> Awaitable[Response]:
        return self._serve_body(request, self._put)

    def delete(self, request: Request) -> Awaitable[Response]:
        return self._serve_body(request, self._delete)

    def get_by_path(self, request: Request) -> Awaitable[Response]:
        return self._serve(request, lambda caller, _: self._get(caller, keys_of_path(request.scope["raw_path"])))

    def get_by_query(self, request: Request) -> Awaitable[Response]:
        def get_or_list(caller: AuthorizedInstance, _inner: Inner) -> Reading:
            key = key_of_query(request.scope["query_string"])
            return self._list(caller) if key is None else self._get(caller, [key])

        return self._serve(request, get_or_list)

    # --- the order of checks ---

    async def _serve_body(self, request: Request, operation: Operation) -> Response:
        self._availability.require()
        check_body_headers(request, self._max_body_bytes)
        try:
            pop, caller = await self._admit(request)
        except Rejected:
            await discard_body(request, self._max_body_bytes)
            raise
        try:
            self._wallet_limiter.take(pop.wallet)
            with self._budget.share_of(pop.wallet) as share:
                body = await read_body(request, self._max_body_bytes, share.take)
                self._use_up(request, pop)
                inner, label = await self._gate.open_request(parse_envelope(body), caller.tee_pubkey, pop.nonce)
            return await self._answer(operation(caller, inner), pop, caller.tee_pubkey, label, APP_SIGNATURE_HEADER)
        except (Rejected, Unavailable) as error:  # of a caller that is known: signed
            return await self._refuse(error, pop, APP_SIGNATURE_HEADER)

    async def _serve(self, request: Request, operation: Operation) -> Response:
        self._availability.require()
        pop, caller = await self._admit(request)
        try:
            self._wallet_limiter.take(pop.wallet)
            self._use_up(request, pop)
            return await self._answer(operation(caller, {}), pop, caller.tee_pubkey, None, APP_SIGNATURE_HEADER)
        except (Rejected, Unavailable) as error:  # of a caller that is known: signed
            return await self._refuse(error, pop, APP_SIGNATURE_HEADER)

    async def _admit(self, request: Request) -> tuple[VerifiedPop, AuthorizedInstance]:
        """Headers and their syntax → timestamp → nonce → signer → hint → registry → nonce unused. Changes nothing."""
        pop = self._pop.verify(PopKind.APP, parse_pop_headers(PopKind.APP, request.scope["headers"]))
        caller = await self._authorizer.authorize(pop.wallet)
        self._pop.require_unused(pop)
        return pop, caller

    def _use_up(self, request: Request, pop: VerifiedPop) -> None:
        """Consume the nonce, now that the size is right; from here the request counts against its wallet."""
        self._pop.consume(pop)
        self._give_back(request)

    # --- operations ---

    def _derive(self, caller: AuthorizedInstance, inner: Inner) -> Reading:
        path = text_member(inner, "path")
        context = text_member(inner, "context", default="")
        length = integer_member(inner, "length", DEFAULT_DERIVED_BYTES, decimal_text=True)
        if not MIN_DERIVED_BYTES <= length <= MAX_DERIVED_BYTES:
            raise bad_field("length must be from 1 to 1024")
        key = self._keys.derive(caller.app_id, path, context, length)
        return Reading({"app_id": caller.app_id, "path": path, "key": base64_text(key), "length": length})

    def _put(self, caller: AuthorizedInstance, inner: Inner) -> Change:
        key = text_member(inner, "key")
        value = base64_member(inner, "value")
        ttl_ms = integer_member(inner, "ttl_ms", 0)
        if ttl_ms < 0:
            raise bad_field("ttl_ms must not be negative")
        generation = self._keys.generation
        ciphertext = self._replica.encrypt(caller.app_id, value)
        now_ms = self._clock.now_ms()
        store = self._replica.store

        def answer(updated_at_ms: int) -> Inner:
            return {"app_id": caller.app_id, "key": key, "updated_at_ms": updated_at_ms}

        def plan() -> Inner:
            self._keys.require_generation(generation)
            return answer(store.plan_put(caller.app_id, key, len(ciphertext), ttl_ms, now_ms))

        def apply() -> Inner:
            return answer(store.put(caller.app_id, key, ciphertext, ttl_ms, now_ms))

        return Change(plan, apply)

    def _delete(self, caller: AuthorizedInstance, inner: Inner) -> Change:
        key = text_member(inner, "key")
        now_ms = self._clock.now_ms()
        store = self._replica.store
        answer: Inner = {"app_id": caller.app_id, "key": key, "deleted": True}

        def plan() -> Inner:
            store.plan_delete(caller.app_id, key, now_ms)
            return answer

        def apply() -> Inner:
            store.delete(caller.app_id, key, now_ms)
            return answer

        return Change(plan, apply)

    def _get(self, caller: AuthorizedInstance, candidates: Sequence[str]) -> Reading:
        """The value of the first candidate that exists."""
        for key in candidates:
            found = self._replica.get(caller.app_id, key)
            if found is not None:
                value, updated_at_ms = found
                return Reading(
                    {
                        "app_id": caller.app_id,
                        "key": key,
                        "value": base64_text(value),
                        "updated_at_ms": updated_at_ms,
                    }
                )
        raise Rejected(Reason.NOT_FOUND, "no such key")

    def _list(self, caller: AuthorizedInstance) -> Reading:
        keys = self._replica.keys(caller.app_id)
        return Reading({"app_id": caller.app_id, "keys": keys, "count": len(keys)})


def bad_field(message: str) -> Rejected:
    return Rejected(Reason.BAD_FIELD, message)


def text_member(inner: Inner, name: str, default: str | None = None) -> str:
    """A string member; non-empty unless it has a default. Raises `Rejected(BAD_FIELD)`."""
    value = inner.get(name, default)
    if not isinstance(value, str):
        raise bad_field(f"{name} must be a string")
    if not value and default is None:
        raise bad_field(f"{name} must not be empty")
    return value


def integer_member(inner: Inner, name: str, default: int, *, decimal_text: bool = False) -> int:
    """An integer, with `decimal_text` also as digits; bools and floats are neither. Raises `Rejected(BAD_FIELD)`."""
    value = inner.get(name, default)
    if decimal_text and isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 19:
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise bad_field(f"{name} must be an integer")
    return value


def base64_member(inner: Inner, name: str) -> bytes:
    """Standard base64 with padding, decoded strictly: one text for each value. Raises `Rejected(BAD_FIELD)`."""
    text = inner.get(name)
    if not isinstance(text, str):
        raise bad_field(f"{name} must be a base64 string")
    try:
        value = base64.b64decode(text, validate=True)
    except ValueError as error:  # binascii.Error is one, and so is what characters outside ASCII raise
        raise bad_field(f"{name} is not standard base64 with padding") from error
    # The decoder takes excess padding and stray bits at the end.
    if base64_text(value) != text:
        raise bad_field(f"{name} is not standard base64 with padding")
    return value


def base64_text(value: bytes) -> str:
    """Standard base64 with padding."""
    return b2a_base64(value, newline=False).decode()


def keys_of_path(raw_path: bytes) -> list[str]:
    """The keys that `/kms/data/{key}` may mean: literally, then with `+` as space (protocol §4).

    Raises `Rejected(BAD_FIELD)` for an empty key or one that is not percent-encoded UTF-8.
    """
    encoded = raw_path.removeprefix(b"/kms/data/")
    if not encoded:
        raise bad_field("key must not be empty")
    try:
        literal = unquote_to_bytes(encoded).decode("utf-8")
        form = unquote_to_bytes(encoded.replace(b"+", b" ")).decode("utf-8")
    except UnicodeDecodeError as error:
        raise bad_field("key is not percent-encoded UTF-8") from error
    return [literal] if form == literal else [literal, form]


def key_of_query(query: bytes) -> str | None:
    """The key of `?key=`, None when the query has none. Raises `Rejected(BAD_FIELD)`."""
    plain = PLAIN_KEY_QUERY.fullmatch(query)
    if plain is not None:  # what most of them are, read in a fifth of the time
        return plain[1].decode()
    try:
        members = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=16)
    except ValueError as error:  # UnicodeDecodeError is one
        raise bad_field("the query is not form-encoded UTF-8") from error
    keys = [value for name, value in members if name == "key"]
    if len(keys) > 1:
        raise bad_field("key is given more than once")
    if keys == [""]:
        raise bad_field("key must not be empty")
    return keys[0] if keys else None
