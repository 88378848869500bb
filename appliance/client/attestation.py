"""Attestation of a node, asked of the node itself and believed only after verification (enclave §3, §4).

The registry says which keys are a node's; a verified document says which image holds them. Both together mean that what
is sealed to the key can be read by that image alone, whoever ends TLS in front of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import anyio.to_thread
import httpx

from appliance.client.discovery import NodeFacts
from appliance.http import AnswerTooLarge, parse_retry_after_s, read_bounded
from appliance.tee.attestation.document import MAX_DOCUMENT_BYTES
from appliance.tee.attestation.errors import Refused, Step
from appliance.tee.attestation.measurements import Measurements
from appliance.tee.attestation.root import aws_root
from appliance.tee.attestation.verify import VerificationPolicy, attested_identity, verify_document
from kmscore.errors import ConfigError, Unavailable

NONCE_BYTES = 32


@dataclass(frozen=True, slots=True)
class AttestationRequirement:
    """What a node must prove before it is asked anything.

    `measurements` are the images that may hold the keys. `root_der` is the root they are attested under; AWS's unless
    a development cluster's is given. `max_age` bounds a document's age, `max_skew` how far the node's clock and ours
    may be apart. Raises `ConfigError` without measurements: a requirement that any enclave meets is none.
    """

    measurements: Sequence[Measurements]
    root_der: bytes = field(default_factory=aws_root, repr=False)
    max_age: timedelta = timedelta(minutes=5)
    max_skew: timedelta = timedelta(minutes=1)

    def __post_init__(self) -> None:
        if not self.measurements:
            raise ConfigError("a required attestation needs the measurements of at least one image")

    async def verify_node(self, document: bytes, node: NodeFacts, nonce: bytes, now_ms: int) -> None:
        """Verify a document that `node` gave for `nonce`, at the unix time `now_ms`. Raises `Refused`."""
        policy = VerificationPolicy(
            root_der=self.root_der,
            at=datetime.fromtimestamp(now_ms / 1000, UTC),
            nonce=nonce,
            measurements=self.measurements,
            max_age=self.max_age,
            max_skew=self.max_skew,
        )
        # Ten P-384 signatures or so: milliseconds that the event loop should not wait for.
        identity = attested_identity(await anyio.to_thread.run_sync(verify_document, document, policy))
        if (identity.wallet, identity.tee_pubkey) != (node.wallet, node.tee_pubkey):
            raise Refused(Step.IDENTITY, "the document is of other keys than the registry lists for this node")


class DocumentUnavailable(Unavailable):
    """The node gave no document. `status` is what it answered, None when no complete answer came."""

    def __init__(self, message: str, status: int | None = None, retry_after_s: float = 5.0) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.status = status


async def fetch_document(http: httpx.AsyncClient, url: str, nonce: bytes) -> bytes:
    """The unverified document of the node at `url` for `nonce` (1..64 bytes). Deadlines are the caller's.

    Raises `DocumentUnavailable`.
    """
    try:
        async with http.stream(
            "GET",
            f"{url}/attestation",
            params={"nonce": nonce.hex()},
            headers={"Accept": "application/cbor, application/json"},
            follow_redirects=False,
        ) as response:
            body = await read_bounded(response, MAX_DOCUMENT_BYTES)
    except AnswerTooLarge as error:
        raise DocumentUnavailable("what it answers is too large for a document", httpx.codes.OK) from error
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        raise DocumentUnavailable("no connection") from error
    if response.status_code == httpx.codes.NOT_FOUND:
        raise DocumentUnavailable("it does not offer attestation", response.status_code)
    if response.status_code != httpx.codes.OK:
        retry_after_s = parse_retry_after_s(response.headers.get("retry-after"))
        message = f"answered {response.status_code} to a request for attestation"
        raise DocumentUnavailable(message, response.status_code, 5.0 if retry_after_s is None else retry_after_s)
    return body
