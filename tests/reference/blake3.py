"""BLAKE3 as the specification's tree, by recursion; the twin of kmscore._blake3."""

from dataclasses import dataclass, replace

from kmscore.errors import InvariantBroken
from kmscore.secret import SecretBytes

_IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
_PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
_COLUMNS_THEN_DIAGONALS = (
    (0, 4, 8, 12),
    (1, 5, 9, 13),
    (2, 6, 10, 14),
    (3, 7, 11, 15),
    (0, 5, 10, 15),
    (1, 6, 11, 12),
    (2, 7, 8, 13),
    (3, 4, 9, 14),
)
_CHUNK_START, _CHUNK_END, _PARENT, _ROOT, _KEYED, _CONTEXT, _MATERIAL = (1 << bit for bit in range(7))
_MASK = (1 << 32) - 1


def blake3(data: bytes, length: int = 32) -> bytes:
    return _output(_node(_IV, data, 0, 0), length)


def blake3_keyed(key32: SecretBytes | bytes, data: bytes, length: int = 32) -> bytes:
    key = key32.reveal() if isinstance(key32, SecretBytes) else key32
    if len(key) != 32:
        raise InvariantBroken("a BLAKE3 key has 32 bytes")
    return _output(_node(_words(key), data, 0, _KEYED), length)


def blake3_derive_key(context: str, material: bytes, length: int = 32) -> bytes:
    try:
        encoded = context.encode()
    except UnicodeEncodeError:
        raise InvariantBroken("a BLAKE3 context is text that UTF-8 can hold") from None
    context_key = _output(_node(_IV, encoded, 0, _CONTEXT), 32)
    return _output(_node(_words(context_key), material, 0, _MATERIAL), length)


class Blake3Hasher:
    def __init__(self, *, key32: SecretBytes | bytes | None = None, context: str | None = None) -> None:
        if key32 is not None and context is not None:
            raise InvariantBroken("BLAKE3 takes a key or a context, not both")
        self._key32, self._context, self._data = key32, context, b""
        self.digest()

    def update(self, data: bytes) -> None:
        self._data += data

    def digest(self, length: int = 32) -> bytes:
        if self._key32 is not None:
            return blake3_keyed(self._key32, self._data, length)
        if self._context is not None:
            return blake3_derive_key(self._context, self._data, length)
        return blake3(self._data, length)


@dataclass(frozen=True)
class _Node:
    chaining: tuple[int, ...]
    block: tuple[int, ...]
    counter: int
    size: int
    flags: int


def _node(key: tuple[int, ...], data: bytes, first_chunk: int, flags: int) -> _Node:
    if len(data) > 1024:
        left_chunks = 1 << (((len(data) - 1) // 1024).bit_length() - 1)
        left = _node(key, data[: 1024 * left_chunks], first_chunk, flags)
        right = _node(key, data[1024 * left_chunks :], first_chunk + left_chunks, flags)
        return _Node(key, (*_compress(left)[:8], *_compress(right)[:8]), 0, 64, flags | _PARENT)
    chaining = key
    blocks = [data[at : at + 64] for at in range(0, len(data), 64)] or [b""]
    for number, block in enumerate(blocks):
        block_flags = flags | (_CHUNK_START if number == 0 else 0) | (_CHUNK_END if number == len(blocks) - 1 else 0)
        node = _Node(chaining, _words(block.ljust(64, b"\0")), first_chunk, len(block), block_flags)
        chaining = _compress(node)[:8]
    return node


def _output(root: _Node, length: int) -> bytes:
    if length < 0:
        raise InvariantBroken("the length of a BLAKE3 output is not negative")
    output = b""
    for counter in range(-(-length // 64)):
        words = _compress(replace(root, counter=counter, flags=root.flags | _ROOT))
        output += b"".join(word.to_bytes(4, "little") for word in words)
    return output[:length]


def _compress(node: _Node) -> tuple[int, ...]:
    v = [*node.chaining, *_IV[:4], node.counter & _MASK, node.counter >> 32, node.size, node.flags]
    m = node.block
    for _ in range(7):
        for index, (a, b, c, d) in enumerate(_COLUMNS_THEN_DIAGONALS):
            for word, first, second in ((m[2 * index], 16, 12), (m[2 * index + 1], 8, 7)):
                v[a] = (v[a] + v[b] + word) & _MASK
                v[d] = _turn(v[d] ^ v[a], first)
                v[c] = (v[c] + v[d]) & _MASK
                v[b] = _turn(v[b] ^ v[c], second)
        m = tuple(m[index] for index in _PERMUTATION)
    return (*(v[i] ^ v[i + 8] for i in range(8)), *(v[i + 8] ^ node.chaining[i] for i in range(8)))


def _words(data: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4))


def _turn(word: int, count: int) -> int:
    return (word >> count | word << (32 - count)) & _MASK
