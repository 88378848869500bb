"""Rate limits: by client address before authentication, by wallet after (protocol §7)."""

import ipaddress
from collections import OrderedDict
from collections.abc import Sequence

from appliance.clock import Clock
from kmscore.errors import Reason, Rejected

IngressNetworks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]
MAX_TRACKED = 65_536
MAX_FORWARDED_CHARS = 1024


class RateLimiter:
    """Token buckets of one minute's capacity; `per_minute` 0 turns the limit off.

    Bounded: beyond `MAX_TRACKED` keys the one longest unused is forgotten, which can only be generous to it.
    """

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._capacity = float(per_minute)
        self._per_ms = per_minute / 60_000
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def take(self, key: str) -> None:
        """Use one request of `key`. Raises `Rejected(RATE)` when there is none left."""
        if not self._capacity:
            return
        now_ms = self._clock.monotonic_ms()
        tokens = self._tokens(key, now_ms)
        if tokens < 1:
            raise Rejected(Reason.RATE, "too many requests")
        self._put(key, tokens - 1, now_ms)

    def give_back(self, key: str) -> None:
        """Return one request: it turned out to be authenticated, and its wallet is limited instead."""
        if self._capacity and key in self._buckets:
            now_ms = self._clock.monotonic_ms()
            self._put(key, min(self._capacity, self._tokens(key, now_ms) + 1), now_ms)

    def _tokens(self, key: str, now_ms: int) -> float:
        tokens, at_ms = self._buckets.get(key, (self._capacity, 0))
        return min(self._capacity, tokens + (now_ms - at_ms) * self._per_ms)

    def _put(self, key: str, tokens: float, now_ms: int) -> None:
        self._buckets[key] = (tokens, now_ms)
        self._buckets.move_to_end(key)
        if len(self._buckets) > MAX_TRACKED:
            self._buckets.popitem(last=False)


def client_key(client_host: str | None, forwarded_for: str, trusted: IngressNetworks) -> str:
    """What a client is limited by: its address, an IPv6 one by its /64.

    `forwarded_for` counts only when the connection comes from a trusted ingress; then it is the last address in it that
    is not itself a trusted one, and anything else in the header is a stranger's claim. A connection without an address
    (unix socket, vsock) can only be an ingress: it is believed when any ingress is trusted at all.
    """
    address = _parse(client_host or "")
    from_ingress = bool(trusted) if address is None else _within(address, trusted)
    if from_ingress and len(forwarded_for) <= MAX_FORWARDED_CHARS:
        for text in reversed(forwarded_for.split(",")):
            claimed = _parse(text)
            if claimed is None:
                break
            address = claimed
            if not _within(claimed, trusted):
                break
    if address is None:
        return "local"
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((address, 64), strict=False))
    return str(address)


def is_ingress(client_host: str, trusted: IngressNetworks) -> bool:
    """Whether connections from this address, "" for none, may be those of many clients: a trusted ingress, or a program
    on this machine.
    """
    address = _parse(client_host)
    return address is None or address.is_loopback or _within(address, trusted)


def _parse(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address as ingresses write it: bare, an IPv6 one perhaps in brackets, either perhaps with a port."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _within(address: ipaddress.IPv4Address | ipaddress.IPv6Address, networks: IngressNetworks) -> bool:
    return any(address in network for network in networks if network.version == address.version)
