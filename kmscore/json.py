"""Strict, bounded JSON and its canonical form (protocol §3, §5).

Refuses whatever two readers could understand differently: repeated member names, numbers that are not finite, half
surrogate pairs, invalid UTF-8, a byte order mark. It is not constant-time: what it reads is authenticated elsewhere.
"""

import json
from contextlib import suppress

from kmscore._json import MAX_DEPTH, MAX_ITEMS, compact_json, examine_canonical, parse_json, parse_json_object
from kmscore.errors import Reason, Rejected

__all__ = ["MAX_DEPTH", "MAX_ITEMS", "canonical_json", "compact_json", "parse_json", "parse_json_object"]

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


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
