"""The subset of CBOR (RFC 8949) that the Nitro Secure Module and its documents use, strictly.

Refuses what two decoders could read differently or nothing here needs: repeated map keys, integers in more bytes than
needed, indefinite strings, floats, tags, undefined, nesting deeper than four, bytes after the end. Arrays and maps may
be of indefinite length, because the module writes them so since 2026.
"""

from typing import Final

from kmscore.errors import InvariantBroken, Reason, Rejected

MAX_DEPTH: Final = 4
MAX_ITEMS: Final = 256

_UINT, _NEGINT, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_INDEFINITE: Final = 31
_BREAK: Final = 0xFF
_SIMPLE_VALUES: Final = {20: False, 21: True, 22: None}

# bool is an int to Python; decoded maps have int or str keys.
CborValue = int | bool | None | bytes | str | list["CborValue"] | dict[int | str, "CborValue"]


class _Malformed(Exception):
    """What is wrong, for the one place that turns it into a refusal."""


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def finished(self) -> bool:
        return self._at == len(self._data)

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise _Malformed("it ends too early")
        self._at += count
        return self._data[self._at - count : self._at]

    def take_break(self) -> bool:
        """Step over the end of an indefinite array or map if it is next."""
        if self._at < len(self._data) and self._data[self._at] == _BREAK:
            self._at += 1
            return True
        return False

    def head(self) -> tuple[int, int]:
        """Major type and argument; the argument of an indefinite item is -1."""
        initial = self.take(1)[0]
        major, info = initial >> 5, initial & 31
        if info < 24:
            return major, info
        if info == _INDEFINITE and major in (_ARRAY, _MAP):
            return major, -1
        if info > 27:
            raise _Malformed("a length of an unknown or indefinite kind")
        size = 1 << (info - 24)
        argument = int.from_bytes(self.take(size), "big")
        if major == _SIMPLE or argument < (24 if size == 1 else 1 << (4 * size)):
            raise _Malformed("a float, or a number in more bytes than it needs")
        return major, argument

    def value(self, depth: int) -> CborValue:
        major, argument = self.head()
        match major:
            case 0:
                return argument
            case 1:
                return -1 - argument
            case 2:
                return self.take(argument)
            case 3:
                try:
                    return self.take(argument).decode("utf-8")
                except UnicodeDecodeError as error:
                    raise _Malformed("a text is not UTF-8") from error
            case 4 | 5 if depth >= MAX_DEPTH:
                raise _Malformed("it is nested too deeply")
            case 4:
                return self.array(argument, depth + 1)
            case 5:
                return self.map(argument, depth + 1)
            case 7 if argument in _SIMPLE_VALUES:
                return _SIMPLE_VALUES[argument]
        raise _Malformed("it holds a tag or a value of another kind")

    def array(self, count: int, depth: int) -> list[CborValue]:
        items: list[CborValue] = []
        while not self._ends(count, len(items)):
            items.append(self.value(depth))
        return items

    def map(self, count: int, depth: int) -> dict[int | str, CborValue]:
        members: dict[int | str, CborValue] = {}
        while not self._ends(count, len(members)):
            key = self.value(depth)
            if isinstance(key, bool) or not isinstance(key, int | str):
                raise _Malformed("a map key is neither a number nor a text")
            if key in members:
                raise _Malformed("a map key is repeated")
            members[key] = self.value(depth)
        return members

    def _ends(self, count: int, seen: int) -> bool:
        if seen > MAX_ITEMS:
            raise _Malformed("an array or map has too many items")
        return self.take_break() if count < 0 else seen == count


def decode_cbor(data: bytes) -> CborValue:
    """The one value that `data` is, to its last byte. Raises `Rejected(MALFORMED)`."""
    reader = _Reader(data)
    try:
        value = reader.value(0)
        if not reader.finished:
            raise _Malformed("bytes follow its end")
    except _Malformed as error:
        raise Rejected(Reason.MALFORMED, f"the CBOR is malformed: {error}") from None
    return value


def encode_cbor(value: CborValue) -> bytes:
    """`value` with definite lengths, shortest heads, map members in the given order. The one encoder for the module.

    Raises `InvariantBroken` for a number beyond 64 bits.
    """
    if value is None or isinstance(value, bool):
        return bytes([0xF6 if value is None else 0xF5 if value else 0xF4])
    if isinstance(value, int):
        return _head(_UINT, value) if value >= 0 else _head(_NEGINT, -1 - value)
    if isinstance(value, bytes):
        return _head(_BYTES, len(value)) + value
    if isinstance(value, str):
        encoded = value.encode()
        return _head(_TEXT, len(encoded)) + encoded
    if isinstance(value, list):
        return _head(_ARRAY, len(value)) + b"".join(map(encode_cbor, value))
    members = (encode_cbor(key) + encode_cbor(member) for key, member in value.items())
    return _head(_MAP, len(value)) + b"".join(members)


def _head(major: int, argument: int) -> bytes:
    if argument < 24:
        return bytes([major << 5 | argument])
    size = next((size for size in (1, 2, 4, 8) if argument < 1 << (8 * size)), None)
    if size is None:
        raise InvariantBroken("CBOR numbers have at most 64 bits")
    return bytes([major << 5 | (23 + size.bit_length())]) + argument.to_bytes(size, "big")
