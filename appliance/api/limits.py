"""Rate limits: by client address before authentication, by wallet after (protocol §7)."""

import ipaddress
from collections.abc import Sequence

IngressNetworks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]
MAX_FORWARDED_CHARS = 1024


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
