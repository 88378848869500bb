"""How nodes ask each other for digests and for single records: the messages of store §5, and the side that answers.

A range is `[app, prefix]`: the records of an app (decimal id) whose positions begin with these hex digits, or, with app
null, the namespaces whose positions do. `digest_request` with `ranges` is answered by `ranges`, one for each that was
asked for, from the first: `{"children": [16 digests]}`, or `{"items": [[name, digest]]}` when the range holds at most
32. `records_request` with `keys`, `[app, key]` each, is answered by `data` as in a delta and `count`, how many of the
keys were looked at, from the first. Less may be answered than was asked, never nothing; the rest is asked again.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import anyio

from appliance.clock import Clock
from appliance.cluster.keys import ClusterKeys
from appliance.cluster.messages import MAX_PAGE_INNER_BYTES, PAGE_RECORD_BYTES, PUSH_RECORDS
from appliance.cluster.replica import Entry, Replica, fitting, parse_app_id
from kmscore.errors import Reason, Rejected, Unavailable
from kmscore.message import write_data

MAX_RANGES = 256
MAX_KEYS = PUSH_RECORDS
MAX_KEY_BYTES = 65_536
# Digits of a position, parts of a range, records of a leaf: the shape of the tree is part of the extension.
MAX_PREFIX_DIGITS = 16
PARTS = 16
LEAF_ITEMS = 32
# Names and digests in one answer, before it is sealed; the range that passes it is still answered.
ANSWER_BYTES = 256 * 1024
RANGES_PER_SLICE = 16

_PREFIX = re.compile(f"[0-9a-f]{{0,{MAX_PREFIX_DIGITS}}}", re.ASCII)
_DIGEST = re.compile("[0-9a-f]{32}", re.ASCII)


class Range(NamedTuple):
    """A range of positions: of an app's keys, or of the namespaces when `app_id` is None."""

    app_id: int | None
    prefix: str

    def parts(self) -> list["Range"]:
        """The sixteen ranges it is made of."""
        return [Range(self.app_id, f"{self.prefix}{digit:x}") for digit in range(PARTS)]


class RangeAnswer(NamedTuple):
    """What a node knows of a range: its parts' digests, or its items' when they are few. One of them is None."""

    children: list[bytes] | None
    items: dict[str, bytes] | None


# --- the messages ---


def encode_range(wanted: Range) -> list[object]:
    return [None if wanted.app_id is None else str(wanted.app_id), wanted.prefix]


def parse_ranges(value: object) -> list[Range]:
    """The `ranges` of a request. Raises `Rejected(BAD_FIELD)`."""
    ranges = []
    for item in _list_of(value, MAX_RANGES):
        app_text, prefix = _pair(item)
        if not isinstance(prefix, str) or not _PREFIX.fullmatch(prefix):
            raise Rejected(Reason.BAD_FIELD, "a range does not begin with up to 16 hex digits")
        ranges.append(Range(None if app_text is None else _app_id(app_text), prefix))
    return ranges


def parse_keys(value: object) -> list[tuple[int, str]]:
    """The `keys` of a request. Raises `Rejected(BAD_FIELD)`."""
    keys = []
    for item in _list_of(value, MAX_KEYS):
        app_text, key = _pair(item)
        keys.append((_app_id(app_text), _key(key)))
    return keys


def parse_range_answers(value: object, asked: Sequence[Range]) -> list[RangeAnswer]:
    """The `ranges` of an answer to `asked`. Raises `Rejected(BAD_FIELD)`."""
    return [_parse_range_answer(item, of) for item, of in zip(_list_of(value, len(asked)), asked, strict=False)]


def _parse_range_answer(value: object, asked: Range) -> RangeAnswer:
    if not isinstance(value, dict):
        raise Rejected(Reason.BAD_FIELD, "the answer for a range is not an object")
    if "children" in value:
        children = [_digest(item) for item in _list_of(value["children"], PARTS)]
        if len(children) < PARTS or len(asked.prefix) == MAX_PREFIX_DIGITS:
            raise Rejected(Reason.BAD_FIELD, "a range has other than sixteen parts")
        return RangeAnswer(children, None)
    items: dict[str, bytes] = {}
    for item in _list_of(value.get("items"), LEAF_ITEMS, least=0):
        name, digest = _pair(item)
        key = str(_app_id(name)) if asked.app_id is None else _key(name)
        items[key] = _digest(digest)
    return RangeAnswer(None, items)


def _list_of(value: object, most: int, *, least: int = 1) -> list[object]:
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise Rejected(Reason.BAD_FIELD, f"a list of {least} to {most} elements is missing")
    return value


def _pair(value: object) -> tuple[object, object]:
    if not isinstance(value, list) or len(value) != 2:
        raise Rejected(Reason.BAD_FIELD, "an element is not a pair")
    return value[0], value[1]


def _app_id(value: object) -> int:
    try:
        return parse_app_id(value)
    except Rejected as error:
        raise Rejected(Reason.BAD_FIELD, str(error)) from error


def _key(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value.encode()) <= MAX_KEY_BYTES:
        raise Rejected(Reason.BAD_FIELD, "a key is not text of 1 to 65,536 bytes")
    return value


def _digest(value: object) -> bytes:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise Rejected(Reason.BAD_FIELD, "a digest is not 32 hex digits")
    return bytes.fromhex(value)


# --- this node's digests ---


async def refresh_digests(replica: Replica, keys: ClusterKeys, clock: Clock) -> None:
    """Bring the store's digests up to date, in slices between which everything else runs.

    Raises `Unavailable` without a confirmed master secret.
    """
    key = keys.digest_key
    if key is None:
        raise Unavailable("master secret not initialized")
    replica.store.track_digests(key)
    while not replica.store.refresh_digests(clock.now_ms()):
        await anyio.lowlevel.checkpoint()


def own_items(replica: Replica, of: Range) -> dict[str, bytes] | None:
    """What this node has in a range, by name as on the wire; None when it is more than a leaf holds."""
    if of.app_id is None:
        spaces = replica.store.digest_items(None, of.prefix)
        return None if spaces is None else {str(app_id): digest for app_id, digest in spaces}
    items = replica.store.digest_items(of.app_id, of.prefix)
    return None if items is None else dict(items)


class DigestServer:
    """Answers for this node's store."""

    def __init__(self, replica: Replica, keys: ClusterKeys, clock: Clock) -> None:
        self._replica = replica
        self._keys = keys
        self._clock = clock

    async def ranges(self, inner: Mapping[str, object]) -> dict[str, object]:
        """The answer to a `digest_request`. Raises `Rejected(BAD_FIELD)`, `Unavailable` without a master secret."""
        asked = parse_ranges(inner.get("ranges"))
        await refresh_digests(self._replica, self._keys, self._clock)
        answers: list[dict[str, object]] = []
        size = 0
        for wanted in asked:
            answer, cost = self._range(wanted)
            answers.append(answer)
            size += cost
            if size > ANSWER_BYTES:
                break
            if len(answers) % RANGES_PER_SLICE == 0:
                await anyio.lowlevel.checkpoint()
        return {"status": "ok", "ranges": answers}

    def records(self, inner: Mapping[str, object]) -> dict[str, object]:
        """The answer to a `records_request`: those of the keys that are stored, dead or alive.

        Raises `Rejected(BAD_FIELD)`.
        """
        asked = parse_keys(inner.get("keys"))
        entries: list[Entry] = []
        places: list[int] = []
        size = 0
        for place, (app_id, key) in enumerate(asked):
            record = self._replica.store.find(app_id, key)
            if record is None:
                continue
            size += len(key) + len(record.value or b"")
            if size > PAGE_RECORD_BYTES and entries:
                return self._records_answer(entries, places, place)
            entries.append((app_id, 0, record))
            places.append(place)
        return self._records_answer(entries, places, len(asked))

    @staticmethod
    def _records_answer(entries: list[Entry], places: list[int], count: int) -> dict[str, object]:
        chosen = fitting(entries, MAX_PAGE_INNER_BYTES)
        if len(chosen) < len(entries):
            count = places[len(chosen)]
        data = write_data(chosen)
        return {"status": "ok", "data": data, "count": count}

    def _range(self, wanted: Range) -> tuple[dict[str, object], int]:
        items = own_items(self._replica, wanted)
        if items is None:
            children = self._replica.store.digest_children(wanted.app_id, wanted.prefix)
            return {"children": [digest.hex() for digest in children]}, PARTS * 35
        named = [[name, digest.hex()] for name, digest in items.items()]
        return {"items": named}, sum(len(name) + 40 for name in items)
