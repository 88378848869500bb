"""Keccak-256 written from FIPS 202, one line a formula; the twin of kmscore._keccak."""

_RATE = 136
_MASK = (1 << 64) - 1


def keccak256(data: bytes) -> bytes:
    padded = bytearray(data)
    padded += bytes(_RATE - len(data) % _RATE)
    padded[len(data)] ^= 0x01
    padded[-1] ^= 0x80
    lanes = {(x, y): 0 for x in range(5) for y in range(5)}
    for start in range(0, len(padded), _RATE):
        for index in range(_RATE // 8):
            word = padded[start + 8 * index : start + 8 * index + 8]
            lanes[index % 5, index // 5] ^= int.from_bytes(word, "little")
        lanes = _permute(lanes)
    return b"".join(lanes[x, 0].to_bytes(8, "little") for x in range(4))


def _permute(a: dict[tuple[int, int], int]) -> dict[tuple[int, int], int]:
    lfsr = 1
    for _ in range(24):
        c = [a[x, 0] ^ a[x, 1] ^ a[x, 2] ^ a[x, 3] ^ a[x, 4] for x in range(5)]
        a = {(x, y): lane ^ c[(x - 1) % 5] ^ _turn(c[(x + 1) % 5], 1) for (x, y), lane in a.items()}
        b = {(0, 0): a[0, 0]}
        x, y = 1, 0
        for t in range(24):
            b[y, (2 * x + 3 * y) % 5] = _turn(a[x, y], (t + 1) * (t + 2) // 2 % 64)
            x, y = y, (2 * x + 3 * y) % 5
        a = {(x, y): b[x, y] ^ (~b[(x + 1) % 5, y] & _MASK & b[(x + 2) % 5, y]) for x, y in b}
        for j in range(7):
            a[0, 0] ^= (lfsr & 1) << (2**j - 1)
            lfsr = (lfsr << 1) ^ (0x171 if lfsr & 0x80 else 0)
    return a


def _turn(lane: int, count: int) -> int:
    return (lane << count | lane >> (64 - count)) & _MASK
