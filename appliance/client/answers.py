"""How far an answer may be believed, and what it must hold (protocol §2, §3, §4).

Pure functions over bytes that were already received. An `UnverifiedAnswer` becomes a `VerifiedAnswer` or a `Refusal`
only through `verify_success` and `verify_refusal`, and an inner object becomes a result only through the parser of its
request.
"""

import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from appliance.http import parse_nonce, parse_retry_after_s
from kmscore.envelope import Envelope, parse_envelope
from kmscore.errors import Reason, Rejected
from kmscore.json import parse_json_object
from kmscore.pop import answer_text, response_text, verify_signed_by

RESPONSE_SIGNATURE = "x-kms-response-signature"
ANSWER_SIGNATURE = "x-kms-answer-signature"
NEXT_NONCE = "x-kms-next-nonce"
RETRY_AFTER = "retry-after"

MAX_MESSAGE_CHARS = 200


@dataclass(frozen=True, slots=True)
class UnverifiedAnswer:
    """What came back over the connection; nothing in it may be believed. Header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Proof(Enum):
    """What shows that a refusal is the node's own."""

    ANSWER = "answer"
    """The wallet signed status and body: it is what the node said."""
    RESPONSE = "response"
    """The wallet signed that it handled this request, not how it ended."""
    NONE = "none"


class RefusalTrust(Enum):
    """Which refusals are believed from nodes that have not shown that they sign answers (protocol §4, extension).

    A node that has shown it once is held to it: from then on only `Proof.ANSWER` counts, whatever is chosen here.
    """

    SIGNED_ANSWER = "signed-answer"
    """Signed status and body only. Older nodes then never prove that a key is missing."""
    SIGNED_RESPONSE = "signed-response"
    """Also a valid X-KMS-Response-Signature. Who ends TLS in front of an older node can turn its success into a
    refusal.
    """
    DANGEROUS_UNSIGNED = "dangerous-unsigned"
    """Also no proof at all: whoever ends TLS in front of an older node decides which keys exist."""


@dataclass(frozen=True, slots=True)
class VerifiedAnswer:
    """A success that the addressed wallet signed; made by `verify_success` only. The envelope is still sealed.

    `next_nonce` saves fetching one; it is what the connection delivered and costs no more than a refusal when it is
    forged.
    """

    envelope: Envelope
    next_nonce: str | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is not a success, with its proof; made by `verify_refusal` only.

    `code` and `message` are printable and short, but not ours. `next_nonce` is None when nothing proves the refusal.
    """

    status: int
    code: str
    message: str
    retry_after_s: float | None
    proof: Proof
    next_nonce: str | None


@dataclass(frozen=True, slots=True)
class PutResult:
    """`updated_at_ms`: unix milliseconds that the node gave the record."""

    updated_at_ms: int


@dataclass(frozen=True, slots=True)
class Value:
    """A stored value; its bytes stay out of the repr."""

    value: bytes = field(repr=False)
    updated_at_ms: int


def verify_success(answer: UnverifiedAnswer, pop_signature: str, wallet: str) -> VerifiedAnswer:
    """The sealed answer of a 200, once `wallet` is shown to have answered the request signed as `pop_signature`.

    Raises `Rejected` with SIGNATURE (X-KMS-Response-Signature missing or not the node's, X-KMS-Answer-Signature present
    and not the node's) or MALFORMED (the body is not an envelope).
    """
    if RESPONSE_SIGNATURE not in answer.headers:
        raise Rejected(Reason.SIGNATURE, "the answer carries no response signature")
    _verify_response_signature(answer, pop_signature, wallet)
    if ANSWER_SIGNATURE in answer.headers:
        _verify_answer_signature(answer, pop_signature, wallet)
    return VerifiedAnswer(parse_envelope(answer.body), _next_nonce(answer))


def verify_refusal(answer: UnverifiedAnswer, pop_signature: str, wallet: str) -> Refusal:
    """Read a refusal and say what proves it.

    Raises `Rejected(MALFORMED)` for a number that is no HTTP status, `Rejected(SIGNATURE)` when a signature is present
    that is not the node's: that is worse than none.
    """
    if not 100 <= answer.status <= 599:
        raise Rejected(Reason.MALFORMED, "the answer's status is not one of HTTP")
    proof = Proof.NONE
    if RESPONSE_SIGNATURE in answer.headers:
        _verify_response_signature(answer, pop_signature, wallet)
        proof = Proof.RESPONSE
    if ANSWER_SIGNATURE in answer.headers:
        _verify_answer_signature(answer, pop_signature, wallet)
        proof = Proof.ANSWER
    code, message = _parse_error_body(answer.body)
    return Refusal(
        status=answer.status,
        code=code,
        message=message,
        retry_after_s=parse_retry_after_s(answer.headers.get(RETRY_AFTER)),
        proof=proof,
        next_nonce=None if proof is Proof.NONE else _next_nonce(answer),
    )


def is_believed(proof: Proof, trust: RefusalTrust, *, node_signs: bool) -> bool:
    """Whether a refusal with `proof` counts; `node_signs`: this node has shown that it signs answers."""
    if node_signs or trust is RefusalTrust.SIGNED_ANSWER:
        return proof is Proof.ANSWER
    return proof is not Proof.NONE or trust is RefusalTrust.DANGEROUS_UNSIGNED


def _next_nonce(answer: UnverifiedAnswer) -> str | None:
    try:
        return parse_nonce(answer.headers.get(NEXT_NONCE))
    except Rejected:
        return None  # absent, or of no use: one is fetched instead


def _verify_response_signature(answer: UnverifiedAnswer, pop_signature: str, wallet: str) -> None:
    verify_signed_by(response_text(pop_signature, wallet), answer.headers[RESPONSE_SIGNATURE], wallet)


def _verify_answer_signature(answer: UnverifiedAnswer, pop_signature: str, wallet: str) -> None:
    signed = answer_text(pop_signature, answer.status, hashlib.sha256(answer.body).hexdigest(), wallet)
    verify_signed_by(signed, answer.headers[ANSWER_SIGNATURE], wallet)


def _parse_error_body(body: bytes) -> tuple[str, str]:
    """Code and message of an error body; what is absent or of another shape (older nodes, proxies) is empty text."""
    try:
        found = parse_json_object(body)
    except Rejected:
        return "", ""
    return _shown(found.get("code")), _shown(found.get("message"))


def _shown(value: object) -> str:
    # Outside text ends up in errors and on terminals: no control characters, no screenfuls.
    return "".join(c if c.isprintable() else " " for c in value[:MAX_MESSAGE_CHARS]) if isinstance(value, str) else ""


# --- inner answers (protocol §4) ---


def parse_derived(inner: Mapping[str, object], path: str, length: int) -> bytes:
    """The derived key of `length` bytes. Rejected(MALFORMED) when it is not the answer to this question."""
    _check_app(inner)
    _check_echo(inner, "path", path)
    if _integer(inner, "length") != length:
        raise _misfit("length")
    key = _base64(inner, "key")
    if len(key) != length:
        raise _misfit("key")
    return key


def parse_put(inner: Mapping[str, object], key: str) -> PutResult:
    """Rejected(MALFORMED) when it is not the answer to a put of `key`."""
    _check_app(inner)
    _check_echo(inner, "key", key)
    return PutResult(_integer(inner, "updated_at_ms"))


def parse_value(inner: Mapping[str, object], key: str) -> Value:
    """Rejected(MALFORMED) when it is not the answer to a get of `key`."""
    _check_app(inner)
    _check_echo(inner, "key", key)
    return Value(_base64(inner, "value"), _integer(inner, "updated_at_ms"))


def parse_deleted(inner: Mapping[str, object], key: str) -> None:
    """Rejected(MALFORMED) when it is not the answer to a delete of `key`."""
    _check_app(inner)
    _check_echo(inner, "key", key)
    if inner.get("deleted") is not True:
        raise _misfit("deleted")


def parse_keys(inner: Mapping[str, object]) -> list[str]:
    """The keys of a listing. Rejected(MALFORMED) when it is no listing."""
    _check_app(inner)
    keys = inner.get("keys")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise _misfit("keys")
    if _integer(inner, "count") != len(keys):
        raise _misfit("count")
    return list(keys)


def _check_app(inner: Mapping[str, object]) -> None:
    if _integer(inner, "app_id") == 0:
        raise _misfit("app_id")


def _check_echo(inner: Mapping[str, object], name: str, asked: str) -> None:
    # An envelope proves who answered; only the echo shows that the answer is to this question and not to another one of
    # ours.
    if inner.get(name) != asked:
        raise _misfit(name)


def _integer(inner: Mapping[str, object], name: str) -> int:
    value = inner.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _misfit(name)
    return value


def _base64(inner: Mapping[str, object], name: str) -> bytes:
    value = inner.get(name)
    if not isinstance(value, str):
        raise _misfit(name)
    try:
        data = binascii.a2b_base64(value.encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise _misfit(name) from error
    # Spare bits after the last byte pass strict mode: one value must have one text.
    if binascii.b2a_base64(data, newline=False).decode() != value:
        raise _misfit(name)
    return data


def _misfit(name: str) -> Rejected:
    return Rejected(Reason.MALFORMED, f"the answer's {name} does not fit the request")
