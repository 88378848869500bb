"""Keccak-256 as Ethereum uses it (padding 0x01, not SHA-3's 0x06), for one short input per build.

Slow and obvious on purpose: the registry's code measurement is a hash of 144 bytes, and this package may not import the
core's compiled one.
"""

from typing import Final

_MASK: Final = (1 << 64) - 1
_RATE_BYTES: Final = 136


def _round_constants() -> tuple[int, ...]:
    constants = []
    register = 1
    for _ in range(24):
        constant = 0
        for power in range(7):
            if register & 1:
                constant |= 1 << ((1 << power) - 1)
            register = (register << 1) ^ (0x171 if register & 0x80 else 0)
        constants.append(constant)
    return tuple(constants)


_ROUND_CONSTANTS: Final = _round_constants()


def _rotate(word: int, count: int) -> int:
    return ((word << count) | (word >> (64 - count))) & _MASK if count else word


def _permute(state: list[int]) -> None:
    """Keccak-f[1600] in place; lane (x, y) is state[x + 5y]."""
    for constant in _ROUND_CONSTANTS:
        parity = [state[x] ^ state[x + 5] ^ state[x + 10] ^ state[x + 15] ^ state[x + 20] for x in range(5)]
        for x in range(5):
            mix = parity[(x + 4) % 5] ^ _rotate(parity[(x + 1) % 5], 1)
            for row in range(0, 25, 5):
                state[x + row] ^= mix
        x, y, lane = 1, 0, state[1]
        for step in range(24):
            x, y = y, (2 * x + 3 * y) % 5
            lane, state[x + 5 * y] = state[x + 5 * y], _rotate(lane, (step + 1) * (step + 2) // 2 % 64)
        for row in range(0, 25, 5):
            lanes = state[row : row + 5]
            for x in range(5):
                state[x + row] = lanes[x] ^ (~lanes[(x + 1) % 5] & _MASK & lanes[(x + 2) % 5])
        state[0] ^= constant


def keccak256(data: bytes) -> bytes:
    """The 32-byte Keccak-256 digest of `data`."""
    padded = bytearray(data)
    padded += bytes(_RATE_BYTES - len(data) % _RATE_BYTES)
    padded[len(data)] |= 0x01
    padded[-1] |= 0x80
    state = [0] * 25
    for start in range(0, len(padded), _RATE_BYTES):
        for lane in range(_RATE_BYTES // 8):
            offset = start + 8 * lane
            state[lane] ^= int.from_bytes(padded[offset : offset + 8], "little")
        _permute(state)
    return b"".join(word.to_bytes(8, "little") for word in state[:4])
