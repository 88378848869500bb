"""Strict, bounded JSON and its canonical form (protocol §3, §5).

Refuses whatever two readers could understand differently: repeated member names, numbers that are not finite, half
surrogate pairs, invalid UTF-8, a byte order mark. It is not constant-time: what it reads is authenticated elsewhere.
"""

import json
from contextlib import suppress
from json.encoder import c_make_encoder, encode_basestring  # type: ignore[attr-defined]

from kmscore._json import examine_canonical, read_document
from kmscore.errors import Reason, Rejected

# The deepest body of the protocol is a delta (object, data, list, record, version): five levels. The rest is room for
# members that newer peers add.
MAX_DEPTH = 16
# Commas and opening brackets. Building so many values takes about a second; the largest body of the protocol, 50 MiB of
# records in hex in JSON, has fewer than half as many.
MAX_ITEMS = 1 << 22

# The standard library's own encoder, made once: `JSONEncoder.encode` makes one for each document.
_chunks_of = c_make_encoder(None, json.JSONEncoder().default, encode_basestring, None, ":", ",", False, False, False)
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def parse_json(data: bytes, *, max_depth: int = MAX_DEPTH, max_items: int = MAX_ITEMS) -> object:
    """The value of the JSON document `data` (UTF-8, whole).

    A scalar has depth 0, `[]` depth 1; `max_depth` must stay far below the interpreter's recursion limit. `max_items`
    bounds commas and opening brackets, and with them the time that building the values takes.

    Raises `Rejected(MALFORMED)` for nesting deeper than `max_depth`, more than `max_items`, more than 78 digits in a
    row, an escaped surrogate without its other half, invalid UTF-8, anything that is not exactly one JSON value, a
    repeated member name, and numbers that are NaN, infinite or too large for a float.
    """
    return read_document(data, max_depth, max_items)


def parse_json_object(data: bytes, *, max_depth: int = MAX_DEPTH, max_items: int = MAX_ITEMS) -> dict[str, object]:
    """Like `parse_json`, for a document that must be an object. Raises `Rejected(MALFORMED)`."""
    value = parse_json(data, max_depth=max_depth, max_items=max_items)
    if not isinstance(value, dict):
        raise Rejected(Reason.MALFORMED, "the JSON document is not an object")
    return value


def compact_json(value: object) -> bytes:
    """JSON as we send it: no white space, UTF-8 without needless escapes, members in the order they have.

    For values of our own making: ValueError for a number that is not finite and half a surrogate pair, TypeError for
    what JSON has no type for; nothing bounds the nesting.
    """
    return "".join(_chunks_of(value, 0)).encode()


def canonical_json(value: object) -> bytes:
    """The canonical form of `value`: member names sorted, no white space, UTF-8 without needless escapes (protocol §5).

    Names sort by code point, as Python's strings do; for the protocol's ASCII names that is also the order of bytes and
    of UTF-16 units, so every peer's canonical form is the same.

    Raises `Rejected(MALFORMED)` for floats and other types than those of JSON, names that are not strings, integers of
    more than 78 digits, nesting deeper than 16, and half surrogate pairs.
    """
    examine_canonical(value, MAX_DEPTH)
    with suppress(UnicodeEncodeError):
        return _ENCODER.encode(value).encode("utf-8")
    # Raised out here for the same reason: the encoder's error keeps the text.
    raise Rejected(Reason.MALFORMED, "a string has half of a surrogate pair")
