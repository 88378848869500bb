"""The subset of CBOR that the secure module and the signature section speak: definite lengths, no tags, no floats."""

from typing import Final

MAX_DEPTH: Final = 5

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_SIMPLE_VALUES: Final[dict[int, bool | None]] = {20: False, 21: True, 22: None}


class CborError(Exception):
    """The bytes are not CBOR of this subset, or the value is not one of it."""


def _head(major: int, value: int) -> bytes:
    if value < 24:
        return bytes([major << 5 | value])
    for info, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if value < 1 << (8 * size):
            return bytes([major << 5 | info]) + value.to_bytes(size, "big")
    raise CborError("an integer of more than 64 bits")


def encode_cbor(value: object) -> bytes:
    """CBOR of None, booleans, integers, byte strings, text, lists and maps: minimal widths, map order as given.

    Errors: `CborError` for any other type, and for integers of more than 64 bits.
    """
    match value:
        case None:
            return b"\xf6"
        case bool():
            return b"\xf5" if value else b"\xf4"
        case int():
            return _head(_UNSIGNED, value) if value >= 0 else _head(_NEGATIVE, -1 - value)
        case bytes():
            return _head(_BYTES, len(value)) + value
        case str():
            text = value.encode()
            return _head(_TEXT, len(text)) + text
        case list():
            return _head(_ARRAY, len(value)) + b"".join(map(encode_cbor, value))
        case dict():
            items = b"".join(encode_cbor(key) + encode_cbor(held) for key, held in value.items())
            return _head(_MAP, len(value)) + items
        case _:
            raise CborError(f"a {type(value).__name__} has no place here")


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise CborError("the data ends in the middle of a value")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def value(self, depth: int = 0) -> object:
        if depth > MAX_DEPTH:
            raise CborError("nested too deep")
        first = self._take(1)[0]
        major, info = first >> 5, first & 0x1F
        if major == _SIMPLE and info in _SIMPLE_VALUES:
            return _SIMPLE_VALUES[info]
        if info > 27 or major > _MAP:
            raise CborError(f"a value of an unexpected kind (0x{first:02x})")
        size = info if info < 24 else int.from_bytes(self._take(1 << (info - 24)), "big")
        match major:
            case 0:
                return size
            case 1:
                return -1 - size
            case 2:
                return self._take(size)
            case 3:
                try:
                    return self._take(size).decode()
                except UnicodeDecodeError as error:
                    raise CborError("text that is not UTF-8") from error
            case 4:
                return [self.value(depth + 1) for _ in self._bounded(size)]
            case _:
                held: dict[object, object] = {}
                for _ in self._bounded(size):
                    key = self.value(depth + 1)
                    if isinstance(key, bool) or not isinstance(key, int | str) or key in held:
                        raise CborError("a map with a repeated or unexpected key")
                    held[key] = self.value(depth + 1)
                return held

    def _bounded(self, count: int) -> range:
        if count > len(self._data) - self._at:
            raise CborError("more values claimed than there are bytes")
        return range(count)

    def end(self) -> None:
        if self._at != len(self._data):
            raise CborError("bytes follow the value")


def decode_cbor(data: bytes) -> object:
    """The one value in `data`; bounded in depth and count.

    Errors: `CborError` for anything outside the subset, a repeated key, or trailing bytes.
    """
    reader = _Reader(data)
    value = reader.value()
    reader.end()
    return value
