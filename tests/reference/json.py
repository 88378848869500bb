"""Strict JSON, slow and obvious: parse everything, then look at what came out."""

import json
import math
import re

from kmscore.errors import Reason, Rejected


def parse_json(data: bytes, *, max_depth: int = 16, max_items: int = 1 << 22) -> object:
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=lambda text: int(_number(text)),
            parse_float=lambda text: _finite(float(_number(text))),
            parse_constant=_refuse,
        )
        if _depth(value) > max_depth:
            raise ValueError("too deep")
        if _items(value) > max_items:
            raise ValueError("too many items")
        for text in _texts(value):
            text.encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise Rejected(Reason.MALFORMED, "not acceptable") from error
    return value


def parse_json_object(data: bytes, *, max_depth: int = 16) -> dict[str, object]:
    value = parse_json(data, max_depth=max_depth)
    if not isinstance(value, dict):
        raise Rejected(Reason.MALFORMED, "not an object")
    return value


def canonical_json(value: object) -> bytes:
    return _canonical(value, 16).encode("utf-8")


def _canonical(value: object, depth: int) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise Rejected(Reason.MALFORMED, "lone surrogate") from error
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int) and abs(value) < 10**78:
        return str(value)
    if depth == 0 or not isinstance(value, (dict, list, tuple)):
        raise Rejected(Reason.MALFORMED, "no canonical form")
    if isinstance(value, dict):
        if not all(isinstance(name, str) for name in value):
            raise Rejected(Reason.MALFORMED, "member name")
        members = [_canonical(name, 0) + ":" + _canonical(value[name], depth - 1) for name in sorted(value)]
        return "{" + ",".join(members) + "}"
    return "[" + ",".join(_canonical(item, depth - 1) for item in value) + "]"


def _items(value: object) -> int:
    if not isinstance(value, dict | list):
        return 0
    inside = list(value.values()) if isinstance(value, dict) else value
    return 1 + max(0, len(inside) - 1) + sum(map(_items, inside))


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("repeated name")
    return dict(pairs)


def _number(text: str) -> str:
    if re.search("[0-9]{79}", text):
        raise ValueError("too many digits")
    return text


def _finite(number: float) -> float:
    if math.isinf(number):
        raise ValueError("infinite")
    return number


def _refuse(name: str) -> object:
    raise ValueError(name)


def _depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [*value, *(text for item in value.values() for text in _texts(item))]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return []
