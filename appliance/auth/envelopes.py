"""Opening and sealing the bodies of authenticated requests (protocol §3).

Refuses plaintext, keys that the chain does not list for the caller, replays and reflections. Holds no key: the TEE
provider does the cryptography.
"""

from collections import OrderedDict
from collections.abc import Mapping
from itertools import chain

import anyio

from appliance.tee.port import LongEnvelope, LongText, TeeProvider
from kmscore.envelope import Envelope, TeePublicKey, parse_tee_pubkey_der
from kmscore.errors import InvariantBroken, Reason, Rejected
from kmscore.json import compact_json, parse_json_object
from kmscore.message import read_message
from kmscore.nonce import EnvelopeNonces

# A shorter text is read at once and plainly: what there is of records in it is not worth more.
SHORT_BYTES = 2048
# Members that only answers have: a request that carries one is an answer of ours handed back (protocol §3).
ANSWER_ONLY_MEMBERS = frozenset({"app_id", "answer_to"})


class LabelMemory:
    """Which envelope label each key used last (protocol §3); bounded, least recently used keys are forgotten."""

    def __init__(self, default: str, *, max_keys: int = 65_536) -> None:
        self._default = default
        self._max_keys = max_keys
        self._labels: OrderedDict[bytes, str] = OrderedDict()

    def get(self, key: TeePublicKey) -> str:
        return self._labels.get(key.der, self._default)

    def knows(self, key: TeePublicKey) -> bool:
        """Whether something from this key has been opened: then `get` is what it uses, not a guess."""
        return key.der in self._labels

    def remember(self, key: TeePublicKey, label: str | None) -> None:
        if label is None:
            return
        self._labels[key.der] = label
        self._labels.move_to_end(key.der)
        if len(self._labels) > self._max_keys:
            self._labels.popitem(last=False)


class EnvelopeGate:
    """Opens requests and answers, seals answers and requests, and remembers every nonce used between two keys."""

    def __init__(self, tee: TeeProvider, nonces: EnvelopeNonces, labels: LabelMemory, *, max_items: int) -> None:
        """`max_items` bounds the JSON inside envelopes: what its values may cost to build."""
        self._tee = tee
        self._max_items = max_items
        self._nonces = nonces
        self.labels = labels

    async def open_request(
        self, envelope: Envelope, registered: TeePublicKey, pop_nonce: str
    ) -> tuple[dict[str, object], str | None]:
        """Open a request body that must come from `registered`: its inner object, and the label to answer with.

        Raises `Rejected` with SENDER_KEY (not the caller's registered key; checked before any decryption),
        UNDECRYPTABLE, REPLAY, MALFORMED (inner JSON, or a member only answers have) or NONCE (made for another PoP).
        """
        inner, label = await self._open(envelope, registered)
        if not ANSWER_ONLY_MEMBERS.isdisjoint(inner):
            raise Rejected(Reason.MALFORMED, "the request carries a member that only answers have")
        if inner.get("pop_nonce", pop_nonce) != pop_nonce:
            raise Rejected(Reason.NONCE, "the body was made for another proof of possession")
        return inner, label

    async def open_answer(self, envelope: Envelope, registered: TeePublicKey, pop_nonce: str) -> dict[str, object]:
        """Open a peer's answer to our request that used `pop_nonce`. Raises like `open_request`."""
        inner, _ = await self._open(envelope, registered)
        if inner.get("answer_to", pop_nonce) != pop_nonce:
            raise Rejected(Reason.NONCE, "the answer was made for another request")
        return inner

    async def seal(self, inner: bytes, registered: TeePublicKey, label: str | None) -> Envelope:
        """Seal `inner` (JSON text) to `registered`; `label` None means the one this key used last.

        Raises `Unavailable` when the TEE provider does not answer.
        """
        envelope = await self._tee.seal(inner, registered, label or self.labels.get(registered))
        self._nonces.remember(registered.der, envelope.nonce)
        return envelope

    async def seal_long(self, inner: LongText, registered: TeePublicKey, label: str | None) -> LongEnvelope:
        """The same for a text that is made while its envelope is sent."""
        envelope = await self._tee.seal_long(inner, registered, label or self.labels.get(registered))
        self._nonces.remember(registered.der, envelope.nonce)
        return envelope

    async def _open(self, envelope: Envelope, registered: TeePublicKey) -> tuple[dict[str, object], str | None]:
        if envelope.sender != registered.der:
            parse_sender(envelope.sender)  # what is no key at all is called that
            raise Rejected(Reason.SENDER_KEY, "sender_tee_pubkey is not the key that the registry lists for the caller")
        plaintext, label = await self._tee.open(envelope, registered)
        self._nonces.remember(registered.der, envelope.nonce)
        self.labels.remember(registered, label)
        if len(plaintext) <= SHORT_BYTES:
            return parse_json_object(plaintext, max_items=self._max_items), label
        return await parse_inner(plaintext, max_items=self._max_items), label


def parse_sender(der: bytes) -> TeePublicKey:
    """The key an envelope names. Raises `Rejected(MALFORMED)` unless it is a P-384 key in DER."""
    try:
        return parse_tee_pubkey_der(der)
    except Rejected as error:
        raise Rejected(Reason.MALFORMED, "sender_tee_pubkey is not a P-384 key in DER") from error


async def parse_inner(text: bytes, *, max_items: int) -> dict[str, object]:
    """The inner object that `text` is, as `read_message` reads it: a long one in steps, between which others run."""
    for inner in read_message(text, max_items=max_items):
        if inner is not None:
            return inner
        await anyio.lowlevel.checkpoint()
    raise InvariantBroken("a message was read to its end and is not there")


def encode_inner(inner: Mapping[str, object]) -> bytes:
    """The one encoder of inner objects: compact UTF-8 JSON. A `data` of bytes is encoded already."""
    data = inner.get("data")
    if not isinstance(data, bytes):
        return compact_json(inner)
    before, after = _around_data(inner)
    return b"".join((before, data, after))


def encode_long_inner(inner: Mapping[str, object], data: LongText) -> LongText:
    """The same with a member `data` that is made while it is sent."""
    before, after = _around_data(inner)
    return LongText(len(before) + data.size_bytes + len(after), chain((before,), data.parts, (after,)))


def _around_data(inner: Mapping[str, object]) -> tuple[bytes, bytes]:
    others = compact_json({name: value for name, value in inner.items() if name != "data"})
    return b'{"data":', b"}" if others == b"{}" else b"," + others[1:]
